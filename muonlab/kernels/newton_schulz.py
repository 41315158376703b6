"""Newton-Schulz iteration on the matrix itself: products alone, in any dtype that multiplies fast."""

import torch
from torch import Tensor

from muonlab.kernels.coefficients import Coefficients
from muonlab.kernels.normalise import normalise
from muonlab.kernels.symmetric import gram, multiply_add

__all__ = ["newton_schulz"]


def newton_schulz(x: Tensor, coefficients: Coefficients, dtype: torch.dtype, eps: float) -> Tensor:
    """U p(S / (safety |x|_F)) V^T, p the composed schedule.

    Shapes   x (batch, fan_out, fan_in) -> same, in `dtype`
    """
    wide = torch.float64 if torch.float64 in (x.dtype, dtype) else torch.float32
    x = normalise(x.to(wide), eps, coefficients.safety).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    single = len(x) == 1  # a plain matrix product is the faster one for a single large matrix
    for a, b, c in coefficients.steps:
        z = multiply_add(gram(x.mT if tall else x), alpha=c, beta=b)
        left, right = (x, z) if tall else (z, x)
        if single:
            x = torch.addmm(x[0], left[0], right[0], beta=a)[None]
        else:
            x = torch.baddbmm(x, left, right, beta=a)
    return x
