"""The figures of a comparison: the speedup being read off, training curves, final losses per seed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from muonlab.analyze.findings import Comparison, Curve, LossesAt, OptimizerFinding, Speedup
from muonlab.report.canvas import INK, MUTED, Drawing, Look, draw, looks, spread
from muonlab.report.strokes import paint_curve, paint_losses, widen
from muonlab.report.text import is_undefined, plural, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["final_losses", "read_off", "training_curves"]

NUM_POINTS = 200  # of a drawn curve
WIDTH = 760.0
LABEL_GAP = 14.0  # pixels between labels


def read_off(finding: Comparison) -> Drawing | None:
    """Final loss against horizon: the baseline's law, all final runs, and for each challenger the speedup as an arrow.

    None where no final run of any optimizer finished.
    """
    cells = [at for optimizer in finding.optimizers.values() for at in optimizer.horizons if at.mean is not None]
    if not cells:
        return None
    look = looks(finding)
    return draw("read-off", (WIDTH, 430), _read_off_alt(finding), lambda figure: _paint_read_off(figure, finding, look))


def _paint_read_off(figure: "Figure", finding: Comparison, look: Mapping[str, Look]) -> None:
    axes = figure.add_axes((0.072, 0.105, 0.915, 0.88))
    axes.set_xscale("log")
    for name, optimizer in finding.optimizers.items():
        for at in optimizer.horizons:
            paint_losses(axes, at, look[name])
    ends = [x for name, speedup in finding.speedup.items() for x in _arrow_span(finding, name, speedup)]
    tokens = [at.horizon_tokens for optimizer in finding.optimizers.values() for at in optimizer.horizons]
    low, high = min([*tokens, *ends]), max([*tokens, *ends])
    many = len(finding.optimizers) > 6
    axes.set_xlim(low / (1.9 if many else 1.35), high * 1.35)
    _paint_law(axes, finding, look, (low / 1.08, high * 1.08))
    widen(axes)
    for name, speedup in finding.speedup.items():
        _paint_arrow(axes, finding, name, speedup, look[name], labelled=len(finding.speedup) == 1)
    _name_series(axes, finding, look)
    _token_axis(axes, sorted(set(tokens)), "training horizon, tokens (log scale)")
    axes.set_ylabel("final held-out loss, nats")


def _paint_law(axes: "Axes", finding: Comparison, look: Mapping[str, Look], drawn: tuple[float, float]) -> None:
    law, baseline = finding.law, finding.optimizers.get(finding.baseline)
    if law is None or baseline is None:
        return
    horizons = [at.horizon_tokens for at in baseline.horizons if at.mean is not None]
    paint_curve(axes, law, horizons, look[finding.baseline].colour, drawn)


def _at(optimizer: OptimizerFinding | None, horizon_tokens: int) -> LossesAt | None:
    horizons = optimizer.horizons if optimizer else ()
    return next((at for at in horizons if at.horizon_tokens == horizon_tokens), None)


def _arrow_span(finding: Comparison, name: str, speedup: Speedup) -> list[float]:
    """Ends of the arrow in tokens; nothing where there is none to draw or it would leave any sensible figure."""
    at = _at(finding.optimizers.get(name), speedup.horizon_tokens)
    if at is None or at.mean is None or is_undefined(speedup.tokens) or not 1e-3 < speedup.tokens < 1e3:
        return []
    return [float(speedup.horizon_tokens), speedup.horizon_tokens * speedup.tokens]


def _paint_arrow(axes: "Axes", finding: Comparison, name: str, speedup: Speedup, look: Look, *, labelled: bool) -> None:
    span = _arrow_span(finding, name, speedup)
    at = _at(finding.optimizers.get(name), speedup.horizon_tokens)
    if not span or at is None:
        return
    start, end = span
    ends = [speedup.horizon_tokens * x if x else None for x in (speedup.low, speedup.high)]
    low, high = (x if x is not None else edge for x, edge in zip(ends, axes.get_xlim(), strict=True))
    if not speedup.flag:
        axes.plot([low, high], [at.mean] * 2, "-", color=look.colour, lw=7, alpha=0.16, solid_capstyle="butt", zorder=1)
    style = {"arrowstyle": "-|>", "color": look.colour, "lw": 1.5, "shrinkA": 4, "shrinkB": 0, "mutation_scale": 11}
    if speedup.flag:
        style["linestyle"] = (0, (4, 2))
    axes.annotate("", (end, at.mean), (start, at.mean), arrowprops=style, zorder=5)
    if labelled:  # on the side of the arrow where the curve is not
        side = 1 if end >= start else -1
        axes.annotate(
            f"{_factor(speedup)} tokens",
            (start, at.mean), (9 * side, -9 * side), textcoords="offset points", color=look.colour, fontweight="bold",
            ha="left" if side > 0 else "right", va="top" if side > 0 else "bottom", zorder=7,
        )  # fmt: skip


def _factor(speedup: Speedup) -> str:
    bound = f"{speedup.bound} " if speedup.bound else ""
    return f"{bound}{show(speedup.tokens, 'ratio').replace('x', '×')}"


def _name_series(axes: "Axes", finding: Comparison, look: Mapping[str, Look]) -> None:
    """Names beside the points: the baseline's at the end of its curve, a challenger's on the side its arrow leaves.

    Where there are several challengers their factors stand with the names, since arrows may lie close together.
    """
    several = {name: s for name, s in finding.speedup.items() if len(finding.speedup) > 1}
    factors = {name: f" {_factor(s)}" for name, s in several.items() if not is_undefined(s.tokens)}
    sides: dict[str, list[tuple[str, LossesAt]]] = {"left": [], "right": []}
    for name, optimizer in finding.optimizers.items():
        seen = [at for at in optimizer.horizons if at.mean is not None]
        speedup = finding.speedup.get(name)
        if not seen:
            continue
        at = next((a for a in seen if speedup and a.horizon_tokens == speedup.horizon_tokens), seen[-1])
        leftwards = speedup is not None and not is_undefined(speedup.tokens) and speedup.tokens < 1
        sides["right" if leftwards or name == finding.baseline else "left"].append((name, at))
    for side, entries in sides.items():
        sign = 1 if side == "right" else -1
        heights = [axes.transData.transform((at.horizon_tokens, at.mean))[1] for _, at in entries]
        for (name, at), old, new in zip(entries, heights, spread(heights, LABEL_GAP), strict=True):
            moved = abs(new - old) > 1
            axes.annotate(
                shorten(name) + factors.get(name, ""), (at.horizon_tokens, at.mean),
                (sign * (34 if moved else 10), new - old), textcoords="offset points",
                ha="left" if sign > 0 else "right", va="center", color=look[name].colour, fontweight="bold", zorder=7,
                arrowprops={"arrowstyle": "-", "color": look[name].colour, "lw": 0.6, "shrinkB": 5} if moved else None,
            )  # fmt: skip


def _token_axis(axes: "Axes", ticks: Sequence[int], label: str) -> None:
    from matplotlib.ticker import NullLocator

    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ticks), [show(t, "tokens") for t in ticks])
    axes.set_xlabel(label)


def _read_off_alt(finding: Comparison) -> str:
    parts = []
    for name, optimizer in finding.optimizers.items():
        seen = [f"{show(at.mean, 'loss')} at {show(at.horizon_tokens, 'tokens')} tokens" for at in optimizer.horizons]
        parts.append(f"{name} {', '.join(seen) or 'no run'}")
    arrows = [
        f"{name} {speedup.bound} {show(speedup.tokens, 'ratio', 'undefined')}".replace("  ", " ")
        for name, speedup in finding.speedup.items()
    ]
    read = f" Speedup in tokens read off horizontally: {', '.join(arrows)}." if arrows else ""
    return f"Mean final held-out loss against training horizon: {'; '.join(parts)}.{read}"


def training_curves(finding: Comparison) -> Drawing | None:
    """Training loss at the comparison's horizon: median over seeds in a band of all seeds, averaged over bins."""
    groups: dict[str, list[Curve]] = {}
    for curve in finding.curves:
        if curve.horizon_tokens == finding.horizon_tokens and len(curve.tokens) > 1:
            groups.setdefault(curve.optimizer, []).append(curve)
    if not groups:
        return None
    look = looks(finding)
    seeds = ", ".join(f"{name} {plural(len(curves), 'seed')}" for name, curves in groups.items())
    alt = (
        f"Training loss, smoothed, against tokens at the horizon of {show(finding.horizon_tokens, 'tokens')} tokens; "
        f"median over seeds and band of all seeds: {seeds}. Only final held-out losses are compared."
    )
    return draw("curves", (WIDTH, 380), alt, lambda figure: _paint_curves(figure, finding, groups, look))


def _paint_curves(
    figure: "Figure", finding: Comparison, groups: Mapping[str, Sequence[Curve]], look: Mapping[str, Look]
) -> None:
    import numpy as np

    axes = figure.add_axes((0.072, 0.118, 0.77, 0.867))
    edges = _edges(groups, finding.horizon_tokens)
    centres, ends, shown = (edges[1:] + edges[:-1]) / 2, {}, []
    for name, curves in groups.items():
        binned = np.array([_binned(curve, edges) for curve in curves])
        some = np.isfinite(binned).any(axis=0)
        x, values = centres[some], binned[:, some]
        if not some.any():
            continue
        middle = np.nanmedian(values, axis=0)
        axes.fill_between(
            x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=look[name].colour, alpha=0.18, lw=0
        )
        axes.plot(x, middle, color=look[name].colour, ls=look[name].dash, lw=1.6)
        ends[name] = (float(x[-1]), float(middle[-1]))
        shown.append(middle)
    axes.set_xlim(0, finding.horizon_tokens)
    if shown:
        axes.set_ylim(*_window(shown))
    _end_labels(axes, ends, look)
    axes.xaxis.set_major_formatter(lambda value, _: show(value, "tokens"))
    axes.set_xlabel(f"tokens of the run (all runs: horizon {show(finding.horizon_tokens, 'tokens')})")
    axes.set_ylabel("training loss, smoothed, nats")


def _edges(groups: Mapping[str, Sequence[Curve]], horizon_tokens: int) -> Any:
    """Bins of equal width, at most NUM_POINTS, never more than a curve has points."""
    import numpy as np

    most = max(len(curve.tokens) for curves in groups.values() for curve in curves)
    return np.linspace(0.0, horizon_tokens, min(NUM_POINTS, max(2, most // 2)) + 1)


def _binned(curve: Curve, edges: Any) -> Any:
    """Mean loss in each bin; NaN in bins that the run does not reach, and from the step where it stopped being finite.

    A bin that holds no point of a sparse curve takes the value interpolated between its neighbours.
    """
    import numpy as np

    tokens = np.asarray(curve.tokens, dtype=float)
    loss = np.array([np.nan if is_undefined(x) else x for x in curve.loss], dtype=float)
    good = np.isfinite(loss)
    tokens, loss = tokens[good], loss[good]
    count, _ = np.histogram(tokens, edges)
    total, _ = np.histogram(tokens, edges, weights=loss)
    centres = (edges[1:] + edges[:-1]) / 2
    with np.errstate(invalid="ignore"):
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    known = np.isfinite(means)
    if known.sum() < 2:
        return means
    return np.interp(centres, centres[known], means[known], left=np.nan, right=np.nan)


def _window(curves: Sequence[Any]) -> tuple[float, float]:
    """Limits that show the differences: the first twentieth of the runs, the fall from chance, may leave the top."""
    import numpy as np

    low = min(float(np.min(curve)) for curve in curves)
    high = max(float(np.max(curve[len(curve) // 20 :])) for curve in curves)
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin


def _end_labels(axes: "Axes", ends: Mapping[str, tuple[float, float]], look: Mapping[str, Look]) -> None:
    heights = [axes.transData.transform(end)[1] for end in ends.values()]
    floor = axes.transAxes.transform((0, 0))[1]
    placed = spread(heights, LABEL_GAP, floor)
    away = 12 if all(abs(new - old) < 3 * LABEL_GAP for new, old in zip(placed, heights, strict=True)) else 36
    for (name, end), old, new in zip(ends.items(), heights, placed, strict=True):
        axes.annotate(
            shorten(name, 14), end, (away, new - old), textcoords="offset points", annotation_clip=False,
            ha="left", va="center", color=look[name].colour, fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": look[name].colour, "lw": 0.6, "shrinkA": 1},
        )  # fmt: skip


def final_losses(finding: Comparison) -> Drawing | None:
    """Final loss of every seed at the comparison's horizon, a row per optimizer, with the interval of the mean."""
    rows = {name: _at(optimizer, finding.horizon_tokens) for name, optimizer in finding.optimizers.items()}
    if all(at is None or at.mean is None for at in rows.values()):
        return None
    look = looks(finding)
    parts = [
        f"{name} {'; '.join(show(loss, 'loss', 'did not finish') for loss in at.losses)}"
        for name, at in rows.items()
        if at is not None
    ]
    alt = f"Final held-out loss of every seed at {show(finding.horizon_tokens, 'tokens')} tokens: {'. '.join(parts)}."
    size = (WIDTH, 66.0 + 34 * len(rows))
    return draw("seeds", size, alt, lambda figure: _paint_seeds(figure, rows, look))


def _paint_seeds(figure: "Figure", rows: Mapping[str, LossesAt | None], look: Mapping[str, Look]) -> None:
    height = figure.get_figheight() * 72
    axes = figure.add_axes((0.17, 42 / height, 0.66, 1 - 48 / height))
    for y, (name, at) in enumerate(rows.items()):
        if at is None:
            continue
        seeds = [loss for loss in at.losses if not is_undefined(loss)]
        if at.low is not None and at.high is not None:
            axes.fill_betweenx([y - 0.28, y + 0.28], at.low, at.high, color=look[name].colour, alpha=0.15, lw=0)
        if at.mean is not None:
            axes.plot([at.mean] * 2, [y - 0.28, y + 0.28], color=look[name].colour, lw=2)
        axes.plot(
            seeds, [y] * len(seeds), look[name].marker, ms=6.5, mfc="white", mec=look[name].colour, mew=1.3, zorder=4
        )
        lost = len(at.losses) - len(seeds)
        note = f"mean {show(at.mean, 'loss')}" + (f", {lost} lost" if lost else "")
        axes.annotate(
            note, (1, y), (10, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            va="center", color=INK if at.mean is not None else MUTED, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [shorten(name, 20) for name in rows])
    for label, name in zip(axes.get_yticklabels(), rows, strict=True):
        label.set(color=look[name].colour, fontweight="bold")
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("final held-out loss, nats (mark: a seed, bar: mean, shade: 95 % interval)")
