"""Figures of a coordinate check: outputs and updates against the width, a panel per optimizer and parametrization."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from muonlab.analyze.coordinates import HIDDEN, CoordinateFinding, Slope
from muonlab.report.axes import frame, log_ticks, panel_size, set_ticks
from muonlab.report.canvas import MUTED, Drawing, Look, draw, looks_of
from muonlab.report.coordinates import power_words, predicted_words, short_layer
from muonlab.report.text import show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["changes", "layer_looks", "updates"]

Looks = Mapping[str, Look]
Paint = Callable[["Axes", Sequence[Slope]], None]


def layer_looks(finding: CoordinateFinding) -> dict[str, Look]:
    """How each kind of layer is drawn, in both figures; the last one, the head as a rule, in dark grey."""
    layers = list(dict.fromkeys(one.layer for one in finding.slopes if one.layer != HIDDEN))
    return looks_of(layers, layers[-1] if layers else HIDDEN)


def changes(finding: CoordinateFinding, look: Looks) -> list[Drawing]:
    """Change of every layer's output against the width; grey and level, what would not depend on it."""

    def beside(axes: "Axes", own: Sequence[Slope]) -> None:
        for one in own:
            first = next((value for value in one.values if value is not None), None)
            if first is not None:
                axes.axhline(first, color=MUTED, lw=0.8, alpha=0.35, zorder=1)

    return _panels(finding, look, "change", "change of output, RMS", lambda name, kind: beside)


def updates(finding: CoordinateFinding, look: Looks) -> list[Drawing]:
    """Update of every kind of hidden matrix against the width; grey, what was predicted of all together."""

    def beside(name: str, kind: str) -> Paint:
        together = finding.slope(name, kind, "update", HIDDEN)
        registered = (one.prediction for one in finding.predictions)
        said = next((one for one in registered if (one.name, one.parametrization) == (name, kind)), None)

        def paint(axes: "Axes", own: Sequence[Slope]) -> None:
            start = together.values[0] if together else None
            if start is None or said is None or said.low is None or said.high is None:
                return
            low, high = ([start * (w / finding.widths[0]) ** p for w in finding.widths] for p in (said.low, said.high))
            axes.fill_between(finding.widths, low, high, color=MUTED, alpha=0.15, lw=0, zorder=1)
            for edge in (low, high):
                axes.plot(finding.widths, edge, color=MUTED, lw=2.2, alpha=0.5, zorder=1)

        return paint

    return _panels(finding, look, "update", "update, RMS to RMS", beside)


def _panels(
    finding: CoordinateFinding, look: Looks, quantity: str, label: str, beside: Callable[[str, str], Paint]
) -> list[Drawing]:
    """Of all optimizers and parametrizations, on one scale; none where nothing was measured."""
    slopes = [one for one in finding.slopes if one.quantity == quantity]
    known = [value for one in slopes for value in one.values if value is not None]
    if not known:
        return []
    pairs = [(name, kind) for name in finding.optimizers for kind in finding.parametrizations]
    limits, pixels = (min(known) / 1.4, max(known) * 1.4), panel_size(len(pairs))

    def panel(name: str, kind: str) -> Drawing:
        own = [one for one in slopes if (one.name, one.parametrization) == (name, kind)]

        def paint(figure: "Figure") -> None:
            axes = frame(figure, left=58)
            axes.set(xscale="log", yscale="log", ylim=limits)
            axes.set_xlim(finding.widths[0] / 1.2, finding.widths[-1] * 1.2)
            beside(name, kind)(axes, own)
            for one in (one for one in own if one.layer != HIDDEN):
                _paint_line(axes, finding.widths, one, look[one.layer])
            labels = [show(width, "count") for width in finding.widths]
            set_ticks(axes.xaxis, finding.widths, labels, pixels[0] / 44)
            ticks = log_ticks(*limits)
            set_ticks(axes.yaxis, ticks, [f"{tick:g}" for tick in ticks])
            axes.set(xlabel="width", ylabel=label)
            axes.set_title(f"{name}, {kind}", loc="left", pad=8)

        return draw(f"{quantity} {name} {kind}", pixels, _alt(finding, name, kind, label, own), paint)

    return [panel(*pair) for pair in pairs]


def _paint_line(axes: "Axes", widths: Sequence[int], one: Slope, look: Look) -> None:
    points = [(width, value) for width, value in zip(widths, one.values, strict=True) if value is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, look.marker, color=look.colour, ls=look.dash, lw=1.3, ms=5, mec="white", mew=0.8, zorder=3)


def _alt(finding: CoordinateFinding, name: str, kind: str, label: str, own: Sequence[Slope]) -> str:
    said = next(
        (
            o.prediction
            for o in finding.predictions
            if (o.prediction.name, o.prediction.parametrization) == (name, kind)
        ),
        None,
    )
    parts = [f"{short_layer(one.layer)} {power_words(one)}" for one in own]
    if said and any(one.layer == HIDDEN for one in own):
        parts.append(f"predicted {predicted_words(said)}")
    return f"{name}, {kind}: {label}, against the width, as a power of it: {'; '.join(parts)}."
