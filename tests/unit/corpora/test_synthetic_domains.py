"""The second domain of the synthetic world: the same entities and facts in other pictures and other words."""

import colorsys
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from promptmeup.config import load
from promptmeup.corpora import synthetic_looks as looks
from promptmeup.corpora import synthetic_social_looks as social
from promptmeup.corpora.newsclippings import ANNOTATIONS, ORIGIN
from promptmeup.corpora.synthetic import MARKER, SyntheticConfig, generate
from promptmeup.corpora.synthetic_extraction import ExtractionSizes
from promptmeup.corpora.synthetic_names import Domain
from promptmeup.corpora.synthetic_scene import draw_scene
from promptmeup.corpora.synthetic_world import Facts, create_world
from promptmeup.errors import ConfigError

DOMAINS: tuple[Domain, Domain] = ("news", "social")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("domains")
    for domain in DOMAINS:
        generate(
            SyntheticConfig(
                out=folder / domain,
                seed=2,
                num_train_images=40,
                num_val_images=20,
                captions_per_image=5,
                domain=domain,
                extraction=ExtractionSizes(num_train=16, num_val=0, num_test=16),
            )
        )
    return {domain: folder / domain for domain in DOMAINS}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_entities_and_facts_are_told_in_other_words(worlds: dict[str, Path]) -> None:
    described = [json.loads((worlds[domain] / MARKER).read_text())["world"] for domain in DOMAINS]
    assert described[0] == described[1]
    for news, other in zip(*(lines(worlds[domain] / "truth.jsonl") for domain in DOMAINS), strict=True):
        for key in ("image_path", "split", "entities", "relations"):
            assert news[key] == other[key]
        for told, again in zip(news["captions"], other["captions"], strict=True):
            assert (told["id"], told["mentions"]) == (again["id"], again["mentions"])
            assert told["text"] != again["text"]
            assert all(name in again["text"] for name in again["mentions"])
            for relation in ("spouse", "sibling"):
                assert (relation in told["text"]) is (relation in again["text"])
    same = [
        "ceiling.json",
        *(ANNOTATIONS / "merged_balanced" / f"{split}.json" for split in ("train", "val")),
    ]
    for name in same:
        assert (worlds["news"] / name).read_text() == (worlds["social"] / name).read_text()


def test_posts_say_the_same_with_images_of_the_domain(worlds: dict[str, Path]) -> None:
    for name in ("nicknames.json", "ceiling.json"):
        texts = [(worlds[domain] / "extraction" / name).read_text() for domain in DOMAINS]
        assert texts[0] == texts[1]
    for task in ("entities", "relations"):
        for split in ("train", "test"):
            files = [lines(worlds[domain] / f"extraction/{task}/{split}.jsonl") for domain in DOMAINS]
            for news, other in zip(*files, strict=True):
                assert news | {"boxes": None} == other | {"boxes": None}
                images = [(worlds[domain] / "extraction" / news["image"]).read_bytes() for domain in DOMAINS]
                assert images[0] != images[1]


def hues(colours: tuple[looks.Colour, ...]) -> NDArray[Any]:
    return np.array([colorsys.rgb_to_hsv(*(value / 255 for value in colour))[0] for colour in colours])


def test_the_colour_of_an_entity_is_another_one_in_the_other_domain() -> None:
    apart = np.abs((hues(looks.COLOURS) - hues(social.COLOURS) + 0.5) % 1 - 0.5)
    assert apart.min() > 1 / 8
    own = hues(social.COLOURS)
    between = np.abs((own[:, None] - own[None] + 0.5) % 1 - 0.5) + np.eye(len(own))
    assert between.min() > 0.05


def test_domains_change_a_picture_more_than_its_facts_do(worlds: dict[str, Path]) -> None:
    pictures = []
    for domain in DOMAINS:
        own = []
        for line in lines(worlds[domain] / "truth.jsonl"):
            with Image.open(worlds[domain] / ORIGIN / line["image_path"]) as image:
                own.append(np.asarray(image.resize((40, 30)), dtype=float).ravel())
        pictures.append(np.stack(own))
    across = np.abs(pictures[0] - pictures[1]).mean(axis=1)
    assert across.min() > 40  # of 255
    for own in pictures:
        assert across.mean() > np.abs(own[:, None] - own[None]).mean()


@pytest.mark.parametrize("size", [(96, 72), (160, 120)])
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_crowded_picture_has_a_column_for_each(domain: Domain, size: tuple[int, int]) -> None:
    facts = Facts((0, 1), None, 3, 2, other_people=(5, 6, 9), other_events=(0, 1))
    jpeg, objects = draw_scene(facts, random.Random(0), size=size, domain=domain)
    assert draw_scene(facts, random.Random(0), size=size, domain=domain)[0] == jpeg
    assert sorted((one.kind, one.number) for one in objects) == sorted(
        (kind, number) for kind, number in facts.shown if kind != "place"
    )
    ordered = sorted(one.box for one in objects)
    assert ordered[0][0] >= 0 and ordered[-1][2] <= size[0]
    for left, right in pairwise(ordered):
        assert left[2] <= right[0]
        assert left[2] - left[0] > 10 and left[1] >= 0 and left[3] <= size[1]


def test_unknown_domains_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"domain.*'news' or 'social'"):
        load(SyntheticConfig, None, ["out=x", "domain=blogs"])


def test_captions_of_a_random_stream_tell_the_same() -> None:
    world = create_world(0, num_people=8, num_organisations=3, num_places=3, num_events=3)
    for facts in (Facts((1,), None, 0, 1), Facts((1,), 1, 0, 1), Facts((1, 3), None, 2, 1)):
        told = [list(world.write_captions(facts, random.Random(1), 5, domain=domain)) for domain in DOMAINS]
        assert [mention.names for mention in told[0]] == [mention.names for mention in told[1]]
        assert not {mention.text for mention in told[0]} & {mention.text for mention in told[1]}
