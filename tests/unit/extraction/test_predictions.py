"""Files of predictions: what is written is read, and every mistake in a line is named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from promptmeup.errors import CorpusError
from promptmeup.extraction.predictions import (
    Entity,
    EntityPrediction,
    known_gold,
    read_predictions,
    write_predictions,
)
from tests.unit.extraction.support import entity, relation

ENTITY = {
    "id": "a",
    "words": ["Ada", "Byron", "writes"],
    "gold": ["I-PER", "I-PER", "O"],
    "tags": ["B-PER", "I-PER", "O"],
    "entities": [{"start": 0, "end": 2, "type": "PER", "score": 0.5}],
    "has_image": True,
}
RELATION = {
    "id": "b",
    "words": ["Ada", "in", "London"],
    "head": [0, 1],
    "tail": [2, 3],
    "gold": None,
    "relation": "lives_in",
    "score": 1,
    "has_image": False,
}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "p.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in lines))
    return path


def test_entities_come_back(tmp_path: Path) -> None:
    found = (
        entity("B-PER I-PER O", "I-PER O O", own_id="É🙂", entities=[Entity(0, 2, "PER", 0.1234567)]),
        entity("O", own_id="b"),
    )
    path = tmp_path / "p.jsonl"
    write_predictions(path, found)
    rounded = replace(found[0], entities=(Entity(0, 2, "PER", 0.123457),))
    assert read_predictions(path) == (rounded, found[1])
    assert "É🙂" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_relations_come_back(tmp_path: Path) -> None:
    found = (replace(relation("x", "/per/per/peer"), score=2 / 3), relation("None", own_id="b"))
    path = tmp_path / "p.jsonl"
    write_predictions(path, found)
    assert read_predictions(path) == (replace(found[0], score=0.666667), found[1])


def test_lines_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, ENTITY | {"note": "further keys"}, "", ENTITY)
    first, second = read_predictions(path)
    assert first == second
    assert isinstance(first, EntityPrediction)
    assert first.entities == (Entity(0, 2, "PER", 0.5),)
    assert first.gold == ("I-PER", "I-PER", "O")
    (only,) = read_predictions(write(tmp_path, RELATION))
    assert (only.gold, only.has_image) == (None, False)


def test_scores_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_predictions(tmp_path / "p.jsonl", [replace(relation("x"), score=float("nan"))])
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: expected a JSON object"),
        ([1], "line 2: expected a JSON object"),
        ({"id": "a"}, 'line 2: expected either "tags" (entities) or "relation" (relations); its keys are id'),
        (ENTITY | {"relation": "x"}, 'line 2: expected either "tags" (entities) or "relation"'),
        (RELATION, "line 2: predictions of entities and of relations in one file"),
        (ENTITY | {"id": 3}, 'line 2: "id" must be text that is not empty; this is 3'),
        (ENTITY | {"words": []}, 'line 2: "words" must be a list of words, none of them empty; this is []'),
        (ENTITY | {"gold": ["O"]}, 'line 2: "gold" has 1 entries for 3 "words"'),
        (ENTITY | {"tags": ["O", "O"]}, 'line 2: "tags" has 2 entries for 3 "words"'),
        (ENTITY | {"tags": ["O", "O", "PER"]}, 'line 2: "tags" must be a list of O, B-TYPE and I-TYPE'),
        (ENTITY | {"has_image": 1}, 'line 2: "has_image" must be true or false; this is 1'),
        (ENTITY | {"entities": None}, 'line 2: "entities" must be a list; this is None'),
        (ENTITY | {"entities": ["x"]}, "line 2: \"entities\" must hold objects; this is 'x'"),
        (
            ENTITY | {"entities": [{"start": 1, "end": 4, "type": "PER", "score": 1.0}]},
            'line 2: "entities": expected words 0 <= start < end <= 3, found start 1 and end 4',
        ),
        (
            ENTITY | {"entities": [{"start": 0, "end": 1, "score": 1.0}]},
            'line 2: "entities" has no "type"; its keys are start, end, score',
        ),
        (
            ENTITY | {"entities": [{"start": 0, "end": 1, "type": "PER", "score": float("nan")}]},
            'line 2: "entities": "score" must be a finite number; this is nan',
        ),
        (
            {key: value for key, value in ENTITY.items() if key != "gold"},
            'line 2 has no "gold"; its keys are',
        ),
    ],
)
def test_malformed_entities(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path, ENTITY, line)
    with pytest.raises(CorpusError) as caught:
        read_predictions(path)
    assert f"{path} {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": [2, 2]}, '"head" must be [start, end] in words with 0 <= start < end <= 3; this is [2, 2]'),
        ({"tail": [0.0, 1]}, '"tail" must be [start, end] in words'),
        ({"score": True}, '"score" must be a finite number; this is True'),
        ({"gold": ""}, "\"gold\" must be text that is not empty; this is ''"),
        ({"relation": None}, '"relation" must be text that is not empty; this is None'),
    ],
)
def test_malformed_relations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, RELATION | change)
    with pytest.raises(CorpusError) as caught:
        read_predictions(path)
    assert f"{path} line 1: {message}" in str(caught.value)


def test_no_file_and_no_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"gone.jsonl is missing: it should hold predictions"):
        read_predictions(tmp_path / "gone.jsonl")
    with pytest.raises(CorpusError, match="holds no predictions"):
        read_predictions(write(tmp_path, ""))


def test_gold_must_be_known() -> None:
    assert known_gold("a", ("O",)) == ("O",)
    with pytest.raises(CorpusError, match="'a' has no gold labels"):
        known_gold("a", None)
