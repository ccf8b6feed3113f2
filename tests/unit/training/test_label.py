"""What a labelling run asks of its processes."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import pytest

from promptmeup.config import load
from promptmeup.training.label import LabelRunConfig, label


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
