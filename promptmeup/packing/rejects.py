"""The books of one split: every pair that the corpus names is packed or has a line in rejects.jsonl."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from promptmeup.errors import CorpusError
from promptmeup.records import Reject
from promptmeup.shard_format import write_atomically

PAIRS_BEFORE_JUDGING = 1000
BOX_REASONS = ("no_detections", "bad_box", "malformed_boxes")
"""made by the stage that finds boxes or by reading the corpus's, and replaced with them"""


class Books:
    """Counts pairs and rejects, and judges whether too large a share of the pairs is lost."""

    def __init__(self, *, max_rate: float) -> None:
        self._max_rate = max_rate
        self.seen = self.lost = 0
        """pairs met so far, and those of them that are not packed"""
        self.pairs: Counter[str] = Counter()
        """pairs concerned, by reason"""
        self._items: Counter[str] = Counter()
        self._first: dict[str, Reject] = {}

    def add(self, rejects: Iterable[Reject], *, packed: int) -> None:
        """Book some `packed` pairs and what went wrong with others and them."""
        self.seen += packed
        for reject in rejects:
            self.pairs[reject.reason] += reject.pairs
            self._items[reject.reason] += 1
            self._first.setdefault(reject.reason, reject)
            if not reject.kept:
                self.seen += reject.pairs
                self.lost += reject.pairs

    def check(self, *, finished: bool = False) -> None:
        """Judge the share of lost pairs; before the end only once 1000 were seen.

        Raises:
            CorpusError: more than `max_rate` is lost, or everything, with a table of the reasons.
        """
        if finished and self.seen == self.lost:
            raise CorpusError(f"nothing to pack: of {self.seen} pairs none is left\n{self.table()}")
        enough = finished or self.seen >= PAIRS_BEFORE_JUDGING
        if enough and self.lost > self._max_rate * self.seen:
            raise CorpusError(
                f"{self.lost} of {self.seen} pairs ({self.lost / self.seen:.1%}) cannot be packed, more than "
                f"max_reject_rate={self._max_rate:g} allows:\n{self.table()}"
            )

    def table(self) -> str:
        """Return one line a reason: pairs, items and the first example; the most frequent first."""
        rows = sorted(self._first.items(), key=lambda row: (-self.pairs[row[0]], row[0]))
        return "\n".join(
            f"  {reason:<20} {self.pairs[reason]:>8} pairs {'kept' if first.kept else 'lost'}, "
            f"{self._items[reason]} items; first: {first.item}: {first.detail}"
            for reason, first in rows
        )


def write_rejects(path: Path, rejects: Iterable[Reject]) -> None:
    """Write rejects.jsonl: those about boxes at the end, where they stand when boxes are found later."""
    ordered = sorted(rejects, key=lambda reject: reject.reason in BOX_REASONS)
    lines = (json.dumps(asdict(reject), ensure_ascii=False, sort_keys=True) + "\n" for reject in ordered)
    write_atomically(path, "".join(lines).encode())


def read_rejects(path: Path) -> list[Reject]:
    """Return the lines of a rejects.jsonl."""
    return [Reject(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
