"""Bundle: many tensors that are computed with as if they were one, each operation being one `_foreach` call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Bundle", "bundling_pays"]


class Bundle:
    """Tensors of one dtype and device under the operators and methods of a tensor, element-wise ones alone.

    The other operand is a number, or a bundle of as many tensors. A method with a trailing _ writes in place.

    >>> m = Bundle([torch.zeros(2), torch.ones(1)])
    >>> (m.mul_(0.5).add_(1.0) * 2).tensors
    [tensor([2., 2.]), tensor([3.])]
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def __add__(self, other: Any) -> "Bundle":
        return Bundle(torch._foreach_add(self.tensors, _plain(other)))

    def __sub__(self, other: Any) -> "Bundle":
        return Bundle(torch._foreach_sub(self.tensors, _plain(other)))

    def __mul__(self, other: Any) -> "Bundle":
        return Bundle(torch._foreach_mul(self.tensors, _plain(other)))

    def __truediv__(self, other: Any) -> "Bundle":
        return Bundle(torch._foreach_div(self.tensors, _plain(other)))

    def __neg__(self) -> "Bundle":
        return Bundle(torch._foreach_neg(self.tensors))

    def __rsub__(self, other: float) -> "Bundle":
        return -self + other

    def __rtruediv__(self, other: float) -> "Bundle":
        return Bundle(torch._foreach_reciprocal(self.tensors)) * other

    __radd__, __rmul__ = __add__, __mul__

    def add(self, other: Any, *, alpha: float = 1) -> "Bundle":
        return Bundle(torch._foreach_add(self.tensors, _plain(other), alpha=alpha))

    def lerp(self, other: "Bundle", weight: float) -> "Bundle":
        return Bundle(torch._foreach_lerp(self.tensors, other.tensors, weight))

    def sqrt(self) -> "Bundle":
        return Bundle(torch._foreach_sqrt(self.tensors))

    def clone(self) -> "Bundle":
        return Bundle([tensor.clone() for tensor in self.tensors])

    def add_(self, other: Any, *, alpha: float = 1) -> "Bundle":
        options = {"alpha": alpha} if isinstance(other, Bundle) else {}
        torch._foreach_add_(self.tensors, _plain(other), **options)
        return self

    def mul_(self, other: Any) -> "Bundle":
        torch._foreach_mul_(self.tensors, _plain(other))
        return self

    def div_(self, other: Any) -> "Bundle":
        torch._foreach_div_(self.tensors, _plain(other))
        return self

    def copy_(self, other: "Bundle") -> "Bundle":
        torch._foreach_copy_(self.tensors, other.tensors)
        return self

    def lerp_(self, other: "Bundle", weight: float) -> "Bundle":
        torch._foreach_lerp_(self.tensors, other.tensors, weight)
        return self

    def addcmul_(self, a: "Bundle", b: "Bundle", *, value: float = 1) -> "Bundle":
        torch._foreach_addcmul_(self.tensors, a.tensors, b.tensors, value=value)
        return self

    def sign_(self) -> "Bundle":
        torch._foreach_sign_(self.tensors)
        return self

    def clamp_(self, min: float | None = None, max: float | None = None) -> "Bundle":
        if min is not None:
            torch._foreach_clamp_min_(self.tensors, min)
        if max is not None:
            torch._foreach_clamp_max_(self.tensors, max)
        return self


def _plain(value: Any) -> Any:
    return value.tensors if isinstance(value, Bundle) else value


def bundling_pays(tensors: Sequence[Tensor]) -> bool:
    """Whether a bundle gives the same numbers in fewer calls.

    Not in half precision on a CPU, where `_foreach_mul_` rounds its factor to the tensors' dtype (torch 2.13), nor in
    a traced graph, which the compiler fuses by itself.
    """
    first = tensors[0]
    exact = not first.is_cpu or first.dtype in (torch.float32, torch.float64)
    alike = all(tensor.dtype == first.dtype for tensor in tensors)
    return len(tensors) > 1 and exact and alike and not torch.compiler.is_compiling()
