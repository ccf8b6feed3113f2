"""What started the ranks, and the time that Slurm leaves them."""

import subprocess
import time
from types import SimpleNamespace

import pytest

from promptmeup.doctor import job

NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "CROSS_RANK", "TORCHELASTIC_RUN_ID"),
    *("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_RESTART_COUNT", "SLURM_JOB_END_TIME"),
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def _squeue(monkeypatch: pytest.MonkeyPatch, answer: str | Exception) -> None:
    def run(command: list[str], **_: object) -> SimpleNamespace:
        assert command == ["squeue", "-h", "-j", "7", "-o", "%L"]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(stdout=answer)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("SLURM_JOB_ID", "7")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, "python"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun"),
        ({"RANK": "0", "TORCHELASTIC_RUN_ID": "x"}, "torchrun"),
        ({"RANK": "0", "CROSS_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}, "deepspeed"),
        ({"RANK": "0"}, "a launcher"),
    ],
)
def test_launchers(environment: dict[str, str], name: str) -> None:
    assert job.launcher_of(environment) == name


def test_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job.launcher().text == "python, not under Slurm"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert (job.launcher().status, job.launcher().text) == ("ok", "srun in Slurm job 7, start 3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("CROSS_RANK", "0")
    found = job.launcher()
    assert found.status == "warning"
    assert (
        "deepspeed inside Slurm job 7: it does not pass USR2 on" in found.text and "with srun" in found.text
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4:05", 245),
        ("1:00:00", 3600),
        ("2-03:00:10", 183610),
        ("UNLIMITED", float("inf")),
        ("INVALID", None),
        ("", None),
    ],
)
def test_what_squeue_says(text: str, seconds: float | None) -> None:
    assert job.parse_left(text) == seconds


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job.time_left().text == "no limit: not under Slurm"
    _squeue(monkeypatch, "23:30:00\n")
    assert (job.time_left().status, job.time_left().text) == ("ok", "23 h 30 min until the limit of job 7")
    _squeue(monkeypatch, "UNLIMITED\n")
    assert job.time_left().text == "no limit"
    _squeue(monkeypatch, "4:00\n")
    found = job.time_left()
    assert found.status == "warning" and found.facts["seconds"] == 240
    assert "4 min until the limit of job 7" in found.text and "scontrol update JobId=7" in found.text


@pytest.mark.parametrize("error", [FileNotFoundError("squeue"), subprocess.TimeoutExpired("squeue", 10)])
def test_time_left_without_squeue(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _squeue(monkeypatch, error)
    found = job.time_left()
    assert found.status == "warning" and "scontrol show job 7" in found.text
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 7200)))
    assert job.time_left().status == "ok" and job.time_left().text.startswith("2 h 00 min")
