"""The picture of a scaling model: efficiency between its bounds, and where the time of a step goes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from promptmeup.distributed.scaling import Scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WEAK, _STRONG, _EXCHANGE, _GRID = "#4878a8", "#c44e52", "#e0a458", "#d9d9d9"


def draw_scaling(weak: Sequence[Scaled], strong: Sequence[Scaled], out: Path, *, title: str) -> None:
    """Draw into `out` (a suffix of matplotlib's): pairs/s and efficiency, and a step's time with all exposed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    speed, efficiency, weak_time, strong_time = figure.subplots(2, 2).flat
    names = {
        f"weak: {weak[0].rows} pairs a GPU": (weak, _WEAK),
        **({f"strong: {strong[0].ranks * strong[0].rows} pairs in all": (strong, _STRONG)} if strong else {}),
    }
    for name, (found, color) in names.items():
        _draw_bounds(speed, found, Scaled.pairs_per_second, color=color, label=name)
        _draw_bounds(efficiency, found, lambda one, t: 100 * one.efficiency(t), color=color, label=name)
    gpus = [scaled.ranks for scaled in weak]
    alone = weak[0].rows / weak[0].ideal
    speed.plot(
        gpus, [alone * n for n in gpus], color="black", linestyle=":", label="one GPU alone, times as many"
    )
    speed.set_yscale("log")
    speed.set_title("pairs/s")
    efficiency.set_ylim(0, 102)
    efficiency.set_title(
        "efficiency, % of one GPU alone\n(line: nothing hidden; shade: up to all that could be)"
    )
    for axes, name, found in (
        (weak_time, "weak scaling", weak),
        (strong_time, "strong scaling", strong),
    ):
        _draw_times(axes, found, title=f"{name}: ms a step, nothing hidden")
    for axes in (speed, efficiency):
        _on_gpus(axes, gpus)
        axes.legend(fontsize="small")
    figure.savefig(out, dpi=120)


def _draw_bounds(
    axes: "Axes", found: Sequence[Scaled], rate: Callable[[Scaled, float], float], *, color: str, label: str
) -> None:
    """Draw `rate` of a step and its seconds: a line where nothing is hidden, shade up to where all is."""
    gpus = [one.ranks for one in found]
    slow = [rate(one, one.time.exposed) for one in found]
    fast = [rate(one, one.time.hidden) for one in found]
    axes.fill_between(gpus, slow, fast, color=color, alpha=0.3)
    axes.plot(gpus, slow, color=color, marker="o", markersize=3, label=label)


def _on_gpus(axes: "Axes", gpus: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(gpus, [str(n) for n in gpus])
    axes.set_xlabel("GPUs")
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def _draw_times(axes: "Axes", found: Sequence[Scaled], *, title: str) -> None:
    """Draw a bar for each number of GPUs: compute, and on it the exchanges."""
    places = range(len(found))
    compute = [1e3 * scaled.time.compute for scaled in found]
    exchange = [1e3 * scaled.time.exchange for scaled in found]
    axes.bar(places, compute, color=_WEAK, label="compute")
    axes.bar(places, exchange, bottom=compute, color=_EXCHANGE, label="exchanges")
    axes.set_xticks(places, [str(scaled.ranks) for scaled in found])
    axes.set_xlabel("GPUs")
    axes.set_title(title)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")
