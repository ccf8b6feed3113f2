"""What a run says of the corpora that it is given."""

from pathlib import Path

import pytest

from promptmeup.config import load
from promptmeup.data.reader import PackedSplit
from promptmeup.data.sources import Sources
from promptmeup.training.inputs import untrainable_matching
from promptmeup.training.settings import PretrainConfig
from tests.support.packed import write_packed_split
from tests.support.real_data import ROOT


@pytest.mark.parametrize(
    ("falsified", "overrides", "said"),
    [
        (False, [], True),
        (True, ["data.pairs=matched"], True),
        (True, [], False),
        (False, ["data.mismatched=0.5"], False),
        (False, ["loss.weights.matching=0"], False),
    ],
)
def test_matching_without_a_pair_that_does_not_match(
    tmp_path: Path, falsified: bool, overrides: list[str], said: bool
) -> None:
    folder = write_packed_split(
        tmp_path / "train",
        num_images=4,
        captions_per_image=1,
        boxes_per_image=1,
        seed=1,
        falsified=falsified,
    )
    settings = [f"data.train={folder}", "data.val=null", f"out={tmp_path}/run", *overrides]
    config = load(PretrainConfig, ROOT / "configs/pretrain/tiny.yaml", settings)
    sources = Sources((PackedSplit(folder),), (1.0,), 1, 2, config.data.pairs)
    found = untrainable_matching(config, sources)
    assert (found is not None) is said
    assert found is None or "data.mismatched=0.5 shows half of them" in found
