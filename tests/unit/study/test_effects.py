"""Intervals, verdicts and power: by hand, against scipy's own tests, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from promptmeup.study.effects import (
    Effect,
    Expect,
    Verdict,
    holm,
    interval,
    p_value,
    paired,
    resolvable,
    verdict,
)


def test_an_interval_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t of 2 degrees of freedom; the sd is 1
    assert found == Effect(2.0, pytest.approx(2 - half, abs=1e-5), pytest.approx(2 + half, abs=1e-5), 3, 1.0)  # type: ignore[arg-type]


def test_a_single_seed_has_no_interval() -> None:
    assert interval([4.5]) == Effect(4.5, None, None, 1, None)
    assert verdict(interval([4.5])) == "undecided"
    assert p_value(interval([4.5])) is None


def test_pairs_are_the_seeds_that_both_have() -> None:
    assert paired({1: 3.0, 2: 5.0, 4: 9.0}, {2: 4.0, 1: 1.0, 3: 0.0}) == interval([2.0, 1.0])
    assert paired({1: 3.0}, {2: 4.0}) is None
    assert verdict(None) == "undecided"


def test_equal_differences_have_no_spread() -> None:
    found = paired({1: 80.1, 2: 70.3, 3: 60.2}, {1: 80.0, 2: 70.2, 3: 60.1})
    assert found == Effect(0.1, 0.1, 0.1, 3, 0.0)
    assert verdict(found) == "supported"
    for equal in (found, Effect(0.0, 0.0, 0.0, 3, 0.0)):
        assert p_value(equal) is None and p_value(equal, expect="same") is None, "nothing is known of chance"


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_paired_t_test_is_scipys(n: int) -> None:
    random = np.random.default_rng(n)
    first, second = random.normal(70, 3, n), random.normal(69, 3, n)
    effect = paired(dict(enumerate(first.tolist())), dict(enumerate(second.tolist())))
    assert effect is not None
    theirs = stats.ttest_rel(first, second)
    ends = theirs.confidence_interval(0.95)
    assert (effect.low, effect.high) == (
        pytest.approx(ends.low, abs=1e-8),
        pytest.approx(ends.high, abs=1e-8),
    )
    assert p_value(effect) == pytest.approx(theirs.pvalue, abs=1e-8)
    one_sided = [
        stats.ttest_rel(first, second + shift, alternative=way).pvalue
        for shift, way in ((-2.0, "greater"), (2.0, "less"))
    ]
    assert p_value(effect, expect="same", margin=2.0) == pytest.approx(min(1, 2 * max(one_sided)), abs=1e-8)


@pytest.mark.parametrize(
    ("low", "high", "expect", "outcome"),
    [
        (0.1, 0.5, "higher", "supported"),
        (2.0, 5.0, "higher", "supported"),
        (-5.0, -0.1, "higher", "not supported"),
        (-0.4, 0.9, "higher", "not supported"),
        (-0.4, 1.1, "higher", "undecided"),
        (-1.1, 0.9, "higher", "not supported"),
        (0.0, 3.0, "higher", "undecided"),
        (-0.9, 1.0, "same", "supported"),
        (0.2, 0.9, "same", "supported"),
        (1.1, 3.0, "same", "not supported"),
        (-3.0, -1.1, "same", "not supported"),
        (-0.5, 1.5, "same", "undecided"),
        (-4.0, 4.0, "same", "undecided"),
    ],
)
def test_verdicts(low: float, high: float, expect: Expect, outcome: Verdict) -> None:
    assert verdict(Effect((low + high) / 2, low, high, 5, 1.0), expect=expect) == outcome


@pytest.mark.parametrize("expect", ["higher", "same"])
def test_p_and_interval_agree(expect: Expect) -> None:
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        effect = interval(random.normal(random.normal(0, 1), random.uniform(0.1, 1), 4).tolist())
        p = p_value(effect, expect=expect)
        assert p is not None
        clear = verdict(effect, expect=expect) == "supported"
        if expect == "higher":
            clear |= effect.high is not None and effect.high < 0
        assert (p < 0.05) == clear
        seen.add(clear)
    assert seen == {True, False}


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
    ]
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("n", "expected"), [(3, 3.26), (5, 1.68), (10, 1.00), (20, 0.66)])
def test_what_can_be_resolved_is_the_tables(n: int, expected: float) -> None:
    assert resolvable(n, 1.0) == pytest.approx(expected, rel=0.02)
    assert resolvable(n, 2.5) == pytest.approx(2.5 * resolvable(n, 1.0))


def test_one_seed_resolves_nothing() -> None:
    assert resolvable(1, 1.0) == math.inf


@pytest.mark.parametrize("n", [2, 4])
def test_an_effect_that_can_be_resolved_is_found_four_times_in_five(n: int) -> None:
    differences = np.random.default_rng(n).normal(resolvable(n, 1.0), 1.0, (20_000, n))
    found = stats.ttest_1samp(differences, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
