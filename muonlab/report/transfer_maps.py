"""Heat maps of a transfer study: the mesh of every width, and the survey of lr over lr and width."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from muonlab.analyze.survey import SurveyPoint
from muonlab.analyze.transfer_finding import Place, StageFinding, TransferFinding
from muonlab.report.axes import frame, log_ticks, panel_size, set_ticks
from muonlab.report.canvas import INK, Drawing, draw
from muonlab.report.text import shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["meshes", "round_ticks", "survey_maps"]

DEEPEST = 0.1  # nats above the best of a mesh from which on a cell is as dark as can be
WORSE = "#d55e00"
Span = tuple[float, float]


def meshes(finding: TransferFinding) -> list[Drawing]:
    """A heat map for each stage over the first two axes; of a third the best value for each cell."""
    return [_mesh(one, panel_size(len(finding.stages))) for one in finding.stages]


def _mesh(one: StageFinding, pixels: Span) -> Drawing:
    names = list(one.points)[:2]
    best: dict[tuple[float, ...], float | None] = {}
    for point in one.mesh:
        place = tuple(float(point.values[name]) for name in names)  # type: ignore[arg-type]
        known = [loss for loss in (best.get(place), point.mean) if loss is not None]
        best[place] = min(known, default=None)
    where = ", ".join(f"{name} {show(place.value, 'value')}" for name, place in one.optimum.items())
    alt = f"{one.arm} at width {one.width:,}: losses of {len(one.mesh)} points, from {show(one.loss, 'loss')}; optimum "
    alt += f"at {where or 'no place, since every run was lost'}."

    def paint(figure: "Figure") -> None:
        axes = frame(figure, left=58)
        for place, loss in best.items():
            _paint_cell(axes, one, names, place, loss)
        if one.optimum:
            spots = [one.optimum[name] for name in names]
            _paint_optimum(axes, spots, [name in one.complements for name in names])
        _mesh_axes(axes, one, names)

    return draw(f"mesh {one.arm} {one.width}", pixels, alt, paint)


def _paint_cell(
    axes: "Axes", one: StageFinding, names: Sequence[str], place: tuple[float, ...], loss: float | None
) -> None:
    spans = []
    for name, value in zip(names, place, strict=True):
        root = math.sqrt(one.ratios[name])
        left = 1 - value if name in one.complements else value
        ends = sorted((left / root, left * root))
        spans.append((ends[0], ends[1]))
    if len(spans) == 1:
        spans.append((0.0, 1.0))
    above = None if loss is None or one.loss is None else loss - one.loss
    _rectangle(axes, spans[0], spans[1], above, log=len(names) > 1)


def _rectangle(axes: "Axes", x: Span, y: Span, above: float | None, *, log: bool) -> None:
    """The darker the more nats above the best; crossed where a run was lost. x is a log axis, y one with `log`."""
    from matplotlib.patches import Rectangle

    shade = min(1.0, max(0.0, DEEPEST if above is None else above) / DEEPEST)
    axes.add_patch(
        Rectangle(
            (x[0], y[0]), x[1] - x[0], y[1] - y[0], facecolor=WORSE, alpha=0.06 + 0.84 * math.sqrt(shade),
            edgecolor="white", lw=1,
        )
    )  # fmt: skip
    if above is None:
        middle = math.sqrt(y[0] * y[1]) if log else (y[0] + y[1]) / 2
        axes.plot([math.sqrt(x[0] * x[1])], [middle], "x", color=INK, ms=6, mew=1.4)


def _paint_optimum(axes: "Axes", spots: Sequence[Place], others: Sequence[bool]) -> None:
    """A ring, and its interval along each axis."""
    at = [1 - one.value if other else one.value for one, other in zip(spots, others, strict=True)]
    x, y = at[0], at[1] if len(at) > 1 else 0.5
    for i, (one, other) in enumerate(zip(spots, others, strict=True)):
        if one.low is None or one.high is None:
            continue
        ends = [1 - one.low, 1 - one.high] if other else [one.low, one.high]
        axes.plot(*((ends, [y, y]) if i == 0 else ([x, x], ends)), color=INK, lw=1.2)
    axes.plot([x], [y], "o", ms=8, mfc="white", mec=INK, mew=1.4, zorder=5)


def _mesh_axes(axes: "Axes", one: StageFinding, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        other = name in one.complements
        ends = sorted(1 - end if other else end for end in one.window[name])
        (axes.set_xscale if i == 0 else axes.set_yscale)("log")
        (axes.set_xlim if i == 0 else axes.set_ylim)(*ends)
        axis = axes.xaxis if i == 0 else axes.yaxis
        round_ticks(axis, (ends[0], ends[1]), 4)
        axis.set_label_text(shorten(f"1 - {name}" if other else name, 24))
    if len(names) == 1:
        axes.set_ylim(0, 1)
        axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_title(f"{shorten(one.arm, 20)}, width {one.width:,}", loc="left", fontweight="bold", color=INK)


def round_ticks(axis: "Axis", ends: tuple[float, float], most: int) -> None:
    """None where nothing is drawn, so that the axis has no log scale to speak of."""
    ticks = log_ticks(*ends, most) if ends[0] > 0 else []
    set_ticks(axis, ticks, [f"{tick:g}" for tick in ticks])


def survey_maps(finding: TransferFinding) -> list[Drawing]:
    """For each arm the losses over lr and width, above the least at that width."""
    arms = dict.fromkeys(one.arm for one in finding.survey)
    pixels = panel_size(len(arms))
    return [_survey_map(arm, [one for one in finding.survey if one.arm == arm], pixels) for arm in arms]


def _survey_map(arm: str, own: Sequence[SurveyPoint], pixels: Span) -> Drawing:
    told = ", ".join(f"{show(one.lr, 'value')} at width {one.width:,}" for one in own)
    alt = f"{arm}: losses over opt.lr and width, above the least at that width; the best at {told}."
    lrs = sorted({point.lr for one in own for point in one.points})
    root = math.sqrt(min((b / a for a, b in pairwise(lrs)), default=2.0))

    def paint(figure: "Figure") -> None:
        axes = frame(figure, left=50)
        for i, one in enumerate(own):
            for point in one.points:
                above = None if point.mean is None or one.loss is None else point.mean - one.loss
                _rectangle(axes, (point.lr / root, point.lr * root), (i - 0.5, i + 0.5), above, log=False)
            if one.lr is None:
                continue
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [i, i], color=INK, lw=1.2)
            axes.plot([one.lr], [i], "o", ms=8, mfc="white", mec=INK, mew=1.4, zorder=5)
        axes.set_xscale("log")
        axes.set(xlim=(lrs[0] / root, lrs[-1] * root), ylim=(-0.5, len(own) - 0.5), xlabel="opt.lr", ylabel="width")
        round_ticks(axes.xaxis, axes.get_xlim(), 4)
        set_ticks(axes.yaxis, range(len(own)), [f"{one.width:,}" for one in own])
        axes.grid(visible=False)
        axes.set_title(shorten(arm, 26), loc="left", fontweight="bold", color=INK)

    return draw(f"survey map {arm}", pixels, alt, paint)
