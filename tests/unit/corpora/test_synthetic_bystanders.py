"""Bystanders of the synthetic world: images show more than is told, and what is told stays true and decided."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from promptmeup.config import load
from promptmeup.corpora.newsclippings import NewsClippingsConfig, samples
from promptmeup.corpora.synthetic import BOXES, SyntheticConfig, generate
from promptmeup.corpora.synthetic_bystanders import NOBODY, BystandersConfig, add_bystanders, add_to_twins
from promptmeup.corpora.synthetic_ceiling import Told, retrieval_ceiling
from promptmeup.corpora.synthetic_entity_posts import entity_posts
from promptmeup.corpora.synthetic_extraction import ExtractionSizes, draw_posts
from promptmeup.corpora.synthetic_extraction_ceiling import entity_ceiling, relation_ceiling
from promptmeup.corpora.synthetic_nicknames import create_nicknames
from promptmeup.corpora.synthetic_posts import Post
from promptmeup.corpora.synthetic_relation_posts import relation_posts
from promptmeup.corpora.synthetic_world import Entity, Facts, World, create_world
from promptmeup.errors import ConfigError
from promptmeup.shard_format import image_key

CROWD = BystandersConfig(people=2, events=1)
MOST = BystandersConfig(people=3, events=2)
WORLD = create_world(0, num_people=24, num_organisations=12, num_places=8, num_events=6)
SMALLEST = create_world(5, num_people=6, num_organisations=2, num_places=2, num_events=4)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same world without and with bystanders."""
    folder = tmp_path_factory.mktemp("bystanders")
    for name, bystanders in (("few", NOBODY), ("many", CROWD)):
        generate(
            SyntheticConfig(
                out=folder / name,
                num_train_images=60,
                num_val_images=40,
                image_size=(96, 72),
                bystanders=bystanders,
                extraction=ExtractionSizes(num_train=0, num_val=0, num_test=40),
            )
        )
    return {name: folder / name for name in ("few", "many")}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_image_shows_all_and_its_captions_tell_what_they_told(roots: dict[str, Path]) -> None:
    few, many = (lines(roots[name] / "truth.jsonl") for name in ("few", "many"))
    for before, after in zip(few, many, strict=True):
        assert before["captions"] == after["captions"]
        assert before["entities"].items() < after["entities"].items()
        more = Counter(after["entities"].values()) - Counter(before["entities"].values())
        assert more == {"person": 2, "event": 1}
        objects = sorted(known["entity"] for known in after["objects"])
        assert objects == sorted(n for n, kind in after["entities"].items() if kind != "place")


def test_relations_of_bystanders_follow_the_same_rules(roots: dict[str, Path]) -> None:
    for line in lines(roots["many"] / "truth.jsonl"):
        by_kind = Counter(line["entities"].values())
        found = Counter(relation["label"] for relation in line["relations"])
        assert found["participant of"] == by_kind["person"] * by_kind["event"]
        assert found["location"] == by_kind["event"]
    # 0 and 1 are spouses, 0 and 12 have the same employer
    facts = Facts((0,), 0, 3, 2, other_people=(1, 12), other_events=(4,))
    told = {(one.head, one.label, one.tail) for one in WORLD.relations(facts)}
    people, bank = WORLD.people, WORLD.organisations[0]
    assert {(people[0], "spouse", people[1]), (people[1], "spouse", people[0])} <= told
    assert {head for head, label, tail in told if (label, tail) == ("member of", bank)} == {
        people[0],
        people[12],
    }
    assert (people[12], "participant of", WORLD.events[4]) in told
    assert (WORLD.events[4], "location", WORLD.places[3]) in told


def test_a_falsified_pair_is_untrue_of_all_that_is_shown(roots: dict[str, Path]) -> None:
    truth = lines(roots["many"] / "truth.jsonl")
    shown = {image_key(line["image_path"].removeprefix("./")): line["entities"] for line in truth}
    mentions = {str(c["id"]): set(c["mentions"]) for line in truth for c in line["captions"]}
    corpus = NewsClippingsConfig(root=roots["many"], boxes=BOXES)
    pairs = [
        (sample, caption)
        for split in ("train", "val")
        for sample in samples(corpus, split=split, reject=lambda found: pytest.fail(str(found)))
        for caption in sample.captions
    ]
    assert len(pairs) == 400
    for sample, caption in pairs:
        assert (mentions[caption.id] <= shown[sample.key].keys()) is (sample.key == caption.image_key)


def test_the_retrieval_ceiling_is_of_all_that_is_shown(roots: dict[str, Path]) -> None:
    ceilings = []
    for name in ("few", "many"):
        truth = [line for line in lines(roots[name] / "truth.jsonl") if line["split"] == "val"]
        told = [Told(n, frozenset(c["mentions"])) for n, line in enumerate(truth) for c in line["captions"]]
        expected = retrieval_ceiling([frozenset(line["entities"]) for line in truth], told)
        ceiling = json.loads((roots[name] / "ceiling.json").read_text())
        assert {direction: ceiling[direction] for direction in expected} == expected
        ceilings.append(ceiling)
    # more images show what a caption tells
    assert ceilings[1]["text_to_image"]["R@1"] < ceilings[0]["text_to_image"]["R@1"]


def test_bystanders_are_others() -> None:
    facts = Facts((0, 1), None, 0, 1)
    seen: Counter[Entity] = Counter()
    for n in range(400):
        found = add_bystanders(
            WORLD, facts, MOST, random.Random(n), besides=(Entity("person", 7), Entity("event", 0))
        )
        others = [one for one in found.shown if one not in facts.shown]
        assert len(others) == len(set(others)) == 5
        assert len(set(found.all_people)) == 5 and len(set(found.all_events)) == 3
        seen.update(others)
    assert seen.keys() == {
        *(Entity("person", n) for n in range(2, 24) if n != 7),
        *(Entity("event", n) for n in range(2, 6)),
    }
    assert add_bystanders(WORLD, facts, NOBODY, random.Random(0)) == facts


@pytest.mark.parametrize("world", [WORLD, SMALLEST], ids=["usual", "smallest"])
def test_twins_have_the_same_bystanders_and_none_who_is_asked_for(world: World) -> None:
    nicknames = create_nicknames(world, 0)
    plain: list[tuple[Post, ...]] = [
        tuple(entity_posts(world, nicknames, seed="s", count=800)),
        tuple(relation_posts(world, seed="s", count=800)),
    ]
    for posts in plain:
        crowded = list(add_to_twins(world, posts, MOST, seed="b"))
        assert [(a.words, a.facts.people, a.facts.event, a.facts.organisation) for a in posts] == [
            (b.words, b.facts.people, b.facts.event, b.facts.organisation) for b in crowded
        ]
        assert all(len(post.facts.other_people) == 3 for post in crowded)
        assert all(len(post.facts.other_events) == 2 for post in crowded)
        for first, second in list(pairwise(crowded))[::2]:
            assert first.words == second.words
            assert first.facts.other_people == second.facts.other_people
            assert first.facts.other_events == second.facts.other_events
            bystanders = {Entity("person", n) for n in first.facts.other_people}
            bystanders |= {Entity("event", n) for n in first.facts.other_events}
            assert not bystanders & {*first.asked, *second.asked}
            assert not set(first.facts.people + second.facts.people) & set(first.facts.other_people)
            assert not {first.facts.event, second.facts.event} & set(first.facts.other_events)
            # whoever decides is shown in one of the two images only
            shown = [{one for one in post.asked if one in post.facts.shown} for post in (first, second)]
            assert shown[0] != shown[1]


@pytest.mark.parametrize("world", [WORLD, SMALLEST], ids=["usual", "smallest"])
def test_the_image_decides_as_without_bystanders(world: World) -> None:
    nicknames = create_nicknames(world, 1)
    scores = []
    for bystanders in (NOBODY, MOST):
        posts, claims = draw_posts(world, nicknames, seed=1, split="test", count=400, bystanders=bystanders)
        scores.append((entity_ceiling(world, posts), relation_ceiling(world, claims)))
    entities, relations = scores[1]
    assert entities["image"] == {"F1": 1.0, "accuracy_ambiguous": 1.0}
    assert relations["image"] == {"F1": 1.0, "accuracy": 1.0}
    assert scores[0] == scores[1]  # kinds of objects tell as much: twins have as many bystanders


def test_posts_on_disk_show_them(roots: dict[str, Path]) -> None:
    for task in ("entities", "relations"):
        few, many = (lines(roots[name] / f"extraction/{task}/test.jsonl") for name in ("few", "many"))
        for before, after in zip(few, many, strict=True):
            assert before["words"] == after["words"]
            assert before["shows"].items() < after["shows"].items()
            assert len(after["boxes"]) == len(before["boxes"]) + 3
    ceilings = [(roots[name] / "extraction/ceiling.json").read_text() for name in ("few", "many")]
    assert ceilings[0] == ceilings[1]


def test_too_many_bystanders_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bystanders\.people"):
        load(SyntheticConfig, None, ["out=x", "bystanders.people=4"])
    with pytest.raises(ConfigError, match=r"bystanders\.events"):
        load(SyntheticConfig, None, ["out=x", "bystanders.events=-1"])
    small = ["out=x", "bystanders.people=3", "bystanders.events=2", "num_people=5", "num_events=3"]
    wanted = r"too small for its bystanders \({}\): .*num_people={}, .*num_events={}; raise these"
    with pytest.raises(ConfigError, match=wanted.format("num_people=5, num_events=3", 6, 4)):
        load(SyntheticConfig, None, small)
    none = [f"extraction.num_{split}=0" for split in ("train", "val", "test")]
    assert load(SyntheticConfig, None, [*small, *none]).bystanders == MOST
    with pytest.raises(ConfigError, match=wanted.format("num_people=4", 5, 3)):
        load(SyntheticConfig, None, [*small, *none, "num_people=4"])


def test_the_smallest_world_can_be_written(tmp_path: Path) -> None:
    generate(
        SyntheticConfig(
            out=tmp_path / "w",
            num_train_images=4,
            num_val_images=4,
            num_people=6,
            num_events=4,
            num_places=2,
            num_organisations=2,
            falsified=False,
            bystanders=MOST,
            domain="social",
            extraction=ExtractionSizes(num_train=8, num_val=0, num_test=8),
        )
    )
    assert json.loads((tmp_path / "w/extraction/ceiling.json").read_text())["entities"]["image"]["F1"] == 1.0
