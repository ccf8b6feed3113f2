"""One small news world, packed, with a teacher and soft labels, shared by all integration tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from promptmeup.config import load
from promptmeup.corpora.synthetic import SyntheticConfig, generate
from promptmeup.corpora.synthetic_extraction import ExtractionSizes
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig
from promptmeup.training.label import LabelRunConfig, label
from promptmeup.training.settings import PretrainConfig
from tests.support.ranks import run_ranks
from tests.support.real_data import ROOT

TINY = (
    "start_from=null",
    "model.text.hidden=32",
    "model.text.intermediate=64",
    "model.text.layers=2",
    "model.text.fusion_layer=1",
    "model.vision.image_size=32",
    "model.vision.patch=8",
    "model.vision.hidden=32",
    "model.vision.layers=1",
    "model.width=32",
    "data.image.size=32",
    "data.workers=0",
    "global_batch=16",
    "epochs=null",
    "tracking.uri=null",
    "tracking.log_every=1",
    "evaluate_every=0",
    "save_every=0",
)


def tiny_config(world: Path, *overrides: str, kind: str = "tiny") -> PretrainConfig:
    """Return the quickstart's configuration, shrunk to seconds."""
    return load(
        PretrainConfig,
        ROOT / f"configs/pretrain/{kind}.yaml",
        [*TINY, f"data.train={world}/packed/train", f"data.val={world}/packed/val", *overrides],
    )


def train_on_rank(world: Any, config: PretrainConfig) -> bool:
    """Body of a rank, which returns whether it finished; imported late, so that the server of ranks stays light."""
    from promptmeup.training.pretrain import train

    return train(config, world) == 0


@pytest.fixture(scope="session")
def news_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("news_world")
    generate(
        SyntheticConfig(
            out=folder / "corpus",
            num_train_images=60,
            num_val_images=21,
            captions_per_image=2,
            extraction=ExtractionSizes(num_train=0, num_val=0, num_test=0),
        )
    )
    pack(
        load(
            PackConfig,
            ROOT / "configs/pack/synthetic.yaml",
            [f"corpus.root={folder}/corpus", f"out={folder}/packed", "samples_per_shard=25"],
        )
    )
    teacher = tiny_config(folder, f"out={folder}/teacher", "steps=12", kind="teacher_tiny")
    assert run_ranks(train_on_rank, 1, teacher, timeout=120) == [True]
    label(
        load(
            LabelRunConfig,
            ROOT / "configs/label/tiny.yaml",
            # a teacher of seconds is sure of nothing: a low temperature makes some labels count
            [
                *(f"teacher={folder}/teacher/model", "temperature=0.003"),
                f"splits=[{folder}/packed/train, {folder}/packed/val]",
            ],
        )
    )
    return folder
