"""What all pictures of a report share: figures, colours, names that fit, ceilings, and SVG that is equal every time."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREY, BLACK, GRID = "#4878a8", "#c44e52", "#8c8c8c", "#1c1c1c", "#d9d9d9"
COLORS = (
    BLUE,
    "#e08a3c",
    "#5f9e6e",
    RED,
    "#857aab",
    "#8d7866",
    "#d684bd",
    GREY,
    "#b5a642",
    "#56a9b8",
    "#2f4b6e",
    "#7a2e31",
)
MARKERS = "osD^vP*Xph<>"
_LONGEST = 44
"""characters of a name"""
CEILING = {"words": "#a06a00", "image": "#2e7d4f"}
"""oracles that are drawn"""


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure, sizes in inches."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def svg(figure: "Figure") -> str:
    """Return the figure as SVG: letters as outlines, the same text each time."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "promptmeup", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def label(name: str, *, longest: int = _LONGEST) -> str:
    """Return `name` cut to a length that fits, its dollars escaped, which would begin a formula."""
    half = longest // 2
    cut = name if len(name) <= longest else f"{name[: half - 1]}…{name[-half:]}"
    return cut.replace("$", r"\$")


def plain(axes: "Axes", *, grid: str) -> None:
    """Leave out the frame and the ticks; draw faint lines across `grid`."""
    axes.tick_params(which="both", length=0)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=GRID, linewidth=0.7)  # type: ignore[arg-type]
    for spine in axes.spines.values():
        spine.set_visible(False)


def rows(axes: "Axes", names: Iterable[str]) -> None:
    """Write a name left of each row, the first on top, and shade every other row."""
    listed = list(names)
    axes.set_yticks(range(len(listed)), [label(name) for name in listed])
    axes.set_ylim(len(listed) - 0.5, -0.5)
    for place in range(1, len(listed), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f4f4f4", linewidth=0, zorder=0)


def signed(value: float) -> str:
    """Return "+1.23" or "−0.40", with a true minus."""
    return f"{value + 0.0:+.2f}".replace("-", "−")
