"""What a person sees while a run works: one redrawn line on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO


class Console:
    """Prints progress to `stream`; a closed or full stream silences it and never stops training.

    On a terminal the progress line is redrawn in place; elsewhere (a log, where carriage returns are
    unreadable) a plain line is printed at the first step, then every `every_seconds`, and at the last.
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
        self._stream: TextIO | None = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._drawn = False
        self._printed_at: float | None = None
        self._began: tuple[int, float] = (0, clock())

    def start(self, step: int) -> None:
        """Count the time left from here: `step` steps were done by earlier attempts."""
        self._began = (step, self._clock())

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the progress after `step` steps; cheap to call at every step."""
        now = self._clock()
        due = self._printed_at is None or now - self._printed_at >= self._every
        if not (self._terminal or due or step >= self._total):
            return
        self._printed_at = now
        first, began = self._began
        done = step - first
        left = (now - began) / done * (self._total - step) if done > 0 else None
        text = progress_line(step, metrics, total=self._total, seconds_left=left)
        if self._terminal:
            self._write(f"\r\x1b[K{text}")
            self._drawn = True
        else:
            self._write(text + "\n")

    def line(self, text: str) -> None:
        """Print `text` on a line of its own."""
        self._write(("\r\x1b[K" if self._drawn else "") + text + "\n")
        self._drawn = False

    def close(self) -> None:
        """End a redrawn line, so that what follows starts on a new one."""
        if self._drawn:
            self._write("\n")
            self._drawn = False

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the log's disk is full, the reader of the pipe has gone
            self._stream = None


def progress_line(
    step: int, metrics: Mapping[str, float], *, total: int, seconds_left: float | None = None
) -> str:
    """Return one line: step, loss and its terms, learning rate, speed, share of time waiting for data.

    Shown when present: "loss", "loss/<term>", "lr", "pairs_per_second" and "data_wait" (0 to 1).
    """
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    terms = [f"{name[5:]} {value:.3f}" for name, value in metrics.items() if name.startswith("loss/")]
    if "loss" in metrics:
        parts.append(f"loss {metrics['loss']:.4f}" + (f" ({', '.join(terms)})" if terms else ""))
    if "lr" in metrics:
        parts.append(f"lr {metrics['lr']:.2e}")
    if "pairs_per_second" in metrics:
        parts.append(f"{metrics['pairs_per_second']:.0f} pairs/s")
    if "data_wait" in metrics:
        parts.append(f"data wait {metrics['data_wait']:.0%}")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


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
