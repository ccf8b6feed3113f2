"""Another process that trains in a run's folder, as a job that was submitted twice."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.real_data import ROOT

HOLDER = """
import os, sys, time
from pathlib import Path
from promptmeup.distributed.world import World
from promptmeup.training.claim import claimed
with claimed(Path(sys.argv[1]), world=World(0, 1, 0, device=None)):
    worker = os.fork()  # as data workers are: it has all that is open
    if worker:
        print(worker, flush=True)
    time.sleep(600)
"""


@contextmanager
def another_start(run: Path, **variables: str) -> Iterator[tuple[int, int]]:
    """Yield the processes of a start that has `run`, and of its worker, which outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        yield process.pid, worker
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.kill(worker, signal.SIGKILL)
