"""Gradient noise during a run: how large it is beside the gradient, in the geometry of SGD and in that of Muon."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muonlab.kernels.norms import update_scale
from muonlab.kernels.polar import YOUJIACHENG_6, polar
from muonlab.optim.blocks import blocks_of
from muonlab.optim.engine import Engine
from muonlab.optim.routing import MATRIX_ROLES

__all__ = ["NoiseProbe", "noise_estimates"]

SMALL_SHARE = 16  # a small batch is this part of a batch
POLAR_FLOPS = 2 * YOUJIACHENG_6.num_steps * 6  # for a matrix of n x m, m <= n: this times n m^2, for two factors


class Estimates(NamedTuple):
    gradient_square: float  # |G|^2 of the true gradient, unbiased
    trace: float  # of the covariance of one token's gradient, unbiased


def noise_estimates(small: float, large: float, small_square: float, large_square: float) -> Estimates:
    """From the squared norms of the gradients of two batch sizes.

    Math     |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b);  trace = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)
    Units    of `small` and `large`, tokens here, so that trace / |G|^2 is a batch in tokens. Both are linear in the
             squares, so means may be taken first; the ratio must be taken last
    Source   McCandlish et al. 2018 (1812.06162), appendix A.1

    >>> square, trace = noise_estimates(32, 512, 4.1e-2, 2.8e-3)
    >>> round(square, 7), round(trace, 3), round(trace / square)
    (0.0002533, 1.304, 5147)
    """
    return Estimates(
        (large * large_square - small * small_square) / (large - small),
        (small_square - large_square) / (1.0 / small - 1.0 / large),
    )


class NoiseProbe:
    """What two gradients of the same weights tell: that of a batch, and that of a small part of it, passed once more.

    Measured at so few steps that it costs about `cost` of the arithmetic; from a batch of a single sample, never.

    Math     in SGD's geometry `noise_estimates`. In Muon's, with the rest R of the batch (B - b tokens) and matrices
             scaled as `update_scale` has it: signal = sum <G_b, polar(G_R)>, noise = sum |G_b - G_R|_* / sqrt(1 / b +
             1 / (B - b)). Both are linear, and (noise / signal)^2 is the batch whose noise has the nuclear norm of the
             signal
    Source   the geometry of the dual norm: Naganuma et al. 2026 (2602.03001), of which we know the abstract; the
             estimator is ours. G_b and G_R are independent, so the signal holds no noise times itself: it is what one
             orthogonalised step descends, at most |G|_*, and near it where B is large. noise takes the nuclear norm of
             noise to fall as 1 / sqrt(b), as that of Gaussian noise does
    """

    def __init__(
        self, optimizer: Engine, samples: int, tokens_per_sample: int, flops_per_token: float, cost: float
    ) -> None:
        self.small = max(1, samples // SMALL_SHARE)
        self.sizes = (self.small * tokens_per_sample, samples * tokens_per_sample)
        self.groups = [group for group in optimizer.param_groups if group["role"] in MATRIX_ROLES]
        self.every = self._every(flops_per_token, cost) if samples > 1 else 0

    def _every(self, flops_per_token: float, cost: float) -> int:
        shapes = [block.shape for group in self.groups for p in group["params"] for block in blocks_of(p.shape, group)]
        work = sum(math.prod(shape) * min(shape[-2:]) for shape in shapes) * POLAR_FLOPS
        small, large = self.sizes
        return math.ceil((small / large + work / (flops_per_token * large)) / cost)

    def is_due(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0

    @torch.no_grad()
    def measure(self, small_gradients: Mapping[Tensor, Tensor]) -> dict[str, float]:
        """From the gradients of the small batch by parameter, and those that the parameters hold."""
        params = list(small_gradients)
        squares = [_square([small_gradients[p] for p in params]), _square([p.grad for p in params])]
        found = noise_estimates(*self.sizes, *squares)
        signal, noise = self._in_nuclear_norm(small_gradients)
        return {
            "noise.gradient_square": found.gradient_square,
            "noise.trace": found.trace,
            "noise.gradient_nuclear": signal,
            "noise.nuclear": noise,
        }

    def _in_nuclear_norm(self, small_gradients: Mapping[Tensor, Tensor]) -> tuple[float, float]:
        b, rest = self.sizes[0], self.sizes[1] - self.sizes[0]
        ours, others = defaultdict(list), defaultdict(list)  # by shape
        for group in self.groups:
            for p in (p for p in group["params"] if p in small_gradients):
                small = small_gradients[p]
                remaining = (p.grad * (b + rest) - small * b) / rest
                for block in blocks_of(p.shape, group):
                    shape = block.shape[-2:]
                    ours[shape].append(block.of(small).reshape(-1, *shape))
                    others[shape].append(block.of(remaining).reshape(-1, *shape))
        signal = noise = 0.0
        for shape in ours:
            first, second, scale = torch.cat(ours[shape]), torch.cat(others[shape]), update_scale(*shape)
            difference = first - second
            signal += scale * float((first * _polar(second)).sum())
            noise += scale * float((difference * _polar(difference)).sum())
        return signal, noise / math.sqrt(1.0 / b + 1.0 / rest)


def _polar(x: Tensor) -> Tensor:
    return polar(x, coefficients=YOUJIACHENG_6, dtype=torch.float32)


def _square(tensors: Sequence[Any]) -> float:
    return float(torch.stack(torch._foreach_norm(list(tensors))).square().sum())
