"""What a run is told from outside, by signals and by files in its folder; the loop looks at it at the step boundary."""

import signal
import time
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType

from promptmeup.distributed.world import World, agree, broadcast_object, highest
from promptmeup.tracking.signal_watch import STOP_SIGNALS

SAVED_EXIT_CODE = 85
"""What a run stopped by a signal exits with after saving: "not finished, start me again"."""
NO_PROGRESS_EXIT_CODE = 86
"""The same, but no step was made since the start, so that the next start would be no better."""

SAVE_FILE, STOP_FILE = "SAVE", "STOP"
"""in the run's folder: `touch RUN/SAVE` saves now, `touch RUN/STOP` saves and ends, and keeps the run from starting"""

_LOOK_SECONDS = 1.0
"""between two looks for these files, which may lie on a slow file system"""


class Order(IntEnum):
    """What to do after a step; the greatest of all ranks counts."""

    GO = 0
    SAVE = 1
    STOP = 2
    """save and leave, to be started again"""
    END = 3
    """save and leave for good"""


class StopFlag:
    """A signal only sets a flag. Installed when made; a second Ctrl-C is not caught: an impatient user gets out."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __bool__(self) -> bool:
        return self.received is not None


class Orders:
    """The order of all ranks together, asked for after every step; rank 0 looks for the files."""

    def __init__(self, run: Path, *, stop: StopFlag, world: World) -> None:
        self._run, self._stop, self._world = run, stop, world
        self._looked = -_LOOK_SECONDS

    def __call__(self) -> Order:
        """Return what to do now. Collective."""
        own = Order.STOP if self._stop else Order.GO
        now = time.monotonic()
        if self._world.is_main and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            own = max(own, self._files())
        return Order(int(highest(own, self._world)))

    def _files(self) -> Order:
        with suppress(OSError):  # a network file system that is away for the moment
            if (self._run / STOP_FILE).exists():
                return Order.END
            if (self._run / SAVE_FILE).exists():
                (self._run / SAVE_FILE).unlink(missing_ok=True)
                return Order.SAVE
        return Order.GO

    def reason(self) -> str:
        """Return what stopped the run, for people. Collective."""
        if broadcast_object((self._run / STOP_FILE).exists(), self._world):
            return str(self._run / STOP_FILE)
        return self._stop.received or "a signal on another rank"


def may_start(run: Path, world: World) -> bool:
    """Return whether the run's folder has no STOP file. Collective."""
    return not agree(world.is_main and (run / STOP_FILE).exists(), world)


def exit_code(order: Order, *, gained: bool) -> int:
    """Return what a run exits with that was ended by `order`; `gained`: it made steps since its start."""
    if order is not Order.STOP:
        return 0
    return SAVED_EXIT_CODE if gained else NO_PROGRESS_EXIT_CODE
