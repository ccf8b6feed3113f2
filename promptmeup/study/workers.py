"""Workers that look for stages to run until none is left; each stage runs in a process of its own.

Without GPUs that process is forked from its worker, which has the libraries imported, so that they cost it nothing.
With GPUs it starts afresh, some ten seconds: DeepSpeed asks CUDA for its devices when imported, and no fork can use it.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from promptmeup.shard_format import write_json
from promptmeup.study.job import BUSY, STOPPED, is_busy, run_stage
from promptmeup.study.plan import Stage
from promptmeup.tracking.console import duration
from promptmeup.tracking.signal_watch import STOP_SIGNALS
from promptmeup.training.signals import SAVED_EXIT_CODE

_PAUSE = 1.0
"""seconds between two looks for work that waits for others"""


class Worker:
    """Runs stages whose needs are done, in their order; what failed since it was made is not tried again."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        title: Callable[[Stage], str],
        done: Callable[[], None],
        gpus: str | None = None,
    ) -> None:
        self._stages, self._title, self._done, self._gpus = tuple(stages), title, done, gpus
        self._earlier = {stage.folder: _failure(stage) for stage in stages}
        self._context = multiprocessing.get_context("fork" if gpus is None else "spawn")
        self._child: BaseProcess | None = None
        self._is_told = False

    def run(self, *, parent: int | None = None) -> int:
        """Return 0 when all is done, 1 when the rest cannot be, 85 after a signal.

        Args:
            parent: the process without which the worker does not go on.
        """
        waits = False
        with _handled(self._stop):
            while not self._is_told and parent in (None, os.getppid()):
                ready = self._ready()
                if not ready:
                    break
                # after each from the first one again: their order is that of what matters
                if any(self._run(stage) != BUSY for stage in ready):
                    waits = False
                    continue
                if not waits:
                    names = ", ".join(dict.fromkeys(stage.name for stage in ready))
                    print(f"waiting for what other processes run: {names}", flush=True)
                waits = True
                time.sleep(_PAUSE)
        if all(stage.done.exists() for stage in self._stages):
            return 0
        return SAVED_EXIT_CODE if self._is_told else 1

    def _ready(self) -> list[Stage]:
        """Return the stages that can be run, or that others run; where there are none, nothing can be done."""
        done: set[Path] = set()
        failed: set[Path] = set()
        ready = []
        for stage in self._stages:  # each after those that it needs
            if stage.done.exists():
                done.add(stage.folder)
            elif _failure(stage) not in (None, self._earlier[stage.folder]) or failed.intersection(
                stage.needs
            ):
                failed.add(stage.folder)
            elif done.issuperset(stage.needs):
                ready.append(stage)
        return ready

    def _run(self, stage: Stage) -> int:
        """Run a stage and say what came of it; a stop signal that comes before its process does finds it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if self._is_told or is_busy(stage):
                return BUSY
            self._child = self._context.Process(  # type: ignore[attr-defined]
                target=_in_child, args=(stage, self._title(stage), self._gpus)
            )
            began = time.time()
            self._child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        _wait(self._child)
        child, self._child = self._child, None
        child.join()
        code = child.exitcode
        assert code is not None
        if code == BUSY:
            return code
        if code == 0:
            self._done()
            ended = f"done in {duration(time.time() - began)}"
        elif code in STOPPED or -code in STOP_SIGNALS:
            self._is_told = True  # by whoever told the stage
            ended = "stopped"
        else:
            if code < 0 or _failure(stage) == self._earlier[stage.folder]:  # it could not say so itself
                write_json(stage.beside("failed.json"), {"stage": stage.name, "exit_code": code})
            ended = f"FAILED with {code}; see {stage.beside('log')}"
        finished = sum(other.done.exists() for other in self._stages)
        print(
            f"[{finished}/{len(self._stages)}] {stage.name} {ended}: {self._title(stage)}",
            flush=True,
        )
        return code

    def _stop(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._is_told = True
        if self._child is not None:
            _tell([self._child])


def run_all(
    stages: Sequence[Stage],
    *,
    title: Callable[[Stage], str],
    done: Callable[[], None],
    gpus: Sequence[str | None],
) -> int:
    """Run all stages in a worker for each of `gpus`; return 0, 1 or 85 (see `Worker.run`)."""
    workers = [Worker(stages, title=title, done=done, gpus=share) for share in gpus]
    if len(workers) == 1:
        return workers[0].run()
    context, parent = multiprocessing.get_context("fork"), os.getpid()

    def work(worker: Worker) -> None:
        os._exit(worker.run(parent=parent))

    processes = [context.Process(target=work, args=(worker,)) for worker in workers]
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for process in processes:
        process.start()
    with _handled(lambda _number, _frame: _tell(processes)):
        for process in processes:
            _wait(process)
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    return SAVED_EXIT_CODE if SAVED_EXIT_CODE in codes else int(any(codes))


def _in_child(stage: Stage, title: str, gpus: str | None) -> None:
    os._exit(run_stage(stage, title=title, gpus=gpus))


def _tell(processes: Sequence[BaseProcess]) -> None:
    """Send SIGTERM, whatever came: Ctrl-C reaches all of them by itself, and a second SIGINT is an impatient user's."""
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)


def _wait(process: BaseProcess) -> None:
    """Return when a process has ended, without taking its exit code: until then `_tell` can name it by its number."""
    assert process.pid is not None
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle stop signals, which may be blocked, and afterwards as before."""
    before = [signal.signal(number, handler) for number in STOP_SIGNALS]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        for number, earlier in zip(STOP_SIGNALS, before, strict=True):
            signal.signal(number, earlier)


def _failure(stage: Stage) -> tuple[int, int] | None:
    """Return what tells a failure from an earlier one; clocks of several machines do not."""
    try:
        found = stage.beside("failed.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def seconds_of(stages: Sequence[Stage], *, store: Path) -> dict[Path, float]:
    """Return how long each stage takes: as the median of its name and command in the store, else as its chain says."""
    known: dict[tuple[str, str], list[float]] = {}
    for path in store.glob("*.done.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        known.setdefault((found["command"], found["stage"]), []).append(float(found["seconds"]))
    answer = {}
    for stage in stages:
        earlier = sorted(known.get((stage.command, stage.name), ()))
        answer[stage.folder] = earlier[len(earlier) // 2] if earlier else stage.seconds
    return answer
