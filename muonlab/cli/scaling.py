"""speedup, fit: the analyses of the ladder on anybody's runs."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import check_out, command_line, count
from muonlab.cli.laboratory import print_json
from muonlab.cli.show import print_parts, show_finding
from muonlab.cli.tables import Baseline, Column, NoiseNats, Runs, Settings, Where, chosen, read_runs
from muonlab.errors import UsageError, unknown

__all__ = ["compare_table", "fit", "speedup"]


def speedup(
    source: Runs,
    baseline: Baseline = "adamw",
    noise: NoiseNats = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="PARAMS:TOKENS",
            help="Also extrapolate to a size and length that was not run, such as 7B:140B; repeatable.",
        ),
    ] = None,
    where: Where = None,
    settings: Settings = None,
    column: Column = None,
    json: opt.Json = False,
) -> None:
    """How many tokens each optimizer saves at each size and length, on anybody's runs.

    Columns: optimizer, tokens, loss (final, held out; empty or inf: diverged), and size or params. Optional: seed;
    horizon_tokens, so that rows before the end of a schedule are left out; every other column is a setting, and of
    several settings the best is compared.
    """  # fmt: skip
    from muonlab.analyze.speedups import speedup_table

    places = [_place(text) for text in at or ()]
    runs = chosen(read_runs(source, column, ("optimizer", "tokens", "loss")), where, settings)
    finding = speedup_table(runs, baseline, noise_nats=noise, at=places)
    if json:
        return print_json(finding.to_dict())
    from muonlab.report.scaling import speedups_table

    print_parts(speedups_table(finding))


def fit(
    source: Runs,
    law: Annotated[str, typer.Option("--law", help="data, power or chinchilla.")] = "data",
    noise: NoiseNats = None,
    drop_worst: Annotated[int, typer.Option("--drop-worst", min=0, help="Leave out the rows of highest loss.")] = 0,
    huber: Annotated[
        float,
        typer.Option("--huber", min=1e-12, help="Of the chinchilla law: errors of log loss above this are outliers."),
    ] = 1e-3,
    where: Where = None,
    settings: Settings = None,
    column: Column = None,
    json: opt.Json = False,
) -> None:
    """Fit a scaling law of the loss.

    data: loss = a tokens^-exponent + b; power: the same without b; chinchilla: loss = E + A params^-alpha +
    B tokens^-beta. Columns: tokens, loss, and params for chinchilla; where there are optimizers and sizes, --where
    chooses one.
    """
    from muonlab.analyze.points import law_points
    from muonlab.analyze.scaling import fit as fitted

    needs = ("params", "tokens", "loss") if law == "chinchilla" else ("tokens", "loss")
    runs = chosen(read_runs(source, column, needs), where, settings)
    points, spread, notes = law_points(runs, law, noise)
    if drop_worst >= len(points):
        raise UsageError(f"--drop-worst {drop_worst} leaves none of {len(points)} points")
    kept = sorted(points, key=lambda point: point.loss)[: len(points) - drop_worst]
    finding = fitted(law, kept, noise=spread, huber_delta=huber)
    finding = replace(finding, notes=(*notes, *finding.notes))
    if json:
        return print_json(finding.to_dict())
    from muonlab.report.scaling import fit_table

    print_parts(fit_table(finding))


def compare_table(
    source: str, optimizers: Sequence[str] | None, baseline: str | None, noise: float | None, margin: float | None,
    where: Sequence[str] | None, settings: str | None, columns: Sequence[str] | None, out: Path, json: bool,
) -> None:  # fmt: skip
    """Compare the runs of a table or store, at one size."""
    from muonlab.analyze.tabled import compare_runs

    runs = chosen(read_runs(source, columns, ("optimizer", "tokens", "loss")), where, settings)
    there = {run.optimizer for run in runs}
    for name in optimizers or ():
        if name not in there:
            raise unknown("optimizer", name, there)
    runs = [run for run in runs if optimizers is None or run.optimizer in optimizers]
    first = optimizers[0] if optimizers else "adamw"
    finding = compare_runs(runs, baseline or first, noise_nats=noise, margin_nats=margin)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    check_out(out)
    show_finding("comparison", finding, 0, out, created, command_line(), json)


def _place(text: str) -> Any:
    from muonlab.analyze.speedups import At

    params, colon, tokens = text.partition(":")
    if not colon:
        raise UsageError(f"--at wants PARAMS:TOKENS, such as 7B:140B, got {text!r}")
    return At(count(params, "--at"), count(tokens, "--at"))
