"""What each rank of `benchmarks/sharding.py` runs: optimizers on the same stack, counted and timed beside predictions.

python benchmarks/sharding_rank.py RANK RANKS ROUNDS STACKS FOLDER
"""

import json
import logging
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sharding_contenders import CONTENDERS, Contender, Stack
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import muonlab
from muonlab.bench.designs import step_of
from muonlab.bench.memory import state_bytes
from muonlab.bench.simulate import Machine, times
from muonlab.bench.timing import ratios, spread
from muonlab.bench.traffic import must_send
from muonlab.optim.sharding import local_of

PRODUCT, REPEATS = 512, 8  # side of the products, how many in one turn
EMPTY, FULL = 16, 4 * 2**20  # bytes to every peer


LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[Any, ...], tuple[int, int]]] = {  # mesh, placements, shape
    "rows over 4": ((4,), (Shard(0),), (64, 32)),
    "rows over 4, wide": ((4,), (Shard(0),), (32, 64)),
    "10 rows over 4": ((4,), (Shard(0),), (10, 26)),
    "26 rows over 4": ((4,), (Shard(0),), (26, 10)),
    "3 rows over 4": ((4,), (Shard(0),), (3, 8)),
    "columns over 4": ((4,), (Shard(1),), (64, 32)),
    "columns over 4, wide": ((4,), (Shard(1),), (32, 64)),
    "rows over 2, two replicas": ((2, 2), (Replicate(), Shard(0)), (32, 64)),
    "rows over 2, columns over 2": ((2, 2), (Shard(0), Shard(1)), (32, 64)),
}


class Seen(TorchDispatchMode):
    """Bytes that have to leave this rank, by kind of collective, whoever calls it (see `must_send`), and flops.

    An all-to-all counts what it is given less this rank's own part; the others, which are symmetric, the mean.
    """

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.bytes: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # of what it is made of
        name = func.name().partition("::")[2].partition(".")[0]
        if func.namespace in ("c10d", "_c10d_functional") and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            kind, num_bytes = self._sent(name, args)
            self.bytes[kind] += num_bytes
            self.counts[kind] += 1
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out

    def _sent(self, name: str, args: Any) -> tuple[str, float]:
        if name == "alltoall_base_":
            given, parts = args[1], args[4]
            own = parts[self.rank] if parts else given.numel() // self.world
            return "all_to_all", (given.numel() - own) * given.element_size()
        kinds = {"allreduce_": "all_reduce", "all_reduce": "all_reduce", "all_gather_into_tensor": "all_gather"}
        given = args[0][0] if isinstance(args[0], list) else args[0]
        return kinds[name], must_send(kinds[name], given.numel() * given.element_size(), self.world)


class Ranks:
    """This process among its peers."""

    def __init__(self, rank: int, world: int, num_rounds: int) -> None:
        self.rank, self.world, self.num_rounds = rank, world, num_rounds

    def everyone(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def seconds(self, run: Callable[[], Any]) -> float:
        """Of the slowest rank; all begin together."""
        distributed.barrier()
        started = time.perf_counter()
        run()
        return max(self.everyone(time.perf_counter() - started))

    def interleaved(self, timers: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds by round; every rank shuffles alike."""
        order, shuffle = list(timers), random.Random(0).shuffle
        found: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(self.num_rounds):
            shuffle(order)
            for name in order:
                found[name].append(self.seconds(timers[name]))
        return found

    def all_to_all(self, num_bytes: int) -> Callable[[], Any]:
        given, got = (torch.zeros(self.world * num_bytes, dtype=torch.uint8) for _ in range(2))
        return lambda: distributed.all_to_all_single(got, given)

    def measured(self, stack: str) -> list[dict[str, Any]]:
        """A row for each contender, and the constants of the machine meanwhile in each."""
        steppers, facts = {}, {}
        for label, one in CONTENDERS.items():
            optimizer = one.build(Stack(stack))
            shapes = give_gradients(optimizer)
            steppers[label] = partial(step, one, optimizer)
            facts[label] = self.facts(optimizer, steppers[label])
        x = torch.randn(PRODUCT, PRODUCT).to(torch.bfloat16)
        constants = {
            "products": lambda: [x @ x for _ in range(REPEATS)],
            "empty": self.all_to_all(EMPTY),
            "full": self.all_to_all(FULL),
        }
        rounds = self.interleaved({**steppers, **constants})
        machine = machine_of({name: median(rounds.pop(name)) for name in constants}, self.world)
        rows = [self.row(label, rounds, shapes, machine) | facts[label] for label in CONTENDERS]
        return [{"num_ranks": self.world, "stack": stack, **row, "constants": vars(machine)} for row in rows]

    def facts(self, optimizer: Any, step: Callable[[], Any]) -> dict[str, Any]:
        for _ in range(2):
            step()
        with CommDebugMode() as counted:
            step()
        with Seen(self.rank, self.world) as seen:
            step()
        num = counted.get_total_counts()
        assert num == sum(seen.counts.values()), f"{num} collectives, {seen.counts} of them weighed"
        local = {p: {k: local_of(v) for k, v in state.items()} for p, state in optimizer.state.items()}
        stored = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        stored.state.update(local)
        return {
            "collectives": dict(seen.counts),
            "num_collectives": num,
            "sent_bytes": max(self.everyone(sum(seen.bytes.values()))),
            "flops": max(self.everyone(seen.flops)),
            "state_bytes": max(self.everyone(state_bytes(stored))),
        }

    def row(
        self, label: str, rounds: dict[str, list[float]], shapes: list[tuple[int, ...]], machine: Machine
    ) -> dict[str, Any]:
        one = CONTENDERS[label]
        reference = f"torch.optim.Muon, {'DDP' if 'DDP' in label else 'FSDP2'}"
        seconds, ratio = spread(rounds[label]), spread(ratios(rounds[label], rounds[reference]))
        with one.buckets():
            simulated = step_of(one.design, shapes, self.world, one.rule)
        predicted = times(simulated, machine)
        counts = {
            "num_collectives": len(simulated.collectives),
            "sent_bytes": float(simulated.sent_bytes.max()),
            "flops": float(simulated.flops.max()),
            "state_bytes": simulated.state_bytes,
        }
        return {
            "optimizer": label,
            "design": one.design,
            "seconds": asdict(seconds),
            "ratio_to_torch": asdict(ratio),
            "predicted": predicted | counts,
            "relative_error": predicted["seconds"] / seconds.median - 1,
        }


def machine_of(seconds: dict[str, float], world: int) -> Machine:
    """What one rank reaches while the others do the same."""
    return Machine(
        REPEATS * 2.0 * PRODUCT**3 / seconds["products"],
        (world - 1) * (FULL - EMPTY) / (seconds["full"] - seconds["empty"]),
        seconds["empty"],
    )


def step(one: Contender, optimizer: Any) -> None:
    with one.buckets():
        optimizer.step()


def give_gradients(optimizer: Any) -> list[tuple[int, ...]]:
    """To every parameter; the shapes."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        p.grad = torch.randn_like(p)
    return [tuple(p.shape) for p in params]


def layouts() -> list[dict[str, Any]]:
    """Whether a step goes through, and with how many collectives; whatever an optimizer raises is its result."""
    rows = []
    for layout, (mesh, placements, shape) in LAYOUTS.items():
        for name, optimizer in (("torch.optim.Muon", torch.optim.Muon), ("muonlab.Muon", muonlab.Muon)):
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            p = nn.Parameter(distribute_tensor(whole, init_device_mesh("cpu", mesh), placements))
            p.grad = distribute_tensor(whole, p.device_mesh, placements)
            try:
                stepping = optimizer([p])
                with CommDebugMode() as counted:
                    stepping.step()
                found = {"num_collectives": counted.get_total_counts()}
            except Exception as error:
                found = {"raised": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
            rows.append({"layout": layout, "optimizer": name, **found})
    return rows


def main(rank: int, world: int, num_rounds: int, stacks: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # its advice is on torch.optim.Muon's work
    store = distributed.FileStore(str(folder / f"rendezvous{world}"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    ranks = Ranks(rank, world, num_rounds)
    found = {"rows": [row for stack in stacks for row in ranks.measured(stack)]}
    found["layouts"] = layouts() if world == 4 else []
    if rank == 0:
        (folder / f"{world}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    rank, world, num_rounds, stacks, folder = sys.argv[1:]
    main(int(rank), int(world), int(num_rounds), stacks.split(","), Path(folder))
