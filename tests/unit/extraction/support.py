"""Predictions for the tests of scores, comparisons and files."""

import random
from collections.abc import Sequence

from promptmeup.extraction.predictions import Entity, EntityPrediction, RelationPrediction

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
RELATIONS = ("None", "/per/org/member_of", "/per/per/peer", "lives_in")


def entity(
    tags: str, gold: str | None = None, *, own_id: str = "a", entities: Sequence[Entity] = ()
) -> EntityPrediction:
    """Return a prediction from tags and gold tags with spaces between them; its words are named by the id."""
    found = tuple(tags.split())
    return EntityPrediction(
        id=own_id,
        words=tuple(f"{own_id}{place}" for place in range(len(found))),
        gold=None if gold is None else tuple(gold.split()),
        tags=found,
        entities=tuple(entities),
        has_image=True,
    )


def relation(found: str, gold: str | None = None, *, own_id: str = "a") -> RelationPrediction:
    """Return a prediction for a sentence of three words, which are named by the id."""
    words = (f"{own_id}0", "in", f"{own_id}1")
    return RelationPrediction(own_id, words, (0, 1), (2, 3), gold, found, 0.5, has_image=False)


def random_tags(source: random.Random, sentences: int) -> list[list[str]]:
    """Return tags without any order among them: most I- are broken."""
    return [source.choices(TAGS, weights=(4, 1, 2, 1, 2), k=source.randint(1, 9)) for _ in range(sentences)]


def altered(source: random.Random, rows: Sequence[Sequence[str]], share: float) -> list[list[str]]:
    """Return `rows` with about this share of tags replaced."""
    return [[source.choice(TAGS) if source.random() < share else tag for tag in row] for row in rows]


def entities(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> list[EntityPrediction]:
    """Return a prediction for each sentence."""
    return [
        entity(" ".join(tags), " ".join(own), own_id=f"s{number}-")
        for number, (own, tags) in enumerate(zip(gold, found, strict=True))
    ]


def relations(gold: Sequence[str], found: Sequence[str]) -> list[RelationPrediction]:
    """Return a prediction for each instance."""
    return [
        relation(name, own, own_id=f"s{number}-")
        for number, (own, name) in enumerate(zip(gold, found, strict=True))
    ]
