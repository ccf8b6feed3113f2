"""Workers that look for stages to run until none is left; each stage runs in a process forked from its worker.

The worker has all libraries imported, which costs a stage's process nothing; it never touches a GPU or a thread itself.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from promptmeup.study.job import BUSY, run_stage
from promptmeup.study.plan import Stage
from promptmeup.tracking.signal_watch import STOP_SIGNALS

_PAUSE = 1.0
"""seconds between two looks for work that waits for others"""
STOPPED = (85, 86)


class Worker:
    """Runs stages whose needs are done, in their order; what failed here is not tried again by this worker."""

    def __init__(
        self, stages: Sequence[Stage], *, done: Callable[[Stage], None], gpus: str | None = None
    ) -> None:
        self._stages, self._done, self._gpus = {s.folder: s for s in stages}, done, gpus
        self._began = time.time()
        self._child: BaseProcess | None = None
        self._told: int | None = None

    def run(self) -> int:
        """Return 0 when all that can be done is, 1 if something failed, 85 after a signal."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._pass_on)
        while self._told is None:
            waiting, could = False, False
            for stage in self._stages.values():
                if stage.done.exists() or self.failed(stage):
                    continue
                if not all(need.done.exists() for need in self._needs(stage)):
                    waiting = waiting or not any(self.failed(need) for need in self._needs(stage))
                    continue
                code = self._fork(stage)
                if code == BUSY:
                    waiting = True
                    continue
                if code == 0:
                    self._done(stage)
                could = True
                break  # from the first one again: its order is that of what matters
            if not could and not waiting:
                return int(any(not stage.done.exists() for stage in self._stages.values()))
            if not could:
                time.sleep(_PAUSE)
        return STOPPED[0]

    def failed(self, stage: Stage) -> bool:
        """Return whether the stage, or one that it needs, failed since this worker began."""
        try:
            if stage.beside("failed.json").stat().st_mtime >= self._began:
                return True
        except OSError:
            pass
        return any(self.failed(need) for need in self._needs(stage))

    def _needs(self, stage: Stage) -> list[Stage]:
        return [self._stages[folder] for folder in stage.needs if folder in self._stages]

    def _fork(self, stage: Stage) -> int:
        self._child = multiprocessing.get_context("fork").Process(target=self._in_child, args=(stage,))
        self._child.start()
        self._child.join()
        code = self._child.exitcode
        self._child = None
        assert code is not None
        if code < 0 and self._told is None:  # killed, for want of memory say: not again in this call
            stage.beside("failed.json").write_text(f'{{"signal": {-code}}}\n')
        return code

    def _in_child(self, stage: Stage) -> None:
        os._exit(run_stage(stage, gpus=self._gpus))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._told = number
        if self._child is not None and self._child.pid is not None and self._child.is_alive():
            os.kill(self._child.pid, number)


def run_all(
    stages: Sequence[Stage], *, processes: int, done: Callable[[Stage], None], gpus: Sequence[str | None]
) -> int:
    """Run all stages in so many workers; return the largest of their codes (see `Worker.run`)."""
    if processes == 1:
        return Worker(stages, done=done, gpus=gpus[0]).run()

    def work(number: int) -> None:
        os._exit(Worker(stages, done=done, gpus=gpus[number % len(gpus)]).run())

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        for worker in workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
    for worker in workers:
        worker.join()
    return max(abs(worker.exitcode or 0) for worker in workers)


def seconds_of(stages: Sequence[Stage], *, store: Path) -> dict[Path, float]:
    """Return how long each stage takes: as the median of its name and command in the store, else as its chain says."""
    known: dict[tuple[str, str], list[float]] = {}
    for path in store.glob("*.done.json") if store.exists() else ():
        found = json.loads(path.read_text(encoding="utf-8"))
        known.setdefault((found["command"], found["stage"]), []).append(float(found["seconds"]))
    answer = {}
    for stage in stages:
        earlier = sorted(known.get((stage.command, stage.name), ()))
        answer[stage.folder] = earlier[len(earlier) // 2] if earlier else stage.seconds
    return answer
