"""train: one run, in one process or over the ranks that torchrun has started."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import paths, values, whole_numbers
from muonlab.cli.laboratory import Laboratory, users_code
from muonlab.cli.show import show_record
from muonlab.errors import UsageError

if TYPE_CHECKING:
    from muonlab.records import RunSpec
    from muonlab.records.watch import Watch

__all__ = ["train"]

Result = TypeVar("Result")
START = "torchrun --nproc-per-node 4 -m muonlab train ..."


class Looks(NamedTuple):
    """What is to be looked at during the run."""

    eval_every: int
    noise: bool
    ranks: bool
    coordinates: frozenset[int]


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
    noise: Annotated[
        bool, typer.Option("--noise", help="Measure gradient noise on the way, for a few % of the time.")
    ] = False,
    ranks: Annotated[
        bool,
        typer.Option(
            "--ranks", help="Effective ranks of hidden states on the way, for a few % of the time, and at the end."
        ),
    ] = False,
    coordinates: Annotated[
        str | None,
        typer.Option(
            "--coordinates",
            metavar="STEPS",
            help="Steps after which to measure how far layers' outputs have moved, and updates, such as 1,2,4,8.",
        ),
    ] = None,
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
    flags = {
        "task": task, "data": paths(data), "optimizers": (optimizer,) if optimizer else None, "device": device,
        "horizon_tokens": tokens, "batch_tokens": batch_tokens, "first_seed": seed, "parallel": parallel,
    }  # fmt: skip
    chosen = values(config, flags, settings, precision, compile)
    parallel = chosen.pop("parallel", None)
    if not isinstance(parallel, str | None):
        raise UsageError(f"parallel: must be a text such as 'fsdp', got {parallel!r}")
    looks = Looks(eval_every, noise, ranks, frozenset(whole_numbers("--coordinates", coordinates) or ()))
    laboratory = Laboratory(store, 1, threads, artifacts, not no_progress)
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        sys.exit(_over_ranks(chosen, looks, laboratory, "ddp" if parallel is None else parallel, timeout, json))
    if parallel:
        raise UsageError(f"--parallel {parallel} needs several ranks: start them with {START}")
    sys.exit(_run(*_spec(chosen, looks), laboratory, json))


def _spec(chosen: dict[str, Any], looks: Looks) -> "tuple[RunSpec, Watch]":
    """What to run, and what to look at meanwhile."""
    from muonlab.records.watch import PROBE_COST, Watch
    from muonlab.study.config import validated
    from muonlab.study.plan import base_specs

    optimizers = chosen.setdefault("optimizers", ("muon",))
    if not isinstance(optimizers, list | tuple) or len(optimizers) != 1:
        raise UsageError("a run has one optimizer: name it with --optimizer")
    config = validated({**chosen, "baseline": optimizers[0]})
    every, num_steps = looks.eval_every, config.horizon_tokens // config.batch_tokens
    if max(looks.coordinates, default=0) > num_steps:
        beyond = ",".join(str(step) for step in sorted(looks.coordinates) if step > num_steps)
        raise UsageError(f"--coordinates {beyond} is beyond the run's {num_steps} steps: leave it out")
    eval_steps = frozenset(range(every, num_steps + 1, every) if every else ())
    costs = {"noise_cost": looks.noise * PROBE_COST, "rank_cost": looks.ranks * PROBE_COST}
    watch = Watch(eval_steps, coordinates=looks.coordinates, **costs)
    settings = {"seed": config.first_seed, **config.settings}
    with users_code():
        (spec,) = base_specs(config.model_copy(update={"settings": settings})).values()
    return spec, watch


def _run(spec: "RunSpec", watch: "Watch", laboratory: Laboratory, json: bool, executor: Any = None) -> int:
    """Make the run, or find it, and show it; the exit code."""
    from muonlab.study.protocol import single

    record, outcome = laboratory.run(single(spec), spec.horizon_tokens, watch, executor)
    show_record(record, json, runs_executed=outcome.num_executed)
    if not json and not outcome.num_executed:
        print(f"found in {laboratory.store_url}: nothing was run")
    return 1 if record.outcome == "failed" else 0


def _over_ranks(
    chosen: dict[str, Any], looks: Looks, laboratory: Laboratory, parallel: str, timeout: float, json: bool
) -> int:
    """The same by all ranks; the first has the store, and shows the record."""
    import torch

    from muonlab.execute.executor import Observation
    from muonlab.execute.ranked import RankedExecutor
    from muonlab.train.loop import Interrupted
    from muonlab.train.ranks import Ranks

    torch.set_num_threads(laboratory.threads)
    with _stopping() as stop, Ranks(parallel, chosen["device"], timeout) as ranks:
        spec, watch = _on_all(ranks, lambda: _spec(chosen, looks))
        ranks.check_same({**spec.to_dict(in_key_only=True), **looks._asdict()})
        executor = RankedExecutor(ranks, laboratory.artifacts, stop=stop)
        try:
            if ranks.rank:
                return executor.follow([spec], Observation(watch))
            code = _run(spec, watch, laboratory, json, executor)
        except UsageError:
            if not ranks.rank:
                executor.dismiss(2)
            raise
        except Interrupted:
            return 128 + (stop.number or signal.SIGTERM)
        executor.dismiss(code)
        return code


def _on_all(ranks: Any, action: Callable[[], Result]) -> Result:
    """What it returns; an error of the user's on one rank is one on all."""
    found, trouble = None, ""
    try:
        found = action()
    except UsageError as error:
        trouble = str(error)
    troubles = ranks.gathered(trouble)
    if any(troubles):
        rank = next(rank for rank, text in enumerate(troubles) if text)
        raise UsageError(troubles[rank] if all(troubles) else f"rank {rank}: {troubles[rank]}")
    return found


class _Stop(Event):
    """Set by a signal, whose number it keeps."""

    number = 0

    def hear(self, number: int, frame: object) -> None:
        self.number = number
        self.set()


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """What Ctrl-C and SIGTERM set, instead of ending the process where it is: ranks stop together."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
