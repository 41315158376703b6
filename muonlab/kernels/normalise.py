"""Division by a norm whose square neither overflows nor vanishes."""

import torch
from torch import Tensor

from muonlab.kernels.symmetric import eager_on_cpu

__all__ = ["SAFE_NORMS", "all_within", "normalise", "unit_rms"]

SAFE_NORMS = (1e-15, 1e15)  # between these no square that matters overflows or vanishes in float32


def normalise(x: Tensor, eps: float = 0.0, safety: float = 1.0) -> Tensor:
    """x / (safety |x|_F); zero stays zero.

    One pass for the norm where its square neither overflows nor vanishes. Else, and where looking at a number would
    stall a device or break a traced graph, by way of the largest entry: `eps` then only guards the division by zero.

    Shapes   x (..., fan_out, fan_in), float32 or float64 -> same

    >>> normalise(torch.tensor([[3e30, 4e30]]))
    tensor([[0.6000, 0.8000]])
    """
    if eager_on_cpu(x):
        norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        if all_within(norm, SAFE_NORMS):
            return x * (1 / (norm * safety))
    tiny = torch.finfo(x.dtype).tiny
    x = x / torch.linalg.vector_norm(x, torch.inf, dim=(-2, -1), keepdim=True).clamp(min=tiny)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    return x / (norm if safety == 1.0 else norm * safety).clamp(min=max(eps, tiny))


def all_within(values: Tensor, bounds: tuple[float, float]) -> bool:
    """Looks at the numbers; NaN is not within."""
    low, high = bounds
    return bool(((values > low) & (values < high)).all())


def unit_rms(x: Tensor) -> Tensor:
    """x over the root mean square of all its elements; zero stays zero.

    >>> unit_rms(torch.tensor([3e30, -3e30])).tolist()
    [1.0, -1.0]
    """
    peak = x.abs().amax()
    x = x / torch.where(peak > 0, peak, 1.0)
    return x / x.square().mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny)
