"""Precision, recall and F1 of entities and of relations, as papers on these tasks print them.

    P = correct / predicted        R = correct / gold        F1 = 2 correct / (predicted + gold)

summed over all sentences (micro); 0 where a denominator is 0. All are fractions between 0 and 1.

Entities count as correct with equal boundaries and type. What an entity is, is read in two ways (library seqeval):
by default as conlleval reads it, where an I- that continues nothing begins an entity, and strictly by IOB2, where
it is none. Twitter-2015's gold has such tags, so its support differs: 5,207 and 5,072 in the test split.

Relations: the label for "none" is no relation that could be found (TACRED's scorer; HVPNeT's for MNRE). correct are
those with gold = predicted ≠ none, predicted those with predicted ≠ none, gold those with gold ≠ none.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from promptmeup.extraction.predictions import EntityPrediction, RelationPrediction, known_gold


@dataclass(frozen=True)
class Scores:
    """Fractions between 0 and 1."""

    precision: float
    recall: float
    f1: float
    support: int
    """in gold"""


@dataclass(frozen=True)
class EntityScores:
    """Of a split; `types` and `types_strict` have the same types, sorted."""

    default: Scores
    """micro, as papers print it: seqeval's default and conlleval"""
    strict: Scores
    """micro, strict IOB2"""
    types: dict[str, Scores]
    types_strict: dict[str, Scores]
    token_accuracy: float
    """share of words with the tag of gold"""


@dataclass(frozen=True)
class RelationScores:
    """Of a split; the most frequent in gold first."""

    accuracy: float
    """with none among the labels"""
    micro: Scores
    """without it"""
    relations: dict[str, Scores]
    """of each label but none"""
    labels: tuple[str, ...]
    """of rows and columns of `confusion`: all that gold or the model uses"""
    confusion: tuple[tuple[int, ...], ...]
    """[gold][predicted], instances"""


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> EntityScores:
    """Score tags (O, B-TYPE, I-TYPE) of at least one sentence; both sides have equally many words in each.

    Raises:
        ValueError: they have not.
    """
    from seqeval.metrics import v1
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
    from seqeval.scheme import IOB2, Entities

    assert gold
    true, found = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    pairs = [pair for rows in zip(true, found, strict=True) for pair in zip(*rows, strict=True)]
    # zero_division: 0 instead of "warn" gives the same numbers without the warnings
    default = precision_recall_fscore_support(true, found, average="micro", zero_division=0)
    each = precision_recall_fscore_support(true, found, average=None, zero_division=0)
    read = {"entities_true": Entities(true, IOB2), "entities_pred": Entities(found, IOB2)}
    strict, each_strict = (
        v1.precision_recall_fscore_support(
            true, found, average=average, scheme=IOB2, zero_division=0, suffix=False, **read
        )
        for average in ("micro", None)
    )
    # all types that occur by default occur there sorted; strictly, some may not
    names = sorted({tag[2:] for pair in pairs for tag in pair if tag != "O"})
    names_strict = sorted(read["entities_true"].unique_tags | read["entities_pred"].unique_tags)
    nothing = dict.fromkeys(names, Scores(0.0, 0.0, 0.0, 0))
    return EntityScores(
        default=_scores(*default),
        strict=_scores(*strict),
        types=_named(names, each),
        types_strict=nothing | _named(names_strict, each_strict),
        token_accuracy=sum(a == b for a, b in pairs) / len(pairs),
    )


def entity_scores_of(predictions: Sequence[EntityPrediction]) -> EntityScores:
    """Score what a model predicted.

    Raises:
        CorpusError: a sentence has no gold tags.
    """
    return entity_scores([known_gold(p.id, p.gold) for p in predictions], [p.tags for p in predictions])


def relation_scores(gold: Sequence[str], predicted: Sequence[str], *, none: str | None) -> RelationScores:
    """Score the relations of at least one instance.

    Args:
        none: the label that says that there is no relation; None: every label says that there is one.

    Raises:
        ValueError: the two sides are not of one length.
    """
    assert gold
    pairs = Counter(zip(gold, predicted, strict=True))
    support, found = Counter(gold), Counter(predicted)
    labels = sorted(support.keys() | found.keys(), key=lambda label: (-support[label], label))
    relations = [label for label in labels if label != none]
    return RelationScores(
        accuracy=sum(pairs[label, label] for label in labels) / len(gold),
        micro=from_counts(
            correct=sum(pairs[label, label] for label in relations),
            predicted=sum(found[label] for label in relations),
            gold=sum(support[label] for label in relations),
        ),
        relations={
            label: from_counts(correct=pairs[label, label], predicted=found[label], gold=support[label])
            for label in relations
        },
        labels=tuple(labels),
        confusion=tuple(tuple(pairs[row, column] for column in labels) for row in labels),
    )


def relation_scores_of(predictions: Sequence[RelationPrediction], *, none: str | None) -> RelationScores:
    """Score what a model predicted.

    Raises:
        CorpusError: an instance has no gold relation.
    """
    gold = [known_gold(p.id, p.gold) for p in predictions]
    return relation_scores(gold, [p.relation for p in predictions], none=none)


def from_counts(*, correct: int, predicted: int, gold: int) -> Scores:
    """Return precision, recall and F1 of counts; 0 where there is nothing to divide by."""
    return Scores(
        precision=correct / predicted if predicted else 0.0,
        recall=correct / gold if gold else 0.0,
        f1=2 * correct / (predicted + gold) if predicted + gold else 0.0,
        support=gold,
    )


def flat(scores: EntityScores | RelationScores) -> dict[str, float]:
    """Return the numbers by name for a tracker: "f1", "strict_f1", "type/PER/f1", "relation/NAME/f1", …

    Slashes at the ends of a name go (MNRE: "/per/org/member_of"): MLflow refuses empty parts of a path.
    """
    if isinstance(scores, EntityScores):
        return (
            _micro(scores.default)
            | {f"strict_{name}": value for name, value in _micro(scores.strict).items()}
            | {"token_accuracy": scores.token_accuracy}
            | {f"type/{name.strip('/')}/f1": found.f1 for name, found in scores.types.items()}
            | {f"type/{name.strip('/')}/strict_f1": found.f1 for name, found in scores.types_strict.items()}
        )
    return (
        _micro(scores.micro)
        | {"accuracy": scores.accuracy}
        | {f"relation/{name.strip('/')}/f1": found.f1 for name, found in scores.relations.items()}
    )


def _micro(scores: Scores) -> dict[str, float]:
    return {"f1": scores.f1, "precision": scores.precision, "recall": scores.recall}


def _scores(precision: float, recall: float, f1: float, support: int) -> Scores:
    return Scores(float(precision), float(recall), float(f1), int(support))


def _named(names: Sequence[str], columns: Sequence[Sequence[float]]) -> dict[str, Scores]:
    """Return the rows of seqeval's four columns by name."""
    return {name: _scores(*row) for name, *row in zip(names, *columns, strict=True)}
