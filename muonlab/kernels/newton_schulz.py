"""Newton-Schulz iteration on the matrix itself: products alone, in any dtype that multiplies fast."""

import torch
from torch import Tensor

from muonlab.kernels.coefficients import Coefficients
from muonlab.kernels.symmetric import eager_on_cpu, gram, multiply_add

__all__ = ["SAFE_NORMS", "all_within", "newton_schulz", "normalise"]

SAFE_NORMS = (1e-15, 1e15)  # between these no square that matters overflows or vanishes in float32


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


def normalise(x: Tensor, eps: float, safety: float = 1.0) -> Tensor:
    """x / (safety |x|_F); zero stays zero.

    One pass for the norm where its square neither overflows nor vanishes. Else, and where looking at a number would
    stall a device or break a traced graph, by way of the largest entry: `eps` then only guards the division by zero.

    Shapes   x (batch, fan_out, fan_in), float32 or float64 -> same

    >>> normalise(torch.tensor([[[3e30, 4e30]]]), eps=1e-7)
    tensor([[[0.6000, 0.8000]]])
    """
    if eager_on_cpu(x):
        norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        if all_within(norm, SAFE_NORMS):
            return x * (1 / (norm * safety))
    peak = x.abs().amax((-2, -1), keepdim=True)
    x = x / torch.where(peak > 0, peak, 1.0)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return x / (norm * safety).clamp(min=max(eps, torch.finfo(x.dtype).tiny))


def all_within(values: Tensor, bounds: tuple[float, float]) -> bool:
    """Looks at the numbers; NaN is not within."""
    low, high = bounds
    return bool(((values > low) & (values < high)).all())
