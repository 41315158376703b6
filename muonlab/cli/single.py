"""train: one run."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.laboratory import Laboratory, print_json, resolve_device, users_code

__all__ = ["train"]


def train(
    task: opt.Task,
    optimizer: Annotated[str, typer.Option(help="The optimizer.")] = "muon",
    data: opt.Data = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of the run in tokens.")] = 1_000_000,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens per step.")] = 4096,
    seed: Annotated[int, typer.Option(min=0, help="Initialisation and data order.")] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")] = "fp32",
    compile: opt.Compile = False,
    eval_every: Annotated[int, typer.Option(min=0, help="Steps between held-out losses for the curve; 0 = none.")] = 0,
    settings: opt.Set = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = Path("muonlab-artifacts"),
    device: opt.Device = "auto",
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """One run, kept in the store; a diverged run is a result. The same command again shows the record."""
    from muonlab.study.config import flattened, parse_setting, validated
    from muonlab.study.plan import base_specs
    from muonlab.study.protocol import single

    chosen: dict[str, Any] = {"precision": precision, "compile": compile, "seed": seed}
    chosen |= flattened(dict(parse_setting(text) for text in settings or ()))
    config = validated(
        {
            "task": task, "data": tuple(map(str, data or ())), "optimizers": (optimizer,), "baseline": optimizer,
            "horizon_tokens": chosen.pop("horizon_tokens", tokens),
            "batch_tokens": chosen.pop("batch_tokens", batch_tokens),
            "device": resolve_device(device), "settings": chosen,
        }
    )  # fmt: skip
    with users_code():
        spec = base_specs(config)[optimizer]
    eval_steps = frozenset(range(eval_every, spec.num_steps + 1, eval_every)) if eval_every else frozenset()
    laboratory = Laboratory(store, 1, threads, artifacts, not no_progress)
    record, outcome = laboratory.run(single(spec), spec.horizon_tokens, eval_steps)
    if json:
        print_json({**record.to_dict(), "runs_executed": outcome.num_executed})
    else:
        from rich.console import Console

        from muonlab.report.tables import record_table

        for part in record_table(record):
            Console().print(part)
    if record.outcome == "failed":
        sys.exit(1)
