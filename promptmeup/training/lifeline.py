"""A thread beside training that ends a rank which cannot end by itself, and says why.

A rank that waits in an exchange for one that is gone, or that hangs elsewhere, sits in a C call: no exception, no
signal handler runs. Three things end it here, each after its report: another rank's crash, a stop signal that training
does not get to, and a step that takes longer than the ranks may wait for each other.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from promptmeup.distributed.world import World, broadcast_object
from promptmeup.errors import ConfigError, UserError
from promptmeup.tracking.signal_watch import SignalWatch
from promptmeup.training import crash
from promptmeup.training.crash import Kind, Report

_STARTING = "starting"
_LOOK_SECONDS = 1.0
_AFTER_CRASH_SECONDS = 5.0
"""that a rank has to notice another's crash by itself"""
_AFTER_SIGNAL_SECONDS = 20.0
"""that a step may go on after a stop signal, and twice as long as the longest one; Slurm kills 30 s after SIGTERM"""
_OTHERS_SECONDS = 5.0
"""that the reports of others are waited for"""


@contextmanager
def guarded(run: Path, *, world: World, timeout: float) -> Iterator["Lifeline"]:
    """Put the last start's crash aside, and yield the lifeline of this one. Collective at its beginning."""
    crashed = broadcast_object(crash.put_aside(run) if world.is_main else None, world)
    with Lifeline(run, world=world, timeout=timeout) as life:
        life.warnings = () if crashed is None else (f"the last start ended badly: {crashed}",)
        yield life


class Lifeline:
    """Used as a context around a whole run.

    Args:
        run: the run's folder.
        timeout: seconds without a `note`, once training has begun, after which the rank is taken to hang.
    """

    def __init__(self, run: Path, *, world: World, timeout: float) -> None:
        self.abandon: Callable[[Literal["FAILED", "KILLED"]], None] = lambda _: None
        """what is still to be done when the rank is ended from the thread, such as closing the tracker"""
        self.told: Callable[[str], None] = lambda _: None
        """is told a stop signal's name as it comes, whatever the main thread does"""
        self.warnings: tuple[str, ...] = ()
        """what is to be told of the start before"""
        self._run, self._world, self._timeout = run, world, timeout
        self._step, self._phase = 0, _STARTING
        self._keys: Sequence[str] = ()
        self._noted = time.monotonic()
        self._longest, self._is_warm = 0.0, False
        self._reporting, self._is_reported = threading.Lock(), False
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._signalled: float | None = None

    def note(self, phase: str, step: int, keys: Sequence[str] = ()) -> None:
        """Say what comes next; costs nothing."""
        if self._phase == "step":
            # the first one compiles and warms up, and says nothing of the others
            self._longest = max(self._longest, time.monotonic() - self._noted) if self._is_warm else 0.0
            self._is_warm = True
        self._phase, self._step, self._keys = phase, step, keys
        self._noted = time.monotonic()

    def __enter__(self) -> Self:
        self._signals = SignalWatch(self._told)
        self._noted = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._signals.close()
        if isinstance(error, Exception):
            self._report_error(error)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report an exception before what lies around this context, such as the tracker, takes its time to close."""
        try:
            yield
        except Exception as error:
            self._report_error(error)
            raise

    def _report_error(self, error: Exception) -> None:
        # a wrong configuration is told to the person who typed it, and nothing has crashed
        if not isinstance(error, ConfigError):
            self._over.set()  # this rank gets out by itself
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._report(crash.kind_of(error), text, crash.stack_of(error))

    def _report(self, kind: Kind, error: str, stack: str) -> None:
        """Write this rank's report, the first one only, and the summary."""
        with self._reporting:
            if self._is_reported:
                return
            self._is_reported = True
            crash.write(
                self._run,
                Report(self._world.rank, kind, self._phase, self._step, tuple(self._keys), error, stack),
            )
            deadline = time.monotonic() + (_OTHERS_SECONDS if kind != "raised" else 0)
            while time.monotonic() < deadline and len(crash.read(self._run)) < self._world.size:
                time.sleep(0.2)
            headline = crash.summarise(self._run, size=self._world.size)
            reports = crash.read(self._run)
            if not reports or self._world.rank == reports[0].rank:
                print(f"{self._run / 'crash.json'}: {headline}", file=sys.stderr, flush=True)

    def _watch(self) -> None:
        crashed_at: float | None = None
        while not self._over.wait(_LOOK_SECONDS):
            now = time.monotonic()
            if (
                crashed_at is None
                and self._world.size > 1
                and any(report.rank != self._world.rank for report in crash.read(self._run))
            ):
                crashed_at = now
            since = now - self._noted
            if crashed_at is not None and now - crashed_at > _AFTER_CRASH_SECONDS:
                self._end("waits", "another rank ended, and this one waited for it", "FAILED", 1)
            signalled = self._signalled
            patience = _AFTER_SIGNAL_SECONDS + 2 * self._longest
            is_stuck = signalled is not None and now - max(self._noted, signalled) > patience
            if self._phase == "step" and is_stuck:
                self._end("waits", "a stop signal came, and this step did not end", "KILLED", 143)
            if since > self._timeout and self._phase != _STARTING:
                text = f"no progress for {since:.0f} s (timeout)"
                self._end("waits" if crash.is_waiting(self._stack()) else "hangs", text, "FAILED", 1)

    def _told(self, name: str) -> None:
        """Note a stop signal, in the thread that watches for them."""
        if self._signalled is None:
            self._signalled = time.monotonic()
        self.told(name)

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def _end(self, kind: Kind, text: str, status: Literal["FAILED", "KILLED"], code: int) -> None:
        """Report, close what must be closed, and leave without the main thread."""
        if self._over.is_set():
            return
        try:
            self._report(kind, text, self._stack())
            self.abandon(status)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
