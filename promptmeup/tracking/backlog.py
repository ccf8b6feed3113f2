"""What a run folder holds and MLflow lacks: the lines of its journal, of its nodes' system metrics, and its files."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from promptmeup.tracking import journal

JOURNAL_TAG = "promptmeup.journal_bytes"
SYSTEM_TAG = "promptmeup.system_bytes"
_POINTS_A_BATCH = 900  # MLflow takes 1000 metrics and tags together, of them 100 tags
_TAGS_A_BATCH = 90


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    milliseconds: int
    """since 1970"""
    step: int


@dataclass
class Batch:
    """Points, and the positions that MLflow has reached in our files once it holds them."""

    points: list[Point] = field(default_factory=list)
    positions: dict[str, str] = field(default_factory=dict)
    lines: int = 0
    """that the points come from"""

    @property
    def is_full(self) -> bool:
        return len(self.points) >= _POINTS_A_BATCH or len(self.positions) >= _TAGS_A_BATCH


@dataclass
class _Lines:
    """One file of lines, read from where MLflow has it."""

    path: Path
    tag: str
    sent: int
    """MLflow has the file up to this byte"""
    prefix: str = ""
    """of its metrics' names"""
    read: int = 0
    seen: dict[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    """(event, step) -> metrics"""
    repeated: dict[tuple[str, int], frozenset[str]] = field(default_factory=dict)
    """what `seen` was when the run was last resumed: what comes again of it is a repetition"""

    def new(self) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
        """Yield (entry, metrics that MLflow lacks), from where the last call stopped."""
        for end, entry in journal.entries(self.path, start=self.read):
            self.read = end
            event = entry["event"]
            if event == "resume":
                self.repeated = dict(self.seen)
            values = journal.values(entry) if event in (*journal.METRIC_EVENTS, "system") else {}
            if values and event != "system":
                key = event, entry["step"]
                old = self.repeated.get(key, frozenset())
                self.seen[key] = _same(self.seen.get(key, frozenset()).union(values))
                values = {name: value for name, value in values.items() if name not in old}
            yield entry, values if end > self.sent else {}


_SAME: dict[frozenset[str], frozenset[str]] = {}


def _same(names: frozenset[str]) -> frozenset[str]:
    """Return one object for equal sets: a run has a few, and a hundred thousand steps of them."""
    return _SAME.setdefault(names, names)


class Backlog:
    """Reads `folder`/journal.jsonl and `folder`/system/*.jsonl from where MLflow has them, batch by batch.

    The first reading goes through the whole journal: steps that a resumed run repeats are sent once, as the
    first attempt wrote them, and MLflow never forgets a value.

    Args:
        folder: the run folder.
        tags: of the MLflow run; they say how far it has each file.
    """

    def __init__(self, folder: Path, tags: Mapping[str, str]) -> None:
        self._folder = folder
        self._tags = tags
        self._files: dict[Path, _Lines] = {}
        self._batch = Batch()
        self._artifacts: dict[Path, None] = {}
        self.ending: str | None = None
        """how the last attempt ended, as far as its lines say: its status, KILLED after a signal, else None"""
        self.milliseconds = 0
        """of the journal's last line"""

    def take(self) -> Batch | None:
        """Return what is to be sent next, or again until `sent` is called; None when MLflow has everything."""
        for lines in self._lines():
            if not self._batch.is_full:
                self._read(lines, self._batch)
        return self._batch if self._batch.points else None

    def sent(self) -> None:
        """Forget the batch of the last `take`: MLflow has it."""
        self._batch = Batch()

    def artifacts(self) -> dict[str, Path]:
        """Return the files that belong to the run and exist, by their places in MLflow, as far as the journal was read.

        Of two of one name, such as the galleries of two splits, the one noted later has as much of its path before its
        name as sets it apart.
        """
        own = [path for part in ("config*.yaml", "environment*.json") for path in self._folder.glob(part)]
        found: dict[str, Path] = {}
        for path in dict.fromkeys([*sorted(own), self._folder / "curves.png", *self._artifacts]):
            parts = path.parts[1:] if path.is_absolute() else path.parts
            places = ["/".join(parts[start:]) for start in reversed(range(len(parts)))]
            found[next((place for place in places if place not in found), places[-1])] = path
        return {place: path for place, path in found.items() if path.is_file()}

    def _lines(self) -> Iterator[_Lines]:
        """Yield the journal, then each node's system metrics, those that exist."""
        paths = [self._folder / "journal.jsonl", *sorted((self._folder / "system").glob("*.jsonl"))]
        for path in paths:
            if path not in self._files and path.is_file():
                is_journal = path.parent == self._folder
                tag = JOURNAL_TAG if is_journal else f"{SYSTEM_TAG}.{path.stem}"
                sent = int(self._tags.get(tag, 0))
                if sent > path.stat().st_size:
                    sent = 0  # somebody began a new file
                self._files[path] = _Lines(path, tag, sent, "" if is_journal else f"system/{path.stem}/")
            if path in self._files:
                yield self._files[path]

    def _read(self, lines: _Lines, batch: Batch) -> None:
        """Add what follows in `lines` to `batch`, as far as it has room; a line that fails is passed over."""
        for entry, values in lines.new():
            milliseconds = journal.milliseconds(entry)
            if not lines.prefix:
                self._note(entry, milliseconds)
            prefix = "evaluation/" if entry["event"] == "evaluation" else lines.prefix
            batch.points += [
                Point(prefix + name, value, milliseconds, entry["step"]) for name, value in values.items()
            ]
            if values:
                batch.lines += 1
                batch.positions[lines.tag] = str(lines.read)
            if batch.is_full:
                break

    def _note(self, entry: dict[str, Any], milliseconds: int) -> None:
        self.milliseconds = milliseconds
        match entry:
            case {"event": "start" | "resume"}:
                self.ending = None
            case {"event": "signal"}:
                self.ending = "KILLED"
            case {"event": "finish", "status": "FINISHED" | "FAILED" | "KILLED" as status}:
                self.ending = status
            case {"event": "artifact", "path": str(path)}:
                self._artifacts[self._folder / path] = None


def clean_name(text: str, *, length: int = 250) -> str:
    """Return `text` with what MLflow refuses in a name replaced."""
    return re.sub(r"[^\w./ :-]", "_", text)[:length]
