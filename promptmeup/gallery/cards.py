"""What the page shows of one sample."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptmeup.data.reader import LabelReader, PackedSplit

TOP = 4
"""soft labels shown of a photo or an object"""
MAX_CHARACTERS = 1500
"""of a caption that are shown"""


@dataclass(frozen=True)
class Piece:
    """A stretch of a caption; `kind` is "entity", "noun" or nothing."""

    text: str
    kind: str = ""
    label: str = ""


@dataclass(frozen=True)
class ShownCaption:
    pieces: tuple[Piece, ...]
    matches: bool


@dataclass(frozen=True)
class ShownBox:
    """In percent of the photo's width and height."""

    x: float
    y: float
    width: float
    height: float
    label: str
    score: float
    guesses: tuple[tuple[str, float], ...]
    """the strongest soft labels: entity, probability"""


@dataclass(frozen=True)
class Card:
    key: str
    where: str
    image_path: str
    width: int
    height: int
    image: str
    """data: URL"""
    captions: tuple[ShownCaption, ...]
    boxes: tuple[ShownBox, ...]
    guesses: tuple[tuple[str, float], ...]
    """the photo's strongest soft labels: relation, probability"""


def choose_samples(split: PackedSplit, *, number: int, seed: int) -> list[int]:
    """Return up to `number` rows of the index, a random choice in the order of the shards."""
    rows = np.random.default_rng(seed).permutation(len(split))[:number]
    return [int(row) for row in np.sort(rows)]


def make_card(split: PackedSplit, row: int, labels: LabelReader | None) -> Card:
    """Return what is shown of the sample in row `row` of the index.

    Raises:
        ShardError: it cannot be read.
    """
    record = split.read_json(row)
    guesses: tuple[tuple[str, float], ...] = ()
    object_guesses: list[tuple[tuple[str, float], ...]] = [()] * len(record["boxes"])
    if labels is not None:
        guesses = _strongest(*labels.image(row), labels.manifest.relations)
        object_ids, object_probs = labels.objects(row)
        object_guesses = [
            _strongest(ids, probs, labels.manifest.entities)
            for ids, probs in zip(object_ids, object_probs, strict=True)
        ]
    width, height = record["width"], record["height"]
    return Card(
        key=record["key"],
        where=split.where(row),
        image_path=record["image_path"],
        width=width,
        height=height,
        image="data:image/jpeg;base64," + base64.b64encode(split.read_image(row)).decode(),
        captions=tuple(
            ShownCaption(pieces(caption), caption["image_key"] == record["key"])
            for caption in record["captions"]
        ),
        boxes=tuple(
            ShownBox(
                round(100 * box["x0"] / width, 2),
                round(100 * box["y0"] / height, 2),
                round(100 * (box["x1"] - box["x0"]) / width, 2),
                round(100 * (box["y1"] - box["y0"]) / height, 2),
                box["label"],
                box["score"],
                its_guesses,
            )
            for box, its_guesses in zip(record["boxes"], object_guesses, strict=True)
        ),
        guesses=guesses,
    )


def pieces(caption: dict[str, Any]) -> tuple[Piece, ...]:
    """Cut a caption of KEY.json at its entities and nouns; together the pieces are its text."""
    spans = [(span["start"], span["end"], "entity", span["label"]) for span in caption["entities"]]
    spans += [(span["start"], span["end"], "noun", span["label"]) for span in caption["nouns"]]
    text, found, place = caption["text"][:MAX_CHARACTERS], [], 0
    for start, end, kind, label in sorted(spans):
        if start < place or end > len(text):
            continue
        found += [Piece(text[place:start]), Piece(text[start:end], kind, label)]
        place = end
    rest = text[place:] + ("…" if len(caption["text"]) > MAX_CHARACTERS else "")
    return tuple(piece for piece in (*found, Piece(rest)) if piece.text)


def _strongest(ids: NDArray[Any], probs: NDArray[Any], names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    return tuple((names[int(i)], float(p)) for i, p in zip(ids[:TOP], probs[:TOP], strict=True))
