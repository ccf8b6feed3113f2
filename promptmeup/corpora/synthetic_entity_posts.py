"""Posts for entity recognition in which a short name denotes one of two entities: the one that the image shows.

Half of the short names are decided by kind: the image shows one bearer and nothing of the other's kind. The
other half are decided by identity: it shows one bearer, and another entity of the other bearer's kind. Bystanders
(synthetic_bystanders.py) come on top of that, as many of each kind for either reading.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from promptmeup.corpora.synthetic_nicknames import Nickname
from promptmeup.corpora.synthetic_post_words import SHORT
from promptmeup.corpora.synthetic_posts import Post, Span, fill, slot_names
from promptmeup.corpora.synthetic_world import Entity, Facts, Kind, World

TYPES: dict[Kind, str] = {"person": "PER", "organisation": "ORG", "place": "LOC", "event": "EVENT"}
_ALWAYS_SHOWN: tuple[Kind, ...] = ("place", "event")
_ONLY_TOLD: tuple[Kind, ...] = ("person", "organisation")
"""full names of these may stand in a sentence without being shown"""


@dataclass(frozen=True)
class EntityPost(Post):
    mentions: tuple[tuple[Span, Kind], ...]
    """the short name first"""
    nickname: Nickname
    by: Literal["kind", "identity"]

    @property
    def kind(self) -> Kind:
        """What the short name is of."""
        return self.mentions[0][1]

    @property
    def asked(self) -> tuple[Entity, ...]:
        return self.nickname.bearers

    def fields(self) -> dict[str, Any]:
        """Return tags in BIO, and which mention the words leave open."""
        tags = ["O"] * len(self.words)
        for (start, end), kind in self.mentions:
            tags[start:end] = [f"B-{TYPES[kind]}", *[f"I-{TYPES[kind]}"] * (end - start - 1)]
        return {"tags": tags, "ambiguous": [list(self.mentions[0][0])], "by": self.by}


def entity_posts(
    world: World, nicknames: Sequence[Nickname], *, seed: str, count: int
) -> Iterator[EntityPost]:
    """Yield `count` posts, an even number, twins one after the other; each pair has random numbers of its own.

    Nicknames take turns: whom one denotes beside the bearer of the name can only be learnt from its posts.
    """
    # every image has a place and an event, so only the kinds that it can be without decide as such
    by_kind = [one for one in nicknames if one.kinds == {"person", "organisation"}]
    for pair in range(count // 2):
        rng, turn = random.Random(f"{seed}/{pair}"), pair // 2
        if pair % 2:
            yield from _twins(world, nicknames[turn % len(nicknames)], rng, by="identity")
        else:
            yield from _twins(world, by_kind[turn % len(by_kind)], rng, by="kind")


def _twins(
    world: World, nickname: Nickname, rng: random.Random, *, by: Literal["kind", "identity"]
) -> Iterator[EntityPost]:
    numbers = {bearer.kind: bearer.number for bearer in nickname.bearers}
    own: dict[Kind, int] = {kind: world.draw_entity(kind, rng).number for kind in _ALWAYS_SHOWN} | numbers
    both = Facts(
        people=(own["person"],) if "person" in own else (),
        organisation=own.get("organisation"),
        place=own["place"],
        event=own["event"],
    )
    full: dict[Kind, Entity] = {
        kind: Entity(kind, own[kind]) for kind in _ALWAYS_SHOWN if kind not in numbers
    }
    for kind in _ONLY_TOLD:
        taken = (numbers[kind],) if kind in numbers else ()
        full[kind] = world.draw_entity(kind, rng, besides=taken)
    slots: dict[str, str] = {
        "short": nickname.word,
        **{kind: world.name(entity) for kind, entity in full.items()},
    }
    words, spans = fill(rng.choice([one for one in SHORT if slot_names(one) <= slots.keys()]), slots)
    told = tuple((spans[kind], kind) for kind in full if kind in spans)
    for meant, absent in (nickname.bearers, nickname.bearers[::-1]):
        other = world.draw_entity(absent.kind, rng, besides=(absent.number,)).number
        yield EntityPost(
            words=words,
            facts=both.exchange(absent, other if by == "identity" else None),
            mentions=((spans["short"], meant.kind), *told),
            nickname=nickname,
            by=by,
        )
