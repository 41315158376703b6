"""Matrix products whose result is known to be symmetric: one triangle is computed, the other copied."""

from types import ModuleType

import torch
from torch import Tensor

__all__ = ["eager_on_cpu", "gram", "multiply", "multiply_add"]

PANELS = 4  # 5/8 of the arithmetic; more save little more, and slow down what they save
PANEL_MIN_SIDE = 256  # below either bound the plain batched product is as fast on CPU
PANEL_MIN_WORK = 2**25  # side x side x length of the sums
TRITON_MIN_SIDE = 768  # below it the vendor's batched product is the faster one, on an H200 by a factor of two


def gram(x: Tensor) -> Tensor:
    """Inner products of the rows of each matrix.

    Math     x x^T
    Shapes   x (batch, n, m), any strides -> (batch, n, n)
    Differs  from x @ x.mT by rounding alone, in two thirds of the time for large matrices on CPU

    >>> gram(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).tolist()
    [[[5.0, 11.0], [11.0, 25.0]]]
    """
    if (kernels := _triton(x)) is not None:
        return kernels.gram(x)
    return _product(x, x.mT) if _panels_pay(x) else torch.bmm(x, x.mT)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Product of symmetric matrices that commute, such as two polynomials of one matrix.

    Math     a b = b a
    Shapes   a, b (batch, n, n) -> same
    """
    if (kernels := _triton(a)) is not None:
        return kernels.multiply(a, b)
    return _product(a, b) if _panels_pay(a) else torch.bmm(a, b)


def multiply_add(a: Tensor, *, alpha: float, beta: float) -> Tensor:
    """The quadratic part of a Newton-Schulz step.

    Math     alpha a a + beta a,  a symmetric
    Shapes   a (batch, n, n) -> same

    >>> multiply_add(torch.tensor([[[1.0, 2.0], [2.0, 0.0]]]), alpha=1.0, beta=-1.0).tolist()
    [[[4.0, 0.0], [0.0, 4.0]]]
    """
    if (kernels := _triton(a)) is not None:
        return kernels.multiply_add(a, alpha=alpha, beta=beta)
    return _product(a, a, a, alpha, beta) if _panels_pay(a) else torch.baddbmm(a, a, a, beta=beta, alpha=alpha)


def eager_on_cpu(x: Tensor) -> bool:
    """Whether looking at a number costs nothing: it would stall a device, or break a traced graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _differentiated(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _triton(x: Tensor) -> ModuleType | None:
    half = x.dtype in (torch.float16, torch.bfloat16)  # in float32 the vendor's full product is likely the faster one
    small = x.shape[-2] < TRITON_MIN_SIDE
    if small or not (x.is_cuda and half) or torch.compiler.is_compiling() or _differentiated(x):
        return None
    from muonlab.kernels import triton_symmetric

    return triton_symmetric if triton_symmetric.available(x) else None


def _panels_pay(x: Tensor) -> bool:
    n, m = x.shape[-2:]
    large = n >= PANEL_MIN_SIDE and n * n * m >= PANEL_MIN_WORK
    return large and eager_on_cpu(x) and not _differentiated(x)


def _product(a: Tensor, b: Tensor, c: Tensor | None = None, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """alpha a b + beta c, row panel by row panel up to the diagonal block, each mirrored."""
    n = a.shape[-2]
    out = a.new_empty(len(a), n, n)
    width = -(-n // PANELS)
    for k in range(len(a)):  # batched products are slower from this size on, and much so in bfloat16
        for i in range(0, n, width):
            j = min(i + width, n)
            panel = out[k, i:j, :j]
            if c is None:
                torch.mm(a[k, i:j], b[k, :, :j], out=panel)
            else:
                torch.addmm(c[k, i:j, :j], a[k, i:j], b[k, :, :j], beta=beta, alpha=alpha, out=panel)
            out[k, :i, i:j].copy_(panel[:, :i].mT)
    return out
