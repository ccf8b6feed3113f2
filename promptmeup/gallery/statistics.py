"""What the page says of a whole split, as charts of labelled bars."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from promptmeup.data.reader import PackedSplit

LOOKED_AT = 20_000
"""samples whose JSON is read for the charts, at most"""
BARS = 20


@dataclass(frozen=True)
class Bar:
    name: str
    value: int
    percent: float
    """of the longest bar"""


@dataclass(frozen=True)
class Chart:
    title: str
    bars: tuple[Bar, ...]


def charts(split: PackedSplit, *, seed: int) -> list[Chart]:
    """Return the charts of a split that have anything to show.

    Captions, sizes and labels of boxes are counted over a random choice of 20,000 samples at most.
    """
    rows = np.random.default_rng(seed).permutation(len(split))[:LOOKED_AT]
    words: Counter[int] = Counter()
    sides: Counter[int] = Counter()
    labels: Counter[str] = Counter()
    for row in np.sort(rows).tolist():
        record = split.read_json(row)
        words.update(len(caption["text"].split()) for caption in record["captions"])
        sides[min(record["original_width"], record["original_height"])] += 1
        labels.update(box["label"] for box in record["boxes"])
    per_photo = np.bincount(split.pairs["sample"], minlength=len(split))
    matched = int(split.manifest.matched_pairs)
    found = [
        _bars("Pairs", [("matched", matched), ("mismatched", split.manifest.pairs - matched)]),
        _bars("Pairs with problems, by reason (rejects.jsonl)", _most(split.manifest.rejects)),
        _bars("Words in a caption", _ranges(words, (5, 10, 15, 20, 30, 40, 60, 100, 200))),
        _bars("Objects in a photo", _each(split.index["boxes"].tolist())),
        _bars("Captions shown with a photo", _each(per_photo.tolist())),
        _bars(
            "Shorter side of the originals, in pixels", _ranges(sides, (128, 256, 384, 512, 768, 1024, 2048))
        ),
        _bars("Objects by the detector's label", _most(labels)),
        _bars("Entities and nouns, in how many captions (entities.tsv)", _vocabulary(split)),
    ]
    return [chart for chart in found if chart.bars]


def _bars(title: str, values: Iterable[tuple[str, int]]) -> Chart:
    values = list(values)
    longest = max([1, *(value for _, value in values)])
    return Chart(title, tuple(Bar(name, value, round(100 * value / longest, 1)) for name, value in values))


def _most(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:BARS]


def _each(numbers: Sequence[int]) -> list[tuple[str, int]]:
    """Return how often each number occurs, those from 12 on together."""
    counts = Counter(min(number, 12) for number in numbers)
    return [(f"{n}" if n < 12 else "12 or more", counts[n]) for n in range(min(counts), max(counts) + 1)]


def _ranges(counts: Counter[int], limits: Sequence[int]) -> list[tuple[str, int]]:
    """Return how many numbers lie below each limit and not below the one before."""
    edges = [0, *limits]
    names = [f"{a} to {b - 1}" for a, b in pairwise(edges)] + [f"{limits[-1]} or more"]
    places = Counter[int]()
    for number, count in counts.items():
        places[int(np.searchsorted(limits, number, side="right"))] += count
    used = [place for place in range(len(names)) if places[place]]
    return [(names[p], places[p]) for p in range(used[0], used[-1] + 1)] if used else []


def _vocabulary(split: PackedSplit) -> list[tuple[str, int]]:
    path = split.folder / "entities.tsv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        rows = [line.rstrip("\n").split("\t") for _, line in zip(range(BARS), file, strict=False)]
    return [(f"{name} ({kind})", int(count)) for name, count, kind in rows]
