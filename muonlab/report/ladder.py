"""The finding of a ladder for the terminal."""

from collections.abc import Mapping

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.ladder import LadderFinding
from muonlab.records.spec import Value
from muonlab.report.layout import cell, clean, grid, reasons, spaced
from muonlab.report.tables import checks_table
from muonlab.report.text import plural, show

__all__ = ["ladder_table"]


def ladder_table(finding: LadderFinding) -> list[RenderableType]:
    """The finding, verdict first: what `ladder` prints when the runs are done."""
    return spaced(
        Text(clean(finding.verdict), style="bold"),
        *reasons(finding.checks),
        _rungs(finding),
        _settings_table(finding),
        _sensitivity(finding),
        _forecasts(finding),
        *([_controls(finding)] if finding.controls else []),
        *([_flips(finding)] if finding.flips else []),
        checks_table(finding.checks),
        Text(
            f"{plural(finding.num_runs, 'run')} in this study, {show(finding.total_tokens, 'tokens')} tokens in all",
            style="dim",
        ),
    )


def _rungs(finding: LadderFinding) -> RenderableType:
    """Loss, speedup and settings at every size and ratio."""
    rows = {(row.optimizer, row.size, row.tokens): row for row in finding.rows}
    sizes = dict(sorted(((rung.size, rung.params) for rung in finding.rungs), key=lambda pair: pair[1]))
    params = ", ".join(f"{clean(size)} {show(count, 'tokens')}" for size, count in sizes.items())
    table = grid(f"Speedup in tokens over tuned {clean(finding.baseline)}; parameters: {params}")
    for name in ("size", "ratio", "tokens", "optimizer", "loss", "speedup", "95 % interval", ""):
        folds = name in ("size", "optimizer")
        table.add_column(
            name, justify="right" if name in ("ratio", "tokens") else "left", overflow="fold", no_wrap=not folds
        )
    last = None
    for rung in sorted(finding.rungs, key=lambda r: (r.params, r.ratio, r.optimizer != finding.baseline)):
        here, row = (rung.size, rung.ratio), rows.get((rung.optimizer, rung.size, rung.losses.horizon_tokens))
        heads = (
            ("", "", "")
            if here == last
            else (rung.size, f"{rung.ratio:g}x", show(rung.losses.horizon_tokens, "tokens"))
        )
        speedup, interval, said = "-", "", ""
        if row is not None:
            speedup, interval = show(row.speedup, "ratio"), _interval(row.low, row.high)
            said = row.flag or (row.judgement or "")
        loss = show(rung.losses.mean, "loss")
        table.add_row(*map(cell, heads), cell(rung.optimizer), loss, speedup, interval, said)
        last = here
    return table


def _settings_table(finding: LadderFinding) -> RenderableType:
    table = grid("Settings: tuned in full, retuned in what is sensitive to scale, or predicted by laws")
    for name in ("optimizer", "size", "ratio", "settings", ""):
        table.add_column(name, overflow="fold")
    for rung in sorted(finding.rungs, key=lambda r: (r.optimizer != finding.baseline, r.optimizer, r.params, r.ratio)):
        settings = _settings(rung.losses.hyperparameters)
        table.add_row(cell(rung.optimizer), cell(rung.size), f"{rung.ratio:g}x", cell(settings), rung.origin)
    return table


def _sensitivity(finding: LadderFinding) -> RenderableType:
    table = grid("What has to be tuned anew with scale: is one value near-optimal in every regime that was tuned?")
    for name in ("optimizer", "hyperparameter", "", "near-optimal values by regime"):
        table.add_column(name, overflow="fold")
    for name, coordinates in finding.sensitivity.items():
        for one in coordinates:
            said = f"insensitive: {show(one.shared[0], 'value')}" if one.shared else "sensitive"
            near = (f"{r}: {', '.join(show(v, 'value') for v in values)}" for r, values in one.near_optimal.items())
            table.add_row(cell(name), cell(one.coordinate), said, cell("; ".join(near)))
    return table


def _forecasts(finding: LadderFinding) -> RenderableType:
    table = grid("Predicted at the largest size, and what a search there found")
    for name in ("optimizer", "predicted", "loss", "found", "loss", "predicted - found, nats"):
        table.add_column(name, overflow="fold")
    for one in finding.forecasts:
        same = one.predicted == one.found
        gap = "the search kept the prediction" if same else show(one.difference_nats, "difference")
        interval = "" if same else f" {_interval(one.low, one.high, '.4f')}"
        table.add_row(
            cell(one.optimizer), cell(_settings(one.predicted)), show(one.predicted_loss, "loss"),
            cell(_settings(one.found)), show(one.found_loss, "loss"), f"{gap}{interval}",
        )  # fmt: skip
    return table


def _controls(finding: LadderFinding) -> RenderableType:
    table = grid("What tuning is worth: final loss minus that of an optimizer's own tuned settings")
    for name in ("optimizer", "with the settings of", "size", "loss", "nats", "95 % interval", "tuning saves"):
        table.add_column(name, overflow="fold")
    for one in finding.controls:
        lost = f"{plural(one.num_diverged, 'run')} diverged" if one.num_diverged else show(one.loss, "loss")
        table.add_row(
            cell(one.optimizer), cell(one.settings_of or "the defaults of its class"),
            cell(f"{one.size}, {one.ratio:g}x"), lost, show(one.difference_nats, "difference"),
            _interval(one.low, one.high, ".4f"),
            "-" if one.speedup is None else f"{show(one.speedup, 'ratio')} tokens",
        )  # fmt: skip
    return table


def _flips(finding: LadderFinding) -> RenderableType:
    table = grid("Rankings that flip before the end of the runs: training loss there, final loss at the end")
    for name in ("size and ratio", "ahead early", "at", "by, nats", "ahead at the end", "by, nats"):
        table.add_column(name)
    for flip in finding.flips:
        table.add_row(
            cell(flip.where), cell(flip.early), f"{flip.fraction:.0%}", show(flip.early_nats, "loss"),
            cell(flip.final), show(flip.final_nats, "loss"),
        )  # fmt: skip
    return table


def _settings(settings: Mapping[str, Value]) -> str:
    return ", ".join(f"{name} {show(value, 'value')}" for name, value in settings.items())


def _interval(low: float | None, high: float | None, kind: str = ".2f") -> str:
    if low is None and high is None:
        return "-"
    return f"[{'0' if low is None else format(low, kind)}, {'unbounded' if high is None else format(high, kind)}]"
