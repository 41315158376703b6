"""Figures of a batch study against the batch size: tokens to a loss, their ratio, gradient noise, settings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from muonlab.analyze.batch import BatchFinding, BatchSettings, CriticalBatch, TokenRatio
from muonlab.analyze.critical_batch import OVERHEAD, Estimate
from muonlab.analyze.reaching import TimeToTarget
from muonlab.report.axes import dodge, factor_ticks, frame, log_ticks, panel_size, set_ticks
from muonlab.report.canvas import INK, Drawing, Look, draw
from muonlab.report.strokes import Factor, factor_limits, paint_factors
from muonlab.report.text import is_undefined, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["estimate_words", "noise_scales", "rates", "ratios", "token_ticks", "tokens"]

Looks = Mapping[str, Look]

LR = "opt.lr"
BEYOND = 8.0  # a factor beyond the values drawn at which an interval leaves the panel
SIGNS = {"above": "> ", "below": "< "}


def tokens(finding: BatchFinding, look: Looks) -> list[Drawing]:
    """Per target, tokens to it against the batch, with the fit behind the critical batch."""
    pixels = panel_size(len(finding.targets))
    return [_tokens(finding, target, look, pixels) for target in finding.targets]


def _tokens(finding: BatchFinding, target: float, look: Looks, pixels: tuple[float, float]) -> Drawing:
    times = [one for one in finding.times if one.target == target]
    parts = []
    for name in look:
        own = [f"{_reached(one)} at {one.batch_tokens:,}" for one in times if one.optimizer == name]
        parts.append(f"{name} {', '.join(own)}")
    alt = f"Tokens to a held-out loss of {target:g} against tokens a step: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes, span = _batch_axes(figure, finding, pixels, f"loss {target:g}")
        for name, shift in dodge(look, span, pixels[0], 6.0).items():
            own = [one for one in times if one.optimizer == name]
            _paint_times(axes, own, look[name], shift)
            critical = next(c for c in finding.critical if (c.optimizer, c.target) == (name, target))
            _paint_fit(axes, critical, own, look[name])
        axes.margins(y=0.09)
        _mark_critical(axes, [one for one in finding.critical if one.target == target], look)
        token_ticks(axes.yaxis, axes.get_ylim())
        axes.set_ylabel("tokens to the loss")

    return draw(f"tokens {target:g}", pixels, alt, paint)


def _reached(one: TimeToTarget) -> str:
    if one.flag == "unreached":
        return f"not reached in {show(one.horizon_tokens, 'tokens')}"
    return f"{'at most ' if one.flag == 'early' else ''}{show(one.tokens, 'tokens')}"


def _paint_times(axes: "Axes", times: Sequence[TimeToTarget], look: Look, shift: float) -> None:
    """Open where the target was not reached, at the length of the runs, and where it was before the first look."""
    for one in times:
        x, missed = one.batch_tokens * shift, one.flag == "unreached"
        y = float(one.horizon_tokens) if missed else one.tokens
        if is_undefined(y):
            continue
        if one.low is not None and one.high is not None:
            axes.plot([x, x], [one.low, one.high], color=look.colour, lw=1.5, zorder=4)
        fill = "white" if one.flag else look.colour
        axes.plot([x], [y], look.marker, ms=7, mfc=fill, mec=look.colour if one.flag else "white", mew=1.2, zorder=6)
        if one.flag:
            axes.annotate(
                "", (x, y), (0, 18 if missed else -18), textcoords="offset points", zorder=5,
                arrowprops={"arrowstyle": "<-", "color": look.colour, "lw": 1.1, "shrinkA": 0, "shrinkB": 4},
            )  # fmt: skip


def _paint_fit(axes: "Axes", critical: CriticalBatch, times: Sequence[TimeToTarget], look: Look) -> None:
    """The fit where the critical batch is one of its parameters, else from mean to mean; thin: linear scaling."""
    import numpy as np

    fit = fit_of(critical)
    if fit is None:
        x = [one.batch_tokens for one in times if not one.flag]
        axes.plot(x, [one.tokens for one in times if not one.flag], color=look.colour, ls=look.dash, lw=0.8, alpha=0.6)
        return
    least, at, power = fit
    x = np.geomspace(critical.batches[0], critical.batches[-1], 60)
    axes.plot(x, least * (1 + OVERHEAD * (x / at) ** power), color=look.colour, ls=look.dash, lw=1.4, zorder=3)
    axes.axhline(least, color=look.colour, lw=0.7, alpha=0.6, zorder=2)


def fit_of(critical: CriticalBatch) -> tuple[float, float, float] | None:
    """Least tokens, critical batch and power of the fit; None where there is none."""
    parts = critical.least_tokens, critical.fitted, critical.power
    if any(map(is_undefined, parts)) or len(critical.batches) < 2:
        return None
    return parts


def _mark_critical(axes: "Axes", found: Sequence[CriticalBatch], look: Looks) -> None:
    """Dropped from the fit to the lower edge."""
    low, high = axes.get_ylim()
    for one in found:
        fit, colour = fit_of(one), look[one.optimizer].colour
        if fit is not None and not one.overhead.flag:
            least, at, _ = fit
            axes.plot([at, at], [low, least * (1 + OVERHEAD)], color=colour, lw=1.1, ls=(0, (1.5, 1.5)), zorder=2)
            axes.plot([at], [low], "v", ms=7, color=colour, mec="white", clip_on=False, zorder=7)
    axes.set_ylim(low, high)


def ratios(finding: BatchFinding, look: Looks) -> list[Drawing]:
    """Per target, the token ratio of every challenger against the batch, all on the same scale."""
    if all(is_undefined(one.ratio) for one in finding.token_ratio):
        return []
    pixels = panel_size(len(finding.targets))
    limits = factor_limits([_factor(one) for one in finding.token_ratio])
    return [_ratios(finding, target, look, pixels, limits) for target in finding.targets]


def _factor(one: TokenRatio, shift: float = 1.0) -> Factor:
    resolved = one.judgement in ("better", "worse")
    return _closed(Factor(one.batch_tokens * shift, one.ratio, one.low, one.high, resolved))


def _closed(one: Factor) -> Factor:
    """Without an interval, not with one that is open on both sides."""
    return replace(one, low=one.value, high=one.value) if one.low is None and one.high is None else one


def _ratios(
    finding: BatchFinding, target: float, look: Looks, pixels: tuple[float, float], limits: tuple[float, float]
) -> Drawing:
    found = [one for one in finding.token_ratio if one.target == target]
    parts = [
        f"{one.optimizer} {show(one.ratio, 'ratio', 'undefined')} at {one.batch_tokens:,}"
        + (f", {one.judgement}" if one.judgement else "")
        for one in found
    ]
    alt = f"Tokens of {finding.baseline} over those of the others to a loss of {target:g}: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes, span = _batch_axes(figure, finding, pixels, f"loss {target:g}")
        axes.set_ylim(limits)
        axes.axhline(1.0, color=look[finding.baseline].colour, lw=1.4, zorder=1)
        names = list(dict.fromkeys(one.optimizer for one in found))
        for name, shift in dodge(names, span, pixels[0]).items():
            paint_factors(axes, [_factor(one, shift) for one in found if one.optimizer == name], look[name])
        factor_ticks(axes.yaxis, limits)
        axes.set_ylabel("token ratio")

    return draw(f"ratio {target:g}", pixels, alt, paint)


def noise_scales(finding: BatchFinding, look: Looks) -> list[Drawing]:
    """Both noise scales against the batch, on the way to the target of the verdict; none where none was measured."""
    own = [one for one in finding.noise if one.target == finding.hardest]
    kinds = {"simple": "noise scale (of SGD)", "nuclear": "noise scale, nuclear norm"}
    values = [getattr(one, kind).value for one in own for kind in kinds]
    known = [value for value in values if not is_undefined(value) and value > 0]
    if not known:
        return []
    limits = min(known) / BEYOND, max(known) * BEYOND
    return [_noise(finding, kind, title, look, limits) for kind, title in kinds.items()]


def _noise(finding: BatchFinding, kind: str, title: str, look: Looks, limits: tuple[float, float]) -> Drawing:
    pixels = panel_size(2)
    own = {name: [o for o in finding.noise if (o.optimizer, o.target) == (name, finding.hardest)] for name in look}
    parts = [
        f"{name} {', '.join(f'{estimate_words(getattr(o, kind))} at {o.batch_tokens:,}' for o in ones)}"
        for name, ones in own.items()
    ]
    alt = f"{title[0].upper()}{title[1:]}, in tokens, against tokens a step: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes, span = _batch_axes(figure, finding, pixels, title)
        axes.set_ylim(limits)
        axes.plot(span, span, color=INK, lw=0.7, alpha=0.5, zorder=1)
        for name, shift in dodge(look, span, pixels[0], 12.0).items():
            known = [
                (o.batch_tokens * shift, getattr(o, kind)) for o in own[name] if getattr(o, kind).value is not None
            ]
            paint_factors(axes, [_closed(Factor(x, e.value, e.low, e.high, True)) for x, e in known], look[name])
        token_ticks(axes.yaxis, limits)
        axes.set_ylabel("tokens")

    return draw(f"noise {kind}", pixels, alt, paint)


def estimate_words(one: Estimate) -> str:
    """
    >>> estimate_words(Estimate(value=16384.0, low=None, high=None, flag="above"))
    '> 16,384'
    """
    return f"{SIGNS.get(one.flag, '')}{show(one.value, 'bare', 'undefined')}"


def rates(finding: BatchFinding, look: Looks) -> list[Drawing]:
    """Per optimizer, lr by rule and as chosen against the batch; of those that have one."""
    own = {name: [one for one in finding.settings if one.optimizer == name] for name in look}
    own = {name: [one for one in ones if _lr(one.predicted) and _lr(one.chosen)] for name, ones in own.items()}
    own = {name: ones for name, ones in own.items() if ones}
    pixels = panel_size(len(own))
    return [_rates(finding, name, ones, look[name], pixels) for name, ones in own.items()]


def _lr(settings: Mapping[str, Any]) -> float | None:
    value = settings.get(LR)
    return value if isinstance(value, int | float) and value > 0 else None


def _rates(
    finding: BatchFinding, name: str, ones: Sequence[BatchSettings], look: Look, pixels: tuple[float, float]
) -> Drawing:  # fmt: skip
    points = [(one.batch_tokens, one.predicted[LR], one.chosen[LR]) for one in ones]
    parts = [f"{show(rule, 'value')}, {show(chosen, 'value')} at {batch:,}" for batch, rule, chosen in points]
    alt = f"{name}, {LR} by rule and as chosen against tokens a step: {'; '.join(parts)}."

    def paint(figure: "Figure") -> None:
        axes, _ = _batch_axes(figure, finding, pixels, shorten(name, 28), look.colour, left=64)
        batches, rule, chosen = zip(*points, strict=True)
        axes.plot(batches, chosen, color=look.colour, ls=look.dash, lw=1, alpha=0.5, zorder=2)
        for batch, before, after in points:
            axes.plot([batch, batch], [before, after], color=look.colour, lw=1.1, zorder=3)
            axes.plot([batch], [after], look.marker, ms=6, color=look.colour, zorder=5)
            axes.plot([batch], [before], look.marker, ms=10.5, mfc="none", mec=look.colour, mew=1.3, zorder=6)
        low, high = min(rule + chosen) / 1.5, max(rule + chosen) * 1.5
        axes.set_ylim(low, high)
        ticks = log_ticks(low, high)
        set_ticks(axes.yaxis, ticks, [show(tick, "value") for tick in ticks])
        axes.set_ylabel(LR)

    return draw(f"lr {name}", pixels, alt, paint)


def _batch_axes(
    figure: "Figure", finding: BatchFinding, pixels: tuple[float, float], title: str, colour: str = INK,
    left: float = 54,
) -> tuple["Axes", tuple[float, float]]:  # fmt: skip
    """Log axes over the batch sizes, and how far they reach."""
    axes = frame(figure, left=left)
    span = finding.batches[0] / 1.6, finding.batches[-1] * 1.6
    axes.set(xscale="log", yscale="log", xlim=span)
    set_ticks(axes.xaxis, finding.batches, [show(batch, "count") for batch in finding.batches], pixels[0] / 62)
    axes.set_xlabel("batch, tokens a step")
    axes.set_title(title, loc="left", fontweight="bold", color=colour)
    return axes, span


def token_ticks(axis: "Axis", limits: tuple[float, float], most: int = 7) -> None:
    """Round numbers of tokens."""
    ticks = log_ticks(*limits, most)
    set_ticks(axis, ticks, [show(tick, "tokens") for tick in ticks])
