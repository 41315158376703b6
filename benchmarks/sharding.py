"""What sharding costs on this machine, measured over gloo, and what `muonlab bench --simulate` predicts of it.

    python benchmarks/sharding.py --out benchmarks/results/sharding.json

For 2, 3 and 4 ranks: one decoder-like stack of matrices under FSDP2 and under DDP, stepped by several optimizers in
interleaved rounds. The constants of the prediction are those of separate small measurements, which take their turn in
the same rounds: products of matrices on all ranks at a time, and all-to-alls with and without content. A time is that
of the slowest rank.
"""

import argparse
import json
import logging
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import muonlab
from muonlab.bench.designs import step_of
from muonlab.bench.memory import state_bytes
from muonlab.bench.simulate import Machine, times
from muonlab.bench.timing import ratios, spread
from muonlab.bench.traffic import must_send
from muonlab.kernels.polar import polar
from muonlab.optim import owners
from muonlab.optim.sharding import local_of, spread_as
from muonlab.train.environment import environment

DEPTH = 4
SMALL_BUCKET = 2**20  # bytes a rank, so that there are several
PRODUCT, REPEATS = 512, 8  # side of the products, how many in one turn
EMPTY, FULL = 16, 4 * 2**20  # bytes to every peer
LR = 1e-3


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        sides = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=False) for pair in sides)


class Stack(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(DEPTH))


class Gathering(torch.optim.Optimizer):
    """The plainest sharded Muon: every rank gathers every direction and orthogonalises it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR})

    @torch.no_grad()
    def step(self) -> None:
        for p in self.param_groups[0]["params"]:
            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            g, m = local_of(p.grad), local_of(buffer)
            m.lerp_(g, 0.05)
            u = DTensor.from_local(g.lerp(m, 0.95), p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            local_of(p).mul_(1 - 0.1 * LR).sub_(local_of(spread_as(p, polar(u.full_tensor()))), alpha=LR)


def fsdp(optimizer: Callable[..., Any], model: Stack) -> Any:
    for block in model.blocks:
        fully_shard(block, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))
    return optimizer(list(model.parameters()))


def ddp(optimizer: Callable[..., Any], model: Stack, whole: bool = False) -> Any:
    spread = DistributedDataParallel(model)
    return optimizer(spread if whole else list(spread.parameters()))


# label: design that is simulated, how it is built, bytes of a bucket
CONTENDERS: dict[str, tuple[str, Callable[[Stack], Any], int]] = {
    "muonlab.Muon, FSDP2": ("owner", partial(fsdp, muonlab.Muon), owners.BUCKET_BYTES),
    "muonlab.Muon, FSDP2, buckets of 1 MiB": ("owner", partial(fsdp, muonlab.Muon), SMALL_BUCKET),
    "muonlab.NorMuon, FSDP2": ("owner", partial(fsdp, muonlab.NorMuon), owners.BUCKET_BYTES),
    "muonlab.MuonHyperball, FSDP2": ("weights", partial(fsdp, muonlab.MuonHyperball), owners.BUCKET_BYTES),
    "all-gather, FSDP2": ("all-gather", partial(fsdp, Gathering), owners.BUCKET_BYTES),
    "torch.optim.Muon, FSDP2": ("per matrix", partial(fsdp, torch.optim.Muon), owners.BUCKET_BYTES),
    "muonlab.Muon, DDP module": ("DDP owner", partial(ddp, muonlab.Muon, whole=True), owners.BUCKET_BYTES),
    "muonlab.Muon, DDP parameters": ("DDP repeated", partial(ddp, muonlab.Muon), owners.BUCKET_BYTES),
    "torch.optim.Muon, DDP": ("DDP repeated", partial(ddp, torch.optim.Muon), owners.BUCKET_BYTES),
}
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


@contextmanager
def bucket_bytes(size: int) -> Iterator[None]:
    kept, owners.BUCKET_BYTES = owners.BUCKET_BYTES, size
    try:
        yield
    finally:
        owners.BUCKET_BYTES = kept


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

    def measured(self, width: int) -> dict[str, Any]:
        steppers, facts = {}, {}
        for label, (_, build, size) in CONTENDERS.items():
            with bucket_bytes(size):
                optimizer = build(Stack(width))
                shapes = give_gradients(optimizer)
                step = bucketed(optimizer, size)
                facts[label] = self.facts(optimizer, step)
            steppers[label] = step
        x = torch.randn(PRODUCT, PRODUCT).to(torch.bfloat16)
        constants = {
            "products": lambda: [x @ x for _ in range(REPEATS)],
            "empty": self.all_to_all(EMPTY),
            "full": self.all_to_all(FULL),
        }
        rounds = self.interleaved({**steppers, **constants})
        machine = machine_of({name: median(rounds.pop(name)) for name in constants}, self.world)
        rows = [self.row(label, rounds, facts[label], shapes, machine) for label in CONTENDERS]
        found = {"num_ranks": self.world, "constants": vars(machine), "rows": rows}
        return found | ({"layouts": layouts()} if self.world == 4 else {})

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
        self, label: str, rounds: dict[str, list[float]], facts: dict[str, Any], shapes: Any, machine: Machine
    ) -> dict[str, Any]:
        design, _, size = CONTENDERS[label]
        reference = f"torch.optim.Muon, {'DDP' if 'DDP' in label else 'FSDP2'}"
        seconds, ratio = spread(rounds[label]), spread(ratios(rounds[label], rounds[reference]))
        with bucket_bytes(size):
            step = step_of(design, shapes, self.world)
        predicted = times(step, machine)
        return {
            "optimizer": label, "design": design, "median_seconds": seconds.median, "seconds_low": seconds.low,
            "seconds_high": seconds.high, "num_rounds": seconds.num_rounds, "ratio_to_torch": ratio.median,
            "ratio_low": ratio.low, "ratio_high": ratio.high, **facts,
            "predicted": {
                **predicted, "num_collectives": len(step.collectives), "sent_bytes": float(step.sent_bytes.max()),
                "flops": float(step.flops.max()), "state_bytes": step.state_bytes,
            },
            "relative_error": predicted["seconds"] / seconds.median - 1,
        }  # fmt: skip


def machine_of(seconds: dict[str, float], world: int) -> Machine:
    """What one rank reaches while the others do the same."""
    return Machine(
        REPEATS * 2.0 * PRODUCT**3 / seconds["products"],
        (world - 1) * (FULL - EMPTY) / (seconds["full"] - seconds["empty"]),
        seconds["empty"],
    )


def bucketed(optimizer: Any, size: int) -> Callable[[], None]:
    def step() -> None:
        with bucket_bytes(size):
            optimizer.step()

    return step


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


def work(rank: int, world: int, options: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # its advice is on torch.optim.Muon's work
    store = distributed.FileStore(str(folder / f"rendezvous{world}"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = Ranks(rank, world, options.rounds).measured(options.width)
    if rank == 0:
        (folder / f"{world}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def spawned(world: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    settings = ["--rounds", str(options.rounds), "--width", str(options.width)]
    command = [sys.executable, __file__, *settings, "--work", str(world), str(folder)]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    children = [subprocess.Popen([*command, str(rank)], env=quiet) for rank in range(world)]
    codes = [child.wait() for child in children]
    if any(codes):
        raise SystemExit(f"a rank of {world} failed")
    return json.loads((folder / f"{world}.json").read_text())


def show(found: dict[str, Any]) -> None:
    constants = found["constants"]
    print(
        f"\n{found['num_ranks']} ranks: {constants['flops_per_second'] / 1e9:.0f} Gflops, "
        f"{constants['bytes_per_second'] / 1e6:.0f} MB/s, {constants['latency_seconds'] * 1e6:.0f} us a collective\n"
        f"{'':40s} {'ms':>7s} {'quartiles':>15s} {'predicted':>9s} {'error':>6s} {'colls':>9s} {'MB sent':>15s}"
    )
    for row in found["rows"]:
        told = row["predicted"]
        low, high, seconds = (f"{row[k] * 1e3:.1f}" for k in ("seconds_low", "seconds_high", "median_seconds"))
        print(
            f"{row['optimizer']:40s} {seconds:>7s} {low + '-' + high:>15s} {told['seconds'] * 1e3:9.1f} "
            f"{row['relative_error']:+6.0%} {row['num_collectives']:4d} {told['num_collectives']:4d} "
            f"{row['sent_bytes'] / 1e6:7.2f} {told['sent_bytes'] / 1e6:7.2f}"
        )
    for row in found.get("layouts", ()):
        result = row.get("raised") or f"{row['num_collectives']} collectives"
        print(f"{row['layout']:28s} {row['optimizer']:17s} {result[:110]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--worlds", default="2,3,4")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", nargs=3, metavar=("RANKS", "FOLDER", "RANK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        world, folder, rank = options.work
        return work(int(rank), int(world), options, Path(folder))
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for world in map(int, options.worlds.split(",")):
            results.append(spawned(world, options, Path(folder)))
            show(results[-1])
    machine = environment("cpu") | {"threads": 1, "cores": os.cpu_count(), "platform": platform.platform()}
    document = {
        "machine": machine, "load_before": load, "load_after": os.getloadavg()[0], "backend": "gloo",
        "model": {"width": options.width, "depth": DEPTH,
                  "num_parameters": sum(p.numel() for p in Stack(options.width).parameters())},
        "worlds": results,
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
