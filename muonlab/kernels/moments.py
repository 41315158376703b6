"""Moving averages: the arithmetic that first- and second-moment rules share."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "adam_direction",
    "adam_root",
    "bias_correction",
    "ema_",
    "ema_each_",
    "ema_square_",
    "mix_each",
    "momentum_each",
]


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


def momentum_each(
    ms: Sequence[Tensor], gs: Sequence[Tensor], momentum: float, *, nesterov: bool, form: str = "ema"
) -> list[Tensor]:
    """Move many momentum buffers in place, and return the directions that they give, as new tensors.

    Math     ema:        m <- momentum m + (1 - momentum) g;  g + momentum (m - g) if nesterov else m
             heavy_ball: m <- momentum m + g;                 g + momentum m if nesterov else m

    >>> m = torch.tensor([1.0])
    >>> momentum_each([m], [torch.tensor([3.0])], 0.5, nesterov=True)[0].item(), m.item()
    (2.5, 2.0)
    """
    if form == "ema":
        ema_each_(ms, gs, momentum)
        return mix_each(gs, ms, momentum) if nesterov else [m.clone() for m in ms]
    torch._foreach_mul_(ms, momentum)
    torch._foreach_add_(ms, gs)
    if not nesterov:
        return [m.clone() for m in ms]
    return list(torch._foreach_add(gs, torch._foreach_mul(ms, momentum)))


def adam_direction(m: Tensor, v: Tensor, betas: tuple[float, float], t: int, eps: float) -> Tensor:
    """First moment over the root of the second, both corrected for their start at zero.

    Math     m' / (sqrt(v') + eps),  m' = m / (1 - beta1^t),  v' = v / (1 - beta2^t)
    Shapes   v may be broadcast to m; a new tensor

    >>> adam_direction(torch.tensor([0.1]), torch.tensor([0.04]), (0.9, 0.96), 1, 0.0).item()
    1.0
    """
    return (m / bias_correction(betas[0], t)).div_(adam_root(v, betas[1], t, eps))


def adam_root(v: Tensor, beta2: float, t: int, eps: float) -> Tensor:
    """sqrt(v / (1 - beta2^t)) + eps, a new tensor."""
    return v.sqrt().div_(bias_correction(beta2, t) ** 0.5).add_(eps)


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
