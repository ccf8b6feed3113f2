"""Bystanders of the synthetic world: people and events that an image shows besides those that its text is about.

They have random numbers of their own, so a world with bystanders tells the same of the same people as one without.
"""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from pydantic import Field

from promptmeup.config import Config
from promptmeup.corpora.synthetic_posts import Post
from promptmeup.corpora.synthetic_world import Entity, Facts, Kind, World

P = TypeVar("P", bound=Post)


class BystandersConfig(Config):
    """How many further people and events every image shows, of which its captions or its post tell nothing."""

    people: int = Field(default=0, ge=0, le=3)
    events: int = Field(default=0, ge=0, le=2)


NOBODY = BystandersConfig()


def add_bystanders(
    world: World,
    facts: Facts,
    bystanders: BystandersConfig,
    rng: random.Random,
    *,
    besides: Collection[Entity] = (),
) -> Facts:
    """Return the facts with random bystanders, who are neither among them nor among `besides`."""
    taken = {*facts.shown, *besides}

    def draw(kind: Kind, count: int) -> tuple[int, ...]:
        numbers = range(len(world.by_kind()[kind]))
        return tuple(rng.sample([n for n in numbers if Entity(kind, n) not in taken], count))

    return replace(
        facts,
        other_people=draw("person", bystanders.people),
        other_events=draw("event", bystanders.events),
    )


def add_to_twins(world: World, posts: Sequence[P], bystanders: BystandersConfig, *, seed: str) -> Iterator[P]:
    """Yield the posts, of which twins follow each other, with the same bystanders in both twins' images.

    Nobody whom their words leave open or either of their images is about is one, so bystanders make no
    reading true, and tell nothing of which it is.
    """
    for number in range(0, len(posts), 2):
        twins = posts[number : number + 2]
        besides = {entity for post in twins for entity in (*post.asked, *post.facts.shown)}
        for post in twins:
            rng = random.Random(f"{seed}/{number // 2}")
            yield replace(post, facts=add_bystanders(world, post.facts, bystanders, rng, besides=besides))
