"""What people read of jobs: how far a long one is, numbers of bytes, lines of names and texts."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import TracebackType
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts `unit`s done; use it as a context manager and call `advance`.

    A terminal gets a tqdm bar. Anything else gets one line every `every` seconds and one at the end, such as
    ``pack train: 1200 of 3400 images, 31.2 images/s, rejects 3``, so that a log stays readable.
    """

    def __init__(
        self,
        what: str,
        *,
        unit: str,
        total: int | None = None,
        every: float = SECONDS_BETWEEN_LINES,
        stream: TextIO | None = None,
    ) -> None:
        self._what, self._unit, self._total, self._every = what, unit, total, every
        self._stream = sys.stderr if stream is None else stream
        self._bar = (
            tqdm(desc=what, unit=f" {unit}", total=total, file=self._stream)
            if self._stream.isatty()
            else None
        )
        self._done, self._shown = 0, -1
        self._notes: dict[str, object] = {}
        self._start = self._last_line = time.monotonic()

    def advance(self, count: int = 1, **notes: object) -> None:
        """Report `count` more units done; `notes` are shown beside the numbers until they change."""
        self._done += count
        self._notes.update(notes)
        if self._bar is not None:
            self._bar.set_postfix(self._notes, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_line >= self._every:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line, self._shown = time.monotonic(), self._done
        rate = self._done / max(self._last_line - self._start, 1e-9)
        of_total = f" of {self._total}" if self._total is not None else ""
        parts = [f"{self._done}{of_total} {self._unit}", f"{rate:.1f} {self._unit}/s"]
        parts += [f"{name} {value}" for name, value in self._notes.items()]
        print(f"{self._what}: {', '.join(parts)}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown != self._done:
            self._print_line()


def progress(iterable: Iterable[T], *, what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` and report each item once the caller is done with it."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(what, unit=unit, total=total) as bar:
        for item in iterable:
            yield item
            bar.advance()


def spoken(size: float) -> str:
    """Return a number of bytes in the unit that a person would use."""
    for unit, bytes_in_it in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_in_it:
            return f"{size / bytes_in_it:.1f} {unit}"
    return f"{size:.0f} bytes"


def listed(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Return lines of a name and a text, the texts below each other."""
    width = max(len(name) for name, _ in lines)
    return [f"{name:<{width}}  {text}" for name, text in lines]
