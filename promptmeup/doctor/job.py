"""What started this process, and how long its Slurm job may still run."""

import os
import re
import subprocess
import time
from collections.abc import Mapping

from promptmeup.doctor.finding import Finding, ok, warning

SHORT_SECONDS = 900
"""of time left below which a run will hardly get anywhere: starting and saving take minutes"""


def launcher_of(environment: Mapping[str, str]) -> str:
    """Return what started this process: deepspeed, torchrun, srun, or python."""
    if "RANK" in environment:
        if "TORCHELASTIC_RUN_ID" in environment:
            return "torchrun"
        return "deepspeed" if "CROSS_RANK" in environment else "a launcher"
    return "srun" if "SLURM_STEP_NUM_TASKS" in environment else "python"


def launcher() -> Finding:
    """Say what started the ranks, and whether Slurm's signal ahead of the time limit would reach them."""
    name = launcher_of(os.environ)
    job = os.environ.get("SLURM_JOB_ID")
    facts = {"launcher": name, "slurm_job": job, "restarts": os.environ.get("SLURM_RESTART_COUNT")}
    if job and name in ("deepspeed", "torchrun"):
        return warning(
            f"{name} inside Slurm job {job}: it does not pass USR2 on, so a run would not save ahead of "
            "the time limit; "
            "start one task a GPU with srun (slurm/pretrain.sh)",
            **facts,
        )
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0)
    again = f", start {restarts + 1}" if restarts else ""
    return ok(f"{name}{f' in Slurm job {job}{again}' if job else ', not under Slurm'}", **facts)


def time_left() -> Finding:
    """Say how long the job may still run, as Slurm has it now."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ok("no limit: not under Slurm", seconds=None)
    seconds = _ask_squeue(job)
    if seconds is None:
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        if not end.isdecimal():
            return warning(
                f"squeue does not say how long job {job} may run: check with scontrol show job {job}",
                seconds=None,
            )
        seconds = float(end) - time.time()
    if seconds == float("inf"):
        return ok("no limit", seconds=None)
    text = f"{_spoken(seconds)} until the limit of job {job}"
    if seconds < SHORT_SECONDS:
        return warning(
            f"{text}: hardly enough to start and to save; raise it (scontrol update JobId={job} "
            "TimeLimit=..., or sbatch "
            "--time)",
            seconds=round(seconds),
        )
    return ok(text, seconds=round(seconds))


def _ask_squeue(job: str) -> float | None:
    """Return the seconds left, infinity for no limit, None where squeue is not there or does not answer."""
    try:
        command = ["squeue", "-h", "-j", job, "-o", "%L"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_left(done.stdout.strip())


def parse_left(text: str) -> float | None:
    """Return the seconds of squeue's days-hours:minutes:seconds; infinity for UNLIMITED, None for anything else."""
    if text == "UNLIMITED":
        return float("inf")
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def _spoken(seconds: float) -> str:
    minutes = max(0, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
