"""Signals as they come, also while the main thread is inside a call that does not return."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""SIGTERM: launchers and people; SIGINT: Ctrl-C; SIGUSR2: Slurm, ahead of the time limit."""

_END = b"\0"
"""no signal's number"""


class SignalWatch:
    """Calls `told` with a stop signal's name, in a thread of its own, until closed.

    A Python signal handler waits for the main thread. That one may hang in a collective whose other ranks
    have died, until the launcher, which sent SIGTERM, sends SIGKILL. Python's wakeup descriptor gets a
    byte at once, whatever the main thread does. Only signals that have a Python handler come here; where
    something else uses the descriptor, or outside the main thread, nothing is watched.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self._told = told
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._is_watching = False
        with contextlib.suppress(ValueError):  # not the main thread
            old = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._is_watching = old == -1
            if old != -1:
                signal.set_wakeup_fd(old)
        # a forked worker's signals are not ours
        os.register_at_fork(after_in_child=self._forget)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no longer. A second call does nothing."""
        self._forget()
        if self._writer >= 0:
            os.write(self._writer, _END)  # closing it ends nothing while forked workers have it too
            self._thread.join(1.0)
            os.close(self._writer)
            self._writer = -1

    def _forget(self) -> None:
        if self._is_watching:
            self._is_watching = False
            with contextlib.suppress(ValueError):
                signal.set_wakeup_fd(-1)

    def _watch(self) -> None:
        while _END not in (numbers := os.read(self._reader, 64)):
            for number in numbers:
                if number in STOP_SIGNALS:
                    self._told(signal.Signals(number).name)
        os.close(self._reader)
