"""What a study found: scores and effects of its arms over seeds, and whether its claims hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from promptmeup.study.effects import Effect, Verdict, holm, interval, p_value, paired, resolvable, verdict
from promptmeup.study.results import Arm, Claim, Results, Study

_Differ = Callable[[str, str, str], bool]
"""whether two arms have other tests of a measure at some seed that both have"""


@dataclass(frozen=True)
class Judged:
    """A claim, and what the paired difference first - second says of it."""

    claim: Claim
    effect: Effect | None
    verdict: Verdict
    p: float | None
    holm: float | None
    """adjusted for all claims of the study"""
    other_tests: bool = False
    """the two arms were tested on other examples, or maybe on other photos, at some seed"""


@dataclass(frozen=True)
class Power:
    """How small an effect on a measure the study can find."""

    n: int
    """seeds"""
    sd: float
    """of paired differences: root mean square over arms"""
    resolvable: float
    """points, with a probability of 80 %"""


@dataclass(frozen=True)
class Findings:
    """All numbers of a report, in percent and points."""

    study: Study
    results: Results
    scores: dict[tuple[str, str], Effect]
    """(arm, measure) -> mean over seeds"""
    effects: dict[tuple[str, str], Effect]
    """(arm, measure) -> paired difference to the baseline"""
    parts: dict[tuple[str, str, str], Effect]
    """(arm, measure, type or relation) -> paired difference to the baseline"""
    ceilings: dict[tuple[str, str], Effect]
    """(measure, oracle) -> mean over cells"""
    judged: tuple[Judged, ...]
    power: dict[str, Power]
    """by measure"""
    other_tests: tuple[tuple[str, str], ...]
    """(arm, measure) tested on other sentences than the baseline at some seed"""
    other_photos: tuple[tuple[str, str], ...] = ()
    """(arm, measure) whose tests come from another folder than the baseline's at some seed: words that are the same may
    go with other photos"""

    def part_names(self, measure: str) -> list[str]:
        """Return the types or relations of a measure, sorted."""
        found = self.results.scores.items()
        return sorted({part for (_, _, m), score in found if m == measure for part in score.parts})

    def ceiling(self, measure: str, oracle: str) -> float | None:
        """Return the mean over cells of what an oracle scores."""
        found = self.ceilings.get((measure, oracle))
        return found.mean if found else None


def find(study: Study, results: Results) -> Findings:
    """Return what the scores of a study's cells show."""
    baseline = {measure: results.by_seed(study.baseline, measure) for measure in study.measures}
    scores, effects, parts = {}, {}, {}
    for arm, measure in _pairs(study):
        by_seed = results.by_seed(arm.name, measure)
        if by_seed:
            scores[arm.name, measure] = interval(list(by_seed.values()))
        if arm.name != study.baseline and (effect := paired(by_seed, baseline[measure])):
            effects[arm.name, measure] = effect
            for part in {part for key, s in results.scores.items() if key[2] == measure for part in s.parts}:
                own = results.part_by_seed(arm.name, measure, part)
                if found := paired(own, results.part_by_seed(study.baseline, measure, part)):
                    parts[arm.name, measure, part] = found
    differ = (
        _differ(study, results, lambda *cell: results.scores[cell].test),
        _differ(study, results, study.tests_folder),
    )
    return Findings(
        study=study,
        results=results,
        scores=scores,
        effects=effects,
        parts=parts,
        ceilings=_ceilings(results),
        judged=_judge(study, results, differ),
        power=_power(study, effects),
        other_tests=_against_baseline(study, differ[0]),
        other_photos=_against_baseline(study, differ[1]),
    )


def numbers(findings: Findings) -> dict[str, Any]:
    """Return everything as one value for JSON, by name, rounded to 6 decimals."""
    results = findings.results
    value = {
        "study": findings.study.name,
        "missing": [asdict(one) for one in results.missing],
        "cells": _nested(
            {key: {"score": one.value, "parts": one.parts} for key, one in results.scores.items()}
        ),
        "ceilings_by_cell": _nested(results.ceilings),
        "scores": _nested(findings.scores),
        "effects": _nested(findings.effects),
        "effects_by_part": _nested(findings.parts),
        "ceilings": _nested(findings.ceilings),
        "claims": [asdict(one) for one in findings.judged],
        "power": {measure: asdict(one) for measure, one in findings.power.items()},
        "other_tests": findings.other_tests,
        "other_photos": findings.other_photos,
    }
    rounded: dict[str, Any] = _rounded(value)
    return rounded


def _pairs(study: Study) -> list[tuple[Arm, str]]:
    return [(arm, measure) for arm in study.arms for measure in study.measures]


def _judge(study: Study, results: Results, differ: Sequence[_Differ]) -> tuple[Judged, ...]:
    effects = [
        paired(results.by_seed(c.first, c.measure), results.by_seed(c.second, c.measure))
        for c in study.claims
    ]
    claims = list(zip(study.claims, effects, strict=True))
    found = [p_value(effect, expect=c.expect, margin=c.margin) for c, effect in claims]
    return tuple(
        Judged(
            claim=c,
            effect=effect,
            verdict=verdict(effect, expect=c.expect, margin=c.margin),
            p=p,
            holm=adjusted,
            other_tests=any(have_other(c.first, c.second, c.measure) for have_other in differ),
        )
        for (c, effect), p, adjusted in zip(claims, found, holm(found), strict=True)
    )


def _ceilings(results: Results) -> dict[tuple[str, str], Effect]:
    values: dict[tuple[str, str], list[float]] = {}
    for (_, _, measure), by_oracle in results.ceilings.items():
        for oracle, score in by_oracle.items():
            values.setdefault((measure, oracle), []).append(score)
    return {key: interval(found) for key, found in values.items()}


def _power(study: Study, effects: Mapping[tuple[str, str], Effect]) -> dict[str, Power]:
    power = {}
    for measure in study.measures:
        found = [e for (_, m), e in effects.items() if m == measure and e.sd is not None]
        if found:
            n = max(effect.n for effect in found)
            sd = float(fmean(effect.sd**2 for effect in found if effect.sd is not None) ** 0.5)
            power[measure] = Power(n, sd, resolvable(n, sd))
    return power


def _differ(study: Study, results: Results, tests: Callable[[str, int, str], str | None]) -> _Differ:
    """Compare by what `tests` says of an arm, a seed and a measure."""

    def differ(first: str, second: str, measure: str) -> bool:
        pairs = (((first, seed, measure), (second, seed, measure)) for seed in study.seeds)
        return any(
            tests(*one) != tests(*other) for one, other in pairs if {one, other} <= results.scores.keys()
        )

    return differ


def _against_baseline(study: Study, differ: _Differ) -> tuple[tuple[str, str], ...]:
    return tuple((arm.name, m) for arm, m in _pairs(study) if differ(arm.name, study.baseline, m))


def _nested(flat: Mapping[tuple[Any, ...], Any]) -> dict[str, Any]:
    """Return {(a, b): value} as {a: {b: value}}."""
    nested: dict[str, Any] = {}
    for (*outer, last), value in flat.items():
        inner = nested
        for key in outer:
            inner = inner.setdefault(str(key), {})
        inner[str(last)] = asdict(value) if isinstance(value, Effect) else value
    return nested


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
