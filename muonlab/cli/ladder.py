"""ladder: how the speedup, and what has to be tuned, change with model size and tokens per parameter."""

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import check_out, command_line, names, numbers, paths, values
from muonlab.cli.laboratory import Laboratory, print_json, users_code
from muonlab.cli.show import print_parts, show_price

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
    seed: Annotated[int | None, typer.Option(min=0, help="First of the final seeds.", show_default="0")] = None,
    tune: Annotated[
        str | None,
        typer.Option(help="Comma-separated hyperparameters to tune, or all.", show_default="opt.lr,opt.weight_decay"),
    ] = None,
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
    from muonlab.records.store import Store
    from muonlab.study.config import LadderConfig, validated
    from muonlab.study.fairness import conclude_ladder
    from muonlab.study.ladder import ladder as protocol
    from muonlab.study.ladder_plan import parse_sizes, plan_ladder

    flags = {
        "task": task, "optimizers": names(optimizers), "baseline": baseline, "data": paths(data),
        "sizes": parse_sizes(sizes) if sizes is not None else None, "ratios": numbers("--ratios", ratios),
        "batch_tokens": batch_tokens, "num_seeds": seeds, "first_seed": seed, "tune": names(tune),
        "max_runs": max_runs, "device": device,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    study = validated(chosen, LadderConfig)
    with users_code():
        plan = plan_ladder(study)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    price = plan.price()
    if dry_run:
        return show_price(price, laboratory.num_workers, json)
    target = out or Path("muonlab-ladder.html")
    check_out(target)
    command = command_line()
    asked = {
        **study.model_dump(mode="json"),
        "conventions": plan.conventions,
        "starts": plan.starts,
        "command": command,
    }
    evidence, outcome = laboratory.run(
        protocol(plan.bases, plan.spaces, plan.sizes, plan.rules, asked), price.likely_tokens
    )
    with Store(store) as opened:
        records = opened.get(evidence.record_keys())
        if not opened.read_only:
            opened.save_study(study.key, "ladder", study.task, asked, evidence.to_dict())
        created = next((row.created for row in opened.studies() if row.key == study.key), "")
    show_ladder(conclude_ladder(evidence, records), outcome.num_executed, target, created, command, json)
    if outcome.num_failed:
        sys.exit(1)


def show_ladder(finding: Any, executed: int, out: Path, created: str, command: str, json: bool) -> None:
    """The page in a file, and the finding as tables or as one JSON document."""
    from muonlab.report import ladder_page, page

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it has much to say of a HOME that can't be written
    page.write(out, ladder_page.render(finding, created=created, command=command))
    if json:
        return print_json({"runs_executed": executed, "report": str(out), **asdict(finding)})
    from muonlab.report.ladder import ladder_table

    print_parts(ladder_table(finding))
    print(f"\n{executed} runs executed. Report: {out}")
