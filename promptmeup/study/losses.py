"""Losses of pre-training, read from the cells' journals and drawn: the mean over seeds of each arm."""

from pathlib import Path
from statistics import fmean
from typing import Any

from promptmeup.corpora.json_files import read_json_lines
from promptmeup.study.drawing import COLORS, label, new_figure, plain, svg
from promptmeup.study.results import Arm, Results, Study, cell_folder
from promptmeup.tracking import journal

MOST_ARMS = 12
_POINTS = 60
"""of a curve: what is between is averaged"""
_COLUMNS = 3

Curve = list[tuple[float, float]]
"""(step, loss)"""


def read_losses(folder: Path, study: Study, results: Results) -> dict[str, dict[str, Curve]]:
    """Return arm -> loss -> its mean over the seeds whose finished cells have a pretrain.jsonl, up to 12 arms.

    Arms that are on no curve come first.
    """
    found: dict[str, dict[str, Curve]] = {}
    for arm in sorted(study.arms, key=lambda arm: arm.curve is not None):
        seeds = [seed for seed in study.seeds if (arm.name, seed) in results.finished]
        if len(found) < MOST_ARMS and (curves := _mean_over_seeds(folder, arm, seeds)):
            found[arm.name] = curves
    return found


def draw_losses(losses: dict[str, dict[str, Curve]]) -> str | None:
    """Draw a panel for each loss, the total first, with a line an arm, as SVG; None where there are none."""
    names = sorted(
        {name for curves in losses.values() for name in curves}, key=lambda n: (n != "loss/total", n)
    )
    if not names:
        return None
    lines = -(-len(names) // _COLUMNS)
    columns = -(-len(names) // lines)
    figure = new_figure(10, 1.2 + 2.6 * lines + 0.1 * len(losses))
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(lines, columns, number)
        for color, (arm, curves) in zip(COLORS, losses.items(), strict=False):
            points = curves.get(name, [])
            axes.plot(
                [x for x, _ in points], [y for _, y in points], color=color, linewidth=1.3, label=label(arm)
            )
        axes.set_title(label(name.removeprefix("loss/")), fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.02)
        plain(axes, grid="both")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    return svg(figure)


def _mean_over_seeds(folder: Path, arm: Arm, seeds: list[int]) -> dict[str, Curve]:
    paths = [cell_folder(folder, arm, seed) / "pretrain.jsonl" for seed in seeds]
    values: dict[str, dict[int, list[float]]] = {}
    for path in (path for path in paths if path.exists()):
        for _, line in read_json_lines(path, missing=""):
            if not isinstance(line, dict) or "step" not in line:
                continue
            for name, value in _losses(line).items():
                values.setdefault(name, {}).setdefault(line["step"], []).append(value)
    return {name: _thinned({s: fmean(v) for s, v in by_step.items()}) for name, by_step in values.items()}


def _losses(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in journal.values(line).items() if name.startswith("loss/")}


def _thinned(by_step: dict[int, float]) -> Curve:
    """Return at most 60 points, each the mean of steps that follow each other."""
    points = sorted(by_step.items())
    every = -(-len(points) // _POINTS)
    groups = [points[start : start + every] for start in range(0, len(points), every)]
    return [(fmean(step for step, _ in group), fmean(loss for _, loss in group)) for group in groups]
