"""transfer: hyperparameters tuned on narrow models for a wide one, and whether they move with the width at all."""

from pathlib import Path
from typing import Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import names, paths, values, whole_numbers
from muonlab.cli.laboratory import Laboratory
from muonlab.cli.protocols import run

__all__ = ["transfer"]


def transfer(
    task: opt.Task,
    widths: Annotated[
        str | None,
        typer.Option("--widths", metavar="N,...", help="task.width of the models to tune on, ascending."),
    ] = None,
    final: Annotated[
        int | None, typer.Option("--final", metavar="N", min=1, help="task.width of the model to tune for.")
    ] = None,
    optimizers: opt.Optimizers = None,
    parametrizations: Annotated[
        str | None,
        typer.Option("--parametrizations", help="Comma-separated: standard, mup, spectral.", show_default="standard"),
    ] = None,
    hyperparameters: Annotated[
        str | None,
        typer.Option(
            "--hyperparameters",
            help="Comma-separated, opt.lr among them: at most three.",
            show_default="opt.lr,opt.weight_decay",
        ),
    ] = None,
    survey: Annotated[
        bool, typer.Option("--survey", help="Also the whole lr grid at every width; without --final only that.")
    ] = False,
    no_coordinates: Annotated[
        bool, typer.Option("--no-coordinates", help="Leave out the coordinate check that comes first.")
    ] = False,
    coordinate_widths: Annotated[
        str | None,
        typer.Option(
            "--coordinate-widths", metavar="N,...", help="Further widths for that check, whose runs are 8 steps."
        ),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option("--points", min=3, help="Of each hyperparameter at the first width.", show_default="7"),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="Factor between two neighbours there.", show_default="2")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are measured against.", show_default="the first")
    ] = None,
    data: opt.Data = None,
    tokens: opt.Tokens = None,
    batch_tokens: opt.BatchTokens = None,
    seeds: Annotated[int | None, typer.Option(min=2, help="Final runs of each optimizer.", show_default="3")] = None,
    seed: opt.FirstSeed = None,
    max_runs: Annotated[
        int | None,
        typer.Option("--max-runs", min=1, help="Cap on tuning runs, per optimizer.", show_default="2000"),
    ] = None,
    precision: opt.Precision = None,
    compile: opt.Compile = False,
    settings: opt.Set = None,
    config: opt.Config = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    out: opt.Out = None,
    workers: opt.Workers = 0,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = opt.DEFAULT_ARTIFACTS,
    device: opt.Device = None,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Hyperparameters for a wide model from narrow ones, by telescoping; and whether the best lr moves with the width.

    1. The coordinate check: a few steps at every width, predicted before.
    2. The whole grid at the first width.
    3. At each wider one a smaller, finer grid around the optimum, as costly.
    4. From its drift the settings at --final, and runs with fresh seeds.

    The base model of a parametrization is that of the first width.

    The store keeps results: the same command runs nothing twice and goes on.
    """
    flags = {
        "task": task, "optimizers": names(optimizers), "baseline": baseline, "data": paths(data),
        "widths": whole_numbers("--widths", widths), "final": final, "parametrizations": names(parametrizations),
        "tune": names(hyperparameters), "survey": survey or None,
        "coordinates": False if no_coordinates else None,
        "coordinate_widths": whole_numbers("--coordinate-widths", coordinate_widths), "points": points, "ratio": ratio,
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "num_seeds": seeds, "first_seed": seed,
        "max_runs": max_runs, "device": device,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    run("transfer", chosen, laboratory, out or Path("muonlab-transfer.html"), json, dry_run)
