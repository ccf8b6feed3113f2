"""Posts for relation extraction: two full names, related only if the image shows both of them.

Of the twins one shows both, the other has another entity of the same kind in the place of one of them, so
what kinds of things an image shows tells nothing either.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from promptmeup.corpora import synthetic_post_words as sentences
from promptmeup.corpora.synthetic_names import RELATIONS
from promptmeup.corpora.synthetic_posts import Post, Span, fill
from promptmeup.corpora.synthetic_world import Entity, Facts, World

NONE = "None"
"""the relation of two who are not related, as MNRE calls it"""

_TEMPLATES = {
    "participant": sentences.PARTICIPANT,
    "member": sentences.MEMBER,
    "location": sentences.LOCATION,
    "spouse": sentences.RELATIVES,
    "sibling": sentences.RELATIVES,
}
_TURNS = ("participant", "member", "location", "spouse", "participant", "member", "location", "sibling")
"""a quarter for each pair of types"""


@dataclass(frozen=True)
class RelationPost(Post):
    head: Span
    tail: Span
    entities: tuple[Entity, Entity]
    """head and tail"""
    relation: str
    absent: Literal["head", "tail"] | None
    """whom the image does not show"""

    @property
    def asked(self) -> tuple[Entity, ...]:
        return self.entities

    def fields(self) -> dict[str, Any]:
        """Return the two spans and the relation, and who is missing in the image."""
        return {
            "head": list(self.head),
            "tail": list(self.tail),
            "relation": self.relation,
            "absent": self.absent,
        }


def relation_posts(world: World, *, seed: str, count: int) -> Iterator[RelationPost]:
    """Yield `count` posts, an even number, twins one after the other; each pair has random numbers of its own.

    Couples take turns: which relation theirs is can downstream only be learnt from their posts.
    """
    for pair in range(count // 2):
        turn, position = divmod(pair, len(_TURNS))
        yield from _twins(world, random.Random(f"{seed}/{pair}"), _TURNS[position], turn)


def _twins(world: World, rng: random.Random, relation: str, turn: int) -> Iterator[RelationPost]:
    facts, entities = _related(world, rng, relation, turn)
    names = {slot: world.name(entity) for slot, entity in zip(("head", "tail"), entities, strict=True)}
    words, spans = fill(rng.choice(_TEMPLATES[relation]), names)
    label = RELATIONS[relation][1]
    yield RelationPost(words, facts, spans["head"], spans["tail"], entities, label, None)
    side: Literal["head", "tail"] = rng.choice(("head", "tail"))
    absent = entities[side == "tail"]
    taken = facts.people if absent.kind == "person" else (absent.number,)
    without = facts.exchange(absent, world.draw_entity(absent.kind, rng, besides=taken).number)
    yield RelationPost(words, without, spans["head"], spans["tail"], entities, NONE, side)


def _related(
    world: World, rng: random.Random, relation: str, turn: int
) -> tuple[Facts, tuple[Entity, Entity]]:
    """Return an image that shows `relation`, and between whom."""
    place, event = world.draw_entity("place", rng), world.draw_entity("event", rng)
    person = world.draw_entity("person", rng)
    alone = Facts((person.number,), None, place.number, event.number)
    if relation == "participant":
        return alone, (person, event)
    if relation == "location":
        return alone, (event, place)
    if relation == "member":
        organisation = Entity("organisation", world.employer(person.number))
        return alone.exchange(organisation, organisation.number), (person, organisation)
    couples = [
        (one, other)
        for one in range(len(world.people))
        for other, found in world.relatives(one).items()
        if found == relation and one < other
    ]
    head, tail = rng.sample(couples[turn % len(couples)], 2)
    couple = Facts((head, tail), None, place.number, event.number)
    return couple, (Entity("person", head), Entity("person", tail))
