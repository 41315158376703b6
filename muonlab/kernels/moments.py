"""Moving averages: the arithmetic that first- and second-moment rules share."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bias_correction", "ema_", "ema_each_", "ema_square_", "mix_each"]


def ema_(m: Tensor, x: Tensor, beta: float) -> Tensor:
    """Move the average `m` towards `x`, in place.

    Math     m <- beta m + (1 - beta) x
    Shapes   m, x alike, any float dtype
    Differs  from classic momentum (m <- beta m + x) by the factor 1 - beta

    >>> import torch
    >>> ema_(torch.tensor([1.0]), torch.tensor([3.0]), 0.5).item()
    2.0
    """
    return m.lerp_(x, _weight(1 - beta, x))


def ema_each_(ms: Sequence[Tensor], xs: Sequence[Tensor], beta: float) -> None:
    """`ema_` of many averages in one call."""
    if isinstance(beta, Tensor):
        for m, x in zip(ms, xs, strict=True):
            ema_(m, x, beta)
    else:
        torch._foreach_lerp_(ms, xs, 1 - beta)


def mix_each(xs: Sequence[Tensor], ms: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Part of the way from each x to its m, into new tensors.

    Math     x + weight (m - x)

    >>> mix_each([torch.tensor([1.0])], [torch.tensor([3.0])], 0.25)[0].item()
    1.5
    """
    if isinstance(weight, Tensor):
        return [x.lerp(m, _weight(weight, x)) for x, m in zip(xs, ms, strict=True)]
    return list(torch._foreach_lerp(xs, ms, weight))


def _weight(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A compiled step hands over tensors, and `lerp` wants them in the dtype and on the device of the rest."""
    return value.to(like.device, like.dtype) if isinstance(value, Tensor) else value


def ema_square_(v: Tensor, x: Tensor, beta: float) -> Tensor:
    """Move the average `v` towards `x` squared, in place.

    Math     v <- beta v + (1 - beta) x^2
    Shapes   v, x alike, any float dtype

    >>> import torch
    >>> ema_square_(torch.tensor([1.0]), torch.tensor([3.0]), 0.5).item()
    5.0
    """
    if isinstance(beta, Tensor):
        return v.mul_(beta).add_(x * x * (1 - beta))
    return v.mul_(beta).addcmul_(x, x, value=1 - beta)


def bias_correction(beta: float, t: int) -> float:
    """The weight that an average started at zero has gathered after `t` steps; divide by it.

    Math     1 - beta^t,  t from 1

    >>> bias_correction(0.5, 2)
    0.75
    """
    return 1 - beta**t
