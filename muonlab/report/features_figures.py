"""Figures of a study of features: what corruption takes by severity, ranks and margins by layer, likeness by layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from muonlab.analyze.features import MEASURES, FeaturesFinding
from muonlab.analyze.findings import Effect
from muonlab.analyze.likeness import LikenessRow, Spread
from muonlab.report.axes import frame, panel_size, set_ticks
from muonlab.report.canvas import INK, Drawing, Look, draw
from muonlab.report.text import is_undefined, short_layers, shorten, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["AT", "layers", "likeness", "robustness"]

Looks = Mapping[str, Look]

AT = {"budget": "same tokens", "loss": "same loss"}  # conditions that are drawn
SHIFT = 0.07  # of what would lie on one another, to either side, in places of the axis; no slope bears it
OUTSIDE = 0.6  # how far beyond the points intervals may widen a panel, in parts of what the points span
LABEL = 46.0  # pixels that the name of a place takes
QUANTITIES = {  # of a corruption: the field of the effect, how a value is written, what the axis says
    "rise": ("effect", "value3", "rise of the loss, nats"),
    "accuracy": ("accuracy_effect", "percent", "accuracy"),
}


@dataclass(frozen=True)
class Pair:
    """A challenger's mean and the baseline's at one place of an axis, and their paired difference."""

    value: float | None
    baseline: float | None
    effect: Effect

    @property
    def bar(self) -> tuple[float, float] | None:
        """The interval of the difference, from the baseline's mean on."""
        ends = self.baseline, self.effect.low, self.effect.high
        return None if any(map(is_undefined, ends)) else (ends[0] + ends[1], ends[0] + ends[2])  # type: ignore[operator]


def robustness(finding: FeaturesFinding, look: Looks, quantity: str) -> list[Drawing]:
    """For each challenger and condition: loss rise or accuracy over all corruptions against the severity."""
    effect, kind, label = QUANTITIES[quantity]
    found: dict[tuple[str, str], dict[str, Pair]] = {}
    for row in finding.severities:
        if row.severity and row.at in AT and getattr(row, effect) is not None:
            pair = Pair(getattr(row, quantity), getattr(row, f"baseline_{quantity}"), getattr(row, effect))
            found.setdefault((row.optimizer, row.at), {})[str(row.severity)] = pair
    return _panels(finding, look, found, label, "severity", lambda value: show(value, kind), 0.0)


def layers(finding: FeaturesFinding, look: Looks, measure: str) -> list[Drawing]:
    """For each challenger and condition: a measure against the layer."""
    found: dict[tuple[str, str], dict[str, Pair]] = {}
    short = short_layers(row.layer for row in finding.layers)
    for row in finding.layers:
        if row.measure == measure and row.at in AT:
            pair = Pair(row.value, row.baseline_value, row.effect)
            found.setdefault((row.optimizer, row.at), {})[short[row.layer]] = pair
    return _panels(finding, look, found, MEASURES[measure], "layer", lambda value: show(value, "value3"), SHIFT)


def _panels(
    finding: FeaturesFinding, look: Looks, found: Mapping[tuple[str, str], Mapping[str, Pair]], label: str, axis: str,
    write: Callable[[Any], str], shift: float,
) -> list[Drawing]:  # fmt: skip
    """One for each challenger and condition, all on one scale; points stand `shift` to either side of their place."""
    pixels = panel_size(len(found))
    limits = _limits([pair for pairs in found.values() for pair in pairs.values()])
    drawings = []
    for (name, at), pairs in found.items():
        title = f"{shorten(name, 20)}, {AT[at]}"
        told = ", ".join(f"{write(p.value)} against {write(p.baseline)} at {place}" for place, p in pairs.items())
        alt = f"{label[0].upper()}{label[1:]} of {name} and {finding.baseline} at the {AT[at]} by {axis}: {told}."
        both = (look[finding.baseline], look[name])
        paint = _pair_painter(pairs, both, title, (axis, label), limits, write, shift)
        drawings.append(draw(f"{label} {name} {at}", pixels, alt, paint))
    return drawings


def _limits(pairs: Sequence[Pair]) -> tuple[float, float] | None:
    """All points, and of the intervals as much as leaves the points apart."""
    points = [v for pair in pairs for v in (pair.value, pair.baseline) if v is not None and not is_undefined(v)]
    if not points:
        return None
    low, high = min(points), max(points)
    room = OUTSIDE * (high - low) or 0.1 * abs(high) or 1.0
    ends = [end for pair in pairs if pair.bar for end in pair.bar] + points
    low, high = max(min(ends), low - room), min(max(ends), high + room)
    margin = 0.06 * (high - low) or room
    return low - margin, high + margin


def _pair_painter(
    pairs: Mapping[str, Pair], look: tuple[Look, Look], title: str, labels: tuple[str, str],
    limits: tuple[float, float] | None, write: Callable[[Any], str], shift: float,
) -> Callable[["Figure"], None]:  # fmt: skip
    def paint(figure: "Figure") -> None:
        axes = _place_axes(figure, list(pairs), labels, title, look[1].colour)
        if limits:
            axes.set_ylim(limits)
            ticks = axes.get_yticks()
            inside = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
            axes.set_yticks(inside, [write(tick) for tick in inside])
        for side, place in ((0, -shift), (1, shift)):
            values = [(pair.baseline, pair.value)[side] for pair in pairs.values()]
            known = [(i + place, v) for i, v in enumerate(values) if not is_undefined(v)]
            if not known:
                continue
            axes.plot(*zip(*known, strict=True), color=look[side].colour, ls=look[side].dash, lw=1.2, alpha=0.6)
        for i, pair in enumerate(pairs.values()):
            if not is_undefined(pair.baseline):
                axes.plot([i - shift], [pair.baseline], look[0].marker, ms=6, color=look[0].colour, mec="white", mew=1)
            if is_undefined(pair.value):
                continue
            if pair.bar:
                axes.plot([i + shift] * 2, pair.bar, color=look[1].colour, lw=1.5, zorder=4)
            fill = look[1].colour if pair.effect.judgement in ("higher", "lower") else "white"
            axes.plot(
                [i + shift], [pair.value], look[1].marker, ms=6.5, mfc=fill, mec=look[1].colour, mew=1.3, zorder=6
            )

    return paint


def _place_axes(figure: "Figure", places: Sequence[str], labels: tuple[str, str], title: str, colour: str) -> "Axes":
    """Axes with a tick for each place."""
    axes = frame(figure, left=62)
    width = figure.get_size_inches()[0] * 72
    axes.set_xlim(-0.5, len(places) - 0.5)
    longest = max(map(len, places), default=1)
    most = (width - 70) / max(LABEL / 2, 7.0 * min(longest, 12))
    set_ticks(axes.xaxis, range(len(places)), [shorten(place, 12) for place in places], most)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, loc="left", fontweight="bold", color=colour)
    return axes


def likeness(finding: FeaturesFinding, look: Looks) -> list[Drawing]:
    """For each challenger: CKA to the baseline by layer, and of two seeds of either."""
    names = list(dict.fromkeys(row.optimizer for row in finding.cka))
    own = {name: [row for row in finding.cka if (row.optimizer, row.at) == (name, "budget")] for name in names}
    pixels = panel_size(len(names))
    return [_likeness(name, rows, finding.baseline, look, pixels) for name, rows in own.items()]


def _likeness(
    name: str, rows: Sequence[LikenessRow], baseline: str, look: Looks, pixels: tuple[float, float]
) -> Drawing:
    told = [
        f"{row.layer} {show(row.same_seed.mean, 'bare')} at the same seed, {show(row.other_seeds.mean, 'bare')} at "
        f"others; two seeds of {name} {show(row.own_seeds.mean, 'bare')}, of {baseline} "
        f"{show(row.baseline_seeds.mean, 'bare')}"
        for row in rows
    ]
    alt = f"CKA of the layers of {name} to those of {baseline}: {'; '.join(told)}."
    short = short_layers(row.layer for row in rows)

    def paint(figure: "Figure") -> None:
        axes = _place_axes(figure, list(short.values()), ("layer", "CKA"), shorten(name, 28), look[name].colour)
        lines: tuple[tuple[Callable[[LikenessRow], Spread], Look, str, bool], ...] = (
            (lambda row: row.baseline_seeds, look[baseline], ":", False),
            (lambda row: row.own_seeds, look[name], ":", False),
            (lambda row: row.other_seeds, look[name], "--", True),
            (lambda row: row.same_seed, look[name], "-", True),
        )
        least = [s.least for row in rows for pick, *_ in lines if (s := pick(row)).least is not None]
        axes.set_ylim(min([0.0, *least]) - 0.03, 1.04)
        for j, (pick, one, dash, between) in enumerate(lines):
            _paint_spreads(axes, list(map(pick, rows)), (j - 1.5) * SHIFT, one, dash, between)
        axes.axhline(1.0, color=INK, lw=0.6, alpha=0.4, zorder=1)

    return draw(f"likeness {name}", pixels, alt, paint)


def _paint_spreads(axes: "Axes", spreads: Sequence[Spread], shift: float, look: Look, dash: str, between: bool) -> None:
    """Between optimizers with the challenger's mark, filled where the seed is the same; within one with a cross."""
    known = [(i + shift, one) for i, one in enumerate(spreads) if one.mean is not None]
    axes.plot([x for x, _ in known], [one.mean for _, one in known], color=look.colour, ls=dash, lw=1.2, alpha=0.7)
    for x, one in known:
        axes.plot([x, x], [one.least, one.greatest], color=look.colour, lw=1.3, zorder=3)
        marker, fill = (look.marker, look.colour if dash == "-" else "white") if between else ("x", look.colour)
        axes.plot([x], [one.mean], marker, ms=6, mfc=fill, mec=look.colour, mew=1.3, zorder=5)
