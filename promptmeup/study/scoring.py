"""The score of a file of predictions, in percent, and of its parts.

- entities: micro F1 of spans and types by seqeval's default; parts are types, by F1
- relations: accuracy over all labels, none among them; parts are labels, by F1
- retrieval: the mean of recall at 1, 5 and 10 in both directions; parts are these six
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

from promptmeup.corpora.json_files import read_json_lines
from promptmeup.errors import StudyError
from promptmeup.extraction.metrics import entity_scores_of, relation_scores_of
from promptmeup.extraction.predictions import (
    EntityPrediction,
    Predictions,
    RelationPrediction,
    read_predictions,
)

Kind = Literal["entities", "relations", "retrieval"]
UNITS: dict[Kind, str] = {"entities": "micro F1", "relations": "accuracy", "retrieval": "mean recall"}
PARTS: dict[Kind, str] = {
    "entities": "F1 by entity type",
    "relations": "F1 by relation",
    "retrieval": "recall by direction and cutoff",
}
ORACLES = {"words": "words alone", "kinds": "words and kinds of objects", "image": "with the image"}
"""of a synthetic corpus: what they see, and so the best that can be scored by seeing it"""
_CEILING: dict[Kind, str] = {"entities": "F1", "relations": "accuracy"}
_DIRECTIONS = ("image_to_text", "text_to_image")
_CUTOFFS = (1, 5, 10)


@dataclass(frozen=True)
class Score:
    """In percent."""

    value: float
    parts: dict[str, float]
    test: str
    """stands for what was asked and what is right: equal where the test set is the same"""


def score_file(path: Path, kind: Kind) -> Score:
    """Return the score of the predictions in `path`.

    Raises:
        CorpusError: they are malformed, or have no gold labels.
        StudyError: they are of another kind.
    """
    if kind == "retrieval":
        return _retrieval(path)
    predictions = read_predictions(path)
    found: Kind = "entities" if isinstance(predictions[0], EntityPrediction) else "relations"
    if found != kind:
        raise StudyError(f"{path} holds predictions of {found}, where study.json has {kind}")
    if kind == "entities":
        entities = entity_scores_of(cast(Sequence[EntityPrediction], predictions))
        value, parts = entities.default.f1, {name: one.f1 for name, one in entities.types.items()}
    else:
        relations = relation_scores_of(cast(Sequence[RelationPrediction], predictions), none=None)
        value, parts = relations.accuracy, {name: one.f1 for name, one in relations.relations.items()}
    return Score(
        100 * value, {name: 100 * part for name, part in sorted(parts.items())}, _digest(predictions)
    )


def ceiling_scores(path: Path, ceiling: Mapping[str, Any], kind: Kind) -> dict[str, float]:
    """Return what each oracle of a ceiling.json scores in percent; nothing where it does not know the kind.

    Raises:
        StudyError: an oracle's score is not there.
    """
    scores = {}
    name = _CEILING.get(kind, "")
    for oracle, score in ceiling.get(kind, {}).items():
        if oracle in ORACLES:
            if not isinstance(score.get(name), int | float):
                raise StudyError(f"{path}: {kind!r} of {oracle!r} has no {name!r}")
            scores[oracle] = 100 * float(score[name])
    return scores


def _retrieval(path: Path) -> Score:
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    splits = set()
    for number, line in read_json_lines(path, missing="it should hold ranks, as JSON lines"):
        match line:
            case {"direction": "image_to_text" | "text_to_image" as direction, "rank": int(rank)} if (
                rank >= 0
            ):
                ranks[direction].append(rank)
                splits.add(str(line.get("split", "")))
            case _:
                raise StudyError(
                    f'{path} line {number}: expected {{"direction": "image_to_text" or "text_to_image", '
                    '"rank": a number from 0}'
                )
    if absent := [direction for direction in _DIRECTIONS if direction not in ranks]:
        raise StudyError(f"{path} holds no ranks of {' and '.join(absent)}")
    parts = {
        f"{direction.replace('_', ' ')} R@{k}": 100 * fmean(rank < k for rank in ranks[direction])
        for direction in _DIRECTIONS
        for k in _CUTOFFS
    }
    asked = [*sorted(splits), *(str(len(ranks[direction])) for direction in _DIRECTIONS)]
    return Score(fmean(parts.values()), parts, " ".join(asked))


def _digest(predictions: Predictions) -> str:
    asked = [[getattr(p, key, None) for key in ("id", "words", "head", "tail", "gold")] for p in predictions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
