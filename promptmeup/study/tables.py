"""The tables of a report: cells of text, the same on the page and in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from promptmeup.study.drawing import signed
from promptmeup.study.effects import Effect
from promptmeup.study.findings import Findings
from promptmeup.study.scoring import ORACLES, UNITS

NOTHING = "–"
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Cell:
    """Text, and how it is coloured: "good", "bad", "open" or not at all."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column is left-aligned, others to the right if `numbers`."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: bool = True


_TONES = {"supported": "good", "not supported": "bad", "undecided": "open"}


def claims(found: Findings) -> Table:
    """Return the claims with their verdicts."""
    head = ("claim", "verdict", "measure", "difference", "expected", "effect [95 %]", "seeds", "p", "Holm")
    rows = []
    for one in found.judged:
        claim, n = one.claim, one.effect.n if one.effect else 0
        expected = "higher" if claim.expect == "higher" else f"same, within ±{claim.margin:g}"
        rows.append(
            (
                Cell(claim.claim),
                Cell(one.verdict, _TONES[one.verdict]),
                Cell(claim.measure),
                Cell(f"{claim.first} − {claim.second}"),
                Cell(expected),
                Cell(with_interval(one.effect)),
                Cell(str(n)),
                Cell(_p(one.p)),
                Cell(_p(one.holm)),
            )
        )
    return Table(head, rows, numbers=False)


def arms(found: Findings, measure: str) -> Table:
    """Return each arm's score and effect."""
    study = found.study
    unit = UNITS[study.measures[measure].kind]
    rows = []
    for arm in study.arms:
        score, effect = found.scores.get((arm.name, measure)), found.effects.get((arm.name, measure))
        is_baseline = arm.name == study.baseline
        rows.append(
            (
                Cell(arm.name),
                Cell(_with_sd(score)),
                Cell(f"{score.n if score else 0} of {len(study.seeds)}"),
                Cell("baseline") if is_baseline else _toned(effect),
            )
        )
    return Table(("arm", f"{unit}, % (mean ± sd)", "seeds", "effect [95 %], points"), rows)


def parts(found: Findings, measure: str) -> Table:
    """Return the effect of each arm on each type or relation; what types there are."""
    names = found.part_names(measure)
    rows = [
        (Cell(arm.name), *(_toned(found.parts.get((arm.name, measure, name))) for name in names))
        for arm in found.study.arms
        if (arm.name, measure) in found.effects
    ]
    return Table(("arm", *names), rows)


def ceilings(found: Findings) -> Table:
    """Return the best that can be scored by what is seen, and what the baseline scores."""
    baseline = found.study.baseline
    rows = [
        (
            Cell(f"{measure}, {UNITS[found.study.measures[measure].kind]}"),
            *(Cell(_with_sd(found.ceilings.get((measure, oracle)))) for oracle in ORACLES),
            Cell(_with_sd(found.scores.get((baseline, measure)))),
        )
        for measure in found.study.measures
        if any((measure, oracle) in found.ceilings for oracle in ORACLES)
    ]
    return Table(("measure", *ORACLES.values(), f"scored: {baseline}"), rows)


def power(found: Findings) -> Table:
    """Return how small an effect the study can find on each measure."""
    rows = [
        (Cell(measure), Cell(str(one.n)), Cell(f"{one.sd:.2f}"), Cell(f"{one.resolvable:.2f}"))
        for measure, one in found.power.items()
    ]
    return Table(("measure", "seeds", "sd of paired differences", "smallest effect found with 80 %"), rows)


def missing(found: Findings) -> Table:
    """Return the cells that are missing."""
    rows = [(Cell(one.arm), Cell(str(one.seed)), Cell(one.what)) for one in found.results.missing]
    return Table(("arm", "seed", "what is missing"), rows, numbers=False)


def with_interval(effect: Effect | None) -> str:
    """Return "+1.20 [+0.30, +2.10]", which is not broken over lines."""
    if effect is None:
        return NOTHING
    if effect.low is None or effect.high is None:
        return f"{signed(effect.mean)} (one seed)"
    return f"{signed(effect.mean)} [{signed(effect.low)}, {signed(effect.high)}]".replace(" ", NO_BREAK)


def _toned(effect: Effect | None) -> Cell:
    """Return an effect, coloured where its interval excludes 0."""
    text = with_interval(effect)
    if effect is None or effect.low is None or effect.high is None:
        return Cell(text)
    return Cell(text, "good" if effect.low > 0 else "bad" if effect.high < 0 else "")


def _with_sd(score: Effect | None) -> str:
    if score is None:
        return NOTHING
    return f"{score.mean:.2f}" if score.sd is None else f"{score.mean:.2f} ± {score.sd:.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.01 else f"{value:.3f}"
