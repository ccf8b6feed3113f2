"""A signal only sets a flag; the loop looks at it at the step boundary, where saving is safe."""

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""SIGTERM: launchers and people; SIGINT: Ctrl-C; SIGUSR2: Slurm, ahead of the time limit."""

SAVED_EXIT_CODE = 85
"""What a run stopped by a signal exits with after saving: "not finished, start me again"."""


class StopFlag:
    """Installed on construction; a second Ctrl-C is not caught, so that an impatient user gets out."""

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
