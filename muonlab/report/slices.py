"""Hyperparameter slices: the loss along one coordinate through the chosen settings, one small figure each."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from muonlab.analyze.findings import Comparison, Slice, SlicePoint
from muonlab.report.canvas import INK, MUTED, Drawing, Look, draw, looks
from muonlab.report.text import is_undefined, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["slice_figures"]

SIZE = (236.0, 196.0)
CLIP = 6.0  # a panel ends this many times the distance from the best to the median loss above the best


def slice_figures(finding: Comparison) -> dict[str, list[tuple[Slice, Drawing]]]:
    """Per optimizer, in the order of the finding, its slices and their figures. Slices of one value are left out."""
    look, figures = looks(finding), {}
    for piece in finding.slices:
        if len(piece.points) > 1:
            entry = (piece, _slice(piece, look[piece.optimizer]))
            figures.setdefault(piece.optimizer, []).append(entry)
    return {name: figures[name] for name in finding.optimizers if name in figures}


def _slice(piece: Slice, look: Look) -> Drawing:
    parts = [
        f"{show(p.value, 'value')}: {show(p.mean, 'loss', f'{p.num_diverged} of {p.num_seeds} runs diverged')}"
        for p in piece.points
    ]
    chosen = show(piece.chosen, "value")
    alt = f"{piece.optimizer}, final loss by {piece.coordinate} ({chosen} was chosen): {'; '.join(parts)}."
    return draw(
        f"slice {piece.optimizer} {piece.coordinate} {piece.horizon_tokens}",
        SIZE,
        alt,
        lambda figure: _paint(figure, piece, look),
    )


def _paint(figure: "Figure", piece: Slice, look: Look) -> None:
    axes = figure.add_axes((0.235, 0.2, 0.74, 0.665))
    xs, scale = _positions([point.value for point in piece.points])
    limit = _limit(piece.points)
    seen = [(x, p) for x, p in zip(xs, piece.points, strict=True) if not is_undefined(p.mean) and p.mean <= limit]
    axes.plot([x for x, _ in seen], [p.mean for _, p in seen], color=look.colour, lw=1.2, alpha=0.55, zorder=2)
    for x, point in seen:
        axes.errorbar(
            [x], [point.mean], yerr=[point.standard_error or 0.0], color=look.colour, elinewidth=1.2,
            fmt=look.marker, ms=5, mfc="white", mec=look.colour, mew=1.2, zorder=3,
        )  # fmt: skip
    chosen = [x for x, p in zip(xs, piece.points, strict=True) if p.value == piece.chosen]
    for x in chosen:
        axes.axvline(x, color=look.colour, lw=0.9, ls=(0, (2, 2)), zorder=1)
    axes.plot(
        *zip(*[(x, p.mean) for x, p in seen if p.value == piece.chosen] or [(math.nan, math.nan)], strict=True),
        look.marker, ms=8, color=look.colour, mec="white", mew=1.0, zorder=4,
    )  # fmt: skip
    if scale == "log":
        axes.set_xscale("log")
    _paint_lost(axes, xs, piece.points, limit, look)
    _ticks(axes, xs, piece, chosen)
    axes.set_title(shorten(piece.coordinate, 28), loc="left", fontweight="bold", color=INK, pad=9)


def _paint_lost(axes: "Axes", xs: Sequence[float], points: Sequence[SlicePoint], limit: float, look: Look) -> None:
    """Diverged points as crosses and points above the panel as arrow heads, both on its top edge."""
    axes.margins(x=0.09, y=0.14)
    top = axes.get_xaxis_transform()
    for x, point in zip(xs, points, strict=True):
        if is_undefined(point.mean):
            axes.plot([x], [0.97], "x", transform=top, ms=6.5, mew=2, color="#b3261e", clip_on=False, zorder=5)
        elif point.mean > limit:
            axes.plot([x], [0.965], "^", transform=top, ms=6, mfc="white", mec=look.colour, clip_on=False, zorder=5)


def _positions(values: Sequence[Any]) -> tuple[list[float], str]:
    """Where the values lie: on a log axis if all are positive over a decade or more, on a linear one if numbers are
    evenly spaced, side by side otherwise (0 among learning rates, words, pairs).

    >>> _positions([0.001, 0.01]), _positions([0.0, 0.1, 0.2]), _positions([0.0, 0.01, 0.1])
    (([0.001, 0.01], 'log'), ([0.0, 0.1, 0.2], 'linear'), ([0.0, 1.0, 2.0], 'side by side'))
    """
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numeric and min(values) > 0 and max(values) >= 4 * min(values):
        return [float(value) for value in values], "log"
    if numeric and len(set(values)) > 1:
        gaps = [b - a for a, b in pairwise(values)]
        if min(gaps) > 0 and max(gaps) <= 3 * min(gaps):
            return [float(value) for value in values], "linear"
    return [float(i) for i in range(len(values))], "side by side"


def _limit(points: Sequence[SlicePoint]) -> float:
    means = [point.mean for point in points if not is_undefined(point.mean)]
    if len(means) < 4:
        return math.inf
    reach = min(means) + CLIP * (median(means) - min(means))
    return reach if reach > min(means) else math.inf


def _ticks(axes: "Axes", xs: Sequence[float], piece: Slice, chosen: Sequence[float]) -> None:
    """A tick at every value; labels at no more than four of them, the chosen and the outermost first."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    wanted = [*(xs.index(x) for x in chosen), 0, len(xs) - 1, *range(1, len(xs) - 1)]
    apart = max(1, math.ceil(len(xs) / 4))
    labelled: list[int] = []
    for i in wanted:
        if all(abs(i - j) >= apart for j in labelled):
            labelled.append(i)
    labels = [
        shorten(show(p.value, "value"), 9 if len(xs) > 3 else 14) if i in labelled else ""
        for i, p in enumerate(piece.points)
    ]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(xs), labels)
    for tick, x in zip(axes.get_xticklabels(), xs, strict=True):
        tick.set(fontweight="bold" if x in chosen else "normal", color=INK if x in chosen else MUTED)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylabel("loss", labelpad=2)
