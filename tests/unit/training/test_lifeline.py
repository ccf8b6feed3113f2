"""What a rank writes when it ends, and when the thread beside it ends it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from promptmeup.distributed.world import World
from promptmeup.errors import ConfigError
from promptmeup.training import crash, lifeline
from promptmeup.training.crash import Report
from promptmeup.training.lifeline import Lifeline


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Short times, and a list of the codes that the process would have ended with."""
    codes: list[int] = []
    for name, seconds in (("LOOK", 0.02), ("AFTER_CRASH", 0.1), ("AFTER_SIGNAL", 0.2), ("OTHERS", 0.2)):
        monkeypatch.setattr(lifeline, f"_{name}_SECONDS", seconds)
    monkeypatch.setattr(lifeline.os, "_exit", codes.append)
    return codes


def alive(run: Path, *, rank: int = 0, size: int = 2, timeout: float = 100) -> Lifeline:
    return Lifeline(run, world=World(rank, size, rank, torch.device("cpu")), timeout=timeout)


def report(rank: int, kind: Any, *, step: int = 3, error: str = "said") -> Report:
    return Report(rank, kind, "step", step, ("key",), error, "stack")


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "crash.json").read_text())  # type: ignore[no-any-return]


def test_who_was_the_first(tmp_path: Path) -> None:
    crash.write(tmp_path, report(0, "lost contact"))
    assert "ranks 1, 2 ended without a word: killed" in crash.summarise(tmp_path, size=3)
    crash.write(tmp_path, report(2, "hangs", step=2, error="late"))
    crash.write(tmp_path, report(1, "hangs", step=3, error="later"))
    assert "rank 2" in crash.summarise(tmp_path, size=3), "the one that is behind"
    crash.write(tmp_path, report(1, "raised", error="the cause"))
    assert "step 4, step: the cause" in crash.summarise(tmp_path, size=3)
    assert summary(tmp_path)["first"] == 1 and summary(tmp_path)["keys"] == ["key"]

    assert "the cause" in str(crash.put_aside(tmp_path))
    assert crash.put_aside(tmp_path) is None and (tmp_path / "crash-1.json").exists()


def _raise_and_close_slowly(run: Path) -> None:
    with alive(run) as life:
        life.note("step", 6, ("aa",))
        try:
            with life.reporting():
                raise RuntimeError("the cause")
        finally:
            crash.write(run, report(1, "waits"))
            time.sleep(0.5)


def test_the_first_report_of_a_rank_stays(tmp_path: Path, ended: list[int]) -> None:
    """Others write that they wait, while this one still closes the tracker."""
    with pytest.raises(RuntimeError):
        _raise_and_close_slowly(tmp_path)
    assert ended == []
    assert summary(tmp_path)["headline"].endswith("step 7, step: RuntimeError: the cause")


def test_another_ranks_end_ends_this_one(tmp_path: Path, ended: list[int]) -> None:
    statuses: list[str] = []
    with alive(tmp_path) as life:
        life.abandon = statuses.append
        life.note("step", 6)
        crash.write(tmp_path, report(1, "raised", error="the cause"))
        time.sleep(0.6)
    assert ended[:1] == [1] and statuses[:1] == ["FAILED"]
    assert "the cause" in summary(tmp_path)["headline"]


def test_a_step_that_takes_too_long(tmp_path: Path, ended: list[int]) -> None:
    with alive(tmp_path, size=1, timeout=0.3) as life:
        time.sleep(0.5)
        assert ended == [], "starting may take its time"
        life.note("reading data", 6)
        time.sleep(0.7)
    assert ended[:1] == [1]
    assert "step 7, reading data: does not get on: no progress for 0 s" in summary(tmp_path)["headline"]


def test_a_disk_that_takes_no_report_hides_no_error(tmp_path: Path, ended: list[int]) -> None:
    (tmp_path / "crash").touch()  # no folder can be made there
    with pytest.raises(RuntimeError, match="the cause"), alive(tmp_path):
        raise RuntimeError("the cause")
    with alive(tmp_path, size=1, timeout=0.1) as life:
        life.note("step", 1)
        time.sleep(0.5)
    assert ended[:1] == [1], "ended all the same"


def test_a_wrong_configuration_is_no_crash(tmp_path: Path, ended: list[int]) -> None:
    with pytest.raises(ConfigError), alive(tmp_path):
        raise ConfigError("no")
    assert not (tmp_path / "crash.json").exists() and ended == []
