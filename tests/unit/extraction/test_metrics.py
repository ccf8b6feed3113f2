"""Scores against numbers worked out by hand, against seqeval's own F1 and against sklearn."""

import random
import warnings

import pytest
from seqeval.metrics import classification_report, f1_score
from seqeval.scheme import IOB2
from sklearn.metrics import confusion_matrix
from sklearn.metrics import precision_recall_fscore_support as sklearn_scores

from promptmeup.errors import CorpusError
from promptmeup.extraction.metrics import (
    Scores,
    entity_scores,
    entity_scores_of,
    flat,
    from_counts,
    relation_scores,
    relation_scores_of,
)
from tests.unit.extraction.support import (
    RELATIONS,
    altered,
    entities,
    entity,
    random_tags,
    relation,
    relations,
)


def test_entities_by_hand() -> None:
    gold = ["B-PER I-PER O B-LOC", "O O", "B-LOC O"]
    found = ["B-PER I-PER O B-PER", "O B-PER", "B-LOC O"]
    scores = entity_scores([tags.split() for tags in gold], [tags.split() for tags in found])
    # PER: one of three that were found is right; LOC: the one that was found, of two
    assert scores.default == scores.strict == Scores(2 / 4, 2 / 3, pytest.approx(4 / 7), 3)
    assert scores.types == scores.types_strict
    assert scores.types == {
        "LOC": Scores(1.0, 1 / 2, pytest.approx(2 / 3), 2),
        "PER": Scores(pytest.approx(1 / 3), 1.0, pytest.approx(1 / 2), 1),
    }
    assert list(scores.types) == ["LOC", "PER"]
    assert scores.token_accuracy == 6 / 8


def test_an_inside_tag_that_continues_nothing_is_an_entity_by_default_alone() -> None:
    scores = entity_scores([["O", "I-PER", "O", "B-LOC"]], [["O", "B-PER", "O", "B-LOC"]])
    assert scores.default == Scores(1.0, 1.0, 1.0, 2)
    assert scores.strict == Scores(1 / 2, 1.0, pytest.approx(2 / 3), 1)
    assert scores.types["PER"] == Scores(1.0, 1.0, 1.0, 1)
    assert scores.types_strict["PER"] == Scores(0.0, 0.0, 0.0, 0)
    # B-PER I-LOC: two entities by default, strictly the first alone
    scores = entity_scores([["B-PER", "I-LOC"]], [["B-PER", "O"]])
    assert (scores.default.support, scores.strict.support) == (2, 1)
    # a type that no strict reading finds is there all the same
    scores = entity_scores([["I-PER"]], [["I-PER"]])
    assert scores.types_strict == {"PER": Scores(0.0, 0.0, 0.0, 0)}


def test_nothing_to_find_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = entity_scores([["O", "O"]], [["O", "O"]])
        assert scores.default == scores.strict == Scores(0.0, 0.0, 0.0, 0)
        assert (scores.types, scores.token_accuracy) == ({}, 1.0)
        assert entity_scores([["B-PER"]], [["O"]]).default == Scores(0.0, 0.0, 0.0, 1)
        assert relation_scores(["None"], ["None"], none="None").micro == Scores(0.0, 0.0, 0.0, 0)
    assert from_counts(correct=0, predicted=2, gold=0) == Scores(0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_entities_are_seqevals(seed: int) -> None:
    source = random.Random(seed)
    gold = random_tags(source, 30)
    found = altered(source, gold, 0.4)
    scores = entity_scores(gold, found)
    assert scores.default.f1 == f1_score(gold, found)
    assert scores.strict.f1 == f1_score(gold, found, mode="strict", scheme=IOB2)
    for options, own, micro in (
        ({}, scores.types, scores.default),
        ({"mode": "strict", "scheme": IOB2}, scores.types_strict, scores.strict),
    ):
        report = classification_report(gold, found, output_dict=True, **options)
        assert report["micro avg"]["support"] == micro.support
        for name, row in own.items():
            other = report[name]
            assert (row.precision, row.recall, row.f1, row.support) == (
                other["precision"],
                other["recall"],
                other["f1-score"],
                other["support"],
            )


def test_relations_by_hand() -> None:
    gold = ["None", "None", "peer", "peer", "peer", "part"]
    found = ["None", "peer", "peer", "None", "part", "part"]
    scores = relation_scores(gold, found, none="None")
    assert scores.accuracy == 3 / 6
    # correct: a peer and a part; found: two peers, two parts; gold: three peers, a part
    assert scores.micro == Scores(2 / 4, 2 / 4, 2 / 4, 4)
    assert scores.relations == {
        "peer": Scores(1 / 2, 1 / 3, 2 / 5, 3),
        "part": Scores(1 / 2, 1.0, 2 / 3, 1),
    }
    assert scores.labels == ("peer", "None", "part")
    assert scores.confusion == ((1, 1, 1), (1, 1, 0), (0, 0, 1))


def test_relations_all_of_which_count() -> None:
    scores = relation_scores(["a", "b", "None"], ["a", "c", "None"], none=None)
    assert scores.accuracy == scores.micro.precision == scores.micro.recall == scores.micro.f1 == 2 / 3
    assert scores.relations["None"].f1 == 1.0
    assert scores.labels == ("None", "a", "b", "c")


@pytest.mark.parametrize("seed", range(20))
def test_relations_are_sklearns(seed: int) -> None:
    source = random.Random(seed)
    gold = source.choices(RELATIONS, weights=(5, 2, 2, 1), k=80)
    found = [source.choice(RELATIONS) if source.random() < 0.5 else name for name in gold]
    scores = relation_scores(gold, found, none="None")
    assert scores.labels[0] == "None"
    names = list(scores.labels[1:])
    micro = sklearn_scores(gold, found, labels=names, average="micro", zero_division=0)
    assert (scores.micro.precision, scores.micro.recall, scores.micro.f1) == pytest.approx(micro[:3])
    for name, *row in zip(names, *sklearn_scores(gold, found, labels=names, zero_division=0), strict=True):
        own = scores.relations[name]
        assert (own.precision, own.recall, own.f1, own.support) == pytest.approx(tuple(row))
    assert scores.confusion == tuple(map(tuple, confusion_matrix(gold, found, labels=list(scores.labels))))


def test_scores_of_predictions() -> None:
    gold, found = [["B-PER", "O"], ["I-LOC"]], [["B-PER", "B-PER"], ["B-LOC"]]
    assert entity_scores_of(entities(gold, found)) == entity_scores(gold, found)
    assert relation_scores_of(relations(["a", "b"], ["a", "a"]), none="b") == relation_scores(
        ["a", "b"], ["a", "a"], none="b"
    )
    with pytest.raises(CorpusError, match="'q' has no gold labels"):
        entity_scores_of([entity("O", "O"), entity("O", own_id="q")])
    with pytest.raises(CorpusError, match="'q' has no gold labels"):
        relation_scores_of([relation("a", own_id="q")], none=None)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        entity_scores([["O", "O"]], [["O"]])
    with pytest.raises(ValueError, match="shorter"):
        entity_scores([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="shorter"):
        relation_scores(["a", "b"], ["a"], none=None)


def test_numbers_for_a_tracker() -> None:
    numbers = flat(entity_scores([["O", "I-PER", "O", "B-LOC"]], [["O", "B-PER", "O", "O"]]))
    assert numbers == {
        "f1": pytest.approx(2 / 3),
        "precision": 1.0,
        "recall": 0.5,
        "strict_f1": 0.0,
        "strict_precision": 0.0,
        "strict_recall": 0.0,
        "token_accuracy": 0.5,
        "type/LOC/f1": 0.0,
        "type/PER/f1": 1.0,
        "type/LOC/strict_f1": 0.0,
        "type/PER/strict_f1": 0.0,
    }
    assert all(type(value) is float for value in numbers.values())
    numbers = flat(relation_scores(["/per/per/peer", "None"], ["/per/per/peer", "None"], none="None"))
    assert numbers == {
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "accuracy": 1.0,
        "relation/per/per/peer/f1": 1.0,
    }
