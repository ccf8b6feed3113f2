"""The command in this process: lines, JSON alone on standard output, exit codes."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from promptmeup.config import dump
from promptmeup.doctor import checkup
from promptmeup.doctor.command import parse, run
from promptmeup.doctor.finding import look
from promptmeup.tracking.settings import TrackingConfig
from tests.unit.doctor.conftest import Configure

LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_JOB_ID",
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)


def leaves_with(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        run(parse(arguments))
    return int(left.value.code or 0)


def test_the_machine_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert leaves_with() == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["launcher", "time", "ranks"]
    assert any(line.startswith("ok      exchanges      alone: nothing to exchange") for line in lines)
    assert lines[-1].endswith("0 failed: nothing stands in the way")


def test_json_and_nothing_else(
    packed: Path,
    configure: Configure,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def noisy(*_: object) -> list[str]:
        print("a library says something")
        os.write(1, b"and so does its C code\n")
        return []

    monkeypatch.setattr("promptmeup.doctor.machine.PRINTED", ())
    monkeypatch.setattr("promptmeup.doctor.machine.versions", lambda: noisy() or {})
    (tmp_path / "run.yaml").write_text(dump(configure()))
    assert leaves_with("--config", "run.yaml", "--json", "data.workers=0") == 0
    captured = capfd.readouterr()
    values = json.loads(captured.out)
    assert values["status"] == "ok" and values["ranks"] == 1
    names = [check["name"] for check in values["checks"]]
    assert names == [
        *(
            "launcher",
            "time left",
            "ranks",
            "devices",
            "exchanges",
            "clocks",
            "cores",
            "shared memory",
            "open files",
        ),
        *(
            "versions",
            "data.train",
            "soft labels",
            "weights",
            "run folder",
            "global batch",
            "checkpoint",
            "tracker",
        ),
    ]
    assert "a library says something" in captured.err and "C code" in captured.err


def test_a_failed_check_and_a_wrong_configuration(
    packed: Path, configure: Configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(dump(configure(labelled=True)))
    assert leaves_with("--config", "run.yaml", "--full") == 1
    out = capfd.readouterr().out
    assert "FAILED  soft labels" in out and out.splitlines()[-1].endswith(
        "1 failed: a run would not get through"
    )
    assert "SHA-256 of 3 compared" in out
    with pytest.raises(Exception, match="unknown key 'nonsense'") as caught:
        run(parse(["--config", "run.yaml", "nonsense=1"]))
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]
    assert leaves_with_usage("--timeout", "0") == 2


def leaves_with_usage(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        parse(arguments)
    return int(left.value.code or 0)


def test_weights_that_are_absent_fail_once(
    packed: Path, configure: Configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(dump(configure("model.text.weights=no-such/bert", "data.workers=0")))
    assert leaves_with("--config", "run.yaml") == 1
    out = capfd.readouterr().out
    assert "FAILED  weights" in out and "is not known before its weights are here" in out
    assert out.splitlines()[-1].endswith("1 failed: a run would not get through")


def test_mlflow_that_is_not_installed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = look("tracker", checkup._tracker, TrackingConfig())
    assert found.status == "failed" and "tracking.uri=null" in found.text
    assert look("tracker", checkup._tracker, TrackingConfig(uri=None)).status == "ok"
