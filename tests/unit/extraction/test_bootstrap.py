"""The paired bootstrap: its counts are seqeval's, its numbers a plain loop's, its intervals as wide as they say."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from seqeval.metrics import f1_score

from promptmeup.errors import CorpusError
from promptmeup.extraction.bootstrap import counts, draws, paired_bootstrap
from promptmeup.extraction.metrics import entity_scores_of, from_counts, relation_scores_of
from promptmeup.extraction.predictions import EntityPrediction, Predictions
from tests.unit.extraction.support import (
    RELATIONS,
    altered,
    entities,
    entity,
    random_tags,
    relation,
    relations,
)


def systems(
    shares: Sequence[float], *, seed: int = 0, sentences: int = 60
) -> list[dict[str, list[EntityPrediction]]]:
    """Return a system of one file for each share of wrong tags, on the same gold."""
    source = random.Random(seed)
    gold = random_tags(source, sentences)
    return [
        {f"{number}.jsonl": entities(gold, altered(source, gold, share))}
        for number, share in enumerate(shares)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_counts_of_entities_add_up_to_seqevals(seed: int) -> None:
    source = random.Random(seed)
    gold = random_tags(source, 40)
    predictions = entities(gold, altered(source, gold, 0.4))
    correct, predicted, support = map(int, counts(predictions, none=None).sum(axis=0))
    summed = from_counts(correct=correct, predicted=predicted, gold=support)
    own = entity_scores_of(predictions).default
    assert (summed.precision, summed.recall, summed.support) == (own.precision, own.recall, own.support)
    assert summed.f1 == pytest.approx(f1_score(gold, [list(p.tags) for p in predictions]), rel=1e-14)


@pytest.mark.parametrize("none", ["None", None])
def test_counts_of_relations_add_up(none: str | None) -> None:
    source = random.Random(1)
    predictions = relations(source.choices(RELATIONS, k=90), source.choices(RELATIONS, k=90))
    correct, predicted, support = map(int, counts(predictions, none=none).sum(axis=0))
    summed = from_counts(correct=correct, predicted=predicted, gold=support)
    assert summed == relation_scores_of(predictions, none=none).micro


def test_counts_by_hand() -> None:
    predictions = [entity("I-PER O B-LOC", "B-PER O O"), entity("O", "I-LOC"), entity("O", "O")]
    assert counts(predictions, none=None).tolist() == [[1, 2, 1], [0, 0, 1], [0, 0, 0]]
    found = [relation("a", "a"), relation("a", "b"), relation("None", "b"), relation("None", "None")]
    assert counts(found, none="None").tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_draws() -> None:
    parts = list(draws(3, resamples=12, sentences=400_000, files=(2, 3)))
    assert len(parts) == 2
    weights, first, second = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert (weights.sum(axis=1) == 400_000).all()
    assert (first.shape, second.shape) == ((12, 2), (12, 3))
    assert (np.unique(first).tolist(), np.unique(second).tolist()) == ([0, 1], [0, 1, 2])
    assert (weights[0] != weights[-1]).any()
    # numbers of a sentence's draws are Poisson's, nearly: e^-1 of the sentences are not drawn
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=1e-3)


def slow(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    *,
    seed: int,
    resamples: int,
    none: str | None,
) -> list[float]:
    """Return the differences of all resamples, by putting together and scoring the drawn sentences."""
    sentences = list(dict.fromkeys(p.words for p in first[0]))

    def f1(predictions: Predictions, weights: list[int]) -> float:
        drawn = [
            p
            for words, n in zip(sentences, weights, strict=True)
            for p in predictions
            if p.words == words
            for _ in range(n)
        ]
        if isinstance(drawn[0], EntityPrediction):
            return entity_scores_of(drawn).default.f1
        return relation_scores_of(drawn, none=none).micro.f1

    differences = []
    files = (len(first), len(second))
    for weights, own, theirs in draws(seed, resamples=resamples, sentences=len(sentences), files=files):
        for row in range(len(weights)):
            one = [f1(first[file], weights[row].tolist()) for file in own[row]]
            other = [f1(second[file], weights[row].tolist()) for file in theirs[row]]
            differences.append(sum(one) / len(one) - sum(other) / len(other))
    return differences


@pytest.mark.parametrize("kind", ["entities", "relations"])
def test_against_a_plain_loop(kind: str) -> None:
    source = random.Random(5)
    sides: list[dict[str, Predictions]] = [{}, {}]
    if kind == "entities":
        gold = random_tags(source, 15)
        for side, file in ((0, "a"), (0, "b"), (1, "c"), (1, "d"), (1, "e")):
            sides[side][file] = entities(gold, altered(source, gold, 0.3 + 0.1 * side))
    else:
        truth = source.choices(RELATIONS, k=20)
        # two instances of one sentence are drawn together
        rows = relations(truth, truth)
        rows = [replace(p, words=rows[number // 2].words) for number, p in enumerate(rows)]
        for side, file in ((0, "a"), (1, "b")):
            sides[side][file] = [
                replace(p, relation=source.choice(RELATIONS)) if source.random() < 0.4 else p for p in rows
            ]
    found = paired_bootstrap(sides[0], sides[1], resamples=100, seed=7, confidence=0.9)
    values = slow(list(sides[0].values()), list(sides[1].values()), seed=7, resamples=100, none="None")
    low, high = np.quantile(values, [0.05, 0.95])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-11)
    smaller = min(sum(value < 1e-12 for value in values), sum(value > -1e-12 for value in values))
    assert found.p == pytest.approx(min(1.0, 2 * (smaller + 1) / 101))
    assert (found.sentences, found.lines) == ((15, 15) if kind == "entities" else (10, 20))
    assert found.difference == pytest.approx(found.first.f1 - found.second.f1, abs=1e-12)


def test_f1_of_systems() -> None:
    (one,), (two,), (three,) = (system.values() for system in systems([0.1, 0.3, 0.5]))
    found = paired_bootstrap({"one": one, "two": two}, {"three": three}, resamples=100)
    own = [entity_scores_of(p).default.f1 for p in (one, two, three)]
    assert found.first.files == pytest.approx({"one": own[0], "two": own[1]})
    assert found.first.f1 == pytest.approx((own[0] + own[1]) / 2)
    assert found.second.files == pytest.approx({"three": own[2]})
    assert (found.resamples, found.confidence) == (100, 0.95)


def test_equal_systems() -> None:
    (one,) = systems([0.3])
    (predictions,) = one.values()
    # three times the same numbers have a mean that rounding moves
    found = paired_bootstrap(one, {"a": predictions, "b": predictions, "c": predictions}, resamples=500)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.excludes_zero


def test_a_better_system() -> None:
    good, bad = systems([0.05, 0.5])
    found = paired_bootstrap(good, bad, resamples=2000)
    assert 0 < found.low < found.difference < found.high
    assert found.excludes_zero
    assert found.p == 2 / 2001
    turned = paired_bootstrap(bad, good, resamples=2000)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.excludes_zero


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """80 % intervals of two systems that are equally good hold 0 in about 160 of 200 data sets."""
    held = below = 0
    for seed in range(1000, 1200):
        first, second = systems([0.3, 0.3], seed=seed, sentences=40)
        found = paired_bootstrap(first, second, resamples=300, confidence=0.8)
        held += not found.excludes_zero
        below += found.p < 0.2
    # three standard deviations of a binomial number: over 1,000 further data sets, 80.0 % held it
    assert abs(held - 160) <= 17
    assert abs(below - 40) <= 17


def test_noise_of_seeds_is_in_the_interval() -> None:
    source = random.Random(0)
    gold = random_tags(source, 300)
    seeds = {
        str(n): entities(gold, altered(source, gold, share)) for n, share in enumerate((0.1, 0.3, 0.5, 0.7))
    }
    mean = entities(gold, altered(source, gold, 0.4))
    several = paired_bootstrap(seeds, {"mean": mean}, resamples=1000)
    single = paired_bootstrap({"1": seeds["1"]}, {"mean": mean}, resamples=1000)
    assert several.high - several.low > 3 * (single.high - single.low)


def test_lines_of_one_sentence_are_drawn_together() -> None:
    truth = relations(["a", "b"] * 50, ["a", "b"] * 50)
    source = random.Random(2)
    wrong = [replace(p, relation="c") if source.random() < 0.5 else p for p in truth]
    apart = paired_bootstrap({"x": truth}, {"y": wrong}, resamples=1000)
    # each line four times: the same information
    copies = [[p for p in side for _ in range(4)] for side in (truth, wrong)]
    together = paired_bootstrap({"x": copies[0]}, {"y": copies[1]}, resamples=1000)
    assert (together.sentences, together.lines) == (100, 400)
    assert (together.low, together.high, together.p) == (apart.low, apart.high, apart.p)


def test_equal_seeds_give_equal_results() -> None:
    first, second = systems([0.3, 0.35])
    results = [paired_bootstrap(first, second, resamples=300, seed=seed) for seed in (1, 1, 2)]
    assert results[0] == results[1]
    assert results[0].low != results[2].low


def test_files_that_cannot_be_compared() -> None:
    rows = [entity("B-PER O", "B-PER O"), entity("O O", "O O", own_id="b")]
    other = [relation("a", "a")]
    cases: list[tuple[Predictions, str]] = [
        (
            other,
            "x.jsonl and y.jsonl cannot be compared: the first holds predictions of entities, the second of",
        ),
        (rows[:1], "the first holds 2 predictions, the second 1; predict the same split with both"),
        (rows[::-1], "in prediction 1, \"id\" is 'a' in the first and 'b' in the second"),
        (
            [rows[0], replace(rows[1], words=("x", "y"))],
            "in prediction 2, \"words\" is ('b0', 'b1') in the first",
        ),
        (
            [rows[0], replace(rows[1], gold=("O", "B-X"))],
            "in prediction 2, \"gold\" is ('O', 'O') in the first and",
        ),
    ]
    for predictions, message in cases:
        with pytest.raises(CorpusError) as caught:
            paired_bootstrap({"x.jsonl": rows}, {"y.jsonl": predictions}, resamples=100)
        assert message in str(caught.value)
    # within a side too
    with pytest.raises(CorpusError, match=r"x.jsonl and y.jsonl cannot be compared"):
        paired_bootstrap({"x.jsonl": rows, "y.jsonl": rows[::-1]}, {"z.jsonl": rows}, resamples=100)
    with pytest.raises(CorpusError, match='"tail" is'):
        paired_bootstrap({"x": other}, {"y": [replace(other[0], tail=(1, 2))]}, resamples=100)
    with pytest.raises(CorpusError, match="'a' has no gold labels"):
        paired_bootstrap({"x": [entity("O")]}, {"y": [entity("O")]}, resamples=100)
