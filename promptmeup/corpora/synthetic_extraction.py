"""Two corpora for fine-tuning on the made-up news world, in the format of extraction_jsonl.py.

    extraction/nicknames.json                          whom each short name denotes: {word: {type: name}}
    extraction/entities/{train,val,test}.jsonl         posts of synthetic_entity_posts.py
    extraction/relations/{train,val,test}.jsonl        posts of synthetic_relation_posts.py
    extraction/images/TASK/SPLIT/0000/000.jpg          one a post, drawn for it alone
    extraction/ceiling.json                            the best scores on test (synthetic_extraction_ceiling.py)

Beside the format's own keys a line says "shows", {name: kind} of all that is in the image, and each of its boxes whose
it is ("entity"). Of entities it says which mentions the words leave open ("ambiguous", spans in words) and what
decides ("by": "kind" or "identity"); of relations which mention the image does not show ("absent": "head", "tail" or
null). Entities, looks and the number of bystanders are those of the news; every random number is the corpora's own.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from promptmeup.config import Config
from promptmeup.corpora.synthetic_bystanders import NOBODY, BystandersConfig, add_to_twins
from promptmeup.corpora.synthetic_entity_posts import TYPES, EntityPost, entity_posts
from promptmeup.corpora.synthetic_extraction_ceiling import entity_ceiling, relation_ceiling
from promptmeup.corpora.synthetic_files import object_entry, write_lines
from promptmeup.corpora.synthetic_names import Domain
from promptmeup.corpora.synthetic_nicknames import Nickname, create_nicknames
from promptmeup.corpora.synthetic_posts import Post
from promptmeup.corpora.synthetic_relation_posts import RelationPost, relation_posts
from promptmeup.corpora.synthetic_scene import draw_scene
from promptmeup.corpora.synthetic_world import World
from promptmeup.shard_format import write_json


class ExtractionSizes(Config):
    """Sentences of each task in each split; 0 leaves the split out. Even, since they come in twins."""

    num_train: int = Field(default=800, ge=0, le=1_000_000, multiple_of=2)
    num_val: int = Field(default=200, ge=0, le=1_000_000, multiple_of=2)
    num_test: int = Field(default=400, ge=0, le=1_000_000, multiple_of=2)

    def by_split(self) -> dict[str, int]:
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}


def write_extraction(
    folder: Path,
    world: World,
    sizes: ExtractionSizes,
    *,
    seed: int,
    image_size: tuple[int, int],
    domain: Domain = "news",
    bystanders: BystandersConfig = NOBODY,
) -> None:
    """Write both corpora of `seed` to `folder`, or nothing where all sizes are 0.

    Raises:
        OSError: a file cannot be written.
    """
    nicknames = create_nicknames(world, seed)
    for split, count in sizes.by_split().items():
        if count == 0:
            continue
        entities, relations = draw_posts(
            world, nicknames, seed=seed, split=split, count=count, bystanders=bystanders
        )
        for task, posts in (("entities", entities), ("relations", relations)):
            lines = _write_images(
                folder, world, posts, f"{task}/{split}", seed=seed, image_size=image_size, domain=domain
            )
            write_lines(folder / task / f"{split}.jsonl", lines)
        write_json(folder / "nicknames.json", _describe(world, nicknames))
        if split == "test":
            best = {
                "entities": entity_ceiling(world, entities),
                "relations": relation_ceiling(world, relations),
            }
            write_json(folder / "ceiling.json", {"split": split, **best})


def draw_posts(
    world: World,
    nicknames: Sequence[Nickname],
    *,
    seed: int,
    split: str,
    count: int,
    bystanders: BystandersConfig = NOBODY,
) -> tuple[list[EntityPost], list[RelationPost]]:
    """Return `count` posts of each task, in the order of their lines, which tells nothing about twins."""
    stream = f"{seed}/extraction/{split}"
    entities = list(entity_posts(world, nicknames, seed=f"{stream}/entities", count=count))
    relations = list(relation_posts(world, seed=f"{stream}/relations", count=count))
    entities = list(add_to_twins(world, entities, bystanders, seed=f"{stream}/bystanders/entities"))
    relations = list(add_to_twins(world, relations, bystanders, seed=f"{stream}/bystanders/relations"))
    random.Random(f"{stream}/order/entities").shuffle(entities)
    random.Random(f"{stream}/order/relations").shuffle(relations)
    return entities, relations


def _write_images(
    folder: Path,
    world: World,
    posts: Sequence[Post],
    name: str,
    *,
    seed: int,
    image_size: tuple[int, int],
    domain: Domain,
) -> list[dict[str, Any]]:
    """Draw an image for each post of `name` (task/split); return the posts' lines."""
    lines = []
    for number, post in enumerate(posts):
        path = Path("images", name, f"{number // 1000:04d}", f"{number % 1000:03d}.jpg")
        rng = random.Random(f"{seed}/extraction/{name}/image/{number}")
        jpeg, objects = draw_scene(post.facts, rng, size=image_size, domain=domain)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg)
        lines.append(
            {
                "id": f"{name}/{number}",
                "words": list(post.words),
                **post.fields(),
                "image": path.as_posix(),
                "boxes": [object_entry(world, drawn) for drawn in objects],
                "shows": world.entities(post.facts),
            }
        )
    return lines


def _describe(world: World, nicknames: Sequence[Nickname]) -> dict[str, dict[str, str]]:
    return {one.word: {TYPES[bearer.kind]: world.name(bearer) for bearer in one.bearers} for one in nicknames}
