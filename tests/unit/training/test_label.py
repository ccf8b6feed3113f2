"""What a labelling run asks of its processes."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import pytest

from promptmeup.config import load
from promptmeup.errors import ShardError
from promptmeup.training.label import LabelRunConfig, label
from tests.support.packed import write_packed_split


def test_where_nothing_can_be_written_no_teacher_is_loaded(tmp_path: Path) -> None:
    split = write_packed_split(
        tmp_path / "train", num_images=2, captions_per_image=1, boxes_per_image=1, seed=1
    )
    manifest = json.loads((split / "manifest.json").read_text())
    manifest["packed_with"] |= {"boxes": {}, "entities": {}}
    (split / "manifest.json").write_text(json.dumps(manifest))
    (split / "labels").touch()
    with pytest.raises(
        ShardError, match=r"cannot read or write .*labels: File exists; make room .* labels lie beside"
    ):
        label(load(LabelRunConfig, None, ["teacher=/no/such", f"splits=[{split}]", "device=cpu"]))


def test_processes_wait_for_each_other_for_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their shares are of shards, and nobody says a word before all have labelled theirs."""
    asked: dict[str, Any] = {}

    class Asked(Exception):  # noqa: N818
        pass

    def state(**named: Any) -> None:
        asked.update(named)
        raise Asked

    monkeypatch.setattr(accelerate, "PartialState", state)
    with pytest.raises(Asked):
        label(load(LabelRunConfig, None, ["teacher=a", f"splits=[{tmp_path}]", "bank.vocabulary.size=8"]))
    assert asked["timeout"] >= timedelta(hours=12)
