"""Figures of a ladder: final losses with the baseline's laws, and the speedup as sizes and lengths grow."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from muonlab.analyze.findings import SpeedupRow
from muonlab.analyze.ladder import LadderFinding, RungFinding
from muonlab.report.canvas import INK, Drawing, Look, draw
from muonlab.report.strokes import paint_curve, paint_losses, widen
from muonlab.report.text import is_undefined, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "OPEN",
    "dodge",
    "frame",
    "log_ticks",
    "marks",
    "panel_size",
    "row_of",
    "scaling",
    "set_ticks",
    "size_axis",
    "speedups",
]

Looks = Mapping[str, Look]

MANY = 6.0  # a factor from the median beyond which a point leaves the panel, so that the others can be seen
OPEN = 2.0  # a factor from its point at which an interval that is wider leaves it
STEPS: Sequence[Sequence[float]] = (
    [1 + k / 20 for k in range(180)], [1 + k / 10 for k in range(90)], (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 4, 6), (1, 2, 5), (1, 3), (1,),
)  # fmt: skip
FADED = 0.4  # opacity of what is not resolved


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


def scaling(finding: LadderFinding, look: Looks) -> dict[str, Drawing]:
    """Per size, final loss against tokens, with the baseline's law; sizes without a finished final run are left out."""
    found: dict[str, list[RungFinding]] = {}
    for rung in sorted(finding.rungs, key=lambda rung: (rung.params, rung.ratio)):
        if rung.losses.mean is not None:
            found.setdefault(rung.size, []).append(rung)
    return {size: _scaling(finding, size, rungs, look, panel_size(len(found))) for size, rungs in found.items()}


def _scaling(
    finding: LadderFinding, size: str, rungs: Sequence[RungFinding], look: Looks, pixels: tuple[float, float]
) -> Drawing:
    parts = []
    for name in dict.fromkeys(rung.optimizer for rung in rungs):
        own = [rung.losses for rung in rungs if rung.optimizer == name]
        said = [f"{show(at.mean, 'loss')} at {show(at.horizon_tokens, 'tokens')}" for at in own]
        parts.append(f"{name} {', '.join(said)}")
    alt = f"Mean final held-out loss against training tokens at size {size}: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes = frame(figure, bottom=58)
        tokens = sorted({rung.losses.horizon_tokens: rung.ratio for rung in rungs}.items())
        limits = tokens[0][0] / 1.4, tokens[-1][0] * 1.4
        axes.set_xscale("log")
        axes.set_xlim(limits)
        shifts = dodge(look, limits, pixels[0], 10.0)
        for name, shift in shifts.items():
            own = [rung.losses for rung in rungs if rung.optimizer == name]
            for at in own:
                paint_losses(axes, at, look[name], shift)
            if name != finding.baseline:
                axes.plot(
                    [at.horizon_tokens * shift for at in own], [at.mean for at in own], color=look[name].colour,
                    ls=look[name].dash, lw=1.0, alpha=0.7, zorder=2,
                )  # fmt: skip
        _baseline_law(axes, finding, size, rungs, look, shifts[finding.baseline])
        widen(axes)
        labels = [f"{show(n, 'tokens')}\n{ratio:g}×" for n, ratio in tokens]
        set_ticks(axes.xaxis, [n for n, _ in tokens], labels, pixels[0] / 55)
        axes.set_xlabel("tokens, and their ratio")
        axes.set_ylabel("final loss, nats per token")
        axes.set_title(_titled(finding, size), loc="left", fontweight="bold", color=INK)

    return draw(f"scaling {size}", pixels, alt, paint)


def _baseline_law(
    axes: "Axes", finding: LadderFinding, size: str, rungs: Sequence[RungFinding], look: Looks, shift: float
) -> None:
    """Drawn aside like the marks it was fitted to."""
    lengths = [rung.losses.horizon_tokens * shift for rung in rungs if rung.optimizer == finding.baseline]
    if size in finding.fits and lengths:
        law = {**finding.fits[size], "scale_tokens": finding.fits[size].get("scale_tokens", 1.0) * shift}
        paint_curve(axes, law, lengths, look[finding.baseline].colour, axes.get_xlim())


def speedups(finding: LadderFinding, look: Looks) -> dict[float, Drawing]:
    """Per ratio, the speedup over the baseline against size, all on the same scale; none where none is defined."""
    groups = {ratio: _at_ratio(finding, ratio) for ratio in finding.ratios}
    rows = [row for group in groups.values() for row in group]
    if all(is_undefined(row.speedup) for row in rows):
        return {}
    pixels, limits = panel_size(len(groups)), speedup_limits(rows)
    return {ratio: _speedups(finding, ratio, group, look, pixels, limits) for ratio, group in groups.items()}


def row_of(finding: LadderFinding, rung: RungFinding) -> int | None:
    """Where in `rows` the speedup of a rung is; None for the baseline."""
    here = rung.optimizer, rung.size, rung.losses.horizon_tokens
    return next((i for i, r in enumerate(finding.rows) if (r.optimizer, r.size, r.tokens) == here), None)


def _at_ratio(finding: LadderFinding, ratio: float) -> list[SpeedupRow]:
    places = (row_of(finding, rung) for rung in finding.rungs if rung.ratio == ratio)
    return [finding.rows[place] for place in sorted(place for place in places if place is not None)]


def speedup_limits(rows: Sequence[SpeedupRow]) -> tuple[float, float]:
    """What a panel shows: 1, all points near the others, and as much of the intervals as leaves the points apart."""
    points = [row.speedup for row in rows if not is_undefined(row.speedup) and row.speedup > 0]
    middle = median(points) if points else 1.0
    ends = [1.0]
    for row in rows:
        if row.speedup in points and middle / MANY <= row.speedup <= middle * MANY:
            low, high = row.low or 0.0, math.inf if is_undefined(row.high) else row.high
            ends += [row.speedup, max(low, row.speedup / OPEN), min(high, row.speedup * OPEN)]
    return min(ends) / 1.08, max(ends) * 1.08


def _speedups(
    finding: LadderFinding, ratio: float, rows: Sequence[SpeedupRow], look: Looks, pixels: tuple[float, float],
    limits: tuple[float, float],
) -> Drawing:  # fmt: skip
    parts = [
        f"{row.optimizer} {show(row.speedup, 'ratio', 'undefined')} at {row.size}"
        + "".join(f", {word}" for word in (row.flag, row.judgement) if word and word != "undefined")
        for row in rows
    ]
    alt = f"Speedup in tokens over {finding.baseline} against model size at ratio {ratio:g}: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes = frame(figure, bottom=58)
        axes.set(xscale="log", yscale="log", ylim=limits)
        params = list(finding.sizes.values())
        span = min(params) / 1.25, max(params) * 1.25
        axes.set_xlim(span)
        axes.axhline(1.0, color=look[finding.baseline].colour, lw=1.4, zorder=1)
        names = list(dict.fromkeys(row.optimizer for row in finding.rows))
        for name, shift in dodge(names, span, pixels[0]).items():
            _speedup_line(axes, [row for row in rows if row.optimizer == name], look[name], shift)
        ticks = log_ticks(*limits)
        set_ticks(axes.yaxis, ticks, [f"{tick:g}×" for tick in ticks])
        size_axis(axes, finding, pixels[0])
        axes.set_ylabel(f"speedup over {shorten(finding.baseline, 12)}")
        axes.set_title(f"ratio {ratio:g}×", loc="left", fontweight="bold", color=INK)

    return draw(f"speedup {ratio:g}", pixels, alt, paint)


def _speedup_line(axes: "Axes", rows: Sequence[SpeedupRow], look: Look, shift: float) -> None:
    """Points from size to size: filled where read off within the baseline's lengths, faded where not resolved."""
    low, high = axes.get_ylim()
    known = [(row.params * shift, row.speedup) for row in rows if row.params and not is_undefined(row.speedup)]
    axes.plot(*zip(*known or [(math.nan, math.nan)], strict=True), color=look.colour, ls=look.dash, lw=1, alpha=FADED)
    for row in rows:
        x, faded = (row.params or math.nan) * shift, FADED if row.judgement not in ("better", "worse") else 1.0
        if is_undefined(row.speedup):
            axes.plot([x], [low], "x", ms=6, mew=1.6, color=look.colour, clip_on=False, zorder=5)
            continue
        ends = max(row.low or 0.0, low), high if is_undefined(row.high) else min(row.high, high)
        axes.plot([x, x], ends, color=look.colour, lw=1.5, alpha=faded, zorder=3)
        for end, edge, arrow in ((row.speedup, low, "v"), (row.speedup, high, "^")):
            outside = end < edge if arrow == "v" else end > edge
            wide = ends[arrow == "^"] == edge
            if outside or wide:
                size = 7 if outside else 4
                axes.plot([x], [edge], arrow, ms=size, color=look.colour, alpha=faded, clip_on=False, zorder=4)
        fill = "white" if row.flag else look.colour
        axes.plot([x], [row.speedup], look.marker, ms=7, mfc="white", mec="white", zorder=5)  # hides the line behind
        axes.plot([x], [row.speedup], look.marker, ms=7, mfc=fill, mec=look.colour, mew=1.3, alpha=faded, zorder=6)


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


def size_axis(axes: "Axes", finding: LadderFinding, pixels: float) -> None:
    """Sizes by name, where their parameters are."""
    labels = [f"{shorten(size, 9)}\n{show(n, 'tokens')}" for size, n in finding.sizes.items()]
    set_ticks(axes.xaxis, list(finding.sizes.values()), labels, pixels / 55)
    axes.set_xlabel("size, and its parameters")


def _titled(finding: LadderFinding, size: str) -> str:
    return f"{shorten(size, 16)}, {show(finding.sizes.get(size), 'tokens')} parameters"
