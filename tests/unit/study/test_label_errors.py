"""Shuffled labels: a share of the rows elsewhere, all of them still there, and a set that readers take."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptmeup import shard_format as sf
from promptmeup.data.reader import LabelReader, PackedSplit
from promptmeup.errors import ConfigError, ShardError
from promptmeup.packing.verify import verify
from promptmeup.prompts.quality import statistics
from promptmeup.study.label_errors import LabelErrorsConfig, shuffle_labels
from tests.support.packed import NUM_ENTITIES, write_labels, write_packed_split

KINDS = ("objects", "images")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "train"
    return write_packed_split(
        folder, num_images=10, captions_per_image=1, boxes_per_image=3, seed=0, labels="bank"
    )


def linked(packed: Path, folder: Path) -> Path:
    """Return a copy of the split that shares its files."""
    return Path(shutil.copytree(packed, folder / "train", copy_function=os.link))


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(split: Path, kind: str) -> list[bytes]:
    (labels,) = sf.finished_labels(split)
    shards = sf.read_manifest(split).shards
    return [row.tobytes() for shard in shards for row in np.load(sf.label_file(labels, shard.name, kind))]


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0, 1), seed=st.integers())
def test_a_share_of_the_rows_change_places(
    packed: Path, tmp_path_factory: pytest.TempPathFactory, rate: float, seed: int
) -> None:
    split = linked(packed, tmp_path_factory.mktemp("copy"))
    before = content(packed)
    shuffle_labels(LabelErrorsConfig(split=split, rate=rate, seed=seed))
    assert content(packed) == before
    for kind in KINDS:
        old, new = rows(packed, kind), rows(split, kind)
        assert sorted(old) == sorted(new) and len(set(old)) == len(old)
        expected = round(rate * len(old))
        assert sum(a != b for a, b in zip(old, new, strict=True)) == (expected if expected > 1 else 0)


def test_killed_before_the_old_set_was_removed(packed: Path, tmp_path: Path) -> None:
    split, config = linked(packed, tmp_path), LabelErrorsConfig(split=tmp_path / "train", rate=0.5)
    shuffle_labels(config)
    expected = content(split)
    (old,) = sf.finished_labels(packed)
    shutil.copytree(old, split / "labels" / old.name)
    shuffle_labels(config)
    assert content(split) == expected


def test_the_new_set_is_the_only_one_and_sound(packed: Path, tmp_path: Path) -> None:
    split = linked(packed, tmp_path)
    shuffle_labels(LabelErrorsConfig(split=split, rate=0.5, seed=3))
    (folder,) = (split / "labels").iterdir()
    assert not list(split.glob(".labels*"))
    opened = PackedSplit(split)
    assert folder.name == f"bank-shuffled-0.5-3-{opened.manifest.fingerprint[:8]}"
    report = verify([split])
    assert not report.findings and not report.notes
    manifest = LabelReader(folder, opened).manifest
    assert manifest.made_with["shuffled"] == {"of": "bank", "rate": 0.5, "seed": 3}
    (old,) = sf.finished_labels(packed)
    arrays = [np.load(path) for path in sorted(old.glob("*.objects.npy"))]
    for name, value in statistics(arrays, num_prompts=NUM_ENTITIES).items():
        assert manifest.statistics[f"objects_{name}"] == pytest.approx(value)
    assert manifest.statistics["images_rows"] == 10 and len(manifest.statistics) == 10


def test_the_same_again_does_nothing_and_a_wider_circle_keeps_a_narrower_one(
    packed: Path, tmp_path: Path
) -> None:
    found = {}
    for rate in (0.4, 0.8):
        split = linked(packed, tmp_path / str(rate))
        shuffle_labels(LabelErrorsConfig(split=split, rate=rate))
        before = content(split)
        shuffle_labels(LabelErrorsConfig(split=split, rate=rate))
        assert content(split) == before
        found[rate] = rows(split, "objects")
    old = rows(packed, "objects")
    moved = [place for place in range(len(old)) if found[0.4][place] != old[place]]
    assert sum(found[0.8][place] != found[0.4][place] for place in moved) <= 1  # where the circle closed


def test_refusals(packed: Path, tmp_path: Path) -> None:
    split = linked(packed, tmp_path)
    write_labels(split, "other", seed=1)
    with pytest.raises(ConfigError, match=r"has 2 sets of soft labels \(bank, other\): remove the folders"):
        shuffle_labels(LabelErrorsConfig(split=split, rate=0.5))
    shuffle_labels(LabelErrorsConfig(split=split, rate=0))
    shutil.rmtree(split / "labels/bank")
    (split / "labels/other/shard-000001.images.npy").unlink()
    with pytest.raises(ShardError, match="files are missing or changed: remove that folder"):
        shuffle_labels(LabelErrorsConfig(split=split, rate=0.5))
    assert [path.name for path in (split / "labels").iterdir()] == ["other"]
    shutil.rmtree(split / "labels")
    with pytest.raises(ConfigError, match="no finished soft labels to shuffle: run launch/label"):
        shuffle_labels(LabelErrorsConfig(split=split, rate=0.5))
