"""What a person sees while a run works: a display that is redrawn on a terminal, plain lines in a log."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.columns import Columns
from rich.console import Console as Screen
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text


class Console:
    """Prints progress to `stream`; a closed or full stream silences it and never stops training.

    On a terminal a display of a few lines is redrawn in place, and what else is printed appears above it; elsewhere (a
    log, where control characters are unreadable) a plain line is printed at the first step, then every
    `every_seconds`, and at the last.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        every_seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total_steps
        self._every = every_seconds
        self._stream = _Unbreakable(stream or sys.stdout)
        self._clock = clock
        self._screen = _screen(self._stream) if _can_redraw(self._stream) else None
        self._live: Live | None = None
        self._printed_at: float | None = None
        self._began: tuple[int, float] = (0, clock())

    def start(self, step: int) -> None:
        """Count the time left from here: `step` steps were done by earlier attempts."""
        self._began = (step, self._clock())

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the progress after `step` steps; cheap to call at every step."""
        now = self._clock()
        due = self._printed_at is None or now - self._printed_at >= self._every
        if not (self._screen or due or step >= self._total):
            return
        self._printed_at = now
        first, began = self._began
        done = step - first
        left = (now - began) / done * (self._total - step) if done > 0 else None
        if self._screen is None:
            self._stream.write(progress_line(step, metrics, total=self._total, seconds_left=left) + "\n")
            self._stream.flush()
        else:
            self._draw(self._screen, display(step, metrics, total=self._total, seconds_left=left))

    def line(self, text: str) -> None:
        """Print `text` on a line of its own."""
        if self._live is not None:
            # neither wrapped nor cut: the terminal does that, and a path can be copied whole
            self._live.console.out(text, highlight=False)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Leave the last display where it is, so that what follows starts on a new line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, screen: Screen, picture: RenderableType) -> None:
        if self._live is None:
            # No thread redraws: workers of the data loader are forked at any time, and a fork while another thread
            # holds a lock never gets it. Prints of others are caught, unless they go to another place.
            self._live = Live(
                picture,
                console=screen,
                auto_refresh=False,
                redirect_stdout=self._stream.is_stdout,
                redirect_stderr=self._stream.is_stdout and sys.stderr.isatty(),
            )
            self._live.start(refresh=True)
        else:
            self._live.update(picture, refresh=True)


class _Unbreakable:
    """A stream that swallows everything once it fails: the log's disk is full, the reader of the pipe has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream
        self.is_stdout = stream is sys.stdout
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text) if self._stream is not None else len(text)
        except (OSError, ValueError):
            self._stream = None
            return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False


class _Screen(Screen):
    """A terminal whose cursor is left alone: nobody would show it again after a kill -9."""

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
        return False


def _can_redraw(stream: _Unbreakable) -> bool:
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _screen(stream: _Unbreakable) -> Screen:
    return _Screen(file=stream, force_terminal=True, force_jupyter=False, highlight=False)  # type: ignore[arg-type]


def display(
    step: int, metrics: Mapping[str, float], *, total: int, seconds_left: float | None = None
) -> RenderableType:
    """Return what `progress_line` says as a bar and a few lines, with the time of day when the run ends.

    What does not fit into the width goes to the next line whole.
    """
    share = step / max(total, 1)
    head: list[RenderableType] = [
        Text(f"step {step}/{total}", style="bold"),
        ProgressBar(total=1, completed=share, width=20),
        Text(f"{share:.0%}"),
    ]
    if seconds_left is not None:
        # the time left stands still until the next line, the time of day stays true
        head.append(Text(f"{duration(seconds_left)} left, ends {_time_of_day(seconds_left)}", style="cyan"))
    loss, terms = _losses(metrics)
    losses: list[RenderableType] = [Text(loss, style="bold")] if loss else []
    losses += [Text(term) for term in terms]
    speeds: list[RenderableType] = [Text(text) for text in _speeds(metrics)]
    return Group(*(Columns(line, padding=(0, 3)) for line in (head, losses, speeds) if line))


def progress_line(
    step: int, metrics: Mapping[str, float], *, total: int, seconds_left: float | None = None
) -> str:
    """Return one line: step, loss and its terms, learning rate, speed, share of time waiting for data.

    Shown when present: "loss", "loss/<term>", "lr", "pairs_per_second" or "sentences_per_second", "tflops" and "mfu"
    (0 to 1) and "data_wait" (0 to 1).
    """
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    loss, terms = _losses(metrics)
    if loss:
        parts.append(loss + (f" ({', '.join(terms)})" if terms else ""))
    parts += _speeds(metrics)
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def _losses(metrics: Mapping[str, float]) -> tuple[str, list[str]]:
    terms = [f"{name[5:]} {value:.3f}" for name, value in metrics.items() if name.startswith("loss/")]
    return f"loss {metrics['loss']:.4f}" if "loss" in metrics else "", terms


def _speeds(metrics: Mapping[str, float]) -> list[str]:
    parts = []
    if "lr" in metrics:
        parts.append(f"lr {metrics['lr']:.2e}")
    for what in ("pairs", "sentences"):
        if f"{what}_per_second" in metrics:
            parts.append(f"{metrics[f'{what}_per_second']:.0f} {what}/s")
    if "tflops" in metrics:
        achieved = f"{metrics['tflops']:.3g} TFLOP/s"
        parts.append(f"MFU {metrics['mfu']:.0%} ({achieved})" if "mfu" in metrics else achieved)
    if "data_wait" in metrics:
        parts.append(f"data wait {metrics['data_wait']:.0%}")
    return parts


def _time_of_day(seconds_from_now: float) -> str:
    then = time.localtime(time.time() + seconds_from_now)
    return time.strftime("%a %H:%M" if seconds_from_now > 20 * 3600 else "%H:%M", then)


def duration(seconds: float) -> str:
    """Return 42 s as "0:42", 3700 s as "1:01:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return `rows` as text in aligned columns, numbers to the right, headed by all their keys in order."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    right = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in names]

    def line(texts: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(texts, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), line(["-" * width for width in widths]), *map(line, cells)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
