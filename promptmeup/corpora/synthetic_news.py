"""The news of the synthetic world: images with their captions, and the pairs of NewsCLIPpings."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from promptmeup.corpora.synthetic_bystanders import NOBODY, BystandersConfig, add_bystanders
from promptmeup.corpora.synthetic_names import Domain
from promptmeup.corpora.synthetic_world import Facts, Mention, World
from promptmeup.errors import CorpusError

FIRST_ID = 100_000


@dataclass(frozen=True)
class News:
    """One image with its captions; record `first_id` + n has caption n."""

    split: str
    number: int
    facts: Facts
    shown: frozenset[str]
    captions: tuple[Mention, ...]
    first_id: int

    @property
    def path(self) -> str:
        """Relative to visual_news/origin, as VisualNews writes it."""
        return f"./synthetic/images/{self.number // 1000:04d}/{self.number % 1000:03d}.jpg"


def write_news(
    world: World,
    *,
    seed: int,
    num_train: int,
    num_val: int,
    captions_per_image: int,
    domain: Domain = "news",
    bystanders: BystandersConfig = NOBODY,
) -> Iterator[News]:
    """Yield the news of train, then of val; each has random numbers of its own.

    Neither domain nor bystanders change what is told.
    """
    for number, split in enumerate(["train"] * num_train + ["val"] * num_val):
        rng = random.Random(f"{seed}/news/{number}")
        facts = world.draw_facts(rng)
        captions = tuple(world.write_captions(facts, rng, captions_per_image, domain=domain))
        own = random.Random(f"{seed}/bystanders/news/{number}")
        facts = add_bystanders(world, facts, bystanders, own)
        first_id = FIRST_ID + number * captions_per_image
        yield News(split, number, facts, frozenset(world.entities(facts)), captions, first_id)


def records(item: News) -> Iterator[dict[str, Any]]:
    """Yield the lines of VisualNews' data.json for one image: a record a caption."""
    for record_id, caption in enumerate(item.captions, start=item.first_id):
        yield {
            "id": record_id,
            "caption": caption.text,
            "topic": "world",
            "source": "synthetic",
            "image_path": item.path,
            "article_path": f"./synthetic/articles/{record_id}.txt",
        }


def annotations(
    news: list[News], *, seed: int, falsified: bool, candidates: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield each caption with its own image and then, if `falsified`, with one that it is not true of.

    Of so many random ones it is the one that shows most of what the caption tells.
    """
    for item in news:
        rng = random.Random(f"{seed}/falsified/{item.number}")
        for record_id, caption in enumerate(item.captions, start=item.first_id):
            yield _annotation(record_id, record_id, falsified=False)
            if falsified:
                others = [_other_image(caption, news, rng) for _ in range(candidates)]
                other = max(others, key=lambda one, told=caption.names: len(told & one.shown))  # type: ignore[misc]
                yield _annotation(record_id, other.first_id, falsified=True)


def _annotation(record_id: int, image_id: int, *, falsified: bool) -> dict[str, Any]:
    similarity = 0.5 if falsified else 1.0
    return {
        "id": record_id,
        "image_id": image_id,
        "similarity_score": similarity,
        "falsified": falsified,
        "source_dataset": 0,
    }


def _other_image(caption: Mention, news: list[News], rng: random.Random) -> News:
    """Return a random image that the caption is not true of."""
    # luck finds one soon; where nearly all images look alike, go through them
    for candidate in chain((rng.choice(news) for _ in range(50)), news):
        if not caption.names <= candidate.shown:
            return candidate
    raise CorpusError(
        f"all {len(news)} images of the split '{news[0].split}' show what '{caption.text}' tells, so it cannot "
        "be falsified: use more images, people, places or events, or falsified=false"
    )
