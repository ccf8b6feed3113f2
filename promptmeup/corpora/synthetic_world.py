"""The made-up news world: who and what exists, what an image of it shows, what its captions say."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Literal, NamedTuple

from promptmeup.corpora import synthetic_names as names

Kind = Literal["person", "organisation", "place", "event"]


class Entity(NamedTuple):
    """One of the world's; `number` is its position in the list of its kind."""

    kind: Kind
    number: int


@dataclass(frozen=True)
class Facts:
    """What one image shows; numbers are positions in the world's lists."""

    people: tuple[int, ...]
    """in the news one person, or two who are related; downstream nobody to two. Bystanders not counted"""
    organisation: int | None
    """whose banner is in the image, if any: in the news the first person's"""
    place: int
    event: int
    other_people: tuple[int, ...] = ()
    """bystanders: in the image, and not what is told of it"""
    other_events: tuple[int, ...] = ()

    @property
    def all_people(self) -> tuple[int, ...]:
        return self.people + self.other_people

    @property
    def all_events(self) -> tuple[int, ...]:
        return (self.event, *self.other_events)

    @property
    def shown(self) -> tuple[Entity, ...]:
        """Everything that the image shows."""
        banner = [] if self.organisation is None else [Entity("organisation", self.organisation)]
        return (
            *(Entity("person", person) for person in self.all_people),
            *(Entity("event", event) for event in self.all_events),
            *banner,
            Entity("place", self.place),
        )

    def exchange(self, shown: Entity, other: int | None) -> "Facts":
        """Return the facts with entity `other` of the same kind, or None of it, in the place of `shown`."""
        if shown.kind == "person":
            people = [other if person == shown.number else person for person in self.people]
            return replace(self, people=tuple(person for person in people if person is not None))
        if shown.kind == "organisation":
            return replace(self, organisation=other)
        assert other is not None, "every image has a place and an event"
        return replace(self, place=other) if shown.kind == "place" else replace(self, event=other)


@dataclass(frozen=True)
class Relation:
    head: str
    property: str
    """Wikidata's identifier, such as P463"""
    label: str
    tail: str


@dataclass(frozen=True)
class Mention:
    """A caption and the names in it."""

    text: str
    names: frozenset[str]


@dataclass(frozen=True)
class World:
    """Everything that exists, by name; the position of a name is also the number of its look."""

    people: tuple[str, ...]
    organisations: tuple[str, ...]
    places: tuple[str, ...]
    events: tuple[str, ...]

    def by_kind(self) -> dict[Kind, tuple[str, ...]]:
        """Return the names of each kind."""
        return {
            "person": self.people,
            "organisation": self.organisations,
            "place": self.places,
            "event": self.events,
        }

    def name(self, entity: Entity) -> str:
        return self.by_kind()[entity.kind][entity.number]

    def draw_entity(self, kind: Kind, rng: random.Random, *, besides: tuple[int, ...] = ()) -> Entity:
        """Return a random entity of `kind`, none of those numbered `besides`."""
        numbers = [number for number in range(len(self.by_kind()[kind])) if number not in besides]
        return Entity(kind, rng.choice(numbers))

    def employer(self, person: int) -> int:
        """Return the organisation that the person is a member of."""
        return person % len(self.organisations)

    def relatives(self, person: int) -> dict[int, str]:
        """Return {person: "spouse" or "sibling"}; the relation holds in both directions."""
        both = {person ^ 1: "spouse", person ^ 2: "sibling"}
        return {other: relation for other, relation in both.items() if other < len(self.people)}

    def entities(self, facts: Facts) -> dict[str, Kind]:
        """Return {name: kind} of everything that the image shows."""
        return {self.name(entity): entity.kind for entity in facts.shown}

    def relations(self, facts: Facts) -> tuple[Relation, ...]:
        """Return every relation between the entities of the image."""
        place, events = self.places[facts.place], [self.events[event] for event in facts.all_events]
        found = [Relation(event, *names.RELATIONS["location"], place) for event in events]
        for person in facts.all_people:
            name = self.people[person]
            found += [Relation(name, *names.RELATIONS["participant"], event) for event in events]
            if facts.organisation == self.employer(person):
                organisation = self.organisations[facts.organisation]
                found.append(Relation(name, *names.RELATIONS["member"], organisation))
            for other, relation in self.relatives(person).items():
                if other in facts.all_people:
                    found.append(Relation(name, *names.RELATIONS[relation], self.people[other]))
        return tuple(found)

    def draw_facts(self, rng: random.Random) -> Facts:
        """Return what a random image shows: one person, one with a banner, or two, equally often."""
        person = rng.randrange(len(self.people))
        place, event = rng.randrange(len(self.places)), rng.randrange(len(self.events))
        scene = rng.choice(("solo", "member", "pair"))
        relatives = sorted(self.relatives(person))
        people = (person, rng.choice(relatives)) if scene == "pair" and relatives else (person,)
        return Facts(people, self.employer(person) if scene == "member" else None, place, event)

    def write_captions(
        self, facts: Facts, rng: random.Random, count: int, *, domain: names.Domain = "news"
    ) -> Iterator[Mention]:
        """Yield `count` different captions, at most `names.MAX_CAPTIONS`, that are true of the image.

        They tell the same in every domain, and nothing of bystanders.
        """
        words = names.CAPTIONS[domain]
        single = words.solo if facts.organisation is None else words.member
        templates = single if len(facts.people) == 1 else words.pair
        for template in rng.sample(templates, count):
            people = rng.sample(facts.people, len(facts.people))
            slots = {"a": self.people[people[0]], "event": self.events[facts.event]}
            slots["place"] = self.places[facts.place]
            if facts.organisation is not None:
                slots["organisation"] = self.organisations[facts.organisation]
            if len(people) == 2:
                slots["b"] = self.people[people[1]]
            used = {name for _, name, _, _ in Formatter().parse(template) if name}
            relation = self.relatives(people[0]).get(people[-1], "")
            text = template.format(**slots, relation=relation)
            yield Mention(text, frozenset(slots[name] for name in used if name in slots))


def create_world(
    seed: int, *, num_people: int, num_organisations: int, num_places: int, num_events: int
) -> World:
    """Return the world of `seed`; first and last names are combined anew, none occurs twice."""
    rng = random.Random(f"{seed}/world")

    def combine(left: Sequence[str], right: Sequence[str], count: int) -> tuple[str, ...]:
        pairs = zip(rng.sample(left, count), rng.sample(right, count), strict=True)
        return tuple(f"{first} {second}" for first, second in pairs)

    return World(
        people=combine(names.FIRST_NAMES, names.LAST_NAMES, num_people),
        organisations=combine(names.ORGANISATION_NAMES, names.ORGANISATION_TYPES, num_organisations),
        places=tuple(rng.sample(names.PLACE_NAMES, num_places)),
        events=tuple(rng.sample(names.EVENT_NAMES, num_events)),
    )
