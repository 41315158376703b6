"""Moving averages: the arithmetic that first- and second-moment rules share."""

from torch import Tensor

__all__ = ["bias_correction", "ema_", "ema_square_"]


def ema_(m: Tensor, x: Tensor, beta: float) -> Tensor:
    """Move the average `m` towards `x`, in place.

    Math     m <- beta m + (1 - beta) x
    Shapes   m, x alike, any float dtype
    Differs  from classic momentum (m <- beta m + x) by the factor 1 - beta

    >>> import torch
    >>> ema_(torch.tensor([1.0]), torch.tensor([3.0]), 0.5).item()
    2.0
    """
    return m.lerp_(x, 1 - beta)


def ema_square_(v: Tensor, x: Tensor, beta: float) -> Tensor:
    """Move the average `v` towards `x` squared, in place.

    Math     v <- beta v + (1 - beta) x^2
    Shapes   v, x alike, any float dtype

    >>> import torch
    >>> ema_square_(torch.tensor([1.0]), torch.tensor([3.0]), 0.5).item()
    5.0
    """
    return v.mul_(beta).addcmul_(x, x, value=1 - beta)


def bias_correction(beta: float, t: int) -> float:
    """The weight that an average started at zero has gathered after `t` steps; divide by it.

    Math     1 - beta^t,  t from 1

    >>> bias_correction(0.5, 2)
    0.75
    """
    return 1 - beta**t
