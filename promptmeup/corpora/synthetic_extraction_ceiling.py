"""How well the synthetic world's posts can be labelled at best: by words alone, by kinds of objects, by who is shown.

An oracle knows everything but a part of the image, how often each reading of every sentence occurs in this very
split included; it always takes the most frequent reading. What it reaches, no model that sees as little can exceed.

- words: nothing of the image is seen
- kinds: how many objects of each kind there are, but not who they are
- image: who is shown. This one knows nothing of the labels: it applies the rule, so it tests the images

Entities are scored by the micro F1 of exact spans with their types. All spans are found, and full names have their
types, so there are as many predictions as entities, and F1 = 1 - (short names read wrongly) / entities. Leaving
out a short name that is right with probability p would pay for p < F1 / 2 only: never, since p is at least 1/2.
Relations are scored by accuracy over all, and by the micro F1 of those that are not None.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from promptmeup.corpora.synthetic_entity_posts import EntityPost
from promptmeup.corpora.synthetic_posts import Post
from promptmeup.corpora.synthetic_relation_posts import NONE, RelationPost
from promptmeup.corpora.synthetic_world import Kind, World

P = TypeVar("P", bound=Post)


def entity_ceiling(world: World, posts: Sequence[EntityPost]) -> dict[str, Any]:
    """Return the counts of a split that is not empty, and {"F1", "accuracy_ambiguous"} of each oracle."""
    entities = sum(len(post.mentions) for post in posts)

    def scores(right: int) -> dict[str, float]:
        return {"F1": 1 - (len(posts) - right) / entities, "accuracy_ambiguous": right / len(posts)}

    return {
        "sentences": len(posts),
        "entities": entities,
        "ambiguous": len(posts),
        "by": dict(Counter(post.by for post in posts)),
        "words": scores(_most_frequent(posts, _words, lambda post: post.kind)),
        "kinds": scores(
            _most_frequent(posts, lambda post: _words_and_kinds(world, post), lambda post: post.kind)
        ),
        "image": scores(sum(read_short_name(world, post) == post.kind for post in posts)),
    }


def relation_ceiling(world: World, posts: Sequence[RelationPost]) -> dict[str, Any]:
    """Return the counts of a split that is not empty, and {"accuracy", "F1"} of each oracle."""

    def scores(observe: Callable[[RelationPost], Hashable]) -> dict[str, float]:
        right = _most_frequent(posts, observe, lambda post: post.relation)
        return {"accuracy": right / len(posts), "F1": _best_f1(posts, observe)}

    found = [read_relation(world, post) for post in posts]
    both = sum(post.relation == read for post, read in zip(posts, found, strict=True))
    hits = sum(post.relation == read != NONE for post, read in zip(posts, found, strict=True))
    related = sum(post.relation != NONE for post in posts)
    return {
        "sentences": len(posts),
        "relations": dict(Counter(post.relation for post in posts)),
        "words": scores(_words),
        "kinds": scores(lambda post: _words_and_kinds(world, post)),
        "image": {
            "accuracy": both / len(posts),
            "F1": 2 * hits / (sum(read != NONE for read in found) + related),
        },
    }


def read_short_name(world: World, post: EntityPost) -> Kind | None:
    """Return of what kind the short name is by who is shown, or None where that does not decide."""
    shown = world.entities(post.facts)
    kinds = [bearer.kind for bearer in post.nickname.bearers if world.name(bearer) in shown]
    return kinds[0] if len(kinds) == 1 else None


def read_relation(world: World, post: RelationPost) -> str:
    """Return how head and tail are related in the image."""
    head, tail = (world.name(entity) for entity in post.entities)
    labels = [one.label for one in world.relations(post.facts) if (one.head, one.tail) == (head, tail)]
    return labels[0] if labels else NONE


def _words(post: Post) -> Hashable:
    return post.words


def _words_and_kinds(world: World, post: Post) -> Hashable:
    return post.words, tuple(sorted(world.entities(post.facts).values()))


def _readings(
    posts: Sequence[P], observe: Callable[[P], Hashable], label: Callable[[P], str]
) -> list[Counter[str]]:
    """Return how often each label occurs among the posts that look the same."""
    groups: dict[Hashable, Counter[str]] = {}
    for post in posts:
        groups.setdefault(observe(post), Counter())[label(post)] += 1
    return list(groups.values())


def _most_frequent(posts: Sequence[P], observe: Callable[[P], Hashable], label: Callable[[P], str]) -> int:
    """Return for how many posts the most frequent label of those that look the same is right."""
    return sum(max(group.values()) for group in _readings(posts, observe, label))


def _best_f1(posts: Sequence[RelationPost], observe: Callable[[RelationPost], Hashable]) -> float:
    """Return the best F1 that naming a relation in some of the groups gives, and None in all others.

    The surest groups first: with the same number of names, these have the most hits.
    """
    groups = []
    for group in _readings(posts, observe, lambda post: post.relation):
        hits = max((count for label, count in group.items() if label != NONE), default=0)
        groups.append((hits / group.total(), hits, group.total()))
    related = sum(post.relation != NONE for post in posts)
    best, hits, named = 0.0, 0, 0
    for _, more, size in sorted(groups, reverse=True):
        hits, named = hits + more, named + size
        best = max(best, 2 * hits / (named + related))
    return best
