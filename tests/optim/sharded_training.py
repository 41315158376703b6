"""The same small training on one process and spread over ranks in every way, for the scenarios of test_sharding.py."""

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import muonlab
from muonlab.optim import owners

DEVICE = os.environ.get("MUONLAB_TEST_DEVICE", "cpu")
STEPS = 4
SAMPLES = 12  # of a step: divided by 1, 2, 3 and 4 ranks
WIDTH, HIDDEN, VOCABULARY = 10, 26, 11  # uneven shards: 26 rows over four ranks are 7, 7, 7, 5
SQUARE = {"SOAP", "SOAPMuon", "Shampoo"}  # need Gram matrices of full rank, and float64 to tell small eigenvalues apart
EXACT_POLAR = {"polar_dtype": "float32"}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Muon": {"lr": 0.02, **EXACT_POLAR},
    "NorMuon": {"lr": 0.02, **EXACT_POLAR},
    "AdaMuon": {"lr": 0.02, **EXACT_POLAR},
    "MuonHyperball": {"lr": 0.02, **EXACT_POLAR},
    "Scion": {"lr": 0.02, **EXACT_POLAR},
    "OrthogonalSGDM": {"lr": 0.02, **EXACT_POLAR},
    "SOAP": {"lr": 0.003},
    "SOAPMuon": {"lr": 0.003, **EXACT_POLAR},
    "Shampoo": {"lr": 0.003},
    "Kron": {"lr": 0.003},
    "AdamW": {"lr": 0.01},
    "AdamHyperball": {"lr": 0.01},
    "CautiousAdamW": {"lr": 0.01},
    "NAdamW": {"lr": 0.01},
    "AdEMAMix": {"lr": 0.01},
    "ADOPT": {"lr": 0.01},
    "AdamMini": {"lr": 0.01},
    "MARS": {"lr": 0.01},
    "Sophia": {"lr": 0.01},
    "Lion": {"lr": 0.001},
    "Signum": {"lr": 0.001},
    "SGD": {"lr": 0.1, "momentum": 0.9},
}


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Experts(nn.Module):
    """A soft mixture: every expert sees every token."""

    def __init__(self, number: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(number, width, width) / width)
        self.router = nn.Linear(width, number)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...e,eij,...j->...i", self.router(x).softmax(-1), self.weight, x)


class Model(nn.Module):
    def __init__(self, width: int, hidden: int, num_experts: int = 0, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList([Block(width, hidden) for _ in range(2)])
        if num_experts:
            self.blocks.append(Experts(num_experts, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.norm(x))


def model(width: int = WIDTH, hidden: int = HIDDEN, num_experts: int = 0, **changes: Any) -> Model:
    torch.manual_seed(0)
    return Model(width, hidden, num_experts, **changes).to(DEVICE)


def optimizer(name: str, module: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*without an observation")
        return getattr(muonlab, name)(module, **OPTIMIZERS[name] | settings)


def batch(step: int) -> Tensor:
    """Inputs and targets of a step, (2, SAMPLES, 6)."""
    return torch.randint(0, VOCABULARY, (2, SAMPLES, 6), generator=torch.Generator().manual_seed(step))


def backward(module: nn.Module, step: int, rank: int = 0, world: int = 1, parts: int = 1) -> None:
    """The gradient of the mean over this rank's samples, in so many parts; ranks together have all samples."""
    x, y = (half.to(DEVICE).chunk(world)[rank].chunk(parts) for half in batch(step))
    for part in range(parts):
        _synchronises(module, last=part == parts - 1)
        loss = nn.functional.cross_entropy(module(x[part]).flatten(0, 1), y[part].flatten())
        (loss / parts).backward()


def _synchronises(module: nn.Module, *, last: bool) -> None:
    if isinstance(module, DistributedDataParallel):
        module.require_backward_grad_sync = last
    elif hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(last)


def train(
    module: nn.Module,
    opt: torch.optim.Optimizer,
    steps: range,
    rank: int = 0,
    world: int = 1,
    *,
    parts: int = 1,
    observing: bool = False,
) -> None:
    for step in steps:
        opt.zero_grad()
        backward(module, step, rank, world, parts)
        if observing:
            opt.observe(SAMPLES)
        step_strictly(opt)


def step_strictly(opt: torch.optim.Optimizer) -> None:
    """A step in which every warning is an error, but that of Sophia where it observes nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*without an observation")
        opt.step()


def ddp(module: Model) -> nn.Module:
    unused = any(name.startswith("unused") for name, _ in module.named_parameters())
    return DistributedDataParallel(module, find_unused_parameters=unused)


def sharded(module: Model, mesh: Any, **how: Any) -> nn.Module:
    for block in module.blocks:
        fully_shard(block, mesh=mesh, **how)
    return fully_shard(module, mesh=mesh, **how)


def world() -> int:
    return distributed.get_world_size()


@cache
def line() -> Any:
    return init_device_mesh(DEVICE, (world(),))


@cache
def grid(*names: str) -> Any:
    return init_device_mesh(DEVICE, (2, world() // 2), mesh_dim_names=names)


def fsdp(module: Model) -> nn.Module:
    return sharded(module, line())


def columns(module: Model) -> nn.Module:
    """FSDP2 along the second dimension of matrices, and of stacks of them."""
    place = lambda p: Shard(1) if p.ndim >= 2 and p.shape[1] % world() == 0 else Shard(0)  # noqa: E731
    return sharded(module, line(), shard_placement_fn=place)


def hsdp(module: Model) -> nn.Module:
    return sharded(module, grid("replicate", "shard"))


def _tensor_parallel(module: Model, mesh: Any) -> None:
    for block in module.blocks:
        if isinstance(block, Block):
            parallelize_module(block, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def tp(module: Model) -> nn.Module:
    _tensor_parallel(module, line())
    return module


def fsdp_tp(module: Model) -> nn.Module:
    mesh = grid("data", "tensor")
    _tensor_parallel(module, mesh["tensor"])
    return sharded(module, mesh["data"])


Way = Callable[[Model], nn.Module]
WAYS: dict[str, Way] = {"ddp": ddp, "fsdp": fsdp, "hsdp": hsdp, "tp": tp, "fsdp_tp": fsdp_tp, "columns": columns}
EVEN = {"tp", "fsdp_tp", "columns"}  # need dimensions that the ranks divide


def data_ranks(way: str) -> tuple[int, int]:
    """This rank's number among those with other samples, and how many those are."""
    shared = {"tp": world(), "fsdp_tp": world() // 2}.get(way, 1)
    return distributed.get_rank() // shared, world() // shared


def weights(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, p in module.named_parameters():
        whole = p.full_tensor() if isinstance(p, DTensor) else p
        found[name.removeprefix("module.")] = whole.detach().clone()
    return found


Weights = dict[str, Tensor] | nn.Module


def error(ours: Weights, theirs: Weights, before: Weights) -> float:
    """How far training ended from the reference, relative to how far that went; 0 or 1 for a weight that stayed."""
    ours, theirs, before = (weights(one) if isinstance(one, nn.Module) else one for one in (ours, theirs, before))
    found = []
    for name, start in before.items():
        way, off = float((theirs[name] - start).norm()), float((ours[name] - theirs[name]).norm())
        found.append(off / way if way else float(off > 0))
    return max(found)


def by_hand(name: str, places: Sequence[Sequence[Any]], meshes: Sequence[Any], **settings: Any) -> float:
    """Training of a model whose parameters lie as told, in turn, with the gradients of a whole one; the error.

    Gradients are still to be summed over the ranks of a replicated parameter.
    """
    dtype = settings.pop("dtype", torch.float32)
    start, reference, module = (model(8, 24).to(dtype) for _ in range(3))
    for k, (_, p) in enumerate(module.named_parameters()):
        mesh = meshes[k % len(meshes)]
        place = places[k % len(places)][: mesh.ndim]
        if p.ndim < 2:
            place = [Shard(0) if isinstance(one, Shard) else one for one in place]
        owner = module.get_submodule(_.rpartition(".")[0])
        setattr(owner, _.rpartition(".")[2], nn.Parameter(distribute_tensor(p.detach(), mesh, place)))
    theirs, ours = optimizer(name, reference, **settings), optimizer(name, module, **settings)
    for step in range(STEPS):
        theirs.zero_grad()
        backward(reference, step)
        for p, q in zip(module.parameters(), reference.parameters(), strict=True):
            whole, mesh = q.grad, p.device_mesh
            replicas = [Partial() if one.is_replicate() else one for one in p.placements]
            shares = 1
            for one, size in zip(p.placements, mesh.shape, strict=True):
                shares *= size if one.is_replicate() else 1
            local = distribute_tensor(whole / shares, mesh, p.placements).to_local()
            p.grad = DTensor.from_local(local, mesh, replicas, shape=p.shape, stride=whole.stride())
        step_strictly(theirs)
        step_strictly(ours)
    return error(weights(module), weights(reference), weights(start))


def bucket_bytes(size: int) -> Callable[[], None]:
    """Let so many bytes travel at a time; the returned function undoes it."""
    before = owners.BUCKET_BYTES
    owners.BUCKET_BYTES = size
    return lambda: setattr(owners, "BUCKET_BYTES", before)


REPLICATED = [Replicate(), Replicate()]
PLACES = [REPLICATED, [Shard(0), Replicate()], [Shard(0), Shard(1)], [Replicate(), Shard(1)], [Shard(0), Shard(0)]]
