"""Pictures of scores: F1 of each type or relation, and which relations are taken for which."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from promptmeup.extraction.metrics import EntityScores, RelationScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 130
_LONGEST = 40
"""characters of a name"""
_MOST_NUMBERED = 30
"""labels of a confusion matrix up to which numbers fit into its cells"""
_BAR, _STRICT, _GRID = "#4878a8", "#1c1c1c", "#d9d9d9"


def draw_scores(scores: EntityScores | RelationScores, out: Path, *, title: str) -> None:
    """Draw F1 of each entity type or relation, the most frequent on top, into `out` (a suffix of matplotlib's).

    A dashed line is the micro F1. For entities the bars are the default reading, and a tick the strict one.
    """
    if isinstance(scores, EntityScores):
        micro, each = scores.default, scores.types
        ticks = {name: found.f1 for name, found in scores.types_strict.items()}
    else:
        micro, each, ticks = scores.micro, scores.relations, {}
    names = sorted(each, key=lambda name: (-each[name].support, name))
    figure = _figure(7.5, 1.3 + 0.34 * max(len(names), 2))
    axes = figure.add_subplot()
    f1 = [each[name].f1 for name in names]
    axes.barh(range(len(names)), f1, height=0.68, color=_BAR)
    for place, name in enumerate(names):
        numbers = f"{100 * f1[place]:.1f}"
        if name in ticks:
            axes.plot([ticks[name]] * 2, [place - 0.34, place + 0.34], color=_STRICT, linewidth=2)
            numbers += f" / {100 * ticks[name]:.1f}"
        axes.text(1.02, place, numbers, va="center", fontsize=9)
    axes.axvline(micro.f1, color="#c44e52", linestyle="--", linewidth=1.2, zorder=3)
    axes.set_yticks(range(len(names)), [f"{_text(name)}  ({each[name].support:,})" for name in names])
    axes.set_ylim(max(len(names), 1) - 0.4, -0.6)
    axes.set_xlim(0, 1.01)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{share:.0f}" for share in np.linspace(0, 100, 6)])
    axes.set_xlabel("F1 (%), in brackets: number in gold")
    axes.grid(axis="x", color=_GRID, linewidth=0.7)
    _plain(axes)
    strict = f" / strict (black) {100 * scores.strict.f1:.2f}" if isinstance(scores, EntityScores) else ""
    _title(figure, title, f"micro F1 (dashed) {100 * micro.f1:.2f}{strict}")
    figure.savefig(out, dpi=_DPI)


def draw_confusion(scores: RelationScores, out: Path, *, title: str) -> None:
    """Draw gold relations (rows) against predicted ones (columns) into `out`.

    Colours are shares of a row, numbers are instances; up to 30 labels have numbers.
    """
    counts_LL = np.array(scores.confusion)
    totals_L = counts_LL.sum(axis=1)
    shares_LL = counts_LL / np.maximum(totals_L, 1)[:, None]
    num_labels = len(scores.labels)
    names = [_text(name) for name in scores.labels]
    rows = [f"{name}  ({total:,})" for name, total in zip(names, totals_L, strict=True)]
    side = max(2.0, 0.36 * num_labels)
    figure = _figure(
        side + 0.07 * max(map(len, rows)) + 1.5,  # beside the labels, the colours and their names
        side + 0.075 * max(map(len, names)) + 1.0,
    )
    axes = figure.add_subplot()
    image = axes.imshow(shares_LL, cmap="Blues", vmin=0, vmax=1)
    if num_labels <= _MOST_NUMBERED:
        for row, column in zip(*np.nonzero(counts_LL), strict=True):
            color = "white" if shares_LL[row, column] > 0.5 else "black"
            number = _short(int(counts_LL[row, column]))
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(num_labels), names, rotation=90, fontsize=8)
    axes.set_yticks(range(num_labels), rows, fontsize=8)
    axes.set_xticks(np.arange(num_labels + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(num_labels + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=_GRID, linewidth=0.5)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold (number)")
    _plain(axes)
    figure.colorbar(image, ax=axes, label="share of gold", shrink=min(1.0, 3 / side), aspect=15, pad=0.02)
    _title(figure, title, f"accuracy {100 * scores.accuracy:.2f} %, micro F1 {100 * scores.micro.f1:.2f} %")
    # the layout keeps cells square and guesses what the labels need: cut to what was drawn
    figure.savefig(out, dpi=_DPI, bbox_inches="tight", pad_inches=0.1)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: "Axes") -> None:
    axes.tick_params(which="both", length=0)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _title(figure: "Figure", title: str, facts: str) -> None:
    figure.suptitle(f"{_text(title, longest=90)}\n{facts}", fontsize=10)


def _text(name: str, *, longest: int = _LONGEST) -> str:
    """Return `name` cut to a length that fits, its dollars escaped, which would begin a formula."""
    half = longest // 2
    cut = name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"
    return cut.replace("$", r"\$")


def _short(number: int) -> str:
    """Return 12345 as "12k": four digits are what a cell holds."""
    return str(number) if number < 10_000 else f"{number / 1000:.0f}k"
