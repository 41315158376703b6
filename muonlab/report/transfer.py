"""The finding of a transfer study for the terminal."""

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.significance import withheld
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
    return (
        found
        + checked
        + spaced(
            checks_table(finding.checks),
            Text(
                f"{plural(finding.num_runs, 'run')} in this study, {finding.num_failed:,} failed, "
                f"{show(finding.total_tokens, 'tokens')} tokens, {show(finding.total_flops, 'tokens')} flops in all. "
                "Intervals are 95 %, of the noise between seeds.",
                style="dim",
            ),
        )
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
    """The optimum of each mesh, a row for each hyperparameter; where a window was extended or ends on an edge, that."""
    table = grid("Optimum by width, and what finding it took")
    headings = ("optimizer", "width", "grid", "runs", "hyperparameter", "optimum", "95 % interval")
    numbers = ("width", "grid", "runs", "optimum")
    for heading in headings:
        whole = heading != "optimizer"
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold", no_wrap=whole)
    last = ""
    for one in finding.stages:
        name = "" if one.arm == last else one.arm
        shape, last = "x".join(map(str, one.points.values())), one.arm
        head = [name, f"{one.width:,}", shape, f"{one.num_runs:,}"]
        lost = [f"lost {one.num_lost}"] if one.num_lost else []
        lost += [] if one.fitted else ["no parabola"]
        for axis in one.points:
            place = one.optimum.get(axis)
            notes = lost + (["extended"] if axis in one.extended else []) + (["edge"] if axis in one.edges else [])
            value, ends = ("-", "") if place is None else place_words(place)
            table.add_row(*map(cell, (*head, axis, value, "\n".join(filter(None, [ends, ", ".join(notes)])))))
            head, lost = [""] * len(head), []
    return table


def place_words(place: Place) -> tuple[str, str]:
    """The value, and its interval."""
    return show(place.value, "value3"), interval(place.low, place.high, "value3")


def _drifts(finding: TransferFinding) -> RenderableType:
    table = grid("Drift: log x = limit - rate / width (momentum: of 1 - x), and what it predicts")
    for heading in ("optimizer", "hyperparameter", "rate", "95 % interval", f"at {finding.final_width:,}", "used"):
        table.add_column(heading, justify="right" if heading in ("rate", "used") else "left", overflow="fold")
    for one in finding.drifts:
        table.add_row(
            cell(one.arm), cell(one.hyperparameter), show(one.rate, "bare") if one.low is not None else "-",
            cell(interval(one.low, one.high, neither="-") + ("" if one.lawful else "\nnot 1 / width")),
            cell("\n".join(place_words(one.predicted))), show(one.used, "value3"),
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
    table = grid("Best lr by width, the whole grid at each")
    for heading in ("optimizer", "width", "best lr", "95 % interval", "least loss", ""):
        left = heading in ("optimizer", "95 % interval", "")
        table.add_column(heading, justify="left" if left else "right", overflow="fold")
    last = ""
    for one in finding.survey:
        found = ("-", "") if one.lr is None else place_words(Place(value=one.lr, low=one.low, high=one.high))
        name, last = "" if one.arm == last else one.arm, one.arm
        row = (name, f"{one.width:,}", *found, show(one.loss, "loss"), one.flag)
        table.add_row(*map(cell, row))
    return table


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
