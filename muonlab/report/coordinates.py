"""A coordinate check, for the terminal; and what the probe of a single run saw."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.coordinates import HIDDEN, CoordinateFinding, Predicted, Slope, WidthFit, verdict_parts
from muonlab.records import Record
from muonlab.records.coordinate_evidence import Prediction
from muonlab.records.record import Series
from muonlab.records.watch import CHANGE, UPDATE
from muonlab.report.layout import cell, clean, grid, spaced
from muonlab.report.text import plural, show

__all__ = ["coordinate_sentence", "coordinates_table", "power_words", "predicted_words", "probe_table", "short_layer"]

STYLES = {"passed": "green", "held": "green", "failed": "bold red", "did not hold": "bold red"}


def coordinates_table(finding: CoordinateFinding) -> list[RenderableType]:
    """The verdicts in a sentence, the predictions, then every layer."""
    lrs = ", ".join(f"{name} {show(lr, 'value')}" for name, lr in finding.lr.items())
    notes = (
        f"Power: slope of the logarithm over that of the width, {plural(len(finding.seeds), 'seed')} a width, with its "
        f"95 % Student interval, of which +- is half. A check passes if those of all layers lie within "
        f"{finding.bound:g} of 0, and fails if one lies outside; a prediction holds if the interval lies within "
        f"{finding.bound:g} of it. lr: {lrs}."
    )
    return spaced(
        Text(clean(coordinate_sentence(finding)), style="bold"),
        _checks(finding),
        *_reasons(finding),
        _predictions(finding.predictions),
        *(_layers(finding, name) for name in finding.optimizers),
        Text(clean(notes), style="dim"),
    )


def coordinate_sentence(finding: CoordinateFinding) -> str:
    """Which pass, which fail, and of which nothing can be said."""
    span, parts = f"{finding.widths[0]:,} to {finding.widths[-1]:,}", "; ".join(verdict_parts(finding))
    return f"Coordinate check, widths {span}, after {plural(finding.step, 'step')}: {parts}."


def _checks(finding: CoordinateFinding) -> RenderableType:
    table = grid("Change of the layers' outputs, RMS, as a power of the width")
    for head in ("optimizer", "parametrization"):
        table.add_column(head, overflow="fold")
    table.add_column("check", no_wrap=True)
    table.add_column("furthest from 0", overflow="fold")
    table.add_column("", no_wrap=True)
    for one in finding.checks:
        worst = ("-", "-") if one.worst is None else (short_layer(one.worst.layer), power_words(one.worst))
        table.add_row(*map(cell, (one.name, one.parametrization)), _judged(one.verdict), *map(cell, worst))
    return table


def _reasons(finding: CoordinateFinding) -> list[RenderableType]:
    """Why those that did not pass did not, a line each."""
    told = [one for one in finding.checks if one.verdict != "passed"]
    return [Text(clean("\n".join(f"- {o.name} {o.parametrization}: {o.detail}" for o in told)))] if told else []


def _predictions(found: Sequence[Predicted]) -> RenderableType:
    table = grid("Updates of hidden matrices, RMS -> RMS with lr, as a power of the width")
    for head in ("optimizer", "parametrization"):
        table.add_column(head, overflow="fold")
    for head in ("predicted", "measured"):
        table.add_column(head, no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in found:
        said = one.prediction
        row = (said.name, said.parametrization, predicted_words(said), power_words(one))
        table.add_row(*map(cell, row), _judged(one.verdict))
    return table


def _layers(finding: CoordinateFinding, name: str) -> RenderableType:
    table = grid(f"{clean(name)}, layer by layer")
    table.add_column("", overflow="fold")
    for kind in finding.parametrizations:
        table.add_column(clean(kind), no_wrap=True)
    for quantity, title in (("change", "change of output"), ("update", "update")):
        layers = list(dict.fromkeys(s.layer for s in finding.slopes if (s.name, s.quantity) == (name, quantity)))
        layers = [layer for layer in layers if layer != HIDDEN]
        if layers:
            table.add_row(Text(title, style="dim"))
        for layer in layers:
            own = [finding.slope(name, kind, quantity, layer) for kind in finding.parametrizations]
            table.add_row(cell(f"  {short_layer(layer)}"), *(cell(_half(one)) for one in own))
    return table


def _judged(verdict: str) -> Text:
    return Text(verdict, style=STYLES.get(verdict, ""))


def _half(one: Slope | None) -> str:
    if one is None or one.slope is None:
        return "-"
    return show(one.slope, "correlation") + ("" if one.high is None else f" +- {one.high - one.slope:.2f}")


def power_words(one: Slope | Predicted | WidthFit) -> str:
    """
    >>> power_words(WidthFit(0.4927, 0.418, 0.5665)), power_words(WidthFit(None, None, None))
    ('+0.49 [+0.42, +0.57]', '-')
    """
    if one.slope is None or one.low is None or one.high is None:
        return show(one.slope, "correlation")
    return f"{one.slope:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


def predicted_words(one: Prediction) -> str:
    """
    >>> predicted_words(Prediction(name="adamw", parametrization="mup", low=-0.5, high=0.0, reason=""))
    '-0.5 to 0'
    """
    if one.low is None or one.high is None:
        return "-"
    return f"{one.low:g}" if one.low == one.high else f"{one.low:g} to {one.high:g}"


def short_layer(layer: str) -> str:
    """
    >>> short_layer("blocks.*.attention.q"), short_layer("head")
    ('attention.q', 'head')
    """
    return layer.rpartition("*.")[2]


def probe_table(record: Record) -> list[RenderableType]:
    """What the coordinate check of one run saw, step by step; nothing where it was not taken."""
    probes = {name: series for name, series in record.probes.items() if name.startswith((CHANGE, UPDATE))}
    if not probes:
        return []
    steps = sorted({step for series in probes.values() for step in series.steps})
    shown = steps if len(steps) <= 6 else steps[:: -(-len(steps) // 6)]
    table = grid("Change of outputs since initialisation, and updates of matrices, by step")
    table.add_column("", overflow="fold", ratio=1)
    for step in shown:
        table.add_column(str(step), justify="right", no_wrap=True)
    for prefix, title in ((CHANGE, "change of output, RMS"), (UPDATE, "update, RMS -> RMS, with lr")):
        table.add_row(Text(title, style="dim"))
        for name, series in probes.items():
            if name.startswith(prefix):
                layer = name.removeprefix(prefix).removesuffix(".weight")
                table.add_row(cell(f"  {layer}"), *(cell(_at(series, step)) for step in shown))
    return spaced(table)


def _at(series: Series, step: int) -> str:
    value = dict(zip(*series, strict=True)).get(step)
    return "-" if value is None else f"{value:.3g}"
