"""Batches: how many samples there are in one, on which device, and whose turn it is."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor

from muonlab.errors import UsageError
from muonlab.records import RunSpec
from muonlab.tasks.base import Task

__all__ = ["dealt", "micro_samples_of", "samples_of", "to_device"]


def samples_of(spec: RunSpec, task: Task) -> int:
    samples, rest = divmod(spec.batch_tokens, task.tokens_per_sample)
    if rest or not samples:
        raise UsageError(
            f"batch_tokens {spec.batch_tokens} must be a multiple of {task.tokens_per_sample} (one sample)"
        )
    return samples


def micro_samples_of(spec: RunSpec, task: Task, samples: int) -> int:
    if not spec.micro_batch_tokens:
        return samples
    micro, rest = divmod(spec.micro_batch_tokens, task.tokens_per_sample)
    if rest:
        raise UsageError(f"micro_batch_tokens must be a multiple of one sample, {task.tokens_per_sample} tokens")
    return micro


def dealt(batches: Iterable[tuple[Any, int]], rank: int, num_ranks: int) -> Iterator[tuple[Any, int]]:
    """One batch of each `num_ranks`; where there are not enough for all, the first once more, which counts nothing."""
    batches = iter(batches)
    while turn := list(islice(batches, num_ranks)):
        yield turn[rank] if rank < len(turn) else (turn[0][0], 0)


def to_device(batch: Any, device: str) -> Any:
    """Every tensor of a batch, which may be a tensor or nested tuples, lists and dictionaries of them."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        items = [to_device(item, device) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    return batch
