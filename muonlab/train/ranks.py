"""What a run has to do with other ranks: nothing, or its share of the batch and everything that all must agree on."""

import atexit
import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Self

import torch
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.optim.agreement import answered
from muonlab.optim.sharding import gradient_of, is_dtensor, local_of
from muonlab.tasks.base import Task
from muonlab.train.parallel import Parallel

__all__ = ["Alone", "Ranks", "pause_at_exit"]

CLIP_EPS = 1e-6  # as in torch
PAUSE_SECONDS = 0.2


class Alone:
    """A run of one process."""

    world_size = num_data_ranks = 1
    rank = data_rank = 0
    description = ""

    def device(self, device_type: str) -> str:
        return device_type

    def spread(self, task: Task, model: nn.Module) -> nn.Module:
        """The model as it is to be called, and given to the optimizer."""
        return model

    def part(self, samples: int) -> tuple[int, int]:
        """Of so many samples: where this rank's begin, and how many they are."""
        return 0, samples

    def sum_gradients(self, model: nn.Module, *, now: bool) -> None:
        """Whether the next backward pass sums gradients over ranks, or leaves that to a later one."""

    def mean(self, value: Tensor | float) -> float:
        """The mean over ranks."""
        return float(value)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks that have samples of their own."""
        return list(values)

    def largest(self, value: int) -> int:
        return value

    def clip(self, params: Sequence[Tensor], bound: float) -> float:
        """The norm of all gradients together, which are scaled down to `bound` where it is larger."""
        return float(nn.utils.clip_grad_norm_(params, bound))

    def gathered(self, value: Any) -> list[Any]:
        """The value of every rank."""
        return [value]


class Ranks(Alone):
    """This process among those that torchrun has started."""

    def __init__(self, parallel: str, device_type: str, timeout_seconds: float) -> None:
        from torch import distributed

        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.parallel = Parallel.parse(parallel, self.world_size)
        self.description = str(self.parallel)
        self.num_data_ranks = self.parallel.num_data_ranks
        self.data_rank = self.rank // self.parallel.tensor
        if device_type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        self._started = not distributed.is_initialized()
        if self._started:
            backend = "nccl" if device_type == "cuda" else "gloo"
            distributed.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
        pause_at_exit()
        self._distributed, self._device_type = distributed, device_type
        self.check_same({"--parallel": self.description})
        self._mesh = self.parallel.mesh(device_type)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._started and kind is None:  # else others may be gone, and would be waited for
            self._distributed.destroy_process_group()

    def device(self, device_type: str) -> str:
        return f"cuda:{os.environ['LOCAL_RANK']}" if device_type == "cuda" else device_type

    def spread(self, task: Task, model: nn.Module) -> nn.Module:
        return self.parallel.spread(task, model, self._mesh)

    def part(self, samples: int) -> tuple[int, int]:
        share, rest = divmod(samples, self.num_data_ranks)
        if rest:
            raise UsageError(
                f"samples can't be dealt evenly, {samples} at a time to {self.num_data_ranks} data-parallel ranks: "
                "change --batch-tokens, --set micro_batch_tokens or --parallel"
            )
        return self.data_rank * share, share

    def sum_gradients(self, model: nn.Module, *, now: bool) -> None:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model.require_backward_grad_sync = now
        elif hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(now)

    def mean(self, value: Tensor | float) -> float:
        return self._reduced([float(value)])[0] / self.world_size

    def total(self, values: Sequence[float]) -> list[float]:
        return [value / self.parallel.tensor for value in self._reduced(values)]

    def largest(self, value: int) -> int:
        return int(self._reduced([value], self._distributed.ReduceOp.MAX)[0])

    def _reduced(self, values: Sequence[float], operation: Any = None) -> list[float]:
        found = torch.tensor(values, dtype=torch.float64, device=self.device(self._device_type))
        with answered():
            self._distributed.all_reduce(found, operation or self._distributed.ReduceOp.SUM)
        return found.tolist()

    def clip(self, params: Sequence[Tensor], bound: float) -> float:
        """Every rank adds the squares of what it holds, divided by the number of ranks that hold the same."""
        params = [p for p in params if p.grad is not None]
        norms = torch.stack(torch._foreach_norm([gradient_of(p) for p in params])).tolist() if params else []
        squares = sum(norm**2 * _num_shards(p) for p, norm in zip(params, norms, strict=True)) / self.world_size
        norm = math.sqrt(self._reduced([squares])[0])
        share = bound / (norm + CLIP_EPS)
        if share < 1:
            torch._foreach_mul_([local_of(p.grad) for p in params], share)
        return norm

    def gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.world_size
        with answered():
            self._distributed.all_gather_object(found, value)
        return found

    def check_same(self, asked: Mapping[str, Any]) -> None:
        """Raises   UsageError on all ranks where one was asked for something else"""
        every = self.gathered(dict(asked))
        for rank, own in enumerate(every):
            for name, first in every[0].items():
                if own.get(name) != first:
                    raise UsageError(
                        f"ranks were started by different commands: {name} is {first} on rank 0 and {own.get(name)} on "
                        f"rank {rank}"
                    )


def pause_at_exit() -> None:
    """For a process that makes collectives on a CPU, however it ends.

    A thread of gloo drops the tensors of a collective some time after that is done, for which it needs the interpreter:
    where the interpreter has begun to end by then, torch 2.13 aborts ("terminate called without an active exception"),
    destroyed group or not.
    """
    atexit.register(time.sleep, PAUSE_SECONDS)


def _num_shards(p: Tensor) -> int:
    """In how many parts a parameter is on different ranks."""
    if not is_dtensor(p):
        return 1
    return math.prod(
        size for placement, size in zip(p.placements, p.device_mesh.shape, strict=True) if not placement.is_replicate()
    )
