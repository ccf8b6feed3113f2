"""A small packed corpus and the configuration of a run on it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from promptmeup.config import load
from promptmeup.training.settings import PretrainConfig
from tests.support.packed import write_packed_split
from tests.support.real_data import ROOT
from tests.support.tiny_alignment import TINY

Configure = Callable[..., PretrainConfig]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_packed_split(
        tmp_path / "packed/train", num_images=12, captions_per_image=1, boxes_per_image=1, seed=1
    )


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """A run of a tiny model; the losses that need soft labels are off unless `labelled`."""

    def made(*overrides: str, labelled: bool = False) -> PretrainConfig:
        off = () if labelled else ("loss.weights.object_entity=0", "loss.weights.image_relation=0")
        model = TINY.model_dump_json(exclude_none=True)
        return load(
            PretrainConfig,
            ROOT / "configs/pretrain/tiny.yaml",
            [
                *(f"model={model}", "data.image.size=32", "start_from=null", "tracking.uri=null", *off),
                *(
                    f"out={tmp_path}/run",
                    f"data.train={tmp_path}/packed/train",
                    "data.val=null",
                    "global_batch=4",
                ),
                *overrides,
            ],
        )

    return made
