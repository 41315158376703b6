"""demo, compare, tune and report: the verbs that run or show a study."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.laboratory import Laboratory, print_json, resolve_device, users_code
from muonlab.errors import UsageError

__all__ = ["compare", "demo", "report", "tune"]

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
    artifacts: opt.Artifacts = Path("muonlab-artifacts"),
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
    dry_run: opt.DryRun = False,
) -> None:
    """The main job on embedded real text: AdamW against Muon, both tuned, five seeds, verdict and report.

    Takes a few minutes on two cores the first time; a second call runs nothing and shows the same numbers.
    """
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress)
    _compare(DEMO, laboratory, out or Path("muonlab-demo.html"), json, dry_run)


def compare(
    task: opt.Task,
    optimizers: Annotated[str | None, typer.Option(help="Comma-separated names.", show_default="adamw,muon")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="What the others are measured against.", show_default="the first")
    ] = None,
    data: opt.Data = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of a run in tokens.", show_default="1000000")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens (samples of an untokenised task) per step.", show_default="4096")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=2, help="Final runs per optimizer and horizon.", show_default="5")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="First of the final seeds.", show_default="0")] = None,
    tune: Annotated[
        str | None,
        typer.Option(help="Comma-separated hyperparameters to tune, or all.", show_default="opt.lr,opt.weight_decay"),
    ] = None,
    max_runs: Annotated[
        int | None, typer.Option(min=1, help="Cap on tuning runs, per optimizer and horizon.", show_default="80")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16 (autocast).", show_default="fp32")] = None,
    compile: opt.Compile = False,
    settings: opt.Set = None,
    config: opt.Config = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    out: opt.Out = None,
    workers: opt.Workers = 0,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = Path("muonlab-artifacts"),
    device: opt.Device = "auto",
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
    dry_run: opt.DryRun = False,
) -> None:
    """The fair comparison: tune each optimizer the same way, compare final losses over fresh seeds.

    Results are kept in the store: the same command again runs nothing, and after an interruption it goes on.
    """
    flags = {
        "task": task, "optimizers": _names(optimizers), "baseline": baseline, "data": _paths(data),
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "num_seeds": seeds, "first_seed": seed,
        "tune": _names(tune), "max_runs": max_runs, "device": resolve_device(device),
    }  # fmt: skip
    values = _values(config, flags, settings, precision, compile)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress)
    _compare(values, laboratory, out or Path("muonlab-report.html"), json, dry_run)


def tune(
    task: opt.Task,
    optimizer: Annotated[str, typer.Option(help="The optimizer to tune.")],
    data: opt.Data = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of a run in tokens.", show_default="1000000")
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per step.", show_default="4096")] = None,
    tune: Annotated[str, typer.Option(help="Comma-separated hyperparameters to tune.")] = "all",
    max_runs: Annotated[int | None, typer.Option(min=1, help="Cap on runs.", show_default="80")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Shifts the tuning seeds.", show_default="0")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16 (autocast).", show_default="fp32")] = None,
    compile: opt.Compile = False,
    settings: opt.Set = None,
    config: opt.Config = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    workers: opt.Workers = 0,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = Path("muonlab-artifacts"),
    device: opt.Device = "auto",
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Tune one optimizer by coordinate descent and print where each hyperparameter ended, and why."""
    from muonlab.study.config import validated
    from muonlab.study.plan import plan_comparison
    from muonlab.study.tune import tune as protocol

    flags = {
        "task": task, "optimizers": (optimizer,), "baseline": optimizer, "data": _paths(data),
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "tune": _names(tune), "max_runs": max_runs,
        "first_seed": seed, "device": resolve_device(device),
    }  # fmt: skip
    with users_code():
        plan = plan_comparison(validated(_values(config, flags, settings, precision, compile)))
    price = plan.price(final_runs=False)
    if dry_run:
        return _show_price(plan, price, workers, json)
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress)
    result, outcome = laboratory.run(
        protocol(plan.bases[optimizer], plan.spaces[optimizer], plan.rules.tuning), price.likely_tokens
    )
    _show_tuning(result, laboratory, json)
    if outcome.num_failed:
        sys.exit(1)


def report(
    study: Annotated[str, typer.Argument(help="Key of a study, its beginning, or latest.")] = "latest",
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Show a finished study again, and write its HTML report. Runs nothing."""
    from muonlab.records.evidence import Evidence
    from muonlab.records.store import Store
    from muonlab.study.fairness import conclude

    with Store(store, read_only=True) as opened:
        saved = opened.study(study)
        evidence = Evidence.from_dict(saved.result)
        records = opened.get(evidence.record_keys())
    missing = set(evidence.record_keys()) - set(records)
    if missing:
        raise UsageError(f"{len(missing)} runs of study {saved.key[:12]} are no longer in {store}: run it again")
    finding = conclude(evidence, records)
    _show_comparison(
        finding, 0, out or Path("muonlab-report.html"), saved.created, str(saved.config.get("command", "")), json
    )


def _compare(values: dict[str, Any], laboratory: Laboratory, out: Path, json: bool, dry_run: bool) -> None:
    from muonlab.records.store import Store
    from muonlab.study.compare import compare as protocol
    from muonlab.study.config import validated
    from muonlab.study.fairness import conclude
    from muonlab.study.plan import plan_comparison

    config = validated(values)
    if len(config.optimizers) < 2:
        raise UsageError("a comparison needs at least two optimizers: --optimizers adamw,muon")
    with users_code():
        plan = plan_comparison(config)
    price = plan.price()
    if dry_run:
        return _show_price(plan, price, laboratory.workers, json)
    _check_out(out)
    command = _command()
    asked = {**config.model_dump(mode="json"), "conventions": plan.conventions, "command": command}
    evidence, outcome = laboratory.run(protocol(plan.bases, plan.spaces, plan.rules, asked), price.likely_tokens)
    with Store(laboratory.store_url) as store:
        records = store.get(evidence.record_keys())
        if not store.read_only:
            store.save_study(config.key, "comparison", config.task, asked, evidence.to_dict())
        created = next((row.created for row in store.studies() if row.key == config.key), "")
    finding = conclude(evidence, records)
    _show_comparison(finding, outcome.num_executed, out, created, command, json)
    if outcome.num_failed:
        sys.exit(1)


def _show_comparison(finding: Any, executed: int, out: Path, created: str, command: str, json: bool) -> None:
    from muonlab.report import page

    page.write(out, page.render(finding, created=created, command=command))
    if json:
        print_json(_summary(finding, executed, out))
        return
    from rich.console import Console

    from muonlab.report.tables import comparison_table

    console = Console()
    for part in comparison_table(finding):
        console.print(part)
    console.print(f"\n{executed} runs executed. Report: {out}", highlight=False, soft_wrap=True)


def _summary(finding: Any, executed: int, out: Path) -> dict[str, Any]:
    """The documented keys of `--json`, from the finding's fields alone."""
    optimizers = {
        name: {
            key: getattr(f, key)
            for key in ("loss_mean", "loss_std", "num_seeds", "num_diverged", "wall_seconds", "hyperparameters",
                        "tuning_runs", "tuning_tokens", "converged")
        }
        for name, f in finding.optimizers.items()
    }  # fmt: skip
    document = finding.to_dict()
    return {
        "verdict": finding.verdict,
        "runs_executed": executed,
        "report": str(out),
        "optimizers": optimizers,
        "speedup": document["speedup"],
        "contrasts": document["contrasts"],
        "checks": document["checks"],
        "num_runs": finding.num_runs,
        "total_tokens": finding.total_tokens,
    }


def _show_tuning(result: Any, laboratory: Laboratory, json: bool) -> None:
    from muonlab.records.store import Store

    with Store(laboratory.store_url) as store:
        records = store.get([key for trial in result.trials for key in trial.keys])
    chosen = next(trial for trial in result.trials if dict(trial.settings) == dict(result.best))
    losses = [records[key].final_loss for key in chosen.keys]
    loss = sum(losses) / len(losses) if losses and None not in losses else None
    if json:
        from dataclasses import asdict

        moves = [asdict(move) for move in result.moves]
        print_json(
            {"best": dict(result.best), "loss": loss, "num_runs": result.num_runs, "tokens": result.tokens,
             "converged": result.converged, "edges": list(result.edges), "trajectory": moves}
        )  # fmt: skip
        return
    from rich.console import Console

    from muonlab.report.tables import tuning_table

    console = Console()
    for part in tuning_table(result, loss):
        console.print(part)


def _show_price(plan: Any, price: Any, workers: int, json: bool) -> None:
    import os

    from muonlab.study.plan import measure_throughput

    num_workers = workers or os.cpu_count() or 1
    try:
        with users_code():
            rate = measure_throughput(plan) * num_workers
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"a trial of a few steps failed: {type(error).__name__}: {error}") from error
    document = {
        "runs": {"least": price.least_runs, "most": price.most_runs},
        "tokens": {"least": int(price.likely_tokens), "most": int(price.most_tokens)},
        "seconds": {"least": round(price.least_tokens / rate), "most": round(price.most_tokens / rate)},
        "workers": num_workers,
    }
    if json:
        return print_json(document)
    for name, unit in (("runs", ""), ("tokens", ""), ("seconds", f" with {num_workers} workers")):
        print(f"{name:8} {document[name]['least']:>14,} to at most {document[name]['most']:,}{unit}")
    print("The first figure is a tuning without extended grids or added seeds; what the store already has is not run.")


def _values(
    config: Path | None, flags: dict[str, Any], settings: list[str] | None, precision: str | None, compile: bool
) -> dict[str, Any]:
    """Config file, then flags, then --set: the later wins."""
    from muonlab.study.config import flattened, load_config, parse_setting

    values = load_config(config) if config else {}
    values |= {name: value for name, value in flags.items() if value is not None}
    if "baseline" not in values and isinstance(values.get("optimizers"), list | tuple) and values["optimizers"]:
        values["baseline"] = values["optimizers"][0]
    if not isinstance(values.get("settings", {}), dict):
        raise UsageError(f"settings: must be a table of dotted names, got {values['settings']!r}")
    merged = flattened(values.get("settings", {}))
    if precision:
        merged["precision"] = precision
    if compile:
        merged["compile"] = True
    merged |= dict(parse_setting(text) for text in settings or ())
    for name in ("horizon_tokens", "batch_tokens"):
        if name in merged:
            values[name] = merged.pop(name)
    return {**values, "settings": merged}


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text is not None else None


def _paths(paths: list[Path] | None) -> tuple[str, ...] | None:
    return tuple(map(str, paths)) if paths else None


def _check_out(out: Path) -> None:
    """Find out now, not after an hour, that the report can't be written."""
    import os

    parent = out.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"cannot write report {out}: there is no folder {parent}")
    if out.is_dir():
        raise UsageError(f"cannot write report {out}: it is a folder")
    if out.exists() and not out.is_file():
        return  # a pipe or a device
    if not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write report {out}: the folder is read-only")


def _command() -> str:
    return shlex.join(["muonlab", *sys.argv[1:]])
