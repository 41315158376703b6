"""The same training on one process and spread over four, with gloo: what each rank of test_sharding.py runs."""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import muonlab

WORLD, STEPS = 4, 4
WIDTH, HIDDEN, VOCABULARY = 10, 26, 11  # uneven shards: 26 rows over four ranks are 7, 7, 7, 5
EXACT = {"SOAP"}  # eigenvectors of Gram matrices: needs them of full rank, and float64 to tell small ones apart
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Muon": {"lr": 0.02, "polar_dtype": "float32"},
    "NorMuon": {"lr": 0.02, "polar_dtype": "float32"},
    "MuonHyperball": {"lr": 0.02, "polar_dtype": "float32"},
    "Scion": {"lr": 0.02, "polar_dtype": "float32"},
    "SOAP": {"lr": 0.003},
    "Kron": {"lr": 0.003},
    "AdamW": {"lr": 0.01},
    "AdamMini": {"lr": 0.01},
    "MARS": {"lr": 0.01},
    "Sophia": {"lr": 0.01},
    "SGD": {"lr": 0.1, "momentum": 0.9},
}


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Model(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList([Block(width, hidden) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def model(width: int = WIDTH, hidden: int = HIDDEN) -> Model:
    torch.manual_seed(0)
    return Model(width, hidden)


def optimizer(name: str, module: nn.Module) -> torch.optim.Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(muonlab, name)(module, **OPTIMIZERS[name])


def backward(module: nn.Module, step: int, rank: int = 0, world: int = 1) -> None:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (2, 8, 6), generator=generator)
    x, y = (half.chunk(world)[rank] for half in tokens)
    nn.functional.cross_entropy(module(x).flatten(0, 1), y.flatten()).backward()


def train(module: nn.Module, opt: torch.optim.Optimizer, steps: range, rank: int = 0, world: int = 1) -> None:
    for step in steps:
        opt.zero_grad()
        backward(module, step, rank, world)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Sophia without observations
            opt.step()


def ddp(module: Model) -> nn.Module:
    return DistributedDataParallel(module)


def _fsdp(module: Model, mesh: Any) -> nn.Module:
    for block in module.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def fsdp(module: Model) -> nn.Module:
    return _fsdp(module, init_device_mesh("cpu", (WORLD,)))


def hsdp(module: Model) -> nn.Module:
    return _fsdp(module, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


def _tensor_parallel(module: Model, mesh: Any) -> None:
    for block in module.blocks:
        parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def tp(module: Model) -> nn.Module:
    _tensor_parallel(module, init_device_mesh("cpu", (WORLD,)))
    return module


def fsdp_tp(module: Model) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    _tensor_parallel(module, mesh["tensor"])
    return _fsdp(module, mesh["data"])


WAYS: dict[str, tuple[Callable[[Model], nn.Module], int]] = {  # how, and how many ranks have the same samples
    "ddp": (ddp, 1),
    "fsdp": (fsdp, 1),
    "hsdp": (hsdp, 1),
    "tp": (tp, WORLD),
    "fsdp_tp": (fsdp_tp, 2),
}


def weights(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, p in module.named_parameters():
        whole = p.full_tensor() if hasattr(p, "full_tensor") else p
        found[name.removeprefix("module.")] = whole.detach().clone()
    return found


def error(module: nn.Module, reference: nn.Module, start: nn.Module) -> float:
    """How far training ended from the reference, relative to how far that went."""
    ours, theirs, before = map(weights, (module, reference, start))
    return max(float((ours[n] - theirs[n]).norm() / (theirs[n] - before[n]).norm()) for n in theirs)


def scenarios(rank: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    for way in WAYS:
        for name in OPTIMIZERS:
            yield f"{way} {name}", lambda way=way, name=name: invariance(way, name, rank)
    for way in ("ddp", "fsdp", "hsdp"):
        for name in ("Muon", "SOAP", "NorMuon"):
            yield f"resume {way} {name}", lambda way=way, name=name: resume(way, name, rank)
        yield f"nonfinite {way}", lambda way=way: nonfinite(way, rank)
        yield f"missing {way}", lambda way=way: missing(way, rank)
    yield "collectives", lambda: collectives(rank)


def invariance(way: str, name: str, rank: int) -> float:
    spread, shared = WAYS[way]
    side, hidden = (WIDTH, HIDDEN) if shared == 1 else (8, 24)  # tensor-parallel layers need an even split
    shape = (side, side if name in EXACT else hidden)
    reference, start, module = (model(*shape).to(torch.float64 if name in EXACT else None) for _ in range(3))
    train(reference, optimizer(name, reference), range(STEPS))
    module = spread(module)
    train(module, optimizer(name, module), range(STEPS), rank // shared, WORLD // shared)
    return error(module, reference, start)


def resume(way: str, name: str, rank: int) -> float:
    """Two steps, the state dict loaded into a new optimizer, two more: against four."""
    spread = WAYS[way][0]
    module, through, start = spread(model()), spread(model()), model()
    train(through, optimizer(name, through), range(STEPS), rank, WORLD)
    first = optimizer(name, module)
    train(module, first, range(2), rank, WORLD)
    again = optimizer(name, module)
    again.load_state_dict(first.state_dict())
    train(module, again, range(2, STEPS), rank, WORLD)
    return error(module, through, start)


def nonfinite(way: str, rank: int) -> tuple[bool, int]:
    """Whether a NaN in one rank's gradient leaves the weights alone everywhere, and how many steps were skipped."""
    module = WAYS[way][0](model())
    opt = optimizer("Muon", module)
    before = weights(module)
    backward(module, 0, rank, WORLD)
    if rank == 1:
        p = module.module.blocks[0].up.weight if way == "ddp" else module.blocks[0].up.weight
        (p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad).fill_(float("nan"))
    opt.step()
    after = weights(module)
    return all(torch.equal(before[n], after[n]) for n in before), opt.num_skipped


def missing(way: str, rank: int) -> str:
    module = WAYS[way][0](model())
    opt = optimizer("Muon", module)
    backward(module, 0, rank, WORLD)
    if rank == 2:
        (module.module if way == "ddp" else module).blocks[1].down.weight.grad = None
    try:
        opt.step()
    except RuntimeError as found:
        return str(found)
    return "no error"


def collectives(rank: int) -> dict[str, int]:
    """Of a second step of Muon on a fully sharded model."""
    from torch.distributed.tensor.debug import CommDebugMode

    module = fsdp(model())
    opt = optimizer("Muon", module)
    train(module, opt, range(1), rank, WORLD)
    backward(module, 1, rank, WORLD)
    with CommDebugMode() as counted:
        opt.step()
    return {str(op): count for op, count in counted.get_comm_counts().items()}


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/rendezvous", WORLD)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    found = {}
    for name, run in scenarios(rank):
        found[name] = run()
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    with contextlib.suppress(RuntimeError):
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
