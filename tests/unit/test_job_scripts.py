"""The job scripts beside Slurm: srun and scontrol are stand-ins that write down how they were called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from promptmeup.distributed.world import World
from promptmeup.records import RunState
from promptmeup.training import checkpoint
from tests.support.real_data import ROOT

SRUN = """#!/usr/bin/env bash
echo "srun $*" >> calls
case "$*" in *doctor*) exit "${DOCTOR_CODE:-0}" ;; esac
[ -z "${SAVES:-}" ] || printf '%s\\n' "$SAVES" > "$PROMPTMEUP_PROGRESS_FILE"
exit "${CODE:-0}"
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = requeue ] && echo "scontrol $*" >> calls
[ "$1" = requeue ] || echo node1
"""


def submit(folder: Path, script: str, *overrides: str, **variables: str) -> tuple[int, str, list[str]]:
    """Run a script as Slurm would in `folder`; return code, output, and the calls of srun and scontrol."""
    if not (folder / "slurm").exists():
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        (folder / ".venv/bin").mkdir(parents=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / ".venv/bin" / name).write_text(text)
            (folder / ".venv/bin" / name).chmod(0o755)
        (folder / "a.yaml").touch()
    (folder / "calls").unlink(missing_ok=True)
    slurm = {"SLURM_JOB_ID": "52345", "SLURM_JOB_NODELIST": "node1", "SLURM_SUBMIT_DIR": str(folder)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "DOCTOR"))}
    done = subprocess.run(
        ["bash", folder / "slurm" / script, "a.yaml", *overrides],
        cwd=folder,
        env=kept | slurm | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr, (folder / "calls").read_text().splitlines()


def test_one_task_of_an_array_is_queued_again(tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "52345", "SLURM_ARRAY_TASK_ID": "3"}
    code, _, calls = submit(tmp_path, "study.sh", CODE="85", **array)
    assert (code, calls[-1]) == (0, "scontrol requeue 52345_3")
    told_at_its_report = submit(tmp_path, "study.sh", CODE="140", **array)
    assert (told_at_its_report[0], told_at_its_report[2][-1]) == (0, "scontrol requeue 52345_3")
    code, _, calls = submit(tmp_path, "pretrain.sh", CODE="85")
    assert (code, calls[-1]) == (0, "scontrol requeue 52345")


def test_the_doctor_ends_a_first_start_alone(tmp_path: Path) -> None:
    code, _, calls = submit(tmp_path, "pretrain.sh", "steps=3", DOCTOR_CODE="1")
    assert code == 1 and len(calls) == 1
    assert "--wait=600" in calls[0] and "doctor.py --config a.yaml --timeout 600 steps=3" in calls[0]
    code, text, calls = submit(tmp_path, "pretrain.sh", DOCTOR_CODE="140", SLURM_RESTART_COUNT="1")
    assert code == 0 and "pretrain.py" in calls[1] and "--wait=60 " in calls[1]
    assert "the doctor ended with 140; a job that was queued again starts all the same" in text
    assert len(submit(tmp_path, "pretrain.sh", DOCTOR="off")[2]) == 1


def test_the_same_step_saved_again_is_a_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that went back to an older checkpoint, and crashes after the step that the last start had saved."""
    file = tmp_path / "progress"
    monkeypatch.setenv(checkpoint.PROGRESS_FILE, str(file))

    def write(*, folder: Path, tag: str) -> None:
        (folder / tag).mkdir(parents=True)

    def saved() -> str:
        world = World(0, 1, 0, device=None)  # type: ignore[arg-type]
        assert checkpoint.save(write, run=tmp_path / "run", state=RunState(step=4), world=world) is None
        return file.read_text()

    before, again = saved(), saved()
    file.write_text(before)
    code, text, calls = submit(tmp_path, "finetune.sh", CODE="1", SAVES=again.strip())
    assert (code, calls[-1]) == (0, "scontrol requeue 52345")
    assert f"start 1 of job 52345 ended with 1; last checkpoint: step 4 of {tmp_path}/run\n" in text
    code, text, calls = submit(tmp_path, "finetune.sh", CODE="1")
    assert code == 1 and len(calls) == 1
    assert f"no checkpoint was gained since the start (step 4 of {tmp_path}/run), so the next" in text


@pytest.mark.parametrize("job", [1, 19_999, 20_000, 52_345, 3_000_000])
def test_ports_are_not_those_of_outgoing_connections(tmp_path: Path, job: int) -> None:
    submit(tmp_path, "pretrain.sh")
    ask = "source slurm/env.sh; echo $MASTER_PORT"
    variables = {"SLURM_JOB_ID": str(job), "SLURM_JOB_NODELIST": "node1", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", ask],
        cwd=tmp_path,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1024 < int(done.stdout) < 32_768
