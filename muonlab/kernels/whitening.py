"""Kronecker-factored whitening on triangular factors, fitted by gradient and probe (PSGD)."""

import torch
from torch import Tensor

__all__ = ["fit_factors_", "whiten"]


def whiten(g: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Precondition a matrix by both factors.

    Math     left^T left g right^T right
    Shapes   g (..., m, n), left (..., m, m), right (..., n, n) -> (..., m, n)
    """
    return left.mT @ (left @ g @ right.mT) @ right


def fit_factors_(left: Tensor, right: Tensor, g: Tensor, probe: Tensor, lr: float) -> None:
    """Move both factors, in place, towards those whose preconditioned gradients are white.

    Math     a = left g right^T,  b = left^-T probe right^-1
             left  <- left  - lr triu(a a^T - b b^T) left / bound(a a^T + b b^T);  right likewise with a^T a and b^T b;
             then both are scaled so that their largest entries are equal
    Shapes   left (..., m, m), right (..., n, n), upper triangular with positive diagonal; g (..., m, n);
             probe (m, n), standard normal
    Source   Li 2018 (1512.04202) and 2022 (2211.04422), "PSGD"; as in Pooladzandi's and Walters' Kron
    """
    probe = probe.expand_as(g)
    a = left @ g @ right.mT
    b = torch.linalg.solve_triangular(left.mT, probe, upper=False)
    b = torch.linalg.solve_triangular(right, b, upper=True, left=False)
    for q, rows, others in ((left, a, b), (right, a.mT, b.mT)):
        first, second = rows @ rows.mT, others @ others.mT
        bound = _norm_bound(first + second)
        q.sub_((first - second).triu_().mul_(lr / bound.clamp(min=torch.finfo(q.dtype).tiny)) @ q)
    balance = (_peak(right) / _peak(left)).sqrt()
    left.mul_(balance)
    right.div_(balance)


def _peak(q: Tensor) -> Tensor:
    return q.abs().amax((-2, -1), keepdim=True)


def _norm_bound(a: Tensor) -> Tensor:
    """A cheap estimate from below of the spectral norm of symmetric matrices: (..., 1, 1)."""
    peak = _peak(a)
    a = a / torch.where(peak > 0, peak, 1.0)
    longest = a.square().sum(-1).argmax(-1)
    row = a.gather(-2, longest[..., None, None].expand(*a.shape[:-2], 1, a.shape[-1]))
    x = torch.nn.functional.normalize(row @ a, dim=-1)
    return peak * torch.linalg.vector_norm(x @ a, dim=(-2, -1), keepdim=True)
