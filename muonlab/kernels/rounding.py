"""Rounding float32 to bfloat16 without bias."""

import torch
from torch import Tensor

from muonlab.kernels.noise import hashed

__all__ = ["stochastic_round"]


def stochastic_round(x: Tensor, step: int | Tensor) -> Tensor:
    """Round to one of the two neighbours in bfloat16, to each with the probability that makes the mean exact.

    Math     P(up) = (x - down) / (up - down); the noise is a hash of the element's value, its place and `step`, so that
             the same call gives the same result on any device and in any order of parameters
    Shapes   x any, float32 -> bfloat16; values that bfloat16 holds, infinities and NaN stay as they are
    Source   our choice of noise; the idea is Gupta et al. 2015 (1502.02551)
    Differs  from implementations that draw from a generator: touches none

    >>> x = torch.full((1,), 1.0 + 2.0**-9)  # a quarter of the way from 1 to its neighbour
    >>> sum(stochastic_round(x, step).item() > 1 for step in range(4000)) / 4000
    0.2505
    """
    bits = x.view(torch.int32)
    wide = bits.to(torch.int64)
    place = torch.arange(x.numel(), device=x.device).reshape(x.shape)  # without it equal values would round alike
    noise = hashed(wide ^ hashed(place + step * 0x9E3779B9)) & 0xFFFF
    rounded = ((wide + noise) & -0x10000).to(torch.int32).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)
