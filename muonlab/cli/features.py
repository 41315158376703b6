"""features: what optimizers leave in a model beside its loss."""

from pathlib import Path
from typing import Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import names, paths, values
from muonlab.cli.laboratory import Laboratory
from muonlab.cli.protocols import run

__all__ = ["features"]


def features(
    task: opt.Task,
    optimizers: Annotated[
        str | None,
        typer.Option("--optimizers", help="Comma-separated names, two or more.", show_default="muon,adamw,sgd"),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are measured against.", show_default="adamw")
    ] = None,
    data: opt.Data = None,
    tokens: opt.Tokens = None,
    batch_tokens: opt.BatchTokens = None,
    seeds: Annotated[
        int | None, typer.Option(min=3, help="Final runs of each optimizer, with and without decay.", show_default="3")
    ] = None,
    seed: opt.FirstSeed = None,
    tune: opt.Tune = None,
    max_runs: opt.MaxRuns = None,
    precision: opt.Precision = None,
    compile: opt.Compile = False,
    settings: opt.Set = None,
    config: opt.Config = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    workers: opt.Workers = 0,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = opt.DEFAULT_ARTIFACTS,
    device: opt.Device = None,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Ranks and margins by layer and losses under corruption: after the same tokens, and at the same loss.

    1. Tunes every optimizer as `compare` does, then lr again without weight decay. 2. Final runs on fresh seeds, whose
    layers are probed and whose inputs are corrupted on the way. 3. Tests what is claimed of Muon, seed by seed.

    Results are kept in the store: the same command again runs nothing, and after an interruption it goes on.
    """
    flags = {
        "task": task, "optimizers": names(optimizers), "baseline": baseline, "data": paths(data),
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "num_seeds": seeds, "first_seed": seed,
        "tune": names(tune), "max_runs": max_runs, "device": device,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    run("features", chosen, laboratory, Path("muonlab-features.html"), json, dry_run)
