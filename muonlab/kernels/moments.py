"""Moving averages: the arithmetic that first- and second-moment rules share. For tensors, and for bundles of them."""

import torch
from torch import Tensor

__all__ = [
    "adam_direction",
    "adam_root",
    "bias_correction",
    "ema_",
    "ema_square_",
    "floor_of",
    "mix",
    "momentum_",
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


def mix(x: Tensor, m: Tensor, weight: float) -> Tensor:
    """Part of the way from x to m, into a new tensor.

    Math     x + weight (m - x)

    >>> import torch
    >>> mix(torch.tensor([1.0]), torch.tensor([3.0]), 0.25).item()
    1.5
    """
    return x.lerp(m, _weight(weight, x))


def momentum_(m: Tensor, g: Tensor, momentum: float, *, nesterov: bool, form: str = "ema") -> Tensor:
    """Move a momentum buffer in place, and return the direction that it gives, as a new tensor.

    Math     ema:        m <- momentum m + (1 - momentum) g;  g + momentum (m - g) if nesterov else m
             heavy_ball: m <- momentum m + g;                 g + momentum m if nesterov else m

    >>> import torch
    >>> m = torch.tensor([1.0])
    >>> momentum_(m, torch.tensor([3.0]), 0.5, nesterov=True).item(), m.item()
    (2.5, 2.0)
    """
    if form == "ema":
        ema_(m, g, momentum)
        return mix(g, m, momentum) if nesterov else m.clone()
    m.mul_(momentum).add_(g)
    return g + m * momentum if nesterov else m.clone()


def adam_direction(m: Tensor, v: Tensor, betas: tuple[float, float], t: int, eps: float) -> Tensor:
    """First moment over the root of the second, both corrected for their start at zero.

    Math     m' / (sqrt(v') + eps),  m' = m / (1 - beta1^t),  v' = v / (1 - beta2^t)
    Shapes   v may be broadcast to m; a new tensor

    >>> import torch
    >>> adam_direction(torch.tensor([0.1]), torch.tensor([0.04]), (0.9, 0.96), 1, 0.0).item()
    1.0
    """
    return (m / bias_correction(betas[0], t)).div_(adam_root(v, betas[1], t, eps))


def adam_root(v: Tensor, beta2: float, t: int, eps: float) -> Tensor:
    """sqrt(v / (1 - beta2^t)) + eps, a new tensor without zeros: see `floor_of`."""
    return v.sqrt().div_(bias_correction(beta2, t) ** 0.5).add_(floor_of(eps, v))


def floor_of(eps: float, v: Tensor) -> float | Tensor:
    """eps, but no less than the smallest normal number in the dtype of v, so that zero over zero is zero.

    >>> floor_of(1e-8, torch.ones(1)), floor_of(1e-8, torch.ones(1, dtype=torch.float16)) == 2.0**-14
    (1e-08, True)
    """
    smallest = torch.finfo(v.dtype).tiny
    return eps.to(v.device, v.dtype).clamp(min=smallest) if isinstance(eps, Tensor) else max(eps, smallest)


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


def _weight(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A compiled step hands over tensors, and `lerp` wants them in the dtype and on the device of the rest."""
    return value.to(like.device, like.dtype) if isinstance(value, Tensor) else value
