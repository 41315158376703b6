"""Inverses of symmetric positive definite matrices, a batch at a time, out of matrix products."""

import torch
from torch import Tensor

__all__ = ["add_weighted_inverses"]

PANEL_SIDE = 64  # at least
LEAF_SIDE = 24  # down from here LAPACK factors and inverts, one matrix after the other; above, batched products do


def inverse_factor(a: Tensor, out: Tensor) -> Tensor:
    """The inverse of the lower Cholesky factor of each matrix, into `out`, which comes in as zeros.

    Math     a = L L^T;  with blocks L21 = A21 L11^-T, and L22 the factor of A22 - L21 L21^T,
             L^-1 = [[L11^-1, 0], [-L22^-1 L21 L11^-1, L22^-1]]
    Shapes   a, out (batch, n, n); only the lower triangle of `a` is read -> failed (batch,), true where not positive
             definite: there `out` is meaningless. Nothing raises
    """
    n = a.shape[-1]
    if n <= LEAF_SIDE:
        factor, info = torch.linalg.cholesky_ex(a)
        eye = torch.eye(n, dtype=a.dtype, device=a.device).expand_as(a)
        out.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
        return info != 0
    h = n // 2
    w11, w21, w22 = out[:, :h, :h], out[:, h:, :h], out[:, h:, h:]
    failed = inverse_factor(a[:, :h, :h], w11)
    l21 = torch.bmm(a[:, h:, :h], w11.mT)
    failed |= inverse_factor(torch.baddbmm(a[:, h:, h:], l21, l21.mT, alpha=-1), w22)
    torch.baddbmm(w21, w22, torch.bmm(l21, w11), beta=0, alpha=-1, out=w21)
    return failed


def add_weighted_inverses(a: Tensor, weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Sum of the inverses of several matrices, weighted.

    Math     sum_j weights_j a_j^-1,  a_j^-1 = L_j^-T L_j^-1
    Shapes   a (batch, terms, n, n) -> (batch, n, n), symmetric; failed (batch,)
    """
    batch, terms, n, _ = a.shape
    factors = torch.zeros_like(a)
    failed = inverse_factor(a.flatten(0, 1), factors.flatten(0, 1))
    total = a.new_empty(batch, n, n)
    width = max(PANEL_SIDE, -(-n // 6))
    for i in range(0, n, width):
        j = min(i + width, n)
        panel = total[:, i:j, :j]
        for term, weight in enumerate(weights):
            below = factors[:, term, i:]  # rows above i are zero in these columns
            torch.baddbmm(panel, below[..., i:j].mT, below[..., :j], beta=float(term > 0), alpha=weight, out=panel)
        total[:, :i, i:j].copy_(panel[..., :i].mT)
    return total, failed.view(batch, terms).any(1)
