"""Figures of a batch study beside those over the batch: critical batches in rows, and the compute-time frontier."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muonlab.analyze.batch import BatchFinding
from muonlab.analyze.critical_batch import Estimate
from muonlab.analyze.frontier import FrontierPoint
from muonlab.report.axes import WIDTH, frame, log_ticks, note, panel_size, row_axes, set_ticks
from muonlab.report.batch_figures import BEYOND, estimate_words, token_ticks
from muonlab.report.canvas import INK, RULE, Drawing, Look, draw
from muonlab.report.text import is_undefined, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ESTIMATORS", "critical_batches", "frontiers"]

Looks = Mapping[str, Look]

# Of `CriticalBatch`: the field, how it is called
ESTIMATORS = {
    "overhead": "20 % more tokens", "doubling": "twice the tokens", "sfo": "fewest tokens",
    "noise_scale": "noise scale, SGD’s", "nuclear_noise_scale": "noise scale, nuclear",
}  # fmt: skip


def critical_batches(finding: BatchFinding, look: Looks) -> Drawing | None:
    """The estimators side by side for every optimizer, at the target of the verdict; None where all are undefined."""
    own = {one.optimizer: one for one in finding.critical if one.target == finding.hardest}
    rows = [(name, field, getattr(own[name], field)) for name in look for field in ESTIMATORS]
    if all(is_undefined(one.value) for *_, one in rows):
        return None
    parts = [f"{name}, {ESTIMATORS[field]} {estimate_words(one)}" for name, field, one in rows]
    alt = f"Critical batch sizes at a held-out loss of {finding.hardest:g}, in tokens a step: {'; '.join(parts)}."
    size = (WIDTH, 66.0 + 24 * len(rows))
    return draw("critical", size, alt, lambda figure: _paint_critical(figure, finding, rows, look))


def _paint_critical(
    figure: "Figure", finding: BatchFinding, rows: Sequence[tuple[str, str, Estimate]], look: Looks
) -> None:
    axes = row_axes(figure, [ESTIMATORS[field] for _, field, _ in rows], {}, 0.37, 0.49)
    known = [one.value for *_, one in rows if not is_undefined(one.value)]
    limits = min(*known, finding.batches[0]) / BEYOND, max(*known, finding.batches[-1]) * BEYOND
    axes.set(xscale="log", xlim=limits)
    axes.tick_params(axis="y", pad=9)  # clear of arrow heads
    axes.axvspan(finding.batches[0], finding.batches[-1], color=RULE, alpha=0.35, lw=0, zorder=0)
    for y, (name, field, one) in enumerate(rows):
        if field == next(iter(ESTIMATORS)):
            axes.annotate(
                shorten(name, 14), (0, y), (-275, 0), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", va="center", color=look[name].colour, fontweight="bold",
                annotation_clip=False,
            )  # fmt: skip
            axes.axhline(y - 0.5, color=RULE, lw=0.8, zorder=0)
        if not is_undefined(one.value):
            _paint_estimate(axes, y, one, look[name], limits)
        note(axes, y, estimate_words(one))
    token_ticks(axes.xaxis, limits, 8)
    axes.set_xlabel("batch, tokens a step (shaded: measured)")


def _paint_estimate(axes: "Axes", y: float, one: Estimate, look: Look, limits: tuple[float, float]) -> None:
    """An arrow head stands where the interval is open or leaves the panel, and where the value is only a bound."""
    if one.low is not None or one.high is not None:
        ends = max(one.low or 0.0, limits[0]), min(limits[1] if one.high is None else one.high, limits[1])
        axes.plot(ends, [y, y], color=look.colour, lw=1.5, zorder=3)
        for end, edge, arrow in zip(ends, limits, "<>", strict=True):
            if end == edge:
                axes.plot([end], [y], arrow, ms=6, color=look.colour, clip_on=False, zorder=4)
    marker = {"above": ">", "below": "<"}.get(one.flag, look.marker)
    fill = "white" if one.flag else look.colour
    axes.plot([one.value], [y], marker, ms=8, mfc=fill, mec=look.colour, mew=1.3, zorder=5)


def frontiers(finding: BatchFinding, look: Looks) -> list[Drawing]:
    """Per target, the time to it against devices; targets without a point are left out."""
    points = {target: [one for one in finding.frontier if one.target == target] for target in finding.targets}
    points = {target: own for target, own in points.items() if own}
    pixels = panel_size(len(points))
    return [_frontier(finding, target, own, look, pixels) for target, own in points.items()]


def _frontier(
    finding: BatchFinding, target: float, points: Sequence[FrontierPoint], look: Looks, pixels: tuple[float, float]
) -> Drawing:
    best = {name: sorted((p for p in points if p.optimizer == name and p.on_frontier), key=lambda p: p.devices)
            for name in look}  # fmt: skip
    said = {name: [f"{show(p.seconds, 'seconds')} on {p.devices} at batch {p.batch_tokens:,}" for p in own]
            for name, own in best.items()}  # fmt: skip
    parts = [f"{name} {', '.join(own) or 'nowhere'}" for name, own in said.items()]
    alt = f"Shortest time to a held-out loss of {target:g} against the number of devices: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes = frame(figure, left=68)
        axes.set(xscale="log", yscale="log")
        for one in points:
            if not one.on_frontier:
                axes.plot([one.devices], [one.seconds], ".", ms=4, color=look[one.optimizer].colour, alpha=0.35)
        for name, own in best.items():
            _paint_frontier(axes, own, look[name])
        ordered = sorted((own for own in best.values() if own), key=_pace)
        for own, up in zip((ordered[-1], *ordered[:-1][:1]), (8, -8), strict=False):
            _name_batches(axes, own, look[own[0].optimizer].colour, up)
        devices = sorted({one.devices for one in points})
        axes.set_xlim(devices[0] / 1.35, devices[-1] * 1.35)
        set_ticks(axes.xaxis, devices, [f"{d:,}" for d in devices], pixels[0] / 40)
        low, high = axes.get_ylim()
        axes.set_ylim(low / 1.15, high * 1.15)
        ticks = log_ticks(low, high)
        set_ticks(axes.yaxis, ticks, [show(tick, "seconds") for tick in ticks])
        axes.set_xlabel("devices")
        axes.set_ylabel("time to the loss")
        axes.set_title(f"loss {target:g}", loc="left", fontweight="bold", color=INK)

    return draw(f"frontier {target:g}", pixels, alt, paint)


def _pace(points: Sequence[FrontierPoint]) -> float:
    """What orders lines from the fastest to the slowest, whatever devices they have."""
    return sum(math.log(one.seconds * one.devices) for one in points) / len(points)


def _paint_frontier(axes: "Axes", points: Sequence[FrontierPoint], look: Look) -> None:
    axes.plot([p.devices for p in points], [p.seconds for p in points], color=look.colour, ls=look.dash, lw=1.3)
    for one in points:
        fill = "white" if one.modelled else look.colour
        axes.plot([one.devices], [one.seconds], look.marker, ms=7, mfc=fill, mec=look.colour, mew=1.3, zorder=5)


def _name_batches(axes: "Axes", points: Sequence[FrontierPoint], colour: str, up: float) -> None:
    """Where the batch size changes, so many pixels above the point."""
    for before, one in zip((None, *points), points, strict=False):
        if before is None or one.batch_tokens != before.batch_tokens:
            axes.annotate(
                f"{one.batch_tokens:,}", (one.devices, one.seconds), (0, up), textcoords="offset points", ha="center",
                va="bottom" if up > 0 else "top", fontsize=9, color=colour, zorder=6,
            )  # fmt: skip
