"""The run's own record: one JSON object a line in RUN/journal.jsonl, written before anything else.

Nothing here may stop training: a full disk costs lines and one warning. A line is one write, so a killed
run leaves at most one half line, which readers skip and the next writer closes with a newline. Its writer
holds a lock on it, which the kernel releases when the process dies, however it dies: so others know.
"""

import contextlib
import fcntl
import json
import math
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

METRIC_EVENTS = ("step", "evaluation", "labels")
_NOT_FINITE = {"NaN", "Infinity", "-Infinity"}


class Journal:
    """Appends events to `path`; closes the half line that a killed run may have left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._torn = not _ends_with_newline(path)
        self._warned = False
        self._locked = False
        self.has_rival()

    def has_rival(self) -> bool:
        """Whether another living process writes the same file; false where the file system has no locks."""
        if not self._locked:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
            self._locked = True
        return False

    def write(self, event: str, *, step: int, **values: Any) -> None:
        """Append one line; never raises for a full or failing disk (one warning, the line is lost).

        Args:
            event: "start", "resume", "step", "evaluation", "artifact", "signal", "finish" or another word.
            step: optimizer steps done.
            values: numbers for "step" and "evaluation"; anything JSON-able otherwise. Numbers that are
                not finite are written as "NaN", "Infinity" and "-Infinity", which keeps the JSON valid.
        """
        assert not values.keys() & {"time", "event"}, "the journal's own keys"
        self.has_rival()  # the data workers of a killed attempt keep its lock for some seconds
        time = datetime.now().astimezone().isoformat(timespec="milliseconds")
        entry = {"time": time, "event": event, "step": step, **values}
        line = json.dumps(_encode(entry), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        if self._torn:
            line = b"\n" + line
        try:
            self._torn = self._file.write(line) != len(line)
        except OSError as error:
            self._torn = True
            if not self._warned:
                self._warned = True
                # standard error may be a file on the same disk
                with contextlib.suppress(OSError, ValueError):
                    print(
                        f"warning: cannot write {self.path}: {error.strerror}; training goes on without it",
                        file=sys.stderr,
                        flush=True,
                    )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # explicitly: forked data workers have the file open as well
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def is_being_written(path: Path) -> bool:
    """Whether a living process writes `path`; false where the file system has no locks."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _ends_with_newline(path: Path) -> bool:
    """Whether a new line may start here; true for an empty file."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size == 0:
            return True
        file.seek(size - 1)
        return file.read(1) == b"\n"


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(inner) for inner in value]
    return value


def entries(path: Path, *, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset of the line's end, entry) of every whole line from byte `start`; half lines are skipped."""
    end = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            end += len(line)
            entry = _decode(line)
            if entry is not None and line.endswith(b"\n"):
                yield end, entry


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"time", "event", "step"} <= entry.keys() else None


def read(path: Path) -> list[dict[str, Any]]:
    """Return every whole line of the journal, oldest first."""
    return [entry for _, entry in entries(path)]


def values(entry: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of one "step" or "evaluation" entry, non-finite ones as floats again."""
    return {
        name: float(value)
        for name, value in entry.items()
        if name not in ("time", "event", "step")
        and (value in _NOT_FINITE if isinstance(value, str) else isinstance(value, int | float))
    }


def milliseconds(entry: dict[str, Any]) -> int:
    """Return when an entry was written, in milliseconds since 1970."""
    return int(datetime.fromisoformat(entry["time"]).timestamp() * 1000)


def last_start(path: Path) -> dict[str, Any] | None:
    """Return the "start" or "resume" entry of the last attempt; None where there is none."""
    starts = [entry for _, entry in entries(path) if entry["event"] in ("start", "resume")]
    return starts[-1] if starts else None


def metrics(path: Path, *, event: str = "step") -> dict[int, dict[str, float]]:
    """Return step -> metrics of the run as it counts, in the order of steps.

    What an earlier attempt wrote beyond the step that the run resumed from is left out; metrics written
    twice for a step have the last value.
    """
    assert event in METRIC_EVENTS
    result: dict[int, dict[str, float]] = {}
    for _, entry in entries(path):
        if entry["event"] == "resume":
            result = {step: found for step, found in result.items() if step <= entry["step"]}
        elif entry["event"] == event:
            result.setdefault(entry["step"], {}).update(values(entry))
    return dict(sorted(result.items()))
