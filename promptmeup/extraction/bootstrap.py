"""Whether one system is better than another, by a paired bootstrap over sentences.

Test sentences are drawn with replacement, the same ones for both systems, and F1 is measured anew (Koehn 2004,
"Statistical significance tests for machine translation evaluation"; Berg-Kirkpatrick et al. 2012, "An empirical
investigation of statistical significance in NLP"). A system may be several files, one a seed: its F1 is the mean of
theirs, and they are drawn with replacement too, so that the interval holds the noise of seeds. With m files a side it
holds (m - 1) / m of that variance, so with very few it is too narrow, and with one none of it.

Lines with the same words are one sentence: MNRE asks about a sentence once for each pair of entities in it, and such
lines are right or wrong together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptmeup.errors import CorpusError
from promptmeup.extraction.predictions import (
    EntityPrediction,
    Predictions,
    RelationPrediction,
    known_gold,
)

_CHUNK = 4 << 20
"""numbers drawn at once: 32 MB of int64"""
_DECIMALS = 12
"""of a difference: means of equal numbers differ by rounding, and must count as no difference"""


@dataclass(frozen=True)
class System:
    """One side of a comparison; F1 between 0 and 1."""

    f1: float
    """mean over files"""
    files: dict[str, float]
    """F1 of each"""


@dataclass(frozen=True)
class Comparison:
    """Of two systems on the same sentences; differences are first - second, in F1 between -1 and 1."""

    first: System
    second: System
    difference: float
    low: float
    high: float
    """ends of the percentile interval"""
    p: float
    """two-sided, of the difference being 0; at least 2 / (resamples + 1)"""
    sentences: int
    """distinct ones: what was drawn"""
    lines: int
    resamples: int
    confidence: float
    """of the interval"""

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Mapping[str, Predictions],
    second: Mapping[str, Predictions],
    *,
    none: str | None = "None",
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two systems, each given as file name -> its predictions; equal arguments give equal results.

    p is twice the smaller of two shares of resamples, those with a difference of at most and of at least 0, with one
    resample added so that it is never 0. But for that one, it is below 1 - `confidence` where the interval excludes 0.

    Args:
        none: the relation that says that there is none, as in `metrics.relation_scores`; unused for entities.

    Raises:
        CorpusError: the files do not hold the same kind of predictions of the same sentences, or no gold labels.
    """
    assert first and second and resamples > 0 and 0 < confidence < 1
    _require_same([*first.items(), *second.items()])
    groups = _sentences(next(iter(first.values())))
    sides = [
        np.stack([_summed(counts(p, none=none), groups) for p in side.values()]) for side in (first, second)
    ]
    num_sentences = sides[0].shape[1]
    sampled = np.concatenate(
        [
            _mean_f1(sides[0], weights, first_files) - _mean_f1(sides[1], weights, second_files)
            for weights, first_files, second_files in draws(
                seed, resamples=resamples, sentences=num_sentences, files=(len(first), len(second))
            )
        ]
    ).round(_DECIMALS)
    low, high = np.quantile(sampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    smaller = min(int((sampled <= 0).sum()), int((sampled >= 0).sum()))
    systems = [
        System(float(f1.mean()), dict(zip(side, f1.tolist(), strict=True)))
        for side, f1 in (
            (side, _f1(own.sum(axis=1))) for side, own in zip((first, second), sides, strict=True)
        )
    ]
    return Comparison(
        first=systems[0],
        second=systems[1],
        difference=round(systems[0].f1 - systems[1].f1, _DECIMALS),
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (smaller + 1) / (resamples + 1)),
        sentences=num_sentences,
        lines=len(groups),
        resamples=resamples,
        confidence=confidence,
    )


def counts(predictions: Predictions, *, none: str | None) -> NDArray[np.int64]:
    """Return [lines, 3]: correct, predicted and gold entities or relations; their sums give the micro F1.

    Entities are read as by seqeval's default and conlleval, relations without `none`.

    Raises:
        CorpusError: a line has no gold labels.
    """
    return np.array([_counts(prediction, none) for prediction in predictions], dtype=np.int64)


def draws(
    seed: int, *, resamples: int, sentences: int, files: tuple[int, int]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield, for some of the resamples at a time, how often each sentence was drawn and which files were.

    The shapes are [some, sentences], and [some, files] for each side; seeds of the two sides are not paired.
    """
    random = np.random.default_rng(seed)
    first, second = (random.integers(num, size=(resamples, num)) for num in files)
    step = max(1, _CHUNK // sentences)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = random.integers(sentences, size=(stop - start, sentences))
        drawn += np.arange(stop - start)[:, None] * sentences
        weights = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield weights, first[start:stop], second[start:stop]


def _counts(prediction: EntityPrediction | RelationPrediction, none: str | None) -> tuple[int, int, int]:
    if isinstance(prediction, EntityPrediction):
        from seqeval.metrics.sequence_labeling import get_entities

        gold = set(get_entities(list(known_gold(prediction.id, prediction.gold))))
        found = set(get_entities(list(prediction.tags)))
        return len(gold & found), len(found), len(gold)
    relation = known_gold(prediction.id, prediction.gold)
    is_found, is_gold = prediction.relation != none, relation != none
    return is_found and prediction.relation == relation, is_found, is_gold


def _sentences(predictions: Predictions) -> NDArray[np.int64]:
    """Return for each line the number of its sentence, which is equal where the words are."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(prediction.words, len(numbers)) for prediction in predictions])


def _summed(counts: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [sentences, 3]."""
    sums = np.zeros((int(groups.max()) + 1, 3), dtype=np.int64)
    np.add.at(sums, groups, counts)
    return sums


def _mean_f1(
    counts: NDArray[np.int64], weights: NDArray[np.int64], files: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the mean F1 over the drawn files for each resample.

    Args:
        counts: [files, sentences, 3].
        weights: [resamples, sentences].
        files: [resamples, files], numbers of those drawn.
    """
    # float64 multiplies by BLAS and is exact for whole numbers up to 2^53
    sums = np.einsum("rs,fsc->rfc", weights.astype(np.float64), counts.astype(np.float64), optimize=True)
    mean: NDArray[np.float64] = np.take_along_axis(_f1(sums), files, axis=1).mean(axis=1)
    return mean


def _f1(sums: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 of [..., 3] counts; 0 where neither gold nor prediction has anything."""
    both = sums[..., 1] + sums[..., 2]
    f1: NDArray[np.float64] = 2 * sums[..., 0] / np.maximum(both, 1)
    return f1


def _require_same(files: Sequence[tuple[str, Predictions]]) -> None:
    """Assert that all files hold the same kind of predictions of the same lines with the same gold labels."""
    (name, reference), *others = files
    for other_name, other in others:
        both = f"{name} and {other_name} cannot be compared"
        kinds = [_kind(reference), _kind(other)]
        if kinds[0] != kinds[1]:
            raise CorpusError(f"{both}: the first holds predictions of {kinds[0]}, the second of {kinds[1]}")
        if len(reference) != len(other):
            raise CorpusError(
                f"{both}: the first holds {len(reference)} predictions, the second {len(other)}; "
                "predict the same split with both"
            )
        for number, (own, theirs) in enumerate(zip(reference, other, strict=True), start=1):
            for key in ("id", "words", "head", "tail", "gold"):
                values = [getattr(own, key, None), getattr(theirs, key, None)]
                if values[0] != values[1]:
                    raise CorpusError(
                        f'{both}: in prediction {number}, "{key}" is {ascii(values[0])[:100]} in the first and '
                        f"{ascii(values[1])[:100]} in the second; predict the same split with both, in one order"
                    )


def _kind(predictions: Predictions) -> str:
    return "entities" if isinstance(predictions[0], EntityPrediction) else "relations"
