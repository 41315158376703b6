"""features: what optimizers leave in a model beside its loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import names, paths, refuse_flags, values
from muonlab.cli.laboratory import Laboratory, print_json, users_code
from muonlab.cli.protocols import run
from muonlab.cli.show import print_parts
from muonlab.errors import UsageError

__all__ = ["features"]


STUDIED = (
    "optimizers", "baseline", "tokens", "batch_tokens", "seeds", "seed", "tune", "max_runs", "precision", "compile",
    "store", "out", "workers", "artifacts", "dry_run", "transfer_to", "transfer_tokens", "transfer_data",
    "transfer_set",
)  # fmt: skip


def features(
    context: typer.Context,
    task: opt.Task,
    optimizers: Annotated[
        str | None,
        typer.Option("--optimizers", help="Comma-separated names, two or more.", show_default="muon,adamw,sgd"),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="What the others are measured against.", show_default="adamw; without it the first"),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", metavar="FILE.pt", help="Weights of the task's model: look at these; repeatable."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="NAME,...", help="Modules to look at.", show_default="blocks of the model"),
    ] = None,
    transfer_to: Annotated[
        str | None,
        typer.Option(
            "--transfer-to", metavar="TASK2", help="Fine-tune all models on a second task, by all optimizers."
        ),
    ] = None,
    transfer_tokens: Annotated[
        int | None,
        typer.Option("--transfer-tokens", min=1, help="Length of a fine-tuning.", show_default="tokens / 10"),
    ] = None,
    transfer_data: Annotated[
        list[Path] | None,
        typer.Option("--transfer-data", metavar="PATH", help="Data of the second task, as --data; repeatable."),
    ] = None,
    transfer_set: Annotated[
        list[str] | None,
        typer.Option(
            "--transfer-set",
            metavar="task.X=V",
            help="An option of the second task alone; repeatable.",
            show_default="as --set, where it has the option",
        ),
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
    out: opt.Out = None,
    workers: opt.Workers = 0,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = opt.DEFAULT_ARTIFACTS,
    device: opt.Device = None,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
    dry_run: opt.DryRun = False,
) -> None:
    """Ranks and margins by layer and losses under corruption: after the same tokens, and at the same loss.

    1. Tunes every optimizer as `compare` does, then lr without weight decay.
    2. Final runs on fresh seeds, in which layers are probed, inputs corrupted.
    3. Tests what is claimed of Muon, seed by seed.

    The store keeps results: the same command runs nothing twice and goes on.

    With --transfer-to all pretrained models are fine-tuned on a second task,
    by every optimizer with an lr of its own, beside models from scratch; and
    a linear probe reads their last layers.

    With --checkpoint nothing is trained: the same measures of models there are.
    Beside it go --layers, --data, --set task.X=V, --config, --threads, --json.
    """
    looked_at = names(layers) or ()
    if layers is not None and not looked_at:
        raise UsageError(f"--layers wants names of modules with commas between, got {layers!r}")
    if checkpoint:
        refuse_flags(context, STUDIED, "for runs that muonlab makes, which --checkpoint does not")
        chosen = values(config, {"task": task, "data": paths(data), "device": "cpu"}, settings, None, False)
        return _models(chosen, checkpoint, looked_at, threads, json)
    if layers is not None:
        raise UsageError("--layers is for models that there are: name them with --checkpoint FILE.pt")
    flags = {
        "task": task, "optimizers": names(optimizers), "data": paths(data), "horizon_tokens": tokens,
        "baseline": baseline or _baseline(names(optimizers), config), "batch_tokens": batch_tokens,
        "num_seeds": seeds, "first_seed": seed, "tune": names(tune), "max_runs": max_runs, "device": device,
        "transfer_to": transfer_to, "transfer_tokens": transfer_tokens, "transfer_data": paths(transfer_data),
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    _set_second(chosen, transfer_set or ())
    laboratory = Laboratory(store, workers, threads, artifacts, not no_progress, chosen["device"])
    run("features", chosen, laboratory, out or Path("muonlab-features.html"), json, dry_run)


def _set_second(chosen: dict[str, Any], texts: Sequence[str]) -> None:
    """Options of the second task: those of the file, flat, and over them what was typed."""
    from muonlab.study.config import flattened, parse_setting

    given = chosen.get("transfer_settings", {})
    if not isinstance(given, dict):
        raise UsageError(f"transfer_settings: must be a table of dotted names, got {given!r}")
    if given or texts:
        typed = (parse_setting(text, "--transfer-set") for text in texts)
        chosen["transfer_settings"] = {**flattened(given), **dict(typed)}


def _baseline(typed: Sequence[str] | None, config: Path | None) -> str | None:
    """adamw, wherever it is named: what is claimed is claimed against it. None where something else decides."""
    from muonlab.study.config import load_config

    given = load_config(config) if config else {}
    found = typed or given.get("optimizers", ())
    return "adamw" if "baseline" not in given and isinstance(found, list | tuple) and "adamw" in found else None


def _models(
    chosen: Mapping[str, Any], checkpoints: Sequence[Path], layers: Sequence[str], threads: int, json: bool
) -> None:
    import torch

    from muonlab.report.models import models_table
    from muonlab.study.config import StudyConfig, validated
    from muonlab.tasks import catalog
    from muonlab.train.models import features_of_models

    asked = validated(chosen, StudyConfig)
    if other := next((name for name in asked.settings if not name.startswith("task.")), ""):
        raise UsageError(f"{other} has no effect on models that there are: set options of the task alone")
    torch.set_num_threads(threads)
    with users_code():
        info = catalog.locate(asked.task)
        options = {name.removeprefix("task."): value for name, value in asked.settings.items()}
        task = catalog.resolve(info.name, options, asked.data, info.source)
        found = features_of_models(task, checkpoints, layers)
    if json:
        return print_json({**found, "transfer": [], "claims": []})
    print_parts(models_table(found))
