"""How much better one arm is than another over the seeds, how sure that is, and what a study could find at all.

A seed draws everything that is random (world, corpus, teacher, student), and all arms of a seed share what they can, so
arms are compared seed by seed: what differs between seeds and not between arms drops out. Differences are taken as
normal; intervals and p-values are Student's t.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Expect = Literal["higher", "same"]
Verdict = Literal["supported", "not supported", "undecided"]
MARGIN = 1.0
"""points; smaller effects count as none"""
_DECIMALS = 10
"""of a difference: 80.1 - 80.0 must be 0.1, so that equal differences have no spread"""


@dataclass(frozen=True)
class Effect:
    """A mean over seeds: of scores, or of differences of scores."""

    mean: float
    low: float | None
    high: float | None
    """ends of the interval; None for a single seed"""
    n: int
    """seeds"""
    sd: float | None
    """sample standard deviation over seeds; None for a single one"""


def interval(values: Sequence[float], *, confidence: float = 0.95) -> Effect:
    """Return the mean of at least one value, with the interval that Student's t gives."""
    from scipy import stats

    assert values and 0 < confidence < 1
    mean, n = statistics.mean(values), len(values)  # exact: equal values have their own mean
    if n == 1:
        return Effect(mean, None, None, 1, None)
    sd = statistics.stdev(values)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Effect(mean, mean - half, mean + half, n, sd)


def paired(
    first: Mapping[int, float], second: Mapping[int, float], *, confidence: float = 0.95
) -> Effect | None:
    """Return first - second over the seeds that both have; None where they share none."""
    shared = sorted(first.keys() & second.keys())
    differences = [round(first[seed] - second[seed], _DECIMALS) for seed in shared]
    return interval(differences, confidence=confidence) if differences else None


def verdict(effect: Effect | None, *, expect: Expect = "higher", margin: float = MARGIN) -> Verdict:
    """Return what the interval of a difference says of the claim that it is above 0, or as good as 0.

    higher: supported if all of the interval is above 0; not supported if it is below `margin`: an effect of that size
    is excluded.
    same: supported if all of it is within ±margin; not supported if all of it is outside. Else undecided.
    """
    if effect is None or effect.low is None or effect.high is None:
        return "undecided"
    is_within = -margin <= effect.low and effect.high <= margin
    if expect == "higher":
        if effect.low > 0:
            return "supported"
        return "not supported" if effect.high < margin else "undecided"
    if is_within:
        return "supported"
    return "not supported" if effect.low > margin or effect.high < -margin else "undecided"


def p_value(effect: Effect | None, *, expect: Expect = "higher", margin: float = MARGIN) -> float | None:
    """Return the two-sided p of what a claim denies; None without two seeds, or where all differences are equal.

    higher: of no difference, the paired t-test. same: of a difference of `margin` or more, twice the larger of the
    two one-sided tests (Schuirmann 1987). So p < 0.05 where the 95 % interval excludes 0, or lies within ±margin.
    Equal differences (of few seeds, or tests of few examples) are no sign of a p of 0: they say nothing of chance.
    """
    if effect is None or not effect.sd:
        return None
    if expect == "higher":
        return min(1.0, 2 * _above(abs(effect.mean), effect))
    return min(1.0, 2 * max(_above(margin - effect.mean, effect), _above(margin + effect.mean, effect)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p-values adjusted for being several (Holm 1979), in the same order; None stays and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted


def resolvable(n: int, sd: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true difference that a paired two-sided t-test of `n` seeds finds with probability `power`.

    Args:
        sd: of the differences.
    """
    from scipy import optimize, stats

    assert sd >= 0 and 0 < alpha < power < 1
    if n < 2:
        return math.inf
    critical = float(stats.t.ppf(1 - alpha / 2, n - 1))

    def surplus(shift: float) -> float:
        """Return how much the power at the noncentrality `shift` exceeds what is asked."""
        right = float(stats.nct.sf(critical, n - 1, shift))
        wrong = float(
            stats.nct.cdf(-critical, n - 1, shift)
        )  # of the other sign; NaN where it is below 1e-16
        return right + (0.0 if math.isnan(wrong) else wrong) - power

    longest = 2 * critical
    while surplus(longest) < 0:
        longest *= 2
    return float(optimize.brentq(surplus, 0.0, longest)) * sd / math.sqrt(n)


def _above(distance: float, effect: Effect) -> float:
    """Return the probability that chance alone moves the mean by `distance` or more upwards."""
    from scipy import stats

    assert effect.sd
    return float(stats.t.sf(distance * math.sqrt(effect.n) / effect.sd, effect.n - 1))
