"""Why a run of several ranks ended: every rank's own report, and one file that says which was the first.

RUN/crash.json     what happened first, and what the others say; kept as crash-1.json, ... when the run is started again
RUN/crash/N.json   the report of rank N, written before it leaves

A rank that is killed leaves no report, and the others fail in their next exchange with it: who says nothing while
the others have lost contact is the one that was killed.
"""

import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from promptmeup.shard_format import write_json

Kind = Literal["raised", "hangs", "waits", "lost contact"]

_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "timed out",
    "Socket Timeout",
    "NCCL",
    "ncclRemoteError",
    "gloo",
    "recvValue failed",
    "sendBytes failed",
)
"""in messages of gloo, NCCL and their store when another rank is gone"""
_WAITING = (
    "torch/distributed/",
    "deepspeed/comm/",
    "promptmeup/distributed/collectives.py",
    "promptmeup/distributed/world.py",
    "promptmeup/training/forward.py",
    "promptmeup/training/loop.py",
)
"""files that a rank is in while it waits for others, or, on a GPU, for what the GPU waits for"""


@dataclass(frozen=True)
class Report:
    """What one rank says of its end."""

    rank: int
    kind: Kind
    phase: str
    """what it was doing"""
    step: int
    """optimizer steps done"""
    keys: Sequence[str]
    """of its batch"""
    error: str
    stack: str
    time: float = field(default_factory=time.time)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


def kind_of(error: BaseException) -> Kind:
    """Return whether an exception is a rank's own or what it sees of another one's end."""
    is_lost = isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _LOST)
    return "lost contact" if is_lost else "raised"


def is_waiting(stack: str) -> bool:
    """Whether a rank with this stack is in an exchange with others, by its innermost Python frame."""
    frames = [line for line in stack.splitlines() if line.lstrip().startswith("File ")]
    return bool(frames) and any(place in frames[-1] for place in _WAITING)


def write(run: Path, report: Report) -> None:
    """Write a rank's report; a disk that refuses it costs the report and nothing else."""
    try:
        (run / "crash").mkdir(parents=True, exist_ok=True)
        write_json(run / "crash" / f"{report.rank}.json", asdict(report))
    except OSError as error:
        print(f"rank {report.rank}: cannot write its crash report: {error.strerror}", flush=True)


def read(run: Path) -> list[Report]:
    """Return the reports that are there, in the order of ranks."""
    found = []
    try:
        paths = list((run / "crash").glob("*.json"))
    except OSError:  # a network file system that is away for the moment
        return []
    for path in paths:
        try:
            found.append(Report(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # another rank is writing it, or could not
    return sorted(found, key=lambda report: report.rank)


def summarise(run: Path, *, size: int) -> str:
    """Write crash.json from the reports that are there and return its headline."""
    reports = read(run)
    silent = [rank for rank in range(size) if rank not in {report.rank for report in reports}]
    raised = [report for report in reports if report.kind == "raised"]
    hanging = [report for report in reports if report.kind == "hangs"]
    first: Report | None = None
    if raised or (reports and not hanging and not silent):
        first = min(raised or reports, key=lambda report: report.time)
        what = first.error
    elif hanging:
        first = min(hanging, key=lambda report: (report.step, report.time))  # the one that is behind
        what = f"does not get on: {first.error}"
    if first is not None:
        headline = f"rank {first.rank} on {first.host}, step {first.step + 1}, {first.phase}: {what}"
    else:
        names = ", ".join(map(str, silent))
        headline = (
            f"rank{'s' if len(silent) > 1 else ''} {names} ended without a word: killed (out of memory? `dmesg`, "
            "`sacct`), or the node is gone"
        )
    summary = {
        "headline": headline,
        "first": first.rank if first else silent[0],
        "keys": list(first.keys) if first else [],
        "traceback": first.stack.splitlines() if first else [],
        "silent": silent,
        "reports": [asdict(report) for report in reports],
    }
    try:
        write_json(run / "crash.json", summary)
    except OSError as error:
        print(f"cannot write {run / 'crash.json'}: {error.strerror}", flush=True)
    return headline


def put_aside(run: Path) -> str | None:
    """Make room for the next start's reports; return the headline of the last start's end, if it ended badly."""
    shutil.rmtree(run / "crash", ignore_errors=True)
    last = run / "crash.json"
    if not last.exists():
        return None
    number = 1
    while (run / f"crash-{number}.json").exists():
        number += 1
    try:
        headline = str(json.loads(last.read_text(encoding="utf-8"))["headline"])
    except (OSError, ValueError, KeyError, TypeError):
        headline = "cannot be read"
    last.rename(run / f"crash-{number}.json")
    return headline


def stack_of(error: BaseException) -> str:
    """Return the traceback of an exception as text."""
    return "".join(traceback.format_exception(error))
