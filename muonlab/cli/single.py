"""train: one run, in one process or over the ranks that torchrun has started."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import paths, values
from muonlab.cli.laboratory import Laboratory, Outcome, users_code
from muonlab.cli.show import show_record
from muonlab.errors import UsageError

if TYPE_CHECKING:
    from threading import Event

    from muonlab.records import Record, RunSpec

__all__ = ["train"]

START = "torchrun --nproc-per-node 4 -m muonlab train ..."


def train(
    task: opt.Task,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help=f"Name of an optimizer, or {opt.OWN}.", show_default="muon")
    ] = None,
    data: opt.Data = None,
    tokens: opt.Tokens = None,
    batch_tokens: opt.BatchTokens = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Initialisation and data order.", show_default="0")] = None,
    precision: opt.Precision = None,
    compile: opt.Compile = False,
    eval_every: Annotated[int, typer.Option(min=0, help="Steps between held-out losses for the curve; 0 = none.")] = 0,
    settings: opt.Set = None,
    config: opt.Config = None,
    parallel: Annotated[
        str | None,
        typer.Option(
            "--parallel",
            metavar="WAY",
            help="Under torchrun: ddp, fsdp, hsdp=2x4 (replicas x shards), tp=2, or fsdp,tp=2.",
            show_default="ddp",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Under torchrun: how long ranks wait for each other.")
    ] = 300.0,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    threads: opt.Threads = 1,
    artifacts: opt.Artifacts = opt.DEFAULT_ARTIFACTS,
    device: opt.Device = None,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """One run, kept in the store; a diverged run is a result. The same command again shows the record.

    Under torchrun all ranks make the run together, to the same result up to float rounding.
    """
    from muonlab.study.protocol import single

    flags = {
        "task": task, "data": paths(data), "optimizers": (optimizer,) if optimizer else None, "device": device,
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "first_seed": seed, "parallel": parallel,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    parallel = chosen.pop("parallel", None)
    with users_code():
        spec = _spec(chosen)
    eval_steps = frozenset(range(eval_every, spec.num_steps + 1, eval_every)) if eval_every else frozenset()
    laboratory = Laboratory(store, 1, threads, artifacts, not no_progress)
    if "WORLD_SIZE" in os.environ:
        found = _over_ranks(spec, eval_steps, laboratory, parallel or "ddp", timeout)
        if found is None:
            return
        record, outcome = found
    elif parallel:
        raise UsageError(f"--parallel {parallel} needs several ranks: start them with {START}")
    else:
        record, outcome = laboratory.run(single(spec), spec.horizon_tokens, eval_steps)
    show_record(record, json, runs_executed=outcome.num_executed)
    if record.outcome == "failed":
        sys.exit(1)


def _spec(chosen: dict[str, Any]) -> "RunSpec":
    from muonlab.study.config import validated
    from muonlab.study.plan import base_specs

    optimizers = chosen.setdefault("optimizers", ("muon",))
    if not isinstance(optimizers, list | tuple) or len(optimizers) != 1:
        raise UsageError("a run has one optimizer: name it with --optimizer")
    chosen["baseline"] = optimizers[0]
    config = validated(chosen)
    (spec,) = base_specs(
        config.model_copy(update={"settings": {"seed": config.first_seed, **config.settings}})
    ).values()
    return spec


def _over_ranks(
    spec: "RunSpec", eval_steps: frozenset[int], laboratory: Laboratory, parallel: str, timeout: float
) -> "tuple[Record, Outcome] | None":
    """The record and what it took, on the first rank; None on the others."""
    import torch

    from muonlab.execute.executor import Observation
    from muonlab.execute.ranked import RankedExecutor
    from muonlab.study.protocol import single
    from muonlab.train.loop import Interrupted
    from muonlab.train.ranks import Ranks

    torch.set_num_threads(laboratory.threads)
    with _stopping() as stop, Ranks(parallel, spec.device, timeout) as ranks:
        executor = RankedExecutor(ranks, laboratory.artifacts, stop=stop)
        try:
            if ranks.rank:
                return executor.follow([spec], Observation(eval_steps))
            found = laboratory.run(single(spec), spec.horizon_tokens, eval_steps, executor)
            executor.done()
            return found
        except Interrupted:
            sys.exit(128 + signal.SIGTERM)


@contextmanager
def _stopping() -> "Iterator[Event]":
    """An event that Ctrl-C and SIGTERM set, instead of ending the process where it is: ranks stop together."""
    from threading import Event

    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
