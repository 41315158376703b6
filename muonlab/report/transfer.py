"""The finding of a transfer study for the terminal."""

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.significance import withheld
from muonlab.analyze.survey import SurveyPoint
from muonlab.analyze.transfer_finding import Place, TransferFinding
from muonlab.report.coordinates import coordinates_table
from muonlab.report.layout import cell, clean, grid, interval, reasons, spaced
from muonlab.report.tables import checks_table
from muonlab.report.text import plural, show

__all__ = ["transfer_table"]

COST_COLUMNS = (
    "this way", "first grid\nalone", "grid at the\nfinal width", "ratio\nto that", "first grid\ngives up",
    "noise may\ncost (95 %)",
)  # fmt: skip


def transfer_table(finding: TransferFinding) -> list[RenderableType]:
    """The finding, verdict first: what `transfer` prints when the runs are done."""
    telescoped = finding.final_width is not None
    found = spaced(
        Text(clean(finding.verdict) or "No verdict was drawn.", style="bold"),
        *reasons(finding.checks),
        *([_finals(finding), _stages(finding), _drifts(finding), _costs(finding)] if telescoped else []),
        *([_survey(finding), _slopes(finding)] if finding.survey else []),
    )
    checked = [] if finding.coordinates is None else coordinates_table(finding.coordinates)
    return found + checked + spaced(
        checks_table(finding.checks),
        Text(
            f"{plural(finding.num_runs, 'run')} in this study, {finding.num_failed:,} failed, "
            f"{show(finding.total_tokens, 'tokens')} tokens, {show(finding.total_flops, 'tokens')} flops in all. "
            "Intervals are 95 %, of the noise between seeds.",
            style="dim",
        ),
    )


def _finals(finding: TransferFinding) -> RenderableType:
    table = grid(f"Width {finding.final_width:,}: settings, and final loss on fresh seeds")
    for heading in ("optimizer", "settings", "loss", "95 % interval", ""):
        table.add_column(heading, justify="right" if heading == "loss" else "left", overflow="fold")
    for arm in finding.arms:
        test = finding.contrasts.get(arm.name)
        said = "" if test is None else "withheld" if withheld(finding.checks) else test.judgement
        settings = "\n".join(f"{name} {show(value, 'value3')}" for name, value in arm.best.items())
        table.add_row(
            cell(arm.name), cell(settings or "-"), show(arm.loss_mean, "loss"),
            cell(interval(arm.loss_low, arm.loss_high, "loss", neither="-")), said,
        )  # fmt: skip
    return table


def _stages(finding: TransferFinding) -> RenderableType:
    """The optimum of each mesh; where a window was extended a plus, where it ends on an edge the word."""
    table = grid("Optimum by width, with 95 % intervals, and what finding it took")
    for heading in ("optimizer", "width", "grid", "optimum", "runs", "tokens", "flops", ""):
        table.add_column(
            heading, justify="left" if heading in ("optimizer", "optimum", "") else "right", overflow="fold"
        )
    last = ""
    for one in finding.stages:
        places = "\n".join(f"{name} {place_text(place)}" for name, place in one.optimum.items())
        notes = [f"lost {one.num_lost}"] if one.num_lost else []
        notes += [f"extended {name}" for name in one.extended] + [f"edge {name}" for name in one.edges]
        notes += [] if one.fitted else ["no parabola"]
        table.add_row(
            cell("" if one.arm == last else one.arm), f"{one.width:,}", "x".join(map(str, one.points.values())),
            cell(places or "-"), f"{one.num_runs:,}", show(one.tokens, "tokens"), show(one.flops, "tokens"),
            cell("\n".join(notes)),
        )  # fmt: skip
        last = one.arm
    return table


def place_text(place: Place) -> str:
    return f"{show(place.value, 'value3')}\n  {interval(place.low, place.high, 'value3')}"


def _drifts(finding: TransferFinding) -> RenderableType:
    table = grid("Drift: log x = limit - rate / width (momentum: of 1 - x), and what it predicts")
    for heading in ("optimizer", "hyperparameter", "rate", "95 % interval", f"at {finding.final_width:,}", "used"):
        table.add_column(heading, justify="right" if heading in ("rate", "used") else "left", overflow="fold")
    for one in finding.drifts:
        table.add_row(
            cell(one.arm), cell(one.hyperparameter), show(one.rate, "bare") if one.low is not None else "-",
            cell(interval(one.low, one.high, neither="-") + ("" if one.lawful else "\nnot as 1 / width")),
            cell(place_text(one.predicted)), show(one.used, "value3"),
        )  # fmt: skip
    return table


def _costs(finding: TransferFinding) -> RenderableType:
    """All with the same final runs."""
    table = grid("Flops of all runs, against two other ways to tune; nats by the fit")
    table.add_column("optimizer", overflow="fold")
    for heading in COST_COLUMNS:
        table.add_column(heading, justify="right")
    for arm in finding.arms:
        table.add_row(
            cell(arm.name), show(arm.flops, "tokens"), show(arm.direct_flops, "tokens"), show(arm.grid_flops, "tokens"),
            show(arm.cost_ratio, "share"), show(arm.direct_nats, "loss"), show(arm.regret_high, "loss"),
        )  # fmt: skip
    if len(finding.arms) > 1:
        total = sum(arm.flops for arm in finding.arms)
        table.add_row("all", show(total, "tokens"), "", "", show(finding.cost_ratio, "share"), "", "")
    return table


def _survey(finding: TransferFinding) -> RenderableType:
    """A row for each arm, a column for each width."""
    table = grid("Best lr by width, the whole grid at each, with 95 % intervals")
    table.add_column("optimizer", overflow="fold")
    for width in finding.widths:
        table.add_column(f"{width:,}", overflow="fold")
    for name in dict.fromkeys(one.arm for one in finding.survey):
        own = {one.width: one for one in finding.survey if one.arm == name}
        table.add_row(cell(name), *(cell(_lr(own[width])) for width in finding.widths))
    return table


def _lr(one: SurveyPoint) -> str:
    if one.lr is None:
        return "all lost"
    parts = [show(one.lr, "value3"), interval(one.low, one.high, "value3"), one.flag]
    return "\n".join(filter(None, parts))


def _slopes(finding: TransferFinding) -> RenderableType:
    first, last = finding.widths[0], finding.widths[-1]
    table = grid(f"Slope of log lr* over log width; given up: by the best lr of width {first:,} at {last:,}")
    for heading in ("optimizer", "slope", "95 % interval", "", "nats given up", "error"):
        left = heading in ("optimizer", "95 % interval", "")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    for one in finding.slopes:
        table.add_row(
            cell(one.arm), show(one.slope, "correlation"),
            cell(interval(one.low, one.high, "correlation", neither="-")), one.verdict,
            show(one.given_up_nats, "loss"), show(one.given_up_error, "loss"),
        )  # fmt: skip
    return table
