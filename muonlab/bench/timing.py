"""Times that can be compared: everything interleaved in one process, ratios taken round by round."""

import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muonlab.bench.limits import synchronizer

__all__ = ["Rounds", "Spread", "Stepper", "forward_backward", "interleave", "num_repeats", "ratios", "spread"]

Rounds = list[float | None]  # seconds of each round, None where it was sat out
Key = TypeVar("Key", bound=Hashable)

MIN_ROUNDS = 3
MAX_SECONDS = 10.0  # whoever has used that many in MIN_ROUNDS or more sits out the rest
ROUND_SECONDS = 0.02  # steps shorter than that are repeated within a round
MAX_REPEATS = 20


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float
    num_rounds: int


def spread(values: Sequence[float]) -> Spread:
    """
    >>> spread([1.0, 2.0, 3.0, 4.0, 10.0])
    Spread(median=3.0, low=2.0, high=4.0, num_rounds=5)
    """
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (*values, 0, *values)
    return Spread(median(values), low, high, len(values))


def interleave(timers: Mapping[Key, Callable[[], float]], num_rounds: int, seed: int = 0) -> dict[Key, Rounds]:
    """Each round calls every timer once, in an order of its own; a timer returns seconds.

    Ratios of the same round share whatever else the machine was doing. A timer that has used up MAX_SECONDS sits out
    the rounds after MIN_ROUNDS.
    """
    order, shuffle = list(timers), random.Random(seed).shuffle
    rounds: dict[Key, Rounds] = {name: [] for name in timers}
    used = dict.fromkeys(timers, 0.0)
    for number in range(num_rounds):
        shuffle(order)
        for name in order:
            if number >= MIN_ROUNDS and used[name] > MAX_SECONDS:
                rounds[name].append(None)
                continue
            started = time.perf_counter()
            rounds[name].append(timers[name]())
            used[name] += time.perf_counter() - started
    return rounds


def ratios(numerator: Rounds, denominator: Rounds) -> list[float]:
    """Round by round, over the rounds that both took part in.

    >>> ratios([1.0, None, 3.0], [2.0, 2.0, 2.0])
    [0.5, 1.5]
    """
    pairs = zip(numerator, denominator, strict=True)
    return [mine / other for mine, other in pairs if mine is not None and other is not None]


def num_repeats(seconds: float) -> int:
    """Steps within a round, so that a round is not shorter than a clock's whim.

    >>> num_repeats(0.5), num_repeats(0.004), num_repeats(1e-5)
    (1, 5, 20)
    """
    return min(MAX_REPEATS, max(1, round(ROUND_SECONDS / max(seconds, 1e-9))))


class Stepper:
    """An optimizer on its parameters, with gradients written anew before each step: some optimizers consume them.

    `buffers` are tensors like the gradients, which may serve several steppers in turn.
    """

    def __init__(
        self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor],
        buffers: Sequence[Tensor], device: str,
    ) -> None:  # fmt: skip
        self.optimizer, self.parameters, self.gradients, self.buffers = optimizer, parameters, gradients, buffers
        self.wait = synchronizer(device)

    def refresh(self) -> None:
        torch._foreach_copy_(list(self.buffers), list(self.gradients))
        for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
            parameter.grad = buffer

    def seconds(self, repeats: int = 1) -> float:
        """Median over that many steps; the gradients' writing is not in it."""
        return median(self._once() for _ in range(repeats))

    def _once(self) -> float:
        self.refresh()
        self.wait()
        started = time.perf_counter()
        self.optimizer.step()
        self.wait()
        return time.perf_counter() - started


def forward_backward(shapes: Sequence[Sequence[int]], batch_tokens: int, device: str) -> Callable[[], float]:
    """Seconds of forward and backward pass of linear layers of these shapes, each on its own input.

    float32 on a CPU, bfloat16 autocast on an accelerator. Attention, norms and embeddings are left out, so that the
    share of an optimizer that is taken from it is an upper bound.
    """
    wait = synchronizer(device)
    weights = [torch.randn(*shape, device=device, requires_grad=True) for shape in shapes]
    inputs = {n: torch.randn(batch_tokens, n, device=device, requires_grad=True) for _, n in shapes}

    def once() -> float:
        wait()
        started = time.perf_counter()
        for weight in weights:
            with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
                out = nn.functional.linear(inputs[weight.shape[1]], weight)
            torch.autograd.grad(out, (inputs[weight.shape[1]], weight), torch.ones_like(out))
        wait()
        return time.perf_counter() - started

    return once
