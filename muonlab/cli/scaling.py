"""speedup, fit: the analyses of the ladder on anybody's runs."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import command_line, names
from muonlab.cli.laboratory import print_json
from muonlab.cli.show import print_parts, show_comparison
from muonlab.cli.tables import Column, Runs, read_runs
from muonlab.errors import UsageError, unknown

if TYPE_CHECKING:
    from muonlab.analyze.runs import Run
    from muonlab.analyze.significance import Noise

__all__ = ["NoiseNats", "Settings", "Where", "compare_table", "fit", "speedup"]

NoiseNats = Annotated[
    float | None,
    typer.Option("--noise", metavar="NATS", min=0.0,
                 help="Standard deviation between seeds that intervals assume; needed where rows have no seeds."),
]  # fmt: skip
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="NAME=VALUE", help="Only rows with that value in that column; repeatable."),
]

Settings = Annotated[
    str | None,
    typer.Option("--settings", metavar="NAMES", help="Columns that are settings, comma-separated.",
                 show_default="every column without another meaning"),
]  # fmt: skip


def speedup(
    source: Runs,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The optimizer that all others are measured by.")
    ] = "adamw",
    noise: NoiseNats = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            "--at",
            metavar="PARAMS:TOKENS",
            help="Also extrapolate to a size and length that was not run, such as 7e9:140e9; repeatable.",
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
    from muonlab.analyze.scaling import fit as fitted

    needs = ("params", "tokens", "loss") if law == "chinchilla" else ("tokens", "loss")
    runs = chosen(read_runs(source, column, needs), where, settings)
    points, spread = _points(runs, law, noise)
    if drop_worst >= len(points):
        raise UsageError(f"--drop-worst {drop_worst} leaves none of {len(points)} points")
    kept = sorted(points, key=lambda point: point.loss)[: len(points) - drop_worst]
    finding = fitted(law, kept, noise=spread, huber_delta=huber)
    if json:
        return print_json(finding.to_dict())
    from muonlab.report.scaling import fit_table

    print_parts(fit_table(finding))


def compare_table(
    source: str, baseline: str, noise: float | None, margin: float | None, where: Sequence[str] | None,
    settings: str | None, columns: Sequence[str] | None, out: Path | None, json: bool,
) -> None:  # fmt: skip
    """Compare the runs of a table or store, at one size."""
    from muonlab.analyze.audit import audit, from_runs
    from muonlab.analyze.tabled import compare_runs

    runs = chosen(read_runs(source, columns, ("optimizer", "tokens", "loss")), where, settings)
    objections = audit(from_runs(runs, baseline=baseline, noise_nats=noise))
    finding = compare_runs(runs, baseline, objections, noise_nats=noise, margin_nats=margin)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    show_comparison(finding, 0, out or Path("muonlab-report.html"), created, command_line(), json)


def chosen(runs: Sequence["Run"], where: Sequence[str] | None, settings: str | None = None) -> list["Run"]:
    """The runs with the values that --where asks for, and of their settings those that --settings names."""
    from muonlab.study.config import parse_setting

    kept = list(runs)
    known = set().union(*(run.settings for run in runs))
    valid = {"optimizer", "size", "params", "tokens", "seed"} | known
    for name, value in (parse_setting(text, "--where") for text in where or ()):
        if name not in valid:
            raise unknown("column", name, valid)
        values = {str(_value(run, name)) for run in kept}
        kept = [run for run in kept if _is(_value(run, name), value)]
        if not kept:
            raise UsageError(f"no row has {name}={value}: there are {', '.join(sorted(values)[:8])}")
    named = names(settings)
    if named is None:
        return kept
    for name in named:
        if name not in known:
            raise unknown("column", name, known)
    return [replace(run, settings={n: v for n, v in run.settings.items() if n in named}) for run in kept]


def _is(found: Any, asked: Any) -> bool:
    """Whether a value is the one that was typed, which TOML may have read as a number."""
    if isinstance(asked, float) and isinstance(found, str):
        return found == str(asked) or found == f"{asked:g}"
    return bool(found == asked) or str(found) == str(asked)


def _value(run: "Run", name: str) -> Any:
    return getattr(run, name) if name in ("optimizer", "size", "params", "tokens", "seed") else run.settings.get(name)


def _place(text: str) -> Any:
    from muonlab.analyze.speedups import At

    try:
        params, tokens = (float(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(f"--at wants PARAMS:TOKENS, such as 7e9:140e9, got {text!r}") from None
    if not params > 0 or not tokens > 0:
        raise UsageError(f"--at wants numbers above 0, got {text!r}")
    return At(params, tokens)


def _points(runs: Sequence["Run"], law: str, noise_nats: float | None) -> tuple[list[Any], "Noise | None"]:
    """Points of a law, and the noise that is known of them; of runs that name an optimizer the best at each length."""
    from muonlab.analyze.runs import best_cells, final
    from muonlab.analyze.scaling import Point
    from muonlab.analyze.significance import KNOWN, Noise, pooled_noise

    ends = [run for run in final(runs) if run.loss is not None]
    if not any(run.optimizer for run in ends):
        known = None if noise_nats is None else Noise(noise_nats**2, KNOWN)
        return [Point(run.tokens, run.loss, run.params) for run in ends], known
    for name in ("optimizer", *(("size",) if law != "chinchilla" else ())):
        values = sorted({getattr(run, name) for run in ends})
        if len(values) > 1:
            raise UsageError(
                f"there are several values of {name} ({', '.join(values[:8])}): choose with --where {name}="
            )
    cells = list(best_cells(ends).values())
    found = pooled_noise([cell.losses for cell in cells])
    known = Noise(noise_nats**2, KNOWN) if noise_nats is not None else found if found.degrees else None
    return [Point(cell.tokens, cell.mean, cell.params, len(cell.losses)) for cell in cells], known
