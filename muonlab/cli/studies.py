"""demo, compare, tune and report: the verbs that run or show a study."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import names, paths, refuse_flags, values
from muonlab.cli.laboratory import Laboratory, users_code
from muonlab.cli.protocols import KINDS, conclude_and_show, evidence_of, run
from muonlab.cli.scaling import compare_table
from muonlab.cli.show import show_price, show_tuning
from muonlab.cli.tables import Column, NoiseNats, Settings, Where
from muonlab.errors import UsageError

__all__ = ["compare", "demo", "report", "tune"]

FOR_RUNS = (
    "task", "variant", "data", "tokens", "batch_tokens", "seeds", "seed", "tune", "max_runs", "precision", "compile",
    "settings", "config", "store", "workers", "threads", "artifacts", "device", "dry_run",
)  # fmt: skip

DEMO = {
    "task": "text",
    "optimizers": ("adamw", "muon"),
    "horizon_tokens": 77_824,
    "batch_tokens": 1024,
    "num_seeds": 5,
    "tuning_seeds": 3,
    "max_runs": 60,
    "settings": {"task.width": 32, "task.depth": 2, "task.seq_len": 64, "task.eval_tokens": 65_536},
}


def demo(
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    out: opt.Out = None,
    workers: opt.Workers = 0,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = opt.DEFAULT_ARTIFACTS,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
    dry_run: opt.DryRun = False,
) -> None:
    """The main job on embedded real text: AdamW against Muon, both tuned, five seeds, verdict and report.

    Takes a few minutes on two cores the first time; a second call runs nothing and shows the same numbers.
    """
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress)
    run("comparison", DEMO, laboratory, out or Path("muonlab-demo.html"), json, dry_run)


def compare(
    context: typer.Context,
    task: Annotated[str | None, opt.TASK] = None,
    optimizers: opt.Optimizers = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="What the others are measured against.", show_default="the first; with --from adamw"),
    ] = None,
    variant: opt.Variant = None,
    margin: opt.Margin = None,
    table: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE.csv|STORE", help="Compare these runs, and run nothing."),
    ] = None,
    noise: NoiseNats = None,
    where: Where = None,
    columns_set: Settings = None,
    column: Column = None,
    data: opt.Data = None,
    tokens: opt.Tokens = None,
    batch_tokens: opt.BatchTokens = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Final runs per optimizer and horizon.", show_default="5")
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
    """The fair comparison: tune each optimizer the same way, compare final losses over fresh seeds.

    A --variant is named where optimizers are, or joins the default ones; what it sets is not tuned.

    Results are kept in the store: the same command again runs nothing, and after an interruption it goes on.

    With --from the runs are anybody's: columns as for `muonlab speedup`, at one size; what `muonlab audit` calls an
    error is a broken check.
    """
    out = out or Path("muonlab-report.html")
    if table is not None:
        refuse_flags(context, FOR_RUNS, "for runs that muonlab makes, which --from does not")
        return compare_table(table, names(optimizers), baseline, noise, margin, where, columns_set, column, out, json)
    refuse_flags(context, ("noise", "where", "columns_set", "column"), "for the runs of a table, named with --from")
    if task is None and config is None:
        raise UsageError("a comparison needs a TASK, such as text; or runs that there are, with --from FILE.csv")
    flags = {
        "task": task, "optimizers": names(optimizers), "baseline": baseline, "data": paths(data),
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "num_seeds": seeds, "first_seed": seed,
        "tune": names(tune), "max_runs": max_runs, "device": device, "margin_nats": margin,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    _add_variants(chosen, variant or [])
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    run("comparison", chosen, laboratory, out, json, dry_run)


def tune(
    task: opt.Task,
    optimizer: opt.Optimizer,
    data: opt.Data = None,
    tokens: opt.Tokens = None,
    batch_tokens: opt.BatchTokens = None,
    tune: Annotated[str, typer.Option(help="Comma-separated hyperparameters to tune.")] = "all",
    max_runs: opt.MaxRuns = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Shifts the tuning seeds.", show_default="0")] = None,
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
    """Tune one optimizer by coordinate descent and print where each hyperparameter ended, and why."""
    from muonlab.records.store import Store
    from muonlab.study.config import validated
    from muonlab.study.plan import plan_comparison
    from muonlab.study.tune import tune as protocol

    flags = {
        "task": task, "optimizers": (optimizer,), "baseline": optimizer, "data": paths(data),
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "tune": names(tune), "max_runs": max_runs,
        "first_seed": seed, "device": device,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    with users_code():
        plan = plan_comparison(validated(chosen))
    price = plan.price(final_runs=False)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    if dry_run:
        return show_price(price, laboratory, json)
    name = plan.rules.baseline
    result, outcome = laboratory.run(
        protocol(plan.bases[name], plan.spaces[name], plan.rules.tuning), price.likely_tokens
    )
    with Store(store) as opened:
        records = opened.get([key for trial in result.trials for key in trial.keys])
    show_tuning(replace(result, optimizer=name), records, plan.starts[name], json)
    if outcome.num_failed:
        sys.exit(1)


def report(
    study: Annotated[str, typer.Argument(help="Key of a study, its beginning, or latest.")] = "latest",
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Show a finished study again, and write its HTML report. Runs nothing."""
    from muonlab.records.store import Store

    with Store(store, read_only=True) as opened:
        saved = opened.study(study)
        if saved.kind not in KINDS:
            raise UsageError(f"study {saved.key[:12]} is of kind {saved.kind!r}: a report is of {' or '.join(KINDS)}")
        evidence = evidence_of(saved.kind, saved.result)
        records = opened.get(evidence.record_keys())
    missing = set(evidence.record_keys()) - set(records)
    if missing:
        raise UsageError(f"{len(missing)} runs of study {saved.key[:12]} are no longer in {store}: run it again")
    target, command = out or Path("muonlab-report.html"), str(saved.config.get("command", ""))
    conclude_and_show(saved.kind, evidence, records, 0, target, saved.created, command, json)


def _add_variants(chosen: dict[str, Any], texts: list[str]) -> None:
    """Those of --variant beside those of the study file; each must be named where the optimizers are, if those are."""
    from muonlab.study.config import parse_variants

    added = parse_variants(texts)
    listed = chosen.get("optimizers")
    for name in added if isinstance(listed, list | tuple) else ():
        if name not in listed:
            raise UsageError(f"variant '{name}' is not among the optimizers {','.join(map(str, listed))}: add it there")
    if added and isinstance(chosen.setdefault("variants", {}), dict):
        chosen["variants"] |= added
