"""Bytes: what a step needs beside parameters, gradients and state, and what the state is."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from muonlab.optim.engine import Engine

__all__ = ["METHOD", "STATE_SIDE", "extra_bytes", "state_bytes", "state_bytes_per_parameter"]

STATE_SIDE = 256  # of the square matrix whose state is the figure of an optimizer

METHOD = {
    "cpu": "allocations of torch's CPU allocator during one step, by torch.profiler; scratch memory that MKL or oneDNN "
    "allocate by themselves is not seen",
    "cuda": "torch.cuda.max_memory_allocated during one step, less what was allocated before it",
}


def extra_bytes(step: Callable[[], Any], device: str) -> int:
    """The most that was allocated at a time during one call, beyond what was there before it.

    Temporaries inside an operator count; whatever the call leaves allocated counts too.

    >>> import torch
    >>> x = torch.ones(1024, 1024)
    >>> extra_bytes(lambda: (x + x).sum(), "cpu") - 4 * 1024**2 < 8192
    True
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(errors="replace"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler's own library writes to stderr."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def state_bytes(optimizer: Optimizer) -> int:
    """Memory of all tensors that the optimizer keeps between steps, each storage once.

    >>> w = torch.nn.Parameter(torch.zeros(8, 4))
    >>> w.grad = torch.ones(8, 4)
    >>> optimizer = torch.optim.Muon([w])
    >>> optimizer.step()
    >>> state_bytes(optimizer)
    128
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in _tensors(optimizer.state)}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for known in (parameter, parameter.grad):
                if known is not None:
                    storages.pop(known.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in storages.values())


def state_bytes_per_parameter(make: Callable[[nn.Parameter], Optimizer]) -> float:
    """State of the optimizer of one float32 matrix, 256 x 256, after two steps, over the number of its elements.

    A companion has no part in it. Factors of the two sides of a matrix count as for a square one, their smallest.

    >>> import torch
    >>> round(state_bytes_per_parameter(lambda w: torch.optim.AdamW([w])), 3)
    8.0
    """
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(STATE_SIDE, STATE_SIDE, generator=generator))
    optimizer = make(weight)
    for _ in range(2):  # some rules only prepare in the first
        weight.grad = torch.randn(weight.shape, generator=generator)
        if isinstance(optimizer, Engine) and optimizer.wants_observation():
            optimizer.observe(num_samples=1.0)
        optimizer.step()
    return state_bytes(optimizer) / weight.numel()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        children: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for child in children:
            yield from _tensors(child)
