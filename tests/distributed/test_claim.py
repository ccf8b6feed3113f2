"""Two starts of one run: the second waits, and then says who has it; a killed one keeps nobody out."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from promptmeup.distributed.world import World
from promptmeup.errors import TrainingError
from promptmeup.training import claim
from tests.support.another_start import another_start
from tests.support.ranks import RankError, run_ranks

ALONE = World(0, 1, 0, device=None)  # type: ignore[arg-type]


def start(world: World, run: Path, patience: float) -> str:
    claim._PATIENCE = patience
    with claim.claimed(run, world=world):
        return "trains"


def test_a_second_start_is_refused_on_all_ranks(tmp_path: Path) -> None:
    with another_start(tmp_path / "run", SLURM_JOB_ID="7") as (pid, _):
        told = rf"run is being trained by another start, process {pid} on \S+ in Slurm job 7 since 2\d\d\d-.*/lock"
        with pytest.raises(RankError, match=told):
            run_ranks(start, 2, tmp_path / "run", 0.1, timeout=60)
        assert not (tmp_path / "run/crash").exists(), "which would end the ranks of the other"


def test_the_workers_of_a_killed_start_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_PATIENCE", 0.0)
    with another_start(tmp_path) as (pid, worker):
        with pytest.raises(TrainingError):
            start(ALONE, tmp_path, 0.0)
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 10
        assert start(ALONE, tmp_path, 10.0) == "trains" and time.monotonic() < until
        os.kill(worker, 0)
    assert start(ALONE, tmp_path, 0.0) == "trains", "and a claim ends with its start"


def test_a_job_that_was_queued_again_is_not_kept_out_by_its_dead_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lock of a host without power stays on some file servers until it is back."""
    monkeypatch.setattr(claim, "_PATIENCE", 0.0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with another_start(tmp_path, SLURM_JOB_ID="7"):
        with pytest.raises(TrainingError, match="in Slurm job 7"):
            start(ALONE, tmp_path, 0.0)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert start(ALONE, tmp_path, 0.0) == "trains"
        assert "an earlier start of this job: going on without a lock" in capsys.readouterr().err


def test_where_there_are_no_locks_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claim.fcntl, "lockf", refuse)
    assert start(ALONE, tmp_path, 0.0) == "trains"
    monkeypatch.undo()
    assert start(ALONE, tmp_path, 0.0) == "trains"
    assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    (tmp_path / "file").touch()
    assert start(ALONE, tmp_path / "file/run", 0.0) == "trains", "who must write there says so"
