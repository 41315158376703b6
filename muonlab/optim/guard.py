"""Guard: what no step is made of, gradients that are not all finite or of a kind that no rule takes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite

import torch
from torch import Tensor

__all__ = ["Pending", "all_finite", "check_supported", "finite_flag", "no_autocast", "waits_for_host"]

REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SYNCHRONOUS_DEVICES = {"cpu", "mps"}  # reading a result costs nothing, or cannot be avoided


def check_supported(name: str, params: Iterable[Tensor]) -> None:
    """Raises   RuntimeError for a gradient that the optimizer of that name can't take"""
    for p in params:
        g = p.grad
        if g.dtype in REAL and p.dtype in REAL and g.layout is torch.strided and not g.is_meta:
            continue
        if p.is_complex() or g.is_complex():
            raise RuntimeError(f"{name} does not support complex parameters")
        if g.layout is not torch.strided:
            raise RuntimeError(f"{name} does not support sparse gradients")
        if g.is_meta:
            raise RuntimeError(f"{name} cannot step on meta tensors: materialise the model first")
        raise RuntimeError(f"{name} does not support {g.dtype} gradients of {p.dtype} parameters")


@contextmanager
def no_autocast(device_types: set[str]) -> Iterator[None]:
    """A step inside an autocast region computes in the precision that was asked for all the same."""
    with ExitStack() as stack:
        for device_type in device_types:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def waits_for_host(grads: Sequence[Tensor]) -> bool:
    """Whether the guard looks at its result at once; else every write is masked.

    On CUDA that leaves the device idle for as long as the first launches of a step take, and masks cost more; into a
    graph that is being captured nothing can be looked at.
    """
    kinds = {g.device.type for g in grads}
    return kinds <= SYNCHRONOUS_DEVICES or ("cuda" in kinds and not torch.cuda.is_current_stream_capturing())


def all_finite(grads: Iterable[Tensor]) -> bool:
    """Whether every element is finite.

    A finite norm proves it, at an eighth of the price of looking at each element; a norm that is not may only have
    overflowed, and is looked into.
    """
    buckets: dict[tuple, list[Tensor]] = defaultdict(list)
    for g in grads:
        buckets[g.device, g.dtype].append(g)
    norms = {key: torch.stack(torch._foreach_norm(gs, 2)).tolist() for key, gs in buckets.items()}
    suspects = [g for key, gs in buckets.items() for g, norm in zip(gs, norms[key], strict=True) if not isfinite(norm)]
    return all(bool(g.isfinite().all()) for g in suspects)


def finite_flag(grads: Sequence[Tensor]) -> Tensor:
    """The same as a 0-d truth value, on the device that the host would have to wait for, if there is one."""
    if torch.compiler.is_compiling():
        flags = [g.isfinite().all() for g in grads]
    else:
        buckets: dict[tuple, list[Tensor]] = defaultdict(list)
        for g in grads:
            if g.numel():
                buckets[g.device, g.dtype].append(g)
        norms = [torch._foreach_norm(gs, float("inf")) for gs in buckets.values()]  # the largest entry: never overflows
        flags = [norm.isfinite().all() for norm in map(torch.stack, norms)]
    home = next((g.device for g in grads if g.device.type not in SYNCHRONOUS_DEVICES), grads[0].device)
    flags = [flag.to(home, non_blocking=home.type != "cpu") for flag in flags]  # a copy to a CPU is only there later
    return torch.stack(flags).all() if flags else torch.ones((), dtype=torch.bool, device=home)


class Pending:
    """Outcomes of guards that the host has not seen yet, each with the step counters to take back if it was bad."""

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, torch.cuda.Event | None, list[Tensor]]] = []

    def add(self, flag: Tensor, counters: list[Tensor]) -> None:
        event = None
        if flag.is_cuda:
            host = torch.empty((), dtype=torch.bool, pin_memory=True)
            host.copy_(flag, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            flag = host
        self._open.append((flag, event, counters))

    def settle(self, *, wait: bool) -> int:
        """Take back the counters of skipped steps, and return how many steps were; `wait` for those under way."""
        skipped = 0
        while self._open:
            flag, event, counters = self._open[0]
            if event is not None and not (wait or event.query()):
                break
            if event is not None:
                event.synchronize()
            self._open.pop(0)
            if not flag.item():
                skipped += 1
                for counter in counters:
                    counter -= 1
        return skipped
