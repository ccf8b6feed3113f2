"""The books of one split: every pair that the corpus names is packed or has a line in rejects.jsonl."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from promptmeup.errors import CorpusError
from promptmeup.records import Reject, Sample

PAIRS_BEFORE_JUDGING = 1000


class RejectLog:
    """Writes rejects.jsonl and stops the work when too large a share of the pairs is lost.

    `seen` counts the pairs met so far, `lost` those of them that are not packed.
    """

    def __init__(self, path: Path, *, max_rate: float) -> None:
        self._path, self._max_rate = path, max_rate
        self._file = path.open("w", encoding="utf-8")
        self.seen = self.lost = 0
        self.pairs: Counter[str] = Counter()
        """pairs concerned, by reason"""
        self._items: Counter[str] = Counter()
        self._first: dict[str, Reject] = {}
        self._lost_at_start: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, reject: Reject) -> None:
        """Book a reject whose pairs have been seen, because their sample came through `watch`."""
        print(json.dumps(asdict(reject), ensure_ascii=False, sort_keys=True), file=self._file, flush=True)
        self.pairs[reject.reason] += reject.pairs
        self._items[reject.reason] += 1
        self._first.setdefault(reject.reason, reject)
        if not reject.kept:
            self.lost += reject.pairs

    def add_unread(self, reject: Reject) -> None:
        """Book a reject of the corpus's reader, whose pairs never become part of a sample."""
        if not reject.kept:
            self.seen += reject.pairs
        self.add(reject)

    def watch(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield from `samples` and count their pairs."""
        for sample in samples:
            if self._lost_at_start is None:
                self._lost_at_start = self.lost
            self.seen += len(sample.captions)
            yield sample

    def check(self, *, finished: bool = False) -> None:
        """Judge the share of lost pairs; before the end only once 1000 were seen.

        A reader reports what is wrong with its annotations before its first sample. Those rejects are as
        many as in the whole corpus, so they count only at the end.

        Raises:
            CorpusError: more than `max_rate` is lost, with a table of the reasons.
        """
        early = 0 if finished else self._lost_at_start or 0
        seen, lost = self.seen - early, self.lost - early
        if (finished or seen >= PAIRS_BEFORE_JUDGING) and lost > self._max_rate * seen:
            raise CorpusError(
                f"{lost} of {seen} pairs ({lost / seen:.1%}) cannot be packed, more than "
                f"max_reject_rate={self._max_rate:g} allows:\n{self.table()}\n"
                f"Every one is listed in {self._path}. Mend the corpus, or allow more: max_reject_rate=0.5"
            )

    def table(self) -> str:
        """Return one line a reason: pairs, items and the first example; the most frequent first."""
        rows = sorted(self._first.items(), key=lambda row: (-self.pairs[row[0]], row[0]))
        return "\n".join(
            f"  {reason:<20} {self.pairs[reason]:>8} pairs {'kept' if first.kept else 'lost'}, "
            f"{self._items[reason]} items; first: {first.item}: {first.detail}"
            for reason, first in rows
        )
