"""Fine-tuning on the synthetic world: words alone decide nothing that they leave open, the image decides all."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from promptmeup.config import load
from promptmeup.corpora import extraction, synthetic_post_words
from promptmeup.corpora.extraction_jsonl import JsonlConfig
from promptmeup.corpora.synthetic import SyntheticConfig, generate
from promptmeup.corpora.synthetic_entity_posts import TYPES, EntityPost, entity_posts
from promptmeup.corpora.synthetic_extraction import ExtractionSizes, draw_posts
from promptmeup.corpora.synthetic_extraction_ceiling import (
    entity_ceiling,
    read_relation,
    read_short_name,
    relation_ceiling,
)
from promptmeup.corpora.synthetic_nicknames import create_nicknames
from promptmeup.corpora.synthetic_posts import fill, slot_names
from promptmeup.corpora.synthetic_relation_posts import RelationPost, relation_posts
from promptmeup.corpora.synthetic_scene import draw_scene
from promptmeup.corpora.synthetic_world import Entity, Facts, create_world
from promptmeup.errors import ConfigError
from promptmeup.records import RelationInstance, TaggedSentence

SIZES = {"train": 80, "val": 16, "test": 40}
SPLITS = tuple(SIZES)
WORLD = create_world(0, num_people=24, num_organisations=12, num_places=8, num_events=6)
NICKNAMES = create_nicknames(WORLD, 0)
SMALLEST = create_world(5, num_people=3, num_organisations=2, num_places=2, num_events=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "new"
    generate(
        SyntheticConfig(
            out=out,
            num_train_images=4,
            num_val_images=4,
            extraction=ExtractionSizes(**{f"num_{split}": size for split, size in SIZES.items()}),
        )
    )
    return out / "extraction"


def corpus(root: Path, task: str) -> JsonlConfig:
    return JsonlConfig(task=task, root=root, files={split: f"{task}/{split}.jsonl" for split in SPLITS})


def lines(root: Path, task: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / task / f"{split}.jsonl").read_text().splitlines()]


def many(count: int = 20_000) -> tuple[list[EntityPost], list[RelationPost]]:
    return (
        list(entity_posts(WORLD, NICKNAMES, seed="large", count=count)),
        list(relation_posts(WORLD, seed="large", count=count)),
    )


def template_of(post: EntityPost) -> str:
    """Return the words with the kind of name in the place of each name."""
    words = list(post.words)
    for (start, end), kind in sorted(post.mentions, reverse=True):
        words[start:end] = ["{short}" if (start, end) == post.mentions[0][0] else "{" + kind + "}"]
    return " ".join(words)


def test_the_shared_reader_takes_both_corpora(root: Path) -> None:
    for task, expected in (("entities", TaggedSentence), ("relations", RelationInstance)):
        for split in SPLITS:
            rows = extraction.read(corpus(root, task), split)
            found = extraction.statistics(corpus(root, task), split)
            assert all(isinstance(row, expected) for row in rows)
            assert found.sentences == found.images == SIZES[split]
            assert (found.broken_tags, found.missing_images, found.overlapping_spans) == (0, 0, 0)
            for row, line in zip(rows, lines(root, task, split), strict=True):
                assert row.boxes is not None
                assert [box.label for box in row.boxes] == [line["shows"][b["entity"]] for b in line["boxes"]]
                seen = {name for name, kind in line["shows"].items() if kind != "place"}
                assert sorted(seen) == sorted(box["entity"] for box in line["boxes"])


def test_tags_and_spans_are_the_names(root: Path) -> None:
    nicknames = json.loads((root / "nicknames.json").read_text())
    names = {name: TYPES[kind] for kind, every in WORLD.by_kind().items() for name in every}
    for line in lines(root, "entities", "train"):
        ((start, end),) = line["ambiguous"]
        found = []
        for place, tag in enumerate(line["tags"]):
            if tag.startswith("B-"):
                stop = place + 1
                while line["tags"][stop : stop + 1] == [f"I-{tag[2:]}"]:
                    stop += 1
                found.append((place, stop, tag[2:]))
        assert len(found) >= 2
        for first, stop, kind in found:
            text = " ".join(line["words"][first:stop])
            if (first, stop) == (start, end):
                assert nicknames[text][kind] in line["shows"]
                assert not {name for of, name in nicknames[text].items() if of != kind} & set(line["shows"])
            else:
                assert names[text] == kind
    for line in lines(root, "relations", "train"):
        mentions = {side: " ".join(line["words"][slice(*line[side])]) for side in ("head", "tail")}
        assert set(mentions.values()) <= set(names)
        missing = [side for side, name in mentions.items() if name not in line["shows"]]
        assert missing == ([] if line["absent"] is None else [line["absent"]])
        assert (line["relation"] == "None") is (line["absent"] is not None)


def test_each_sentence_stands_as_often_with_each_reading(root: Path) -> None:
    for split in SPLITS:
        readings: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for line in lines(root, "entities", split):
            readings[tuple(line["words"])][line["tags"][line["ambiguous"][0][0]]] += 1
        assert all(len(set(found.values())) == 1 and len(found) == 2 for found in readings.values())
        readings = defaultdict(Counter)
        for line in lines(root, "relations", split):
            readings[tuple(line["words"])][line["relation"]] += 1
        for found in readings.values():
            assert found["None"] == found.total() / 2
            assert len(found) == 2


def test_half_is_decided_by_kind_and_each_pair_of_types_is_a_quarter(root: Path) -> None:
    found = lines(root, "entities", "train")
    assert Counter(line["by"] for line in found) == {"kind": 40, "identity": 40}
    for line in found:
        assert len(line["boxes"]) == 2 or line["by"] == "identity"
    relations = extraction.statistics(corpus(root, "relations"), "train").relations
    assert relations == {
        "None": 40,
        "location": 10,
        "member of": 10,
        "participant of": 10,
        "sibling": 5,
        "spouse": 5,
    }


def test_no_image_is_in_two_splits(root: Path) -> None:
    for task in ("entities", "relations"):
        digests = {
            split: [hashlib.sha256((root / line["image"]).read_bytes()).hexdigest() for line in found]
            for split in SPLITS
            for found in [lines(root, task, split)]
        }
        every = [digest for found in digests.values() for digest in found]
        assert len(every) == len(set(every)) == sum(SIZES.values())


def test_the_order_of_the_lines_tells_nothing() -> None:
    posts, claims = draw_posts(WORLD, NICKNAMES, seed=0, split="train", count=2000)
    beside = [a.words == b.words for found in (posts, claims) for a, b in pairwise(found)]
    assert np.mean(beside) < 0.01
    own = np.array([post.kind == post.nickname.bearers[0].kind for post in posts])
    related = np.array([claim.absent is None for claim in claims])
    for reading in (own, related):
        for part in (slice(0, None, 2), slice(0, 1000), slice(0, None, 4)):
            assert reading[part].mean() == pytest.approx(0.5, abs=0.06)


def test_the_rule_reads_every_image() -> None:
    for world in (WORLD, SMALLEST):
        posts, claims = draw_posts(world, create_nicknames(world, 1), seed=1, split="test", count=400)
        assert all(read_short_name(world, post) == post.kind for post in posts)
        assert all(read_relation(world, claim) == claim.relation for claim in claims)


def test_a_template_and_a_short_name_do_not_decide() -> None:
    posts, claims = many()
    readings: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for post in posts:
        own = post.kind == post.nickname.bearers[0].kind
        readings[template_of(post), post.nickname.word].append(own)
    assert len(readings) > 300
    assert {np.mean(found) for found in readings.values()} == {0.5}
    related: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for claim in claims:
        related[claim.words].append(claim.absent is None)
    assert {np.mean(found) for found in related.values()} == {0.5}


def test_kinds_of_objects_decide_what_they_should_alone() -> None:
    posts, claims = many()
    kinds: dict[Any, set[str]] = defaultdict(set)
    for post in posts:
        shown = tuple(sorted(WORLD.entities(post.facts).values()))
        kinds[post.by, post.nickname.kinds, shown].add(post.kind)
    assert all(len(found) == (1 if by == "kind" else 2) for (by, _, _), found in kinds.items())
    structure: dict[Any, Counter[bool]] = defaultdict(Counter)
    for claim in claims:
        shown = tuple(sorted(WORLD.entities(claim.facts).values()))
        structure[claim.entities[0].kind, claim.entities[1].kind, shown][claim.absent is None] += 1
    assert len(structure) == 4
    assert all(found[True] == found[False] for found in structure.values())
    assert {template_of(post) for post in posts} == set(synthetic_post_words.SHORT)


def test_whom_the_image_shows_beside_the_one_who_is_meant_tells_little() -> None:
    """Who is shown decides only together with the words: no figure, prop or place goes with one reading."""
    posts, claims = many()
    shows: dict[str, list[bool]] = defaultdict(list)
    for claim in claims:
        for name in WORLD.entities(claim.facts):
            shows[name].append(claim.absent is None)
    assert all(0.4 < np.mean(found) < 0.6 for found in shows.values())
    meant = Counter(TYPES[post.kind] for post in posts)
    assert meant["PER"] == len(posts) / 2
    assert min(meant.values()) > 0.03 * len(posts)


def test_the_ceiling_of_words_is_what_guessing_gives(root: Path) -> None:
    posts, claims = draw_posts(WORLD, NICKNAMES, seed=0, split="test", count=SIZES["test"])
    ceiling = json.loads((root / "ceiling.json").read_text())
    assert ceiling == {
        "split": "test",
        "entities": entity_ceiling(WORLD, posts),
        "relations": relation_ceiling(WORLD, claims),
    }
    rng = random.Random(0)
    scores, rounds = [], 4000
    for _ in range(rounds):
        gold = [(n, *mention) for n, post in enumerate(posts) for mention in post.mentions]
        told = []
        for n, post in enumerate(posts):
            span, _ = post.mentions[0]
            guess = rng.choice([bearer.kind for bearer in post.nickname.bearers])
            told += [(n, span, guess), *((n, *mention) for mention in post.mentions[1:])]
        hits = len(set(gold) & set(told))
        scores.append(2 * hits / (len(gold) + len(told)))
    assert ceiling["entities"]["words"]["F1"] == pytest.approx(np.mean(scores), abs=0.003)
    assert ceiling["entities"]["words"]["accuracy_ambiguous"] == 0.5
    assert ceiling["entities"]["kinds"]["accuracy_ambiguous"] == 0.75
    assert ceiling["entities"]["image"] == {"F1": 1.0, "accuracy_ambiguous": 1.0}
    assert ceiling["relations"]["image"] == {"F1": 1.0, "accuracy": 1.0}
    for seen in ("words", "kinds"):
        assert ceiling["relations"][seen] == {"F1": pytest.approx(2 / 3), "accuracy": 0.5}


def test_what_train_says_of_the_words_is_worth_half() -> None:
    """What a model remembers of train is not balanced; each sentence of test has both readings all the same."""
    train, _ = draw_posts(WORLD, NICKNAMES, seed=0, split="train", count=800)
    test, _ = draw_posts(WORLD, NICKNAMES, seed=0, split="test", count=400)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for post in random.Random(2).sample(train, 600):
        seen[post.nickname.word][post.kind] += 1
    usual = {word: counts.most_common(1)[0] for word, counts in seen.items()}
    assert any(count != seen[word].total() / 2 for word, (_, count) in usual.items())
    assert sum(usual[post.nickname.word][0] == post.kind for post in test) == 200


def test_all_that_test_asks_can_be_learnt_from_train() -> None:
    posts, claims = draw_posts(WORLD, NICKNAMES, seed=0, split="train", count=800)
    told = Counter((post.nickname.word, post.kind) for post in posts)
    assert len(told) == 2 * len(NICKNAMES)
    assert min(told.values()) >= 5
    couples = Counter(
        frozenset(claim.entities) for claim in claims if claim.relation in ("spouse", "sibling")
    )
    assert len(couples) == 24
    assert min(couples.values()) >= 4


def test_ceilings_by_hand() -> None:
    nickname = NICKNAMES[0]
    person, other = nickname.bearers
    words = (nickname.word, "in", "Rome")
    facts = Facts((person.number,), None, 0, 0)
    wrong = facts.exchange(person, (person.number + 1) % 24)

    def post(facts: Facts, kind: Any) -> EntityPost:
        return EntityPost(words, facts, (((0, 1), kind), ((2, 3), "place")), nickname, "kind")

    # two of three sentences that read the same are of a person; the rule does not read the last one's image
    best = entity_ceiling(WORLD, [post(facts, "person"), post(facts, "person"), post(wrong, other.kind)])
    assert best["words"] == {"F1": pytest.approx(5 / 6), "accuracy_ambiguous": pytest.approx(2 / 3)}
    head, tail = Entity("person", 0), Entity("event", 0)

    def claim(text: str, relation: str) -> RelationPost:
        return RelationPost((text,), Facts((0,), None, 0, 0), (0, 1), (0, 1), (head, tail), relation, None)

    labels = ["participant of"] * 3 + ["None"]
    claims = [claim("a", label) for label in labels] + [claim("b", "None")] * 4 + [claim("b", labels[0])]
    found = relation_ceiling(WORLD, claims)
    # sure of a: 3 hits of 4 named and 4 that are; b as well would be 4 of 9
    assert found["words"] == {"accuracy": pytest.approx(7 / 9), "F1": pytest.approx(6 / 8)}
    assert found["image"]["accuracy"] == pytest.approx(4 / 9)  # every one of these images shows both


def test_short_names_denote_one_of_each_of_two_kinds() -> None:
    assert len(NICKNAMES) == len({nickname.word for nickname in NICKNAMES}) == 36
    full = [name for names in WORLD.by_kind().values() for name in names]
    for nickname in NICKNAMES:
        own, other = nickname.bearers
        assert own.kind != other.kind
        assert nickname.word in WORLD.name(own).split()
        assert [nickname.word in name.split() for name in full].count(True) == 1
    seconds = Counter(nickname.bearers[1] for nickname in NICKNAMES)
    assert max(seconds.values()) == 1
    assert create_nicknames(WORLD, 0) == NICKNAMES != create_nicknames(WORLD, 1)
    assert {nickname.kinds for nickname in NICKNAMES} == {
        frozenset({"person", kind}) for kind in ("organisation", "place", "event")
    }


def test_every_template_has_its_slots() -> None:
    kinds = {"person", "organisation", "place", "event"}
    for template in synthetic_post_words.SHORT:
        assert "short" in slot_names(template)
        assert slot_names(template) & kinds
        assert slot_names(template) <= kinds | {"short"}
    for templates in (
        synthetic_post_words.PARTICIPANT,
        synthetic_post_words.MEMBER,
        synthetic_post_words.LOCATION,
        synthetic_post_words.RELATIVES,
    ):
        assert all(slot_names(template) == {"head", "tail"} for template in templates)
    words, spans = fill("see {head} , {tail}", {"head": "Ada", "tail": "New York"})
    assert (words, spans) == (("see", "Ada", ",", "New", "York"), {"head": (1, 2), "tail": (3, 5)})


def test_scenes_without_people_or_with_strangers_can_be_drawn() -> None:
    for facts in (Facts((), 3, 1, 2), Facts((), None, 1, 2), Facts((4, 9), 3, 1, 2)):
        _, objects = draw_scene(facts, random.Random(0), size=(160, 120))
        assert len(objects) == len(facts.people) + (facts.organisation is not None) + 1
    stranger = Facts((4,), (WORLD.employer(4) + 1) % 12, 1, 2)
    assert "member of" not in {relation.label for relation in WORLD.relations(stranger)}
    assert WORLD.relations(Facts((4, 9), None, 1, 2))[-1].label == "participant of"
    person = Entity("person", 4)
    assert Facts((4, 9), None, 1, 2).exchange(person, 7).people == (7, 9)
    assert Facts((4, 9), None, 1, 2).exchange(person, None).people == (9,)


def test_sizes_and_small_worlds_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"extraction.num_val.*multiple of 2"):
        load(SyntheticConfig, None, ["out=x", "extraction.num_val=3"])
    with pytest.raises(
        ConfigError, match=r"too small .*\(num_people=2, num_places=1\).*extraction.num_test to 0"
    ):
        load(SyntheticConfig, None, ["out=x", "num_people=2", "num_places=1"])
    generate(
        SyntheticConfig(
            out=tmp_path / "some",
            num_train_images=4,
            num_val_images=4,
            extraction=ExtractionSizes(num_train=0, num_val=2, num_test=0),
        )
    )
    found = {path.name for path in (tmp_path / "some/extraction").rglob("*.json*")}
    assert found == {"nicknames.json", "val.jsonl"}
