"""Figures of a ladder's settings: how tuned values go with size, what was predicted, what tuning is worth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muonlab.analyze.findings import SpeedupRow
from muonlab.analyze.ladder import ControlFinding, ForecastFinding, LadderFinding
from muonlab.analyze.laws import HyperLaw, fit_law, kind_of
from muonlab.report.axes import (
    OPEN,
    WIDTH,
    dodge,
    factor_ticks,
    frame,
    log_ticks,
    note,
    panel_size,
    row_axes,
    set_ticks,
)
from muonlab.report.canvas import INK, MUTED, RULE, Drawing, Look, draw, spread
from muonlab.report.ladder_figures import row_of, size_axis
from muonlab.report.text import is_undefined, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["forecasts", "laws", "optimum_laws", "own_gain", "tuning_gains"]

Looks = Mapping[str, Look]
LR = "opt.lr"  # tuned anew at every size, whatever its sensitivity
LABEL_GAP = 13.0  # pixels between labels


def optimum_laws(finding: LadderFinding) -> dict[tuple[str, str], HyperLaw | None]:
    """Per optimizer and coordinate that was tuned anew with scale, the law that the finding's predictions follow.

    None where the law through the finding's own settings does not give its predictions: no line is drawn then.
    """
    found: dict[tuple[str, str], HyperLaw | None] = {}
    for name, coordinates in finding.sensitivity.items():
        for one in coordinates:
            if (one.is_sensitive or one.coordinate == LR) and _tuned(finding, name, one.coordinate):
                found[name, one.coordinate] = _law(finding, name, one.coordinate)
    return found


def _law(finding: LadderFinding, name: str, coordinate: str) -> HyperLaw | None:
    points = [(params, tokens, value) for params, tokens, _, value in _tuned(finding, name, coordinate)]
    law = fit_law(points, coordinate)
    expected = _predicted(finding, name, coordinate)
    same = all(law.predict(params, tokens).value == value for params, tokens, _, value in expected)
    return law if expected and same and law.curve is not None else None


def _tuned(finding: LadderFinding, name: str, coordinate: str) -> list[tuple[int, int, float, Any]]:
    """(parameters, tokens, ratio, value) at every size but the largest: what a law was fitted to."""
    own = [rung for rung in finding.rungs if rung.optimizer == name and rung.size != _largest(finding)]
    return [
        (rung.params, rung.losses.horizon_tokens, rung.ratio, rung.losses.hyperparameters[coordinate])
        for rung in own
        if _has_scale(rung.losses.hyperparameters, coordinate)
    ]


def _predicted(finding: LadderFinding, name: str, coordinate: str) -> list[tuple[int, int, float, Any]]:
    """The same of what was predicted at the largest size; where a search was made, what it started from."""
    started = {one.ratio: one.predicted for one in finding.forecasts if one.optimizer == name}
    values = []
    for rung in finding.rungs:
        if rung.optimizer == name and rung.size == _largest(finding):
            settings = started.get(rung.ratio, rung.losses.hyperparameters if rung.origin == "predicted" else {})
            if _has_scale(settings, coordinate):
                values.append((rung.params, rung.losses.horizon_tokens, rung.ratio, settings[coordinate]))
    return values


def _found(finding: LadderFinding, name: str, coordinate: str) -> list[tuple[float, Any]]:
    """(ratio, value) where a search at the largest size left the prediction."""
    return [
        (one.ratio, one.found[coordinate])
        for one in finding.forecasts
        if one.optimizer == name
        and _has_scale(one.found, coordinate)
        and one.found[coordinate] != one.predicted.get(coordinate)
    ]


def _largest(finding: LadderFinding) -> str:
    return max(finding.sizes, key=lambda size: finding.sizes[size])


def _has_scale(settings: Mapping[str, Any], coordinate: str) -> bool:
    """Whether the value can stand on a log axis."""
    value = settings.get(coordinate)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or kind_of(coordinate) == "discrete":
        return False
    return value < 1 if kind_of(coordinate) == "momentum" else value > 0


def laws(finding: LadderFinding, look: Looks) -> list[tuple[str, str, Drawing]]:
    """(optimizer, coordinate, figure): tuned values against size, predicted ones at the largest, the law as lines."""
    found = optimum_laws(finding)
    pixels = panel_size(max(2, len(found)))
    return [(*key, _laws(finding, *key, law, look, pixels)) for key, law in found.items()]


def _laws(
    finding: LadderFinding, name: str, coordinate: str, law: HyperLaw | None, look: Looks, pixels: tuple[float, float]
) -> Drawing:
    tuned, predicted = (of(finding, name, coordinate) for of in (_tuned, _predicted))
    parts = [f"{show(v, 'value')} at {show(n, 'tokens')} and ratio {ratio:g}" for n, _, ratio, v in tuned]
    ahead = [f"{show(v, 'value')} at ratio {ratio:g}" for _, _, ratio, v in predicted]
    alt = f"{name}, tuned {coordinate} against parameters: {'; '.join(parts)}. Predicted at the largest size: "
    alt += f"{'; '.join(ahead) or 'nothing'}."
    colour, marker = look[name].colour, look[name].marker

    def paint(figure: "Figure") -> None:
        axes = frame(figure, left=64, bottom=58, right=34)
        sizes = list(finding.sizes.values())
        span = min(sizes) / 1.25, max(sizes) * 1.25
        axes.set(xscale="log", yscale="log", xlim=span)
        shifts = dodge([f"{ratio:g}" for ratio in finding.ratios], span, pixels[0])
        found = [(max(sizes), 0, ratio, value) for ratio, value in _found(finding, name, coordinate)]
        for points, style in (
            (tuned, {"marker": marker, "ms": 6, "mfc": colour, "mec": colour}),
            (predicted, {"marker": marker, "ms": 7, "mfc": "white", "mec": colour}),
            (found, {"marker": "*", "ms": 11, "mfc": INK, "mec": INK}),
        ):
            for n, _, ratio, value in points:
                axes.plot([n * shifts[f"{ratio:g}"]], [_seen(value, coordinate)], mew=1.3, zorder=5, **style)
        if law is not None:
            _law_lines(axes, law, predicted, shifts, colour, min(sizes))
        _value_axis(axes, [value for *_, value in (*tuned, *predicted)], coordinate)
        _name_ratios(axes, predicted, coordinate)
        size_axis(axes, finding, pixels[0])
        axes.set_ylabel(shorten(coordinate, 28))
        axes.set_title(shorten(name, 28), loc="left", fontweight="bold", color=colour)

    return draw(f"law {name} {coordinate}", pixels, alt, paint)


def _law_lines(
    axes: "Axes", law: HyperLaw, predicted: Sequence[tuple[int, int, float, Any]], shifts: Mapping[str, float],
    colour: str, smallest: float,
) -> None:  # fmt: skip
    """The law at each ratio of tokens to parameters, from the smallest size to the largest."""
    import numpy as np

    for largest, tokens, ratio, _ in predicted:
        n = np.geomspace(smallest, largest, 30)
        p = law.parameters
        value = p["a"] * n ** -p["A"] * (n * tokens / largest) ** -p["B"] + p.get("b", 0.0)
        axes.plot(n * shifts[f"{ratio:g}"], value, ls=(0, (4, 2)), lw=0.9, color=colour, alpha=0.6, zorder=2)


def _seen(value: Any, coordinate: str) -> float:
    """Where a value stands on its log axis: what is close to 1 by its distance from 1."""
    return 1.0 - value if kind_of(coordinate) == "momentum" else float(value)


def _value_axis(axes: "Axes", values: Sequence[Any], coordinate: str) -> None:
    """Ticks at the values, the first before the others, as far as their labels stay apart."""
    axes.margins(y=0.1)
    low, high = axes.get_ylim()
    if high < 2.5 * low:
        axes.set_ylim(low / 1.6, high * 1.6)
    ticks: dict[float, tuple[float, str]] = {}
    for value in values:
        height = axes.transData.transform((1.0, _seen(value, coordinate)))[1]
        if all(abs(height - other) > LABEL_GAP for other in ticks):
            ticks[height] = _seen(value, coordinate), show(value, "value")
    places, labels = zip(*(ticks[height] for height in sorted(ticks)), strict=True)
    set_ticks(axes.yaxis, places, labels)


def _name_ratios(axes: "Axes", predicted: Sequence[tuple[int, int, float, Any]], coordinate: str) -> None:
    """Beside the panel, at the height of what is predicted at each ratio."""
    heights = [axes.transData.transform((n, _seen(value, coordinate)))[1] for n, _, _, value in predicted]
    for (*_, ratio, value), old, new in zip(predicted, heights, spread(heights, LABEL_GAP), strict=True):
        note(axes, _seen(value, coordinate), f"{ratio:g}×", 4, new - old)


def forecasts(finding: LadderFinding, look: Looks) -> Drawing | None:
    """Predicted and found lr side by side, and what the prediction costs in loss; None without any."""
    ones = [one for one in finding.forecasts if _has_scale(one.predicted, LR) and _has_scale(one.found, LR)]
    if not ones:
        return None
    parts = [
        f"{one.optimizer} predicted {show(one.predicted[LR], 'value')}, found {show(one.found[LR], 'value')}, "
        f"loss {show(one.difference_nats, 'difference', 'undefined')} nats"
        for one in ones
    ]
    alt = f"Predicted and found {LR} at the largest size, and predicted minus found loss: {'; '.join(parts)}."
    size = (WIDTH, 74.0 + 34 * len(ones))
    return draw("forecasts", size, alt, lambda figure: _paint_forecasts(figure, ones, look))


def _paint_forecasts(figure: "Figure", ones: Sequence[ForecastFinding], look: Looks) -> None:
    from matplotlib.ticker import MaxNLocator

    left = row_axes(figure, [one.optimizer for one in ones], look, 0.17, 0.36)
    right = row_axes(figure, ["" for _ in ones], look, 0.57, 0.29)
    left.set_xscale("log")
    right.axvline(0.0, color=MUTED, lw=1.2, zorder=1)
    for y, one in enumerate(ones):
        style = look[one.optimizer]
        before, after = one.predicted[LR], one.found[LR]
        left.plot([before, after], [y, y], color=style.colour, lw=1.2, alpha=0.6, zorder=2)
        left.plot([after], [y], style.marker, ms=6, color=style.colour, mec="white", zorder=4)
        left.plot([before], [y], style.marker, ms=10, mfc="none", mec=style.colour, mew=1.4, zorder=5)
        if not is_undefined(one.difference_nats):
            if one.low is not None and one.high is not None:
                right.plot([one.low, one.high], [y, y], color=style.colour, lw=1.5, zorder=3)
            right.plot([one.difference_nats], [y], style.marker, ms=7, color=style.colour, mec="white", zorder=4)
        said = "prediction kept" if one.predicted == one.found else show(one.difference_nats, "difference")
        note(right, y, said)
    shown = [value for one in ones for value in (one.predicted[LR], one.found[LR])]
    low, high = min(shown) / 1.5, max(shown) * 1.5
    left.set_xlim(low, high)
    ticks = log_ticks(low, high, 6)
    set_ticks(left.xaxis, ticks, [show(tick, "value") for tick in ticks])
    far = max(abs(x) for x in right.get_xlim())
    right.set_xlim(-1.1 * far, 1.1 * far)
    right.xaxis.set_major_locator(MaxNLocator(4))
    left.set_xlabel(f"{LR} (ring: predicted, filled: found)")
    right.set_xlabel("loss, predicted minus found, nats")


def own_gain(finding: LadderFinding, control: ControlFinding) -> int | None:
    """Where in `rows` the speedup of a control's optimizer over the baseline is, at the same size and ratio."""
    here = (control.optimizer, control.size, control.ratio)
    rungs = (rung for rung in finding.rungs if (rung.optimizer, rung.size, rung.ratio) == here)
    return next((row_of(finding, rung) for rung in rungs), None)


def tuning_gains(finding: LadderFinding, look: Looks) -> Drawing | None:
    """What tuning saves each optimizer in tokens, beside what the tuned one saves over the baseline."""
    places, names = list(finding.sizes), list(look)
    defaults = sorted(
        (one for one in finding.controls if not one.settings_of),
        key=lambda one: (places.index(one.size), names.index(one.optimizer)),
    )
    if all(is_undefined(one.speedup) for one in defaults):
        return None
    rows = [own_gain(finding, one) for one in defaults]
    own = [None if row is None else finding.rows[row] for row in rows]
    parts = [
        f"{one.optimizer} at {one.size}: tuning {show(one.speedup, 'ratio', 'undefined')}"
        + ("" if row is None else f", itself {show(row.speedup, 'ratio', 'undefined')}")
        for one, row in zip(defaults, own, strict=True)
    ]
    alt = "Tokens that tuning saves over the defaults of the class, and those that the optimizer itself saves over "
    alt += f"tuned {finding.baseline}: {'; '.join(parts)}."
    size = (WIDTH, 66.0 + 28 * len(defaults))
    base = look[finding.baseline].colour
    return draw("tuning", size, alt, lambda figure: _paint_gains(figure, defaults, own, look, base))


def _paint_gains(
    figure: "Figure", defaults: Sequence[ControlFinding], own: Sequence[SpeedupRow | None], look: Looks, base: str
) -> None:
    axes = row_axes(figure, [one.optimizer for one in defaults], look, 0.26, 0.56)
    axes.set_xscale("log")
    axes.axvline(1.0, color=base, lw=1.4, zorder=1)
    for y, (one, row) in enumerate(zip(defaults, own, strict=True)):
        style = look[one.optimizer]
        if not y or one.size != defaults[y - 1].size:
            axes.annotate(
                shorten(one.size, 10), (0, y), (-190, 0), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", va="center", color=INK, fontweight="bold", annotation_clip=False,
            )  # fmt: skip
            axes.axhline(y - 0.5, color=RULE, lw=0.8, zorder=0)
        if not is_undefined(one.speedup):
            axes.plot([1.0, one.speedup], [y, y], color=style.colour, lw=6, alpha=0.22, solid_capstyle="butt")
            axes.plot([one.speedup], [y], "|", ms=13, mew=2.4, color=style.colour, zorder=4)
        if row is not None and not is_undefined(row.speedup):
            _interval(axes, row, y, style)
            axes.plot([row.speedup], [y], style.marker, ms=7, color=style.colour, mec="white", zorder=6)
        note(axes, y, _gains(one, row))
    axes.margins(x=0.06)
    factor_ticks(axes.xaxis, axes.get_xlim())
    axes.set_xlabel("tokens saved (band: by tuning instead of defaults, mark: by the optimizer)")


def _interval(axes: "Axes", row: SpeedupRow, y: float, look: Look) -> None:
    """An arrow head stands where it goes on."""
    low, high = row.speedup / OPEN, row.speedup * OPEN
    ends = max(row.low or 0.0, low), high if is_undefined(row.high) else min(row.high, high)
    axes.plot(ends, [y, y], color=look.colour, lw=1.5, zorder=5)
    for end, edge, arrow in zip(ends, (low, high), "<>", strict=True):
        if end == edge:
            axes.plot([end], [y], arrow, ms=4, color=look.colour, zorder=5)


def _gains(control: ControlFinding, row: SpeedupRow | None) -> str:
    lost = f"{control.num_diverged} diverged" if control.num_diverged else show(control.speedup, "ratio")
    return (lost if row is None else f"{lost}, {show(row.speedup, 'ratio')}").replace("x", "×")
