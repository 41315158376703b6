"""Axes as the figures of ladders and batch studies have them: panels with log scales, and rows with a name each."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muonlab.report.canvas import MUTED, Drawing, Look, draw
from muonlab.report.text import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLUMNS", "OPEN", "WIDTH", "dodge", "factor_ticks", "frame", "log_ticks", "marks", "note", "panel_size",
    "row_axes", "set_ticks",
]  # fmt: skip

Looks = Mapping[str, Look]

COLUMNS = {1: "one", 2: "two", 4: "two"}  # of panels in a row, by how many there are; three for any other number
WIDTH = 760.0  # of a figure alone, CSS pixels
OPEN = 2.0  # a factor from its point at which an interval that is wider leaves it
STEPS: Sequence[Sequence[float]] = (
    [1 + k / 20 for k in range(180)], [1 + k / 10 for k in range(90)], (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 4, 6), (1, 2, 5), (1, 3), (1,),
)  # fmt: skip


def panel_size(count: int) -> tuple[float, float]:
    """In CSS pixels, so that panels fill rows of two or three."""
    if count == 1:
        return 760.0, 380.0
    return (400.0, 310.0) if count in (2, 4) else (300.0, 280.0)


def marks(look: Looks) -> dict[str, Drawing]:
    """How each optimizer is drawn, for a legend."""
    return {name: draw(f"mark {name}", (30, 14), f"mark of {name}", _mark(one)) for name, one in look.items()}


def _mark(look: Look):
    def paint(figure: "Figure") -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 30), ylim=(0, 14))
        axes.plot([1, 29], [7, 7], color=look.colour, ls=look.dash, lw=1.4)
        axes.plot([15], [7], look.marker, ms=7, color=look.colour, mec="white", mew=1.0)

    return paint


def frame(figure: "Figure", left: float = 54, bottom: float = 46, right: float = 8, top: float = 26) -> "Axes":
    """Axes with margins in pixels."""
    width, height = figure.get_size_inches() * 72
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))


def dodge(
    names: Sequence[str] | Looks, limits: tuple[float, float], pixels: float, room: float = 22.0
) -> dict[str, float]:
    """A factor for each name that draws apart, on a log axis and over so many pixels, what lies at the same place.

    >>> {name: round(factor, 3) for name, factor in dodge(["a", "b"], (1.0, 10.0), 300.0).items()}
    {'a': 0.977, 'b': 1.023}
    """
    gap = min(6.0, room / max(1, len(names) - 1)) / pixels
    middle = (len(names) - 1) / 2
    return {name: (limits[1] / limits[0]) ** ((i - middle) * gap) for i, name in enumerate(names)}


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values on a log axis, at most so many.

    >>> log_ticks(0.5, 3.0), log_ticks(0.9, 300.0), log_ticks(0.032, 0.15)
    ([0.6, 1.0, 1.5, 2.0, 3.0], [1.0, 3.0, 10.0, 30.0, 100.0, 300.0], [0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.14])
    """
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in STEPS:
        ticks = [float(f"{step * 10.0**decade:.3g}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def set_ticks(axis: "Axis", places: Sequence[float], labels: Sequence[str], most: float = math.inf) -> None:
    """A tick at every place; labels at no more than fit, the last among them."""
    from matplotlib.ticker import NullLocator

    axis.set_minor_locator(NullLocator())
    apart = max(1, math.ceil(len(places) / max(1.0, most)))
    kept = set(range(len(places) - 1, -1, -apart))
    axis.set_ticks(list(places), [label if i in kept else "" for i, label in enumerate(labels)])


def factor_ticks(axis: "Axis", limits: tuple[float, float]) -> None:
    """Round factors."""
    ticks = log_ticks(*limits)
    set_ticks(axis, ticks, [f"{tick:g}×" for tick in ticks])


def row_axes(figure: "Figure", names: Sequence[str], look: Looks, left: float, width: float) -> "Axes":
    """Axes with a row for each name, from the top."""
    height = figure.get_figheight() * 72
    axes = figure.add_axes((left, 46 / height, width, 1 - 52 / height))
    axes.set_yticks(range(len(names)), [shorten(name, 20) for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set(color=look[name].colour if name in look else MUTED, fontweight="bold")
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return axes


def note(axes: "Axes", y: float, text: str, right: float = 10, up: float = 0) -> None:
    """Text beside the axes, so many pixels from their edge."""
    axes.annotate(
        text, (1, y), (right, up), xycoords=axes.get_yaxis_transform(), textcoords="offset points", va="center",
        color=MUTED, annotation_clip=False,
    )  # fmt: skip
