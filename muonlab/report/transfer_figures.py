"""Figures of a transfer study: the optimum against the width, and the survey of lr."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muonlab.analyze.survey import SurveyPoint
from muonlab.analyze.transfer_finding import DriftFinding, Place, TransferFinding
from muonlab.report.axes import dodge, frame, panel_size, set_ticks
from muonlab.report.canvas import INK, MUTED, Drawing, Look, draw
from muonlab.report.text import shorten, show
from muonlab.report.transfer_maps import round_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["drifts", "survey"]

Looks = Mapping[str, Look]


def drifts(finding: TransferFinding, look: Looks) -> list[Drawing]:
    """Per hyperparameter its optimum against the width, with the fitted drift, and what was used at the end."""
    names = list(dict.fromkeys(one.hyperparameter for one in finding.drifts))
    return [_drift(finding, name, look, panel_size(len(names))) for name in names]


def _drift(finding: TransferFinding, name: str, look: Looks, pixels: tuple[float, float]) -> Drawing:
    parts = []
    for one in finding.drifts:
        if one.hyperparameter == name:
            own = [s for s in finding.stages if s.arm == one.arm and name in s.optimum]
            told = [f"{show(s.optimum[name].value, 'value')} at {s.width:,}" for s in own]
            parts.append(f"{one.arm} {', '.join(told)}, used {show(one.used, 'value')}")
    alt = f"Optimum of {name} against the width: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes = frame(figure, left=58)
        span = (float(finding.widths[0]), float(finding.final_width or finding.widths[-1]))
        shifts = dodge(look, (span[0] / 1.2, span[1] * 1.2), pixels[0], 12.0)
        for arm, shift in shifts.items():
            own = [s for s in finding.stages if s.arm == arm and name in s.optimum]
            _paint_places(axes, [(s.width * shift, s.optimum[name]) for s in own], look[arm])
            for one in finding.drifts:
                if (one.arm, one.hyperparameter) == (arm, name):
                    _paint_law(axes, one, span, look[arm])
                    axes.plot(
                        [span[1] * shift],
                        [one.used],
                        look[arm].marker,
                        ms=8,
                        mfc="white",
                        mec=look[arm].colour,
                        mew=1.6,
                    )
        _width_axis(axes, sorted({*finding.widths, int(span[1])}), span)
        axes.set_yscale("log")
        axes.margins(y=0.12)
        round_ticks(axes.yaxis, axes.get_ylim(), 6)
        axes.set_ylabel(shorten(name, 24))

    return draw(f"drift {name}", pixels, alt, paint)


def _paint_places(axes: "Axes", places: Sequence[tuple[float, Place]], look: Look) -> None:
    for x, one in places:
        if one.low is not None and one.high is not None:
            axes.plot([x, x], [one.low, one.high], color=look.colour, lw=1.5, zorder=3)
        axes.plot([x], [one.value], look.marker, ms=7, color=look.colour, mec="white", mew=1, zorder=4)


def _paint_law(axes: "Axes", drift: DriftFinding, span: tuple[float, float], look: Look) -> None:
    """Through the predicted value."""
    import numpy as np

    x = np.geomspace(*span, 60)
    moved = np.exp(drift.rate * (1 / span[1] - 1 / x))
    end = drift.predicted.value
    y = 1 - (1 - end) / moved if drift.complement else end * moved
    axes.plot(x, y, color=look.colour, ls=look.dash, lw=1.2, alpha=0.7)


def _width_axis(axes: "Axes", widths: Sequence[int], span: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(span[0] / 1.2, span[1] * 1.2)
    set_ticks(axes.xaxis, widths, [f"{width:,}" for width in widths], 8)
    axes.set_xlabel("width")


def survey(finding: TransferFinding, look: Looks) -> list[Drawing]:
    """Loss against lr, a curve for each width, a panel for each arm; then the best lr of all arms against the width."""
    if not finding.survey:
        return []
    arms = list(dict.fromkeys(one.arm for one in finding.survey))
    pixels = panel_size(len(arms) + 1)
    panels = [_curves(finding, arm, look[arm], pixels) for arm in arms]
    return [*panels, _best_lr(finding, look, pixels)]


def _curves(finding: TransferFinding, arm: str, look: Look, pixels: tuple[float, float]) -> Drawing:
    own = [one for one in finding.survey if one.arm == arm]
    told = [f"width {one.width:,} {show(one.loss, 'loss')} at {show(one.lr, 'value')}" for one in own]
    alt = f"{arm}, loss against lr: {'; '.join(told)}."

    def paint(figure: "Figure") -> None:
        axes = frame(figure, left=50)
        for i, one in enumerate(own):
            known = [(p.lr, p.mean) for p in one.points if p.mean is not None]
            faint = 0.3 + 0.7 * (i + 1) / len(own)
            axes.plot(*zip(*known or [(math.nan, math.nan)], strict=True), color=look.colour, alpha=faint, lw=1.3)
            if known and one.lr is not None:
                axes.plot([one.lr], [min(loss for _, loss in known)], look.marker, ms=7, color=look.colour, alpha=faint)
                x, y = known[0]
                axes.annotate(f"{one.width:,}", (x, y), (-3, 0), textcoords="offset points", ha="right", va="center",
                              color=MUTED, fontsize=9)  # fmt: skip
        lrs = [p.lr for one in own for p in one.points]
        axes.set_xscale("log")
        axes.set_xlim(min(lrs) / 2, max(lrs) * 1.3)
        _floor(axes, own)
        round_ticks(axes.xaxis, axes.get_xlim(), 5)
        axes.set_xlabel("opt.lr")
        axes.set_title(shorten(arm, 26), loc="left", fontweight="bold", color=INK)

    return draw(f"survey {arm}", pixels, alt, paint)


def _floor(axes: "Axes", own: Sequence[SurveyPoint]) -> None:
    """Losses that are far above leave the panel, so that the optima can be seen."""
    means = sorted(p.mean for one in own for p in one.points if p.mean is not None)
    if means:
        top = means[len(means) * 3 // 4]
        room = max(top - means[0], 1e-6)
        axes.set_ylim(means[0] - 0.08 * room, means[0] + 1.6 * room)


def _best_lr(finding: TransferFinding, look: Looks, pixels: tuple[float, float]) -> Drawing:
    parts = []
    for one in finding.slopes:
        own = [p for p in finding.survey if p.arm == one.arm]
        told = [f"{show(p.lr, 'value')} at {p.width:,}" for p in own]
        parts.append(f"{one.arm} {', '.join(told)}, slope {show(one.slope, 'correlation')}")
    alt = f"Best lr against the width: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes = frame(figure, left=58)
        span = (float(finding.widths[0]), float(finding.widths[-1]))
        for arm, shift in dodge(look, (span[0] / 1.2, span[1] * 1.2), pixels[0], 12.0).items():
            own = [one for one in finding.survey if one.arm == arm and one.lr is not None]
            x, y = [one.width * shift for one in own], [one.lr for one in own]
            axes.plot(x, y, color=look[arm].colour, ls=look[arm].dash, lw=1, alpha=0.6)
            for at, one in zip(x, own, strict=True):
                if one.low is not None and one.high is not None:
                    axes.plot([at, at], [one.low, one.high], color=look[arm].colour, lw=1.5)
                fill = "white" if one.flag else look[arm].colour
                axes.plot([at], [one.lr], look[arm].marker, ms=7, mfc=fill, mec=look[arm].colour, mew=1.2, zorder=4)
        _width_axis(axes, finding.widths, span)
        axes.set_yscale("log")
        axes.margins(y=0.12)
        round_ticks(axes.yaxis, axes.get_ylim(), 6)
        axes.set_title("best opt.lr", loc="left", fontweight="bold", color=INK)

    return draw("survey best lr", pixels, alt, paint)
