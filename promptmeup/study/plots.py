"""Pictures of scores: effects with their intervals, scores of all arms, and curves; ceilings are dashed lines.

Each function returns an SVG.
"""

import math
from typing import TYPE_CHECKING

from promptmeup.study.drawing import (
    BLACK,
    BLUE,
    CEILING,
    COLORS,
    GREY,
    MARKERS,
    label,
    new_figure,
    plain,
    rows,
    signed,
    svg,
)
from promptmeup.study.effects import Effect
from promptmeup.study.findings import Findings
from promptmeup.study.results import Arm
from promptmeup.study.scoring import ORACLES, UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _LOW_ROW, _MANY = 0.34, 0.25, 20
"""inches; rows are lower where there are many"""
_FAINT = 0.35
_DECADES = 30.0
"""largest by smallest value of a curve from which on its axis is logarithmic"""


def draw_effects(found: Findings, measure: str) -> str | None:
    """Draw the effect of each arm that is on no curve, in the study's order; None where there is none."""
    arms = [a.name for a in found.study.arms if a.curve is None and (a.name, measure) in found.effects]
    if not arms:
        return None
    figure = new_figure(9, 1.3 + _ROW * max(len(arms), 2))
    axes = figure.add_subplot()
    rows(axes, arms)
    axes.axvline(0, color=BLACK, linewidth=1.2, zorder=1)
    for place, name in enumerate(arms):
        effect = found.effects[name, measure]
        is_clear = effect.low is not None and effect.high is not None and effect.low * effect.high > 0
        color = BLUE if is_clear else GREY
        if effect.low is not None and effect.high is not None:
            axes.plot([effect.low, effect.high], [place, place], color=color, linewidth=2)
        axes.plot(effect.mean, place, marker="o", color=color, markersize=7)
        axes.text(
            1.02, place, _numbers(effect), transform=axes.get_yaxis_transform(), va="center", fontsize=9
        )
    axes.set_xlabel(
        f"{UNITS[found.study.measures[measure].kind]}, points against “{label(found.study.baseline)}”"
    )
    axes.set_title(f"{label(measure)}: effect and 95 % interval (grey: it includes 0)", fontsize=10)
    plain(axes, grid="x")
    return svg(figure)


def draw_scores(found: Findings, measure: str) -> str | None:
    """Draw each seed of each arm as a faint dot, mean and interval bold; None where there are no scores."""
    arms = [a.name for a in found.study.arms if (a.name, measure) in found.scores]
    if not arms:
        return None
    figure = new_figure(9, 1.7 + (_ROW if len(arms) < _MANY else _LOW_ROW) * max(len(arms), 2))
    axes = figure.add_subplot()
    rows(axes, arms)
    for place, name in enumerate(arms):
        color = BLACK if name == found.study.baseline else BLUE
        values = list(found.results.by_seed(name, measure).values())
        axes.plot(values, [place] * len(values), "o", color=color, alpha=_FAINT, markersize=4, linewidth=0)
        score = found.scores[name, measure]
        if score.low is not None and score.high is not None:
            axes.plot([score.low, score.high], [place, place], color=color, linewidth=1.6)
        axes.plot(score.mean, place, marker="D", color=color, markersize=6)
        axes.text(
            1.02, place, f"{score.mean:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=9
        )
    for oracle, place, value in _ceilings(found, measure):
        axes.axvline(value, color=CEILING[oracle], linestyle="--", linewidth=1.3, zorder=1)
        axes.annotate(
            f"{ORACLES[oracle]} {value:.1f}",
            (value, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3 if place else -3, 3),
            textcoords="offset points",
            ha="left" if place else "right",
            color=CEILING[oracle],
            fontsize=9,
        )
    axes.set_xlabel(f"{_unit(found, measure)}; dots are seeds, bars 95 % intervals over seeds")
    axes.set_title(f"{label(measure)}: scores and the best that can be scored", fontsize=10, pad=20)
    plain(axes, grid="x")
    return svg(figure)


def draw_curves(found: Findings, measure: str) -> str | None:
    """Draw the arms that are on curves over x, the baseline where the curves begin; None where there are none."""
    curves: dict[str, list[Arm]] = {}
    for arm in found.study.arms:
        if arm.curve is not None and arm.x is not None and (arm.name, measure) in found.scores:
            curves.setdefault(arm.curve, []).append(arm)
    if not curves:
        return None
    figure = new_figure(9, 5.4)
    axes = figure.add_subplot()
    every = [float(arm.x) for arms in curves.values() for arm in arms if arm.x is not None]
    origin, baseline = found.study.origin, found.scores.get((found.study.baseline, measure))
    if origin is not None:
        every.append(origin)
    is_log = min(every) > 0 and max(every) / min(every) >= _DECADES
    width = math.log(max(every) / min(every)) if is_log else max(every) - min(every)
    for number, (curve, arms) in enumerate(curves.items()):
        # side by side: bars of several curves at one x would hide each other
        aside = 0.008 * width * (number - (len(curves) - 1) / 2)
        points = [
            (arm.x * math.exp(aside) if is_log else arm.x + aside, arm.name)
            for arm in arms
            if arm.x is not None
        ]
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        for x, name in points:
            _draw_point(axes, found, name, measure, x, color=color, marker=marker)
        line = [(x, found.scores[name, measure].mean) for x, name in points]
        if origin is not None and baseline is not None:
            line.append((origin, baseline.mean))
        xs, ys = zip(*sorted(line), strict=True)
        axes.plot(xs, ys, linewidth=1.5, label=label(curve), color=color, marker=marker)
    if origin is not None and baseline is not None:
        _draw_point(axes, found, found.study.baseline, measure, origin, color=BLACK, marker="D")
        axes.plot([], [], "D", color=BLACK, label=label(found.study.baseline))
    for oracle, _, value in _ceilings(found, measure):
        axes.axhline(value, color=CEILING[oracle], linestyle="--", linewidth=1.3, zorder=1)
        axes.annotate(
            f"{ORACLES[oracle]}\n{value:.1f}",
            (1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=CEILING[oracle],
            fontsize=9,
        )
    if is_log:
        axes.set_xscale("log")
    axes.set_xlabel(label(found.study.x_label or "x", longest=100))
    axes.set_ylabel(_unit(found, measure))
    axes.set_title(f"{label(measure)}: dots are seeds, bars 95 % intervals over seeds", fontsize=10)
    plain(axes, grid="y")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return svg(figure)


def _draw_point(
    axes: "Axes", found: Findings, name: str, measure: str, x: float, *, color: str, marker: str
) -> None:
    values = list(found.results.by_seed(name, measure).values())
    axes.plot([x] * len(values), values, "o", color=color, alpha=_FAINT, markersize=3.5, markeredgewidth=0)
    score = found.scores[name, measure]
    if score.low is not None and score.high is not None:
        axes.plot([x, x], [score.low, score.high], color=color, linewidth=1.4)
    axes.plot(x, score.mean, marker, color=color, markersize=6)


def _ceilings(found: Findings, measure: str) -> list[tuple[str, int, float]]:
    """Return (oracle, its number, score) of those that are known."""
    best = [(oracle, number, found.ceiling(measure, oracle)) for number, oracle in enumerate(CEILING)]
    return [(oracle, number, value) for oracle, number, value in best if value is not None]


def _unit(found: Findings, measure: str) -> str:
    return f"{UNITS[found.study.measures[measure].kind]} (%)"


def _numbers(effect: Effect) -> str:
    if effect.low is None or effect.high is None:
        return f"{signed(effect.mean)}  (one seed)"
    return f"{signed(effect.mean)}  [{signed(effect.low)}, {signed(effect.high)}]"
