"""Figures of a ladder: final losses with the baseline's laws, and the speedup as sizes and lengths grow."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from muonlab.analyze.findings import SpeedupRow
from muonlab.analyze.ladder import LadderFinding, RungFinding
from muonlab.report.axes import dodge, factor_ticks, frame, panel_size, set_ticks
from muonlab.report.canvas import INK, Drawing, Look, draw
from muonlab.report.strokes import Factor, factor_limits, paint_curve, paint_factors, paint_losses, widen
from muonlab.report.text import is_undefined, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["row_of", "scaling", "size_axis", "speedup_limits", "speedups"]

Looks = Mapping[str, Look]


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
        axes.set_ylabel("final loss, nats")
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
    """What a panel shows of them."""
    return factor_limits(_factors(rows))


def _factors(rows: Sequence[SpeedupRow], shift: float = 1.0) -> list[Factor]:
    """By parameters."""
    return [
        Factor(
            (row.params or math.nan) * shift, row.speedup, row.low, row.high, row.judgement in ("better", "worse"),
            bool(row.flag),
        )
        for row in rows
    ]  # fmt: skip


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
            paint_factors(axes, _factors([row for row in rows if row.optimizer == name], shift), look[name])
        factor_ticks(axes.yaxis, limits)
        size_axis(axes, finding, pixels[0])
        axes.set_ylabel(f"speedup over {shorten(finding.baseline, 12)}")
        axes.set_title(f"ratio {ratio:g}×", loc="left", fontweight="bold", color=INK)

    return draw(f"speedup {ratio:g}", pixels, alt, paint)


def size_axis(axes: "Axes", finding: LadderFinding, pixels: float) -> None:
    """Sizes by name, where their parameters are."""
    labels = [f"{shorten(size, 9)}\n{show(n, 'tokens')}" for size, n in finding.sizes.items()]
    set_ticks(axes.xaxis, list(finding.sizes.values()), labels, pixels / 55)
    axes.set_xlabel("size, and its parameters")


def _titled(finding: LadderFinding, size: str) -> str:
    return f"{shorten(size, 16)}, {show(finding.sizes.get(size), 'tokens')} parameters"
