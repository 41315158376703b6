"""Polar factors by way of the small Gram matrix X X^T: work on the long side is two products, however many steps."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from muonlab.kernels.coefficients import Coefficients, Triple
from muonlab.kernels.normalise import SAFE_NORMS, all_within, normalise
from muonlab.kernels.symmetric import eager_on_cpu, gram, multiply, multiply_add

__all__ = ["Factor", "gram_factors", "newton_schulz_each", "through_gram"]

Factor = Callable[[Tensor], Tensor]  # R (batch, n, n) -> Q, a function of R, so that Q X replaces X

MAX_NOISE = 1e-3  # of R's eigenvalues, below zero; 0.05 let a matrix of ones end up 13 times too large
MAX_NOISE_HALF = 0.2  # the same in float16, where what is rounded was summed in float32 and errors do not line up


def through_gram(
    xs: Sequence[Tensor], factors: Sequence[Factor], safety: float, eps: float, damping: float = 0.0
) -> list[Tensor]:
    """Replace each X by f(R) X with R = X X^T, once for every f of `factors`, over all matrices at once.

    The first R is divided by safety^2 |R|_F. That bounds the largest eigenvalue more tightly than |X|_F^2 does, and
    costs nothing. So does `damping`, which takes damping X / |X|_F off the result: the trace of R is |X|_F^2. It is for
    a single factor.

    Shapes   xs: stacks (batch, fan_out, fan_in) of one shorter side, float32 or float64 -> same
    """
    xs, r, norm = _first_grams(xs, eps)
    trace = r.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) if damping else None
    norm = torch.where(norm > 0, norm * safety**2, 1.0)
    q = factors[0](r.div_(norm)).mul_(norm.rsqrt())
    if trace is not None:
        q.diagonal(dim1=-2, dim2=-1).sub_(torch.where(trace > 0, damping * trace.rsqrt(), 0.0))
    xs = _apply_each(q, xs)
    for factor in factors[1:]:
        xs = _apply_each(factor(_grams(xs)), xs)
    return xs


def newton_schulz_each(xs: Sequence[Tensor], coefficients: Coefficients, eps: float) -> list[Tensor]:
    """Newton-Schulz as on the matrices themselves, but in float16 and by way of their Gram matrices.

    Math     U p(S / (safety |x|_F)) V^T, p the composed schedule
    Shapes   xs: stacks (batch, fan_out, fan_in) of one shorter side, float32 or float64 -> same, in float16
    Source   Dao-AILab 2026, "Gram Newton-Schulz": float16, and a new Gram matrix where rounding would take over
    Differs  from it: the first Gram matrix is scaled by a power of two near the root of its size, because without that
             most of its entries are subnormal in float16
    """
    side = min(xs[0].shape[-2:])
    root = 2.0 ** round(math.log2(side) / 4)
    xs = [normalise(x, eps, coefficients.safety / root).to(torch.float16) for x in xs]
    unit = root**2
    for steps in _rounds(coefficients.steps, torch.float16):
        q = _iterate(_grams(xs), steps, unit)
        xs = _apply_each(q if unit == 1.0 else q.mul_(unit**-0.5), xs)
        unit = 1.0
    return xs


def _first_grams(xs: Sequence[Tensor], eps: float) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    """(xs, every x x^T, its norm); xs normalised where float32 is too narrow, or no number may be looked at."""
    if eager_on_cpu(xs[0]):
        r = _grams(xs)
        norm = torch.linalg.matrix_norm(r, keepdim=True)
        if all_within(norm, SAFE_NORMS):
            return xs, r, norm
    xs = [normalise(x, eps) for x in xs]
    r = _grams(xs)
    return xs, r, torch.linalg.matrix_norm(r, keepdim=True)


def gram_factors(coefficients: Coefficients, dtype: torch.dtype) -> list[Factor]:
    """The schedule, cut where rounding would otherwise make the iteration diverge.

    Math     an eigenvalue of R that ought to be 0 is about -|R| times the precision, and a step multiplies it by a^2

    >>> from muonlab.kernels.coefficients import JORDAN, coefficients_for
    >>> [len(gram_factors(schedule, torch.float32)) for schedule in (JORDAN, coefficients_for("jordan", 12))]
    [2, 3]
    """
    return [lambda r, part=part: _iterate(r, part) for part in _rounds(coefficients.steps, dtype)]


def _rounds(steps: Sequence[Triple], dtype: torch.dtype) -> Iterator[list[Triple]]:
    part: list[Triple] = []
    noise = torch.finfo(dtype).eps
    bound = MAX_NOISE_HALF if dtype == torch.float16 else MAX_NOISE
    for step in steps:
        if noise > bound:
            yield part
            part, noise = [], torch.finfo(dtype).eps
        part.append(step)
        noise *= max(1.0, step[0] ** 2)
    yield part


def _iterate(r: Tensor, steps: Sequence[Triple], unit: float = 1.0) -> Tensor:
    """Q = p_k(R_k) ... p_1(R_1) with R_(k+1) = R_k p_k(R_k)^2: polynomials of one matrix, so all commute.

    R_1 is r / unit.
    """
    q = None
    for index, (a, b, c) in enumerate(steps, start=1):
        p = multiply_add(r, alpha=c / unit**2, beta=b / unit)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        q = p if q is None else multiply(q, p)
        if index < len(steps):
            r = multiply(multiply(r, p), p)
            r, unit = r if unit == 1.0 else r.div_(unit), 1.0
    return q


def _grams(xs: Sequence[Tensor]) -> Tensor:
    return torch.cat([gram(x.mT if _is_tall(x) else x) for x in xs])


def _apply_each(q: Tensor, xs: Sequence[Tensor]) -> list[Tensor]:
    parts = q.split([len(x) for x in xs])
    return [torch.bmm(x, part) if _is_tall(x) else torch.bmm(part, x) for part, x in zip(parts, xs, strict=True)]


def _is_tall(x: Tensor) -> bool:
    return x.shape[-2] > x.shape[-1]
