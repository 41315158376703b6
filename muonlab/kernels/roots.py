"""Roots and bases of symmetric positive semi-definite matrices, a batch at a time."""

import torch
from torch import Tensor

__all__ = ["eigenbasis", "inverse_root", "power_iterated"]


def inverse_root(a: Tensor, order: int, eps: float) -> Tensor:
    """a^(-1/order), with eigenvalues below eps x the largest taken for that.

    Shapes   a (batch..., n, n), symmetric, float32 or float64 -> same; a matrix of zeros gives zeros
    Raises   nothing on NaN: they are taken for zero

    >>> inverse_root(torch.tensor([[16.0, 0.0], [0.0, 256.0]]), 4, 1e-12).round(decimals=4).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
    """
    unit, peak = _unit(a)
    s, q = torch.linalg.eigh(unit)
    top = s[..., -1:]
    s = torch.where(top > 0, torch.maximum(s, top * eps), 1.0) ** (-1 / order)
    root = (q * s.unsqueeze(-2)) @ q.mT
    return torch.where(peak > 0, root * torch.where(peak > 0, peak, 1.0) ** (-1 / order), 0.0)


def eigenbasis(a: Tensor) -> Tensor:
    """Eigenvectors as columns, that of the largest eigenvalue first.

    Shapes   a (batch..., n, n), symmetric, float32 or float64 -> same

    >>> eigenbasis(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).abs().tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return torch.linalg.eigh(_unit(a)[0])[1].flip(-1)


def power_iterated(a: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """One step of orthogonal iteration from a basis, and the order in which the basis had to be sorted for it.

    Math     order: by the diagonal of q^T a q, largest first;  Q of the QR factorisation of a q[:, order]
    Shapes   a, q (batch..., n, n) -> basis (batch..., n, n), order (batch..., n)
    Source   Vyas et al. 2024 (2409.11321), algorithm 4
    """
    unit = _unit(a)[0]
    estimate = ((q.mT @ unit) * q.mT).sum(-1)
    order = estimate.argsort(dim=-1, descending=True)
    q = q.gather(-1, order.unsqueeze(-2).expand_as(q))
    return torch.linalg.qr(unit @ q)[0], order


def _unit(a: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix with its largest entry at 1, so that no scale overflows or vanishes; and that entry."""
    a = torch.nan_to_num(a, nan=0.0)
    peak = a.abs().amax((-2, -1), keepdim=True)
    return a / torch.where(peak > 0, peak, 1.0), peak
