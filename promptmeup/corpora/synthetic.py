"""Writing a made-up news world to disk, in exactly the layout of NewsCLIPpings and VisualNews.

    OUT/synthetic_world.json                the configuration, and every entity with its relations
    OUT/visual_news/origin/data.json        records; images beside it under synthetic/images/
    OUT/visual_news/origin/boxes.jsonl      the boxes of every object (see boxes.py)
    OUT/news_clippings/data/merged_balanced/{train,val}.json
    OUT/truth.jsonl                         what each image shows: entities, which box is whom, relations
    OUT/ceiling.json                        the best retrieval that can be had on val (synthetic_ceiling.py)
    OUT/extraction/                         two corpora for fine-tuning, of the same world (synthetic_extraction.py)

The same configuration gives the same bytes; the only other input is Pillow's version, for the JPEGs.
"""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from promptmeup.config import Config
from promptmeup.corpora import synthetic_looks as looks
from promptmeup.corpora import synthetic_names as names
from promptmeup.corpora.newsclippings import ANNOTATIONS, ORIGIN, RECORDS
from promptmeup.corpora.synthetic_bystanders import NOBODY, BystandersConfig
from promptmeup.corpora.synthetic_ceiling import Told, retrieval_ceiling
from promptmeup.corpora.synthetic_extraction import ExtractionSizes, write_extraction
from promptmeup.corpora.synthetic_files import box_entry, object_entry, write_lines, write_text
from promptmeup.corpora.synthetic_news import News, annotations, records, write_news
from promptmeup.corpora.synthetic_scene import Drawn, draw_scene
from promptmeup.corpora.synthetic_world import World, create_world
from promptmeup.errors import CorpusError
from promptmeup.shard_format import write_json

SUBSET = "merged_balanced"
BOXES = ORIGIN / "boxes.jsonl"
MARKER = "synthetic_world.json"

Side = Annotated[int, Field(ge=48, le=2048)]


class SyntheticConfig(Config):
    """How large the world is and where it goes. Every kind of entity has a limited number of looks."""

    out: Path
    seed: int = 0
    num_train_images: int = Field(1500, ge=2, le=1_000_000)
    num_val_images: int = Field(200, ge=2, le=1_000_000)
    captions_per_image: int = Field(2, ge=1, le=names.MAX_CAPTIONS)
    num_people: int = Field(24, ge=2, le=min(looks.MAX_PEOPLE, len(names.FIRST_NAMES)))
    num_organisations: int = Field(12, ge=1, le=min(looks.MAX_ORGANISATIONS, len(names.ORGANISATION_NAMES)))
    num_places: int = Field(8, ge=1, le=min(looks.MAX_PLACES, len(names.PLACE_NAMES)))
    num_events: int = Field(6, ge=1, le=min(looks.MAX_EVENTS, len(names.EVENT_NAMES)))
    image_size: tuple[Side, Side] = (160, 120)
    """width and height in pixels"""
    domain: names.Domain = "news"
    """the same entities and facts in other looks and in other words; those of the posts stay"""
    bystanders: BystandersConfig = NOBODY
    """who else is in every image, and told of nowhere"""
    falsified: bool = True
    """show every caption a second time, with an image of the same split that it is not true of"""
    candidates: int = Field(1, ge=1, le=1000)
    """such images drawn for each caption, of which the one that shows most of what it tells is taken: 1 takes any, and
    the more there are, the harder to tell from true ones, as NewsCLIPpings' are, which were chosen for being similar"""
    extraction: ExtractionSizes = ExtractionSizes()
    """the two corpora for fine-tuning, under OUT/extraction"""

    @model_validator(mode="after")
    def _others_for_posts(self) -> Self:
        """A sentence's other reading needs others of the kind: an event that is not the one meant."""
        low = {"num_people": 3, "num_organisations": 2, "num_places": 2, "num_events": 2}
        small = self._smaller_than(low)
        if any(self.extraction.by_split().values()) and small:
            raise ValueError(
                f"the world is too small for the extraction corpora ({small}): they need 3 people and 2 of every "
                "other kind; or set extraction.num_train, extraction.num_val and extraction.num_test to 0"
            )
        return self

    @model_validator(mode="after")
    def _others_for_bystanders(self) -> Self:
        """Bystanders are besides all that a text is about; of twins, besides those of both images."""
        posts = any(self.extraction.by_split().values())
        people, events = self.bystanders.people, self.bystanders.events
        low = {"num_people": people + (3 if posts else 2), "num_events": events + (2 if posts else 1)}
        small = self._smaller_than(low)
        if (people or events) and small:
            raise ValueError(
                f"the world is too small for its bystanders ({small}): bystanders.people={people} needs "
                f"num_people={low['num_people']}, bystanders.events={events} needs num_events={low['num_events']}; "
                "raise these, or set fewer bystanders"
            )
        return self

    def _smaller_than(self, low: dict[str, int]) -> str:
        return ", ".join(
            f"{name}={getattr(self, name)}" for name, least in low.items() if getattr(self, name) < least
        )


def generate(config: SyntheticConfig) -> None:
    """Write the whole world to `config.out`; about three seconds a thousand images.

    Raises:
        CorpusError: the folder holds something else, or another world; or the world is so small that a
            caption is true of every image and cannot be falsified.
    """
    world = create_world(
        config.seed,
        num_people=config.num_people,
        num_organisations=config.num_organisations,
        num_places=config.num_places,
        num_events=config.num_events,
    )
    news = list(
        write_news(
            world,
            seed=config.seed,
            num_train=config.num_train_images,
            num_val=config.num_val_images,
            captions_per_image=config.captions_per_image,
            domain=config.domain,
            bystanders=config.bystanders,
        )
    )
    by_split = {split: [item for item in news if item.split == split] for split in ("train", "val")}
    pairs = {
        split: list(
            annotations(own, seed=config.seed, falsified=config.falsified, candidates=config.candidates)
        )
        for split, own in by_split.items()
    }
    try:
        _claim(config, world)
        _write_images(config, world, news)
        write_text(config.out / RECORDS, json.dumps([record for item in news for record in records(item)]))
        write_json(config.out / "ceiling.json", _ceiling(by_split["val"]))
        for split, content in pairs.items():
            file = config.out / ANNOTATIONS / SUBSET / f"{split}.json"
            write_text(file, json.dumps({"source_datasets": ["synthetic_random"], "annotations": content}))
        write_extraction(
            config.out / "extraction",
            world,
            config.extraction,
            seed=config.seed,
            image_size=config.image_size,
            domain=config.domain,
            bystanders=config.bystanders,
        )
    except OSError as error:
        raise CorpusError(f"cannot write the synthetic world to {config.out}: {error}") from error


def _write_images(config: SyntheticConfig, world: World, news: list[News]) -> None:
    """Draw every image; write down which boxes it has and what it shows."""
    boxes, truth = [], []
    for item in news:
        path = config.out / ORIGIN / item.path
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = random.Random(f"{config.seed}/image/{item.number}")
        jpeg, objects = draw_scene(item.facts, rng, size=config.image_size, domain=config.domain)
        path.write_bytes(jpeg)
        boxes.append({"image_path": item.path, "boxes": [box_entry(drawn) for drawn in objects]})
        truth.append(_truth(world, item, objects))
    write_lines(config.out / BOXES, boxes)
    write_lines(config.out / "truth.jsonl", truth)


def _ceiling(news: list[News]) -> dict[str, Any]:
    told = [Told(image, caption.names) for image, item in enumerate(news) for caption in item.captions]
    best = retrieval_ceiling([item.shown for item in news], told)
    return {"split": "val", "images": len(news), "captions": len(told), **best}


def _claim(config: SyntheticConfig, world: World) -> None:
    """Mark the folder as ours; nothing is ever deleted, so another world's files must not be there."""
    settings = config.model_dump(mode="json", exclude={"out"})
    defaults = SyntheticConfig.model_construct(out=config.out).model_dump(mode="json", exclude={"out"})
    marker = config.out / MARKER
    try:
        # a setting that is younger than the folder had its default there
        earlier = defaults | json.loads(marker.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        if config.out.exists() and (not config.out.is_dir() or any(map(_is_foreign, config.out.iterdir()))):
            raise CorpusError(
                f"{config.out} is not empty and holds no synthetic world (no {MARKER}): "
                "set out to a new or an empty folder"
            ) from None
    else:
        if earlier != settings:
            changed = sorted(k for k in settings if earlier[k] != settings[k])
            raise CorpusError(
                f"{config.out} holds another synthetic world (different: {', '.join(changed)}): "
                "set out to a new folder, or delete that one first"
            )
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"config": settings, "world": _describe(world)})


def _is_foreign(path: Path) -> bool:
    """Return whether a file is not the marker, half written by a run that was killed."""
    return not path.name.startswith(f".{MARKER}.")


def _describe(world: World) -> dict[str, Any]:
    people = [
        {
            "name": name,
            "member of": world.organisations[world.employer(person)],
            **{relation: world.people[other] for other, relation in world.relatives(person).items()},
        }
        for person, name in enumerate(world.people)
    ]
    return {**asdict(world), "people": people}


def _truth(world: World, item: News, objects: tuple[Drawn, ...]) -> dict[str, Any]:
    return {
        "image_path": item.path,
        "split": item.split,
        "entities": world.entities(item.facts),
        "objects": [object_entry(world, drawn) for drawn in objects],
        "relations": [asdict(relation) for relation in world.relations(item.facts)],
        "captions": [
            {"id": record_id, "text": caption.text, "mentions": sorted(caption.names)}
            for record_id, caption in enumerate(item.captions, start=item.first_id)
        ],
    }
