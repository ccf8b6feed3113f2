"""What a model says of each sentence of a split, as JSON lines that can be read without the corpus.

    {"id": "a1", "words": ["Ada", "writes"], "gold": ["B-PER", "O"], "tags": ["B-PER", "O"],
     "entities": [{"start": 0, "end": 1, "type": "PER", "score": 0.93}], "has_image": true}
    {"id": "b1", "words": ["Ada", "in", "London"], "head": [0, 1], "tail": [2, 3], "gold": "lives_in",
     "relation": "lives_in", "score": 0.87, "has_image": false}

A file holds one of the two kinds, in the split's order; ids may repeat, as a corpus's own do. `gold` is null where
nobody said what is right. Further keys are left alone. Floats have 6 decimals.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from promptmeup.corpora.json_files import is_text, read_json_lines
from promptmeup.corpora.post_files import is_tag, is_words, word_span
from promptmeup.errors import CorpusError
from promptmeup.shard_format import write_atomically

_DECIMALS = 6


@dataclass(frozen=True)
class Entity:
    """Words [start, end) as a named entity."""

    start: int
    end: int
    type: str
    score: float
    """how sure the model is"""


@dataclass(frozen=True)
class EntityPrediction:
    """A sentence and the entities found in it."""

    id: str
    words: tuple[str, ...]
    gold: tuple[str, ...] | None
    """a tag for each word as the corpus has it, an I- that continues nothing too"""
    tags: tuple[str, ...]
    """a tag for each word: O, B-TYPE or I-TYPE"""
    entities: tuple[Entity, ...]
    has_image: bool
    """whether the model saw a photo"""


@dataclass(frozen=True)
class RelationPrediction:
    """A sentence, two spans [start, end) of its words, and the relation found between them."""

    id: str
    words: tuple[str, ...]
    head: tuple[int, int]
    tail: tuple[int, int]
    gold: str | None
    relation: str
    score: float
    """how sure the model is"""
    has_image: bool
    """whether the model saw a photo"""


Predictions = Sequence[EntityPrediction] | Sequence[RelationPrediction]
G = TypeVar("G")


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write a line for each prediction, atomically.

    Raises:
        ValueError: a score is not finite.
    """
    lines = (
        json.dumps(_rounded(asdict(prediction)), ensure_ascii=False, allow_nan=False)
        for prediction in predictions
    )
    write_atomically(path, "".join(line + "\n" for line in lines).encode())


def read_predictions(path: Path) -> tuple[EntityPrediction, ...] | tuple[RelationPrediction, ...]:
    """Return the predictions of a file in its order.

    Raises:
        CorpusError: the file is absent, empty, of both kinds, or a line is malformed; it names file, line and key.
    """
    entities: list[EntityPrediction] = []
    relations: list[RelationPrediction] = []
    for number, fields in read_json_lines(path, missing="it should hold predictions, as JSON lines"):
        place = f"{path} line {number}"
        if not isinstance(fields, dict):
            raise CorpusError(f"{place}: expected a JSON object")
        if ("tags" in fields) == ("relation" in fields):
            raise CorpusError(
                f'{place}: expected either "tags" (entities) or "relation" (relations); '
                f"its keys are {', '.join(fields) or 'none'}"
            )
        if "tags" in fields:
            entities.append(_entity_prediction(place, fields))
        else:
            relations.append(_relation_prediction(place, fields))
        if entities and relations:
            raise CorpusError(
                f"{place}: predictions of entities and of relations in one file; write two files"
            )
    if not entities and not relations:
        raise CorpusError(f"{path} holds no predictions")
    return tuple(entities) if entities else tuple(relations)


def known_gold(own_id: str, gold: G | None) -> G:
    """Return the gold label or labels of the prediction `own_id`.

    Raises:
        CorpusError: there are none.
    """
    if gold is None:
        raise CorpusError(f"'{own_id}' has no gold labels, so it cannot be scored")
    return gold


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value


def _entity_prediction(place: str, fields: dict[str, Any]) -> EntityPrediction:
    words = _words(place, fields)
    gold = _value(place, fields, "gold")
    found = _value(place, fields, "entities")
    if not isinstance(found, list):
        _refuse(place, "entities", "a list", found)
    return EntityPrediction(
        id=_text(place, fields, "id"),
        words=words,
        gold=None if gold is None else _tags(place, fields, "gold", words),
        tags=_tags(place, fields, "tags", words),
        entities=tuple(_entity(place, value, words) for value in found),
        has_image=_bool(place, fields, "has_image"),
    )


def _relation_prediction(place: str, fields: dict[str, Any]) -> RelationPrediction:
    words = _words(place, fields)
    gold = _value(place, fields, "gold")
    return RelationPrediction(
        id=_text(place, fields, "id"),
        words=words,
        head=_span(place, fields, "head", words),
        tail=_span(place, fields, "tail", words),
        gold=None if gold is None else _text(place, fields, "gold"),
        relation=_text(place, fields, "relation"),
        score=_number(place, fields, "score"),
        has_image=_bool(place, fields, "has_image"),
    )


def _entity(place: str, value: Any, words: tuple[str, ...]) -> Entity:
    place = f'{place}: "entities"'
    if not isinstance(value, dict):
        raise CorpusError(f"{place} must hold objects; this is {ascii(value)[:100]}")
    span = word_span(words, (_value(place, value, "start"), _value(place, value, "end")))
    if span is None:
        wrong = f"start {ascii(value['start'])[:50]} and end {ascii(value['end'])[:50]}"
        raise CorpusError(f"{place}: expected words 0 <= start < end <= {len(words)}, found {wrong}")
    return Entity(span.start, span.end, _text(place, value, "type"), _number(place, value, "score"))


def _words(place: str, fields: dict[str, Any]) -> tuple[str, ...]:
    words = _value(place, fields, "words")
    if not is_words(words):
        _refuse(place, "words", "a list of words, none of them empty", words)
    return tuple(words)


def _tags(place: str, fields: dict[str, Any], key: str, words: tuple[str, ...]) -> tuple[str, ...]:
    tags = _value(place, fields, key)
    if not isinstance(tags, list) or not all(is_tag(tag) for tag in tags):
        _refuse(place, key, "a list of O, B-TYPE and I-TYPE", tags)
    if len(tags) != len(words):
        raise CorpusError(f'{place}: "{key}" has {len(tags)} entries for {len(words)} "words"')
    return tuple(tags)


def _span(place: str, fields: dict[str, Any], key: str, words: tuple[str, ...]) -> tuple[int, int]:
    value = _value(place, fields, key)
    span = word_span(words, value)
    if span is None:
        _refuse(place, key, f"[start, end] in words with 0 <= start < end <= {len(words)}", value)
    return span.start, span.end


def _text(place: str, fields: dict[str, Any], key: str) -> str:
    value = _value(place, fields, key)
    if not is_text(value) or not value:
        _refuse(place, key, "text that is not empty", value)
    return str(value)


def _number(place: str, fields: dict[str, Any], key: str) -> float:
    value = _value(place, fields, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(place, key, "a finite number", value)
    return float(value)


def _bool(place: str, fields: dict[str, Any], key: str) -> bool:
    value = _value(place, fields, key)
    if not isinstance(value, bool):
        _refuse(place, key, "true or false", value)
    return value


def _value(place: str, fields: dict[str, Any], key: str) -> Any:
    if key not in fields:
        raise CorpusError(f'{place} has no "{key}"; its keys are {", ".join(fields) or "none"}')
    return fields[key]


def _refuse(place: str, key: str, expected: str, value: Any) -> NoReturn:
    raise CorpusError(f'{place}: "{key}" must be {expected}; this is {ascii(value)[:100]}')
