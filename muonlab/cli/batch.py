"""batch: how tokens and time to a loss, and the token ratio of optimizers, change with the batch size."""

from pathlib import Path
from typing import Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli import pilot
from muonlab.cli.arguments import names, numbers, paths, values, whole_numbers
from muonlab.cli.laboratory import Laboratory
from muonlab.cli.protocols import run

__all__ = ["batch"]


def batch(
    task: opt.Task,
    batches: Annotated[
        str | None, typer.Option("--batches", metavar="TOKENS,...", help="Three or more batch sizes, tokens a step.")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets", metavar="LOSS,...", help="Held-out losses to reach.", show_default="from the baseline's curve"
        ),
    ] = None,
    optimizers: opt.Optimizers = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are measured against.", show_default="the first")
    ] = None,
    data: opt.Data = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            min=1,
            help="Length of the first runs; longer ones follow where the targets take it.",
            show_default="1000000",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Final runs of each optimizer and batch size.", show_default="3")
    ] = None,
    seed: opt.FirstSeed = None,
    tune: opt.Tune = None,
    retune: Annotated[
        str | None,
        typer.Option(
            "--retune",
            help="Comma-separated hyperparameters to tune at every batch size.",
            show_default="opt.lr,opt.momentum,opt.beta1",
        ),
    ] = None,
    max_runs: Annotated[
        int | None,
        typer.Option("--max-runs", min=1, help="Cap on tuning runs, per optimizer and batch size.", show_default="80"),
    ] = None,
    predict: Annotated[
        bool,
        typer.Option("--predict", help="Only a short pilot: recommend a batch size for a run of --tokens."),
    ] = False,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices",
            metavar="N,...",
            help="Numbers of devices of the modelled frontier.",
            show_default="1,2,4,8,16,32",
        ),
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option("--bandwidth", help="Between devices, bytes per second, for that model.", show_default="1e10"),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option("--latency", min=0.0, help="Of an all-reduce, seconds, for that model.", show_default="0"),
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
    """Tokens and time to a loss at every batch size, their ratio, the critical batch size, and the frontier.

    1. Tunes every optimizer at the middle batch. 2. From there outward, sets each batch by rule and searches lr and
    momentum around it, in runs that are long enough for the hardest target. 3. Final runs on fresh seeds.

    lr is constant, and losses are those of averaged weights: no point of a decaying schedule is ever read off.

    Results are kept in the store: the same command again runs nothing, and after an interruption it goes on.
    """  # fmt: skip
    flags = {
        "task": task, "optimizers": names(optimizers), "baseline": baseline, "data": paths(data),
        "batches": whole_numbers("--batches", batches), "targets": numbers("--targets", targets),
        "horizon_tokens": tokens, "num_seeds": seeds, "first_seed": seed, "tune": names(tune),
        "retune": names(retune), "max_runs": max_runs, "device": device,
        "devices": whole_numbers("--devices", devices), "bandwidth": bandwidth,
        "latency_seconds": latency,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    if predict:
        return pilot.predict(chosen, laboratory, json, dry_run)
    run("batch", chosen, laboratory, out or Path("muonlab-batch.html"), json, dry_run)
