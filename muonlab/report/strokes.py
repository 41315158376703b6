"""What figures of several reports draw: the final losses of an optimizer's seeds, laws, factors over a baseline."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from muonlab.analyze.findings import LossesAt
from muonlab.report.axes import OPEN
from muonlab.report.canvas import Look
from muonlab.report.text import is_undefined

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Factor", "factor_limits", "law_loss", "paint_curve", "paint_factors", "paint_losses", "widen"]

MANY = 6.0  # a factor from the median beyond which a point leaves the panel, so that the others can be seen
FADED = 0.4  # opacity of what is not resolved


@dataclass(frozen=True)
class Factor:
    """One optimizer's factor over the baseline, with its interval, somewhere along an axis."""

    x: float
    value: float | None
    low: float | None
    high: float | None
    resolved: bool
    hollow: bool = False


def paint_losses(axes: "Axes", at: LossesAt, look: Look, shift: float = 1.0) -> None:
    """Seeds as rings, the interval, the mean; `shift` is a factor on the tokens, which draws equal ones apart."""
    seeds = [loss for loss in at.losses if not is_undefined(loss)]
    x = at.horizon_tokens * shift
    axes.plot([x] * len(seeds), seeds, "o", ms=3.4, mfc="none", mec=look.colour, mew=0.8, alpha=0.75, zorder=3)
    if at.low is not None and at.high is not None:
        axes.errorbar(
            [x], [(at.low + at.high) / 2], yerr=[(at.high - at.low) / 2], fmt="none",
            ecolor=look.colour, elinewidth=1.3, capsize=4, capthick=1.3, zorder=4,
        )  # fmt: skip
    if at.mean is not None:
        axes.plot([x], [at.mean], look.marker, ms=7, color=look.colour, mec="white", mew=1.0, zorder=6)


def paint_curve(
    axes: "Axes", law: Mapping[str, float], horizons: Sequence[float], colour: str, drawn: tuple[float, float]
) -> None:
    """A law of the loss in tokens: a line over the horizons that it was fitted to, dashes beyond as far as `drawn`."""
    if any(is_undefined(x) for x in law.values()):
        return
    import numpy as np

    inner = np.geomspace(min(horizons), max(horizons), 60)
    outer = np.geomspace(min(drawn[0], inner[0]), max(drawn[1], inner[-1]), 80)
    top = axes.get_ylim()[1]
    y = law_loss(law, outer)
    axes.plot(outer[y <= top], y[y <= top], "--", color=colour, lw=1.0, alpha=0.6, zorder=2)
    axes.plot(inner, law_loss(law, inner), "-", color=colour, lw=1.8, zorder=2)


def law_loss(law: Mapping[str, float], tokens: Any) -> Any:
    """
    >>> law_loss({"a": 1.0, "b": 2.0, "exponent": 0.5, "scale_tokens": 100.0}, 400.0)
    2.5
    """
    return law["a"] * (tokens / law.get("scale_tokens", 1.0)) ** -law["exponent"] + law["b"]


def widen(axes: "Axes", share: float = 0.06) -> None:
    """More room above and below."""
    low, high = axes.get_ylim()
    axes.set_ylim(low - share * (high - low), high + share * (high - low))


def factor_limits(factors: Sequence[Factor]) -> tuple[float, float]:
    """What a panel shows: 1, all points near the others, and as much of the intervals as leaves the points apart."""
    points = [one.value for one in factors if not is_undefined(one.value) and one.value > 0]
    middle = median(points) if points else 1.0
    ends = [1.0]
    for one in factors:
        if one.value in points and middle / MANY <= one.value <= middle * MANY:
            low, high = one.low or 0.0, math.inf if is_undefined(one.high) else one.high
            ends += [one.value, max(low, one.value / OPEN), min(high, one.value * OPEN)]
    return min(ends) / 1.08, max(ends) * 1.08


def paint_factors(axes: "Axes", factors: Sequence[Factor], look: Look) -> None:
    """A line through them: points filled where not said to be hollow, faded where not resolved."""
    low, high = axes.get_ylim()
    known = [(one.x, one.value) for one in factors if math.isfinite(one.x) and not is_undefined(one.value)]
    axes.plot(*zip(*known or [(math.nan, math.nan)], strict=True), color=look.colour, ls=look.dash, lw=1, alpha=FADED)
    for one in factors:
        x, faded = one.x, 1.0 if one.resolved else FADED
        if is_undefined(one.value):
            axes.plot([x], [low], "x", ms=6, mew=1.6, color=look.colour, clip_on=False, zorder=5)
            continue
        ends = max(one.low or 0.0, low), high if is_undefined(one.high) else min(one.high, high)
        axes.plot([x, x], ends, color=look.colour, lw=1.5, alpha=faded, zorder=3)
        for edge, arrow, outside in ((low, "v", one.value < low), (high, "^", one.value > high)):
            if outside or ends[arrow == "^"] == edge:
                size = 7 if outside else 4
                axes.plot([x], [edge], arrow, ms=size, color=look.colour, alpha=faded, clip_on=False, zorder=4)
        fill = "white" if one.hollow else look.colour
        axes.plot([x], [one.value], look.marker, ms=7, mfc="white", mec="white", zorder=5)  # hides the line behind
        axes.plot([x], [one.value], look.marker, ms=7, mfc=fill, mec=look.colour, mew=1.3, alpha=faded, zorder=6)
