"""train: one run."""

import sys
from typing import Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import paths, values
from muonlab.cli.laboratory import Laboratory, users_code
from muonlab.cli.show import show_record

__all__ = ["train"]


def train(
    task: opt.Task,
    optimizer: opt.Optimizer = "muon",
    data: opt.Data = None,
    tokens: opt.Tokens = None,
    batch_tokens: opt.BatchTokens = None,
    seed: Annotated[int, typer.Option(min=0, help="Initialisation and data order.")] = 0,
    precision: opt.Precision = None,
    compile: opt.Compile = False,
    eval_every: Annotated[int, typer.Option(min=0, help="Steps between held-out losses for the curve; 0 = none.")] = 0,
    settings: opt.Set = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = opt.DEFAULT_ARTIFACTS,
    device: opt.Device = None,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """One run, kept in the store; a diverged run is a result. The same command again shows the record."""
    from muonlab.study.config import validated
    from muonlab.study.plan import base_specs
    from muonlab.study.protocol import single

    flags = {
        "task": task, "data": paths(data), "optimizers": (optimizer,), "baseline": optimizer,
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "device": device,
        "settings": {"seed": seed},
    }  # fmt: skip
    with users_code():
        (spec,) = base_specs(validated(values(None, flags, settings, precision, compile))).values()
    eval_steps = frozenset(range(eval_every, spec.num_steps + 1, eval_every)) if eval_every else frozenset()
    laboratory = Laboratory(store, 1, threads, artifacts, not no_progress)
    record, outcome = laboratory.run(single(spec), spec.horizon_tokens, eval_steps)
    show_record(record, json, runs_executed=outcome.num_executed)
    if record.outcome == "failed":
        sys.exit(1)
