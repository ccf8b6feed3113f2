"""Labels of a corpus, and seeded parts of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from promptmeup.config import load
from promptmeup.corpora.extraction import read
from promptmeup.errors import ConfigError, CorpusError
from promptmeup.extraction.data import (
    JsonlData,
    MnreData,
    TwitterData,
    labels_of,
    read_corpus,
    subset,
    task_of,
)
from promptmeup.extraction.report import describe_corpus
from promptmeup.extraction.seed_run import FinetuneConfig
from promptmeup.records import RelationInstance, TaggedSentence, WordSpan
from tests.support.real_data import real_data


def tagged(number: int, *kinds: str) -> TaggedSentence:
    tags = tuple(f"B-{kind}" for kind in kinds) or ("O",)
    return TaggedSentence(id=str(number), words=("w",) * len(tags), tags=tags)


def related(number: int, relation: str) -> RelationInstance:
    spans = WordSpan(0, 1, ("a",)), WordSpan(1, 2, ("b",))
    return RelationInstance(id=str(number), words=("a", "b"), head=spans[0], tail=spans[1], relation=relation)


ROWS = [related(i, "None" if i % 3 else ("peer", "couple")[i % 2]) for i in range(60)]


def test_a_smaller_fraction_is_a_part_of_a_larger_one() -> None:
    small, large = (subset(ROWS, fraction=part, shots=None, seed=3) for part in (0.1, 0.5))
    assert (len(small), len(large)) == (6, 30)
    assert large[:6] == small
    assert subset(ROWS, fraction=0.1, shots=None, seed=3) == small
    assert subset(ROWS, fraction=0.1, shots=None, seed=4) != small
    assert subset(ROWS, fraction=None, shots=None, seed=3) == tuple(ROWS)
    assert len(subset(ROWS, fraction=0.001, shots=None, seed=3)) == 1


def test_shots_are_exact_for_relations() -> None:
    chosen = subset(ROWS, fraction=None, shots=4, seed=0)
    assert Counter(row.relation for row in chosen if isinstance(row, RelationInstance)) == {
        "None": 4,
        "peer": 4,
        "couple": 4,
    }
    assert set(chosen) <= set(subset(ROWS, fraction=None, shots=6, seed=0))


def test_shots_of_types_that_come_together() -> None:
    rows = [tagged(i, *(("PER",) if i % 2 else ("PER", "LOC"))) for i in range(40)] + [tagged(99), tagged(98)]
    chosen = subset(rows, fraction=None, shots=1, seed=0)
    kinds = Counter(tag[2:] for row in chosen if isinstance(row, TaggedSentence) for tag in set(row.tags))
    assert kinds["LOC"] == 1
    assert kinds["PER"] >= 1
    assert sum(row.tags == ("O",) for row in chosen if isinstance(row, TaggedSentence)) == 1
    assert len(chosen) <= 3


def corpus(folder: Path, rows: list[dict[str, Any]], task: str) -> JsonlData:
    lines = [json.dumps({"id": str(i), "image": None, **row}) for i, row in enumerate(rows)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return JsonlData.model_validate({"task": task, "root": folder, "files": {"train": "train.jsonl"}})


def test_labels_of_ones_own_corpus(tmp_path: Path) -> None:
    rows = [{"words": ["a", "b"], "tags": tags} for tags in (["B-PER", "I-PER"], ["O", "I-LOC"])]
    data = corpus(tmp_path, rows, "entities")
    assert task_of(data) == "entities"
    assert labels_of(data, read(data, "train"), none="None") == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    relations = [
        {"words": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": name} for name in ("x", "None", "b")
    ]
    data = corpus(tmp_path, relations, "relations")
    assert labels_of(data, read(data, "train"), none="None") == ("None", "b", "x")
    assert labels_of(data, read(data, "train"), none=None) == ("None", "b", "x")
    mnre = MnreData.model_validate({"root": tmp_path})
    for empty in (corpus(tmp_path, [], "relations"), mnre):
        with pytest.raises(CorpusError, match=r"the training split of .* is empty"):
            labels_of(empty, (), none="None")


def test_either_fraction_or_shots() -> None:
    common = ["out=x", "model=y", "epochs=1", "data.kind=twitter", "data.root=z"]
    with pytest.raises(ConfigError, match="give either fraction or shots"):
        load(FinetuneConfig, None, [*common, "data.fraction=0.1", "data.shots=5"])
    with pytest.raises(ConfigError, match=r"unknown key 'data.fractoin'.*did you mean 'data.fraction'"):
        load(FinetuneConfig, None, [*common, "data.fractoin=0.1"])


def test_what_a_corpus_holds_is_shown(tmp_path: Path) -> None:
    rows = [
        {"words": ["a", "b"], "tags": tags} for tags in (["B-PER", "I-PER"], ["O", "I-LOC"], ["B-PER", "O"])
    ]
    data = corpus(tmp_path, rows, "entities")
    data = data.model_copy(update={"files": dict.fromkeys(("train", "val"), "train.jsonl"), "splits": ()})
    lines = describe_corpus(read_corpus(data)).splitlines()
    assert lines[0].split() == [
        "split",
        "sentences",
        "words",
        "entities",
        "PER",
        "broken",
        "I-",
        "photos",
        "missing",
        "photos",
    ]
    assert lines[2].split() == ["train", "3", "6", "2", "2", "1", "0", "0"]
    assert lines[-1].startswith("warning: no photo of the training split is there")
    assert "warning" not in describe_corpus(read_corpus(data.model_copy(update={"text_only": True})))
    relations = [{"words": ["a", "b"], "head": [0, 2], "tail": [1, 2], "relation": "x"}]
    data = corpus(tmp_path, relations, "relations")
    data = data.model_copy(
        update={"files": dict.fromkeys(("train", "val"), "train.jsonl"), "splits": ("val",)}
    )
    assert describe_corpus(read_corpus(data)).splitlines()[2].split() == [
        "train",
        "1",
        "2",
        "1",
        "1",
        "0",
        "0",
    ]


def test_the_real_counts_are_the_published_ones() -> None:
    data = TwitterData(root=real_data("twitter_mner/twitter2015"), text_only=True)
    shown = [line.split() for line in describe_corpus(read_corpus(data)).splitlines()[2:]]
    assert [(row[0], row[1], row[3]) for row in shown] == [
        ("train", "4000", "6166"),
        ("val", "1000", "1541"),
        ("test", "3257", "5072"),
    ]
