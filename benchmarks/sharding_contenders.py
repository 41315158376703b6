"""Who is measured by `benchmarks/sharding.py`: optimizers on a stack of matrices under FSDP2 or DDP."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import muonlab
from muonlab.bench.designs import MUON
from muonlab.kernels.polar import polar
from muonlab.optim import owners
from muonlab.optim.normuon import NorMuonRule
from muonlab.optim.rule import Rule
from muonlab.optim.sharding import local_of, spread_as

DEPTH = 4
LR = 1e-3


def _decoder(width: int) -> tuple[tuple[int, int], ...]:
    return DEPTH * ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))


STACKS = {"d16": _decoder(16), "d256": _decoder(256), "thin": 16 * ((16384, 16),)}  # shapes


class Block(nn.Module):
    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.layer = nn.Linear(shape[1], shape[0], bias=False)


class Stack(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(Block, STACKS[name]))


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


@dataclass(frozen=True)
class Contender:
    design: str  # that is simulated
    build: Callable[[Stack], Any]
    bucket_bytes: int = owners.BUCKET_BYTES
    rule: Rule = MUON

    @contextmanager
    def buckets(self) -> Iterator[None]:
        """Its size of buckets, for what runs inside."""
        kept, owners.BUCKET_BYTES = owners.BUCKET_BYTES, self.bucket_bytes
        try:
            yield
        finally:
            owners.BUCKET_BYTES = kept


CONTENDERS = {
    "muonlab.Muon, FSDP2": Contender("owner", partial(fsdp, muonlab.Muon)),
    "muonlab.Muon, FSDP2, 1 MiB buckets": Contender("owner", partial(fsdp, muonlab.Muon), 2**20),
    "muonlab.NorMuon, FSDP2": Contender("owner", partial(fsdp, muonlab.NorMuon), rule=NorMuonRule()),
    "muonlab.MuonHyperball, FSDP2": Contender("weights", partial(fsdp, muonlab.MuonHyperball)),
    "all-gather, FSDP2": Contender("all-gather", partial(fsdp, Gathering)),
    "torch.optim.Muon, FSDP2": Contender("per matrix", partial(fsdp, torch.optim.Muon)),
    "muonlab.Muon, DDP module": Contender("DDP owner", partial(ddp, muonlab.Muon, whole=True)),
    "muonlab.Muon, DDP parameters": Contender("DDP repeated", partial(ddp, muonlab.Muon)),
    "torch.optim.Muon, DDP": Contender("DDP repeated", partial(ddp, torch.optim.Muon)),
}
