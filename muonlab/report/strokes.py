"""What figures of several reports draw: the final losses of an optimizer's seeds, the law of a loss in tokens."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muonlab.analyze.findings import LossesAt
from muonlab.report.canvas import Look
from muonlab.report.text import is_undefined

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["law_loss", "paint_curve", "paint_losses", "widen"]


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
