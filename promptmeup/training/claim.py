"""One start of a run at a time: a second one, such as a job submitted twice, would remove the first one's checkpoints.

RUN/lock says who trains there, and is locked by rank 0 as long as it lives: by a POSIX lock, which data workers do not
inherit, so that those of a killed rank keep nobody out.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from promptmeup.distributed.world import World, broadcast_object, say, warn
from promptmeup.errors import TrainingError

LOCK_FILE = "lock"
_PATIENCE = 60.0
"""seconds: a start that has been told to end may take some to save"""


@contextmanager
def claimed(run: Path, *, world: World) -> Iterator[None]:
    """Keep others out of `run`, where its file system has locks. Collective at its beginning.

    Raises:
        TrainingError: another start trains there.
    """
    file = _open(run) if world.is_main else None
    try:
        rival = broadcast_object(_wait(file, run, world) if file is not None else None, world)
        if rival is not None:
            raise TrainingError(
                f"{run} is being trained by another start, {rival}: both would remove each other's checkpoints. Wait "
                "until that one ends, or end it, or choose another out=. If its host is dead, and the file server has "
                f"not noticed, delete {run / LOCK_FILE}"
            )
        yield
    finally:
        if file is not None:
            os.close(file)  # which unlocks it


def _open(run: Path) -> int | None:
    with suppress(OSError):  # what cannot be written is told by those who must write
        run.mkdir(parents=True, exist_ok=True)
        return os.open(run / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    return None


def _wait(file: int, run: Path, world: World) -> str | None:
    """Lock the file; return who has it where that is somebody else, and stays so."""
    if _lock(file):
        return None
    end = time.monotonic() + _PATIENCE
    say(
        world,
        f"{run} is being trained by another start, {_name(_read(file))}: waiting {_PATIENCE:g} s for its end",
    )
    while time.monotonic() < end:
        time.sleep(1)
        if _lock(file):
            return None
    holder = _read(file)
    if not _is_earlier_start(holder):
        return _name(holder)
    # its host is gone, and the lock stays on the server until that comes back
    warn(f"{run} is still locked by {_name(holder)}, an earlier start of this job: going on without a lock")
    return None


def _lock(file: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # no locks here
    with suppress(OSError):
        mine = json.dumps(
            {**_job(), "host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
        )
        os.ftruncate(file, 0)
        os.pwrite(file, mine.encode(), 0)
    return True


def _job() -> dict[str, str | None]:
    return {"job": os.environ.get("SLURM_JOB_ID"), "restart": os.environ.get("SLURM_RESTART_COUNT", "0")}


def _read(file: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(file, 10_000, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_earlier_start(holder: dict[str, Any]) -> bool:
    """Whether it is this job before it was queued again, so that Slurm has ended it."""
    mine = _job()
    return (
        mine["job"] is not None
        and holder.get("job") == mine["job"]
        and holder.get("restart") != mine["restart"]
    )


def _name(holder: dict[str, Any]) -> str:
    job = f" in Slurm job {holder['job']}" if holder.get("job") else ""
    since = time.strftime("%F %T", time.localtime(holder.get("since", 0))) if "since" in holder else "unknown"
    return (
        f"process {holder.get('process', '?')} on {holder.get('host', 'an unknown host')}{job} since {since}"
    )
