"""What each rank of test_parallel.py runs: training of one spec, spread in several ways, with and without a stop."""

import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from muonlab.records import RunSpec
from muonlab.records.watch import Watch
from muonlab.train.checkpoint import Checkpoints
from muonlab.train.loop import Interrupted, train
from muonlab.train.ranks import Alone, Ranks

SHAPE = {"width": 16, "depth": 2, "num_heads": 2, "seq_len": 16, "mlp_width": 40, "eval_tokens": 2048}
NUM_STEPS, STOP = 8, 5
WAYS = ("ddp", "fsdp", "hsdp=2x2", "fsdp,tp=2", "tp=4")
QUICK_WAYS = ("ddp", "fsdp,tp=2")
OPTIMIZERS = ("muon", "adamw", "normuon")


def spec(optimizer: str, micro: int = 0) -> RunSpec:
    exact = {} if optimizer == "adamw" else {"opt.polar_dtype": "float32"}
    heads = {"num_heads": 4}
    grown = (
        {"parametrization": "spectral", "base": {"width": 8, "depth": 1, "mlp_width": 20}}
        if optimizer == "muon"
        else {}
    )
    return RunSpec(
        task="text-synthetic", task_options=SHAPE | heads, optimizer=optimizer, horizon_tokens=NUM_STEPS * 384,
        batch_tokens=384, micro_batch_tokens=micro, hyperparameters={"opt.lr": 0.01, **exact}, seed=1, averaging=0.25,
        **grown,
    )  # fmt: skip


def stops_at(step: int) -> Callable[[], bool]:
    asked = iter(range(10**6))
    return lambda: next(asked) == step


def final_loss(ranks: Alone, *arguments: Any) -> float:
    """Evaluated on the way, which must change nothing: neither the weights nor what ranks have gathered of them."""
    return train(spec(*arguments), watch=Watch(frozenset({2, 5})), ranks=ranks).final_loss


def stopped(ranks: Alone, folder: Path, optimizer: str) -> None:
    """A run that ends after STOP steps, with a checkpoint."""
    try:
        train(spec(optimizer), ranks=ranks, checkpoints=Checkpoints(folder, ranks=ranks), should_stop=stops_at(STOP))
    except Interrupted:
        return
    raise AssertionError("it went on")


def gone_on(ranks: Alone, folder: Path, optimizer: str) -> tuple[float, int]:
    """Its end from there, and how many steps that took."""
    seen: list[int] = []
    checkpoints = Checkpoints(folder, ranks=ranks)
    record = train(spec(optimizer), ranks=ranks, checkpoints=checkpoints, on_step=seen.append)
    return record.final_loss, len(seen)


def findings(quick: bool, folder: Path) -> dict[str, Any]:
    """By scenario, on so many ranks as there are."""
    number = int(os.environ["WORLD_SIZE"])
    found: dict[str, Any] = {}
    before_ways = QUICK_WAYS if quick else WAYS
    for way in before_ways if number == 4 else ("ddp", "fsdp"):
        ranks = Ranks(way, "cpu", 60.0)
        for optimizer in OPTIMIZERS[:1] if quick else OPTIMIZERS:
            before = f"{way} {optimizer}"
            found[before] = final_loss(ranks, optimizer)
            if number == 4:
                found[f"{before} accumulated"] = final_loss(ranks, optimizer, 192)
                stopped(ranks, folder / before, optimizer)
            else:
                for earlier in before_ways:
                    copy = cloned(ranks, folder / f"{earlier} {optimizer}", before)
                    found[f"{earlier} to {before}"] = gone_on(ranks, copy, optimizer)
    return found


def cloned(ranks: Alone, folder: Path, name: str) -> Path:
    """A checkpoint folder is gone when its run has ended."""
    copy = folder.parent / f"{folder.name}-{ranks.world_size}-{name}"
    if ranks.rank == 0:
        shutil.copytree(folder, copy)
    ranks.gathered(None)
    return copy


def main(quick: bool, folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch's own, within torch
    store = distributed.FileStore(os.environ["RENDEZVOUS"], int(os.environ["WORLD_SIZE"]))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=int(os.environ["WORLD_SIZE"]))
    torch.save(findings(quick, folder), folder / f"found-{os.environ['WORLD_SIZE']}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] == "quick", Path(sys.argv[2]))
