"""What is fine-tuned on, and how much of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from promptmeup.config import Config
from promptmeup.corpora import extraction, mnre
from promptmeup.corpora.extraction import ExtractionCorpus, Statistics
from promptmeup.corpora.extraction_jsonl import JsonlConfig
from promptmeup.corpora.mnre import MnreConfig
from promptmeup.corpora.twitter import TwitterConfig
from promptmeup.errors import CorpusError
from promptmeup.models.extraction import Task
from promptmeup.records import RelationInstance, TaggedSentence

Labelled = TaggedSentence | RelationInstance


class _Options(Config):
    """What all corpora have in common."""

    text_only: bool = False
    """leave the photos alone: the model gets no vision encoder"""
    max_crops: int = Field(default=0, ge=0, le=16)
    """pictures of single objects beside each photo: the corpus's own crops, else its boxes by score x area"""
    eval_mode: Literal["center", "whole"] = "whole"
    """look at the largest square in the middle, or squeeze the whole photo into the square"""
    max_tokens: int = Field(default=128, ge=16, le=512)
    """longer sentences are cut; the words that were cut off are predicted as no entity"""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """train on this share of the training split"""
    shots: int | None = Field(default=None, gt=0)
    """train on about this many sentences for each type or relation (see `subset`)"""
    subset_seed: int | None = Field(default=None, ge=0)
    """which ones; None: the run's own seed"""
    splits: tuple[str, ...] = ("test",)
    """evaluated at the end, with the model that was best on val"""
    workers: int = Field(default=1, ge=0, le=128)
    """processes that read and decode photos for each rank; text alone needs none"""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fraction is not None and self.shots is not None:
            raise ValueError("give either fraction or shots")
        return self


class TwitterData(TwitterConfig, _Options):
    """Twitter-2015 or Twitter-2017."""


class MnreData(MnreConfig, _Options):
    """MNRE."""


class JsonlData(JsonlConfig, _Options):
    """Sentences of one's own."""


ExtractionData = Annotated[TwitterData | MnreData | JsonlData, Field(discriminator="kind")]


@dataclass(frozen=True)
class Corpus:
    """All that a run needs of its corpus, read once for all seeds."""

    data: ExtractionData
    rows: dict[str, extraction.Rows]
    """by split: train, val, and those that are evaluated at the end"""
    statistics: dict[str, Statistics]
    """likewise; of the whole training split, before `fraction` and `shots`"""


def read_corpus(data: ExtractionData) -> Corpus:
    """Read every split that a run needs.

    Raises:
        CorpusError: one is absent or malformed.
    """
    rows = {split: extraction.read(data, split) for split in dict.fromkeys(["train", "val", *data.splits])}
    return Corpus(data, rows, {split: extraction.count(data, split, found) for split, found in rows.items()})


def task_of(data: ExtractionCorpus) -> Task:
    """Return what the corpus is labelled for."""
    if isinstance(data, JsonlConfig):
        return data.task
    return "entities" if isinstance(data, TwitterConfig) else "relations"


def labels_of(data: ExtractionData, rows: Sequence[Labelled], *, none: str | None) -> tuple[str, ...]:
    """Return the tags or relations of the training split, all of whose rows are given, in the order of their ids.

    Tags: O, then B- and I- of each type by name. Relations: as the corpus numbers them, else `none` first and the
    others by name.

    Raises:
        CorpusError: the split is empty, or MNRE's list of relations unreadable.
    """
    if not rows:
        raise CorpusError(f"the training split of {data.root} is empty")
    if isinstance(data, MnreConfig):
        return mnre.relations(data)
    names = set()
    for row in rows:
        if isinstance(row, TaggedSentence):
            names |= {tag[2:] for tag in row.tags if tag != "O"}
        else:
            names.add(row.relation)
    if task_of(data) == "entities":
        return ("O", *(f"{place}-{name}" for name in sorted(names) for place in "BI"))
    return tuple(sorted(names, key=lambda name: (name != none, name)))


def subset(
    rows: Sequence[Labelled], *, fraction: float | None, shots: int | None, seed: int
) -> tuple[Labelled, ...]:
    """Return the seeded part of `rows` for low-resource training, in the order of the draw.

    A smaller fraction or number of the same seed is a part of a larger one. With `shots` a row is taken if one of its
    types, or its relation, has been taken less than `shots` times so far, so that frequent types may come a few more
    times beside rare ones; rows without any entity count as a type of their own.
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(rows))
    if fraction is not None:
        return tuple(rows[i] for i in order[: max(1, round(fraction * len(rows)))])
    if shots is None:
        return tuple(rows)
    taken: dict[str, int] = {}
    chosen = []
    for i in order:
        kinds = _kinds(rows[i])
        if any(taken.get(kind, 0) < shots for kind in kinds):
            chosen.append(rows[i])
            for kind in kinds:
                taken[kind] = taken.get(kind, 0) + 1
    return tuple(chosen)


def _kinds(row: Labelled) -> set[str]:
    if isinstance(row, RelationInstance):
        return {row.relation}
    return {tag[2:] for tag in row.tags if tag != "O"} or {"O"}
