"""ladder: how the speedup, and what has to be tuned, change with model size and tokens per parameter."""

from pathlib import Path
from typing import Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import names, numbers, paths, values
from muonlab.cli.laboratory import Laboratory
from muonlab.cli.protocols import run

__all__ = ["ladder"]


def ladder(
    task: opt.Task,
    sizes: Annotated[
        str | None,
        typer.Option("--sizes", help="Three or more, WIDTHxDEPTH: 16x2,32x2,48x3. Other sizes go into a study file."),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Lengths, in multiples of 20 tokens for each parameter that is neither embedding nor head.",
            show_default="1,2,4,8",
        ),
    ] = None,
    optimizers: opt.Optimizers = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are measured against.", show_default="the first")
    ] = None,
    data: opt.Data = None,
    batch_tokens: opt.BatchTokens = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Final runs of each optimizer, size and length.", show_default="3")
    ] = None,
    seed: opt.FirstSeed = None,
    tune: opt.Tune = None,
    max_runs: opt.MaxRuns = None,
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
    """Speedups at every size and length, what must be tuned anew with scale, and whether laws predict it.

    1. Tunes every optimizer in the small regimes. 2. Finds the hyperparameters that no single value suits in all of
    them, and tunes those alone where that is affordable. 3. Predicts them at the largest size by laws in parameters
    and tokens, and checks the prediction by a search there.

    Results are kept in the store: the same command again runs nothing, and after an interruption it goes on.
    """  # fmt: skip
    from muonlab.study.ladder_plan import parse_sizes

    flags = {
        "task": task, "optimizers": names(optimizers), "baseline": baseline, "data": paths(data),
        "sizes": parse_sizes(sizes) if sizes is not None else None, "ratios": numbers("--ratios", ratios),
        "batch_tokens": batch_tokens, "num_seeds": seeds, "first_seed": seed, "tune": names(tune),
        "max_runs": max_runs, "device": device,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    run("ladder", chosen, laboratory, out or Path("muonlab-ladder.html"), json, dry_run)
