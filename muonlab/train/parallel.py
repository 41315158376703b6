"""How one run is spread over ranks: DDP, FSDP2, HSDP and tensor parallelism, as a user writes them."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from torch import nn

from muonlab.errors import UsageError, unknown
from muonlab.tasks.base import Task

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Parallel"]

WAYS = ("ddp", "fsdp", "hsdp", "tp")
SYNTAX = "ddp, fsdp, hsdp=2x4 (replicas x shards), tp=2, or fsdp,tp=2"


@dataclass(frozen=True)
class Parallel:
    """Ranks as a grid: replicas of shards of tensor-parallel groups.

    >>> Parallel.parse("hsdp=2x2", 4)
    Parallel(replicas=2, shards=2, tensor=1)
    >>> Parallel.parse("tp=2", 8), str(Parallel.parse("tp=2", 8))
    (Parallel(replicas=1, shards=4, tensor=2), 'fsdp,tp=2')
    """

    replicas: int = 1
    shards: int = 1
    tensor: int = 1

    @classmethod
    def parse(cls, text: str, world_size: int) -> "Parallel":
        """The grid that `text` describes for so many ranks; what tensor parallelism leaves over is sharded.

        Raises   UsageError for another syntax, or numbers that do not make up the world size
        """
        given: dict[str, str] = {}
        for part in text.lower().split(","):
            name, _, value = part.strip().partition("=")
            if name not in WAYS:
                raise unknown("way of --parallel", name, WAYS)
            if name in given:
                raise UsageError(f"--parallel {text} says {name} twice")
            given[name] = value
        if len(given.keys() - {"tp"}) > 1 or {"ddp", "tp"} <= given.keys():
            raise UsageError(f"--parallel {text} cannot be combined: write {SYNTAX}")
        tensor = _number(text, given["tp"]) if "tp" in given else 1
        rest, left_over = divmod(world_size, tensor)
        if left_over:
            raise UsageError(f"--parallel {text}: {world_size} ranks are no multiple of {tensor}")
        if "hsdp" in given:
            match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", given["hsdp"])
            if match is None:
                raise UsageError(f"--parallel {text}: write replicas x shards, as in hsdp=2x4")
            replicas, shards = map(int, match.groups())
            if replicas * shards != rest:
                raise UsageError(f"--parallel {text} needs {replicas * shards * tensor} ranks, there are {world_size}")
            return cls(replicas, shards, tensor)
        if any(given[name] for name in ("ddp", "fsdp") if name in given):
            raise UsageError(f"--parallel {text}: ddp and fsdp take no value")
        return cls(rest, 1, 1) if "ddp" in given else cls(1, rest, tensor)

    @property
    def num_data_ranks(self) -> int:
        """Ranks, or groups of them, with samples of their own."""
        return self.replicas * self.shards

    def mesh(self, device_type: str) -> "DeviceMesh":
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(
            device_type, (self.replicas, self.shards, self.tensor), mesh_dim_names=("replicas", "shards", "tensor")
        )

    def spread(self, task: Task, model: nn.Module, mesh: "DeviceMesh") -> nn.Module:
        """The model as it is to be called: sharded in place, or in a DDP module.

        Raises   UsageError where tensor parallelism is asked of a task that has no plan for it, or does not fit
        """
        if self.tensor > 1:
            _parallelize(task, model, mesh["tensor"])
        if self.shards == 1 and self.tensor == 1:
            return nn.parallel.DistributedDataParallel(model, process_group=mesh["replicas"].get_group())
        if self.num_data_ranks > 1:
            _shard(model, mesh["replicas", "shards"] if self.replicas > 1 else mesh["shards"])
        return model

    def __str__(self) -> str:
        if self.shards == self.tensor == 1:
            return "ddp"
        data = f"hsdp={self.replicas}x{self.shards}" if self.replicas > 1 else "fsdp" if self.shards > 1 else ""
        return ",".join(filter(None, (data, f"tp={self.tensor}" if self.tensor > 1 else "")))


def _number(text: str, value: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", value):
        raise UsageError(f"--parallel {text}: write the number of ranks that share a matrix, as in tp=2")
    return int(value)


def _shard(model: nn.Module, mesh: "DeviceMesh") -> None:
    """FSDP2 of every block, which is an element of a list of modules, and of what is left."""
    from torch.distributed.fsdp import fully_shard

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = dict.fromkeys(block for blocks in lists for block in blocks)  # each once, outer ones first
    for module in (*reversed(blocks), model):
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):  # which are never called
            fully_shard(module, mesh=mesh)


def _parallelize(task: Any, model: nn.Module, mesh: "DeviceMesh") -> None:
    from torch.distributed.tensor.parallel import parallelize_module

    if not hasattr(task, "tensor_parallel_plan"):
        raise UsageError(
            "tp needs a task with a method tensor_parallel_plan(model, size): module name -> its style, as for "
            "torch.distributed.tensor.parallel.parallelize_module; --parallel ddp and fsdp need none"
        )
    plan = task.tensor_parallel_plan(model, mesh.size()) or {}
    names = [name for name, _ in model.named_modules()]
    unmatched = [key for key in plan if not any(fnmatch(name, key) for name in names)]
    if unmatched or not plan:
        what = f"{unmatched[0]!r} is no module of the model" if unmatched else "it is empty"
        raise UsageError(f"tensor_parallel_plan of the task parallelises less than it says: {what}")
    parallelize_module(model, mesh, plan)
