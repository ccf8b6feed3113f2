"""Short names of the synthetic world, each of which denotes two entities of different kinds.

A short name is a part of its first bearer's name, which captions of the news tell in full: the last name of a
person, the first word of an organisation. Its second bearer is called after the first, as a foundation,
a cup or a hill is called after a person, and never so in the news: who that is can only be learnt downstream.
"""

import random
from dataclasses import dataclass

from promptmeup.corpora.synthetic_world import Entity, Kind, World


@dataclass(frozen=True)
class Nickname:
    word: str
    bearers: tuple[Entity, Entity]
    """first the one of whose name it is a part; their kinds differ"""

    @property
    def kinds(self) -> frozenset[Kind]:
        return frozenset(bearer.kind for bearer in self.bearers)


def create_nicknames(world: World, seed: int) -> tuple[Nickname, ...]:
    """Return a nickname for each person and each organisation, with second bearers at random.

    A person's is an organisation, event or place; an organisation's is a person. Nobody is the second bearer
    of two nicknames while another of the same kinds is that of none.
    """
    rng = random.Random(f"{seed}/nicknames")
    people, organisations, places, events = (
        [Entity(kind, number) for number in range(len(world.by_kind()[kind]))]
        for kind in ("person", "organisation", "place", "event")
    )
    others = rng.sample([*organisations, *places, *events], len(organisations) + len(places) + len(events))
    namesakes = rng.sample(people, len(people))
    last_names = [
        Nickname(world.name(person).split()[-1], (person, others[person.number % len(others)]))
        for person in people
    ]
    first_words = [
        Nickname(world.name(one).split()[0], (one, namesakes[one.number % len(namesakes)]))
        for one in organisations
    ]
    return (*last_names, *first_words)
