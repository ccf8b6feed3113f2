"""The run's curves as one picture, drawn from the journal."""

import math
from collections import defaultdict
from pathlib import Path

from promptmeup.tracking import journal

_FIRST = ("loss", "evaluation", "val", "accuracy", "lr", "pairs_per_second", "data_wait", "temperature")
_COLUMNS = 3
_MOST_NAMES = 10
"""in a legend"""


def draw(journal_path: Path, out: Path) -> None:
    """Draw every metric of the journal over the steps into `out` (.png, .svg or .pdf by its suffix).

    Metrics share a panel when their names agree up to the first "/": "loss" and "loss/matching". Evaluations share
    one, or one for what stands before the "/", or the second of several: "val/f1", "val/type/PER/f1". Values that are
    not finite are gaps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(journal_path)
    columns = min(_COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for name, points in curves.items():
            marker = "o" if len(points) < 30 else ""
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker=marker, markersize=3)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if 1 < len(curves) <= _MOST_NAMES:
            axes.legend(fontsize="x-small")
    figure.savefig(out, dpi=110)


def _panels(journal_path: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return panel -> curve -> (step, value) points, the panels people look at first in front."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for event in journal.METRIC_EVENTS:
        for step, values in journal.metrics(journal_path, event=event).items():
            for name, value in values.items():
                panel = _evaluation_panel(name) if event == "evaluation" else name.partition("/")[0]
                panels[panel][name].append((step, value if math.isfinite(value) else math.nan))
    order = sorted(panels, key=lambda p: (_FIRST.index(p) if p in _FIRST else len(_FIRST), p))
    return {panel: panels[panel] for panel in order}


def _evaluation_panel(name: str) -> str:
    parts = name.split("/")
    return "evaluation" if len(parts) == 1 else "/".join(parts[: min(2, len(parts) - 1)])
