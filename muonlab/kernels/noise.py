"""Noise without a generator: a hash of place, step and seed, the same on every device."""

import math

import torch
from torch import Tensor

__all__ = ["hashed", "normal_noise"]

GOLDEN = 0x9E3779B9


def normal_noise(shape: tuple[int, ...], seed: int, step: int | Tensor, like: Tensor) -> Tensor:
    """Standard normal numbers that depend on shape, seed and step alone.

    Math     sqrt(-2 ln a) cos(2 pi b), a and b uniform from two hashes (Box and Muller)

    >>> x = normal_noise((1000, 100), 0, 7, torch.empty(0))
    >>> abs(x.mean().item()) < 0.01, abs(x.var().item() - 1) < 0.02
    (True, True)
    """
    step = step.to(like.device, torch.int64) if isinstance(step, Tensor) else step
    place = torch.arange(math.prod(shape), device=like.device).reshape(shape)
    start = hashed(place + step * GOLDEN) ^ hashed(torch.full_like(place, seed + shape[-1] * 0x85EBCA6B))
    a, b = hashed(start), hashed(start ^ GOLDEN)
    a, b = (a.to(torch.float64) + 1) * 2.0**-32, b.to(torch.float64) * 2.0**-32
    return ((-2 * a.log()).sqrt() * (2 * math.pi * b).cos()).to(like.dtype)


def hashed(x: Tensor) -> Tensor:
    """A mixer of 32 bits kept in int64, so that no product overflows (constants of the lowbias32 function)."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x ^ (x >> shift)
        x = _low_product(x, factor)
    return x ^ (x >> 16)


def _low_product(x: Tensor, factor: int) -> Tensor:
    low, high = x & 0xFFFF, x >> 16
    return (low * factor + (((high * factor) & 0xFFFF) << 16)) & 0xFFFFFFFF
