"""The best rational approximation of the polar factor: a few shifted inverses of X X^T in place of many products."""

from dataclasses import dataclass

import torch
from torch import Tensor

from muonlab.kernels.inverse import add_weighted_inverses

__all__ = ["MAX_POLES", "POLES", "Poles", "rational_factor"]

WORKSPACE_BYTES = 8 * 2**20  # of shifted matrices at a time: more leaves the cache, and is up to 10 % slower
FIRST_LIFT = 1e-6  # added to R / |R|_F where it has lost positive definiteness to rounding; then tenfold, till it works


@dataclass(frozen=True)
class Poles:
    """A rational function with what was chosen together with it: how small a singular value it reaches, and its band.

    Math     s -> scale s (1 + sum_j weights_j / (s^2 + shifts_j))
    Range    singular values that are at least `reach` x sqrt(|X X^T|_F) end up inside `band`, smaller ones below it
    Source   Zolotarev 1877; Nakatsukasa, Freund 2016, "Computing fundamental matrix decompositions accurately via the
             matrix sign function in two iterations"; the values are recomputed by tests/kernels/test_rational.py

    >>> POLES[3].band
    (0.937, 1.063)
    """

    scale: float
    weights: tuple[float, ...]
    shifts: tuple[float, ...]
    reach: float
    band: tuple[float, float]


POLES = {
    1: Poles(
        scale=1.235898659290881,
        weights=(0.07511087196914809,),
        shifts=(0.0013085675661596203,),
        reach=1e-2,
        band=(0.671, 1.329),
    ),
    2: Poles(
        scale=1.04510743527549,
        weights=(0.005443446909525346, 0.1455351308307605),
        shifts=(6.40773109742681e-06, 0.005266378566871024),
        reach=1e-3,
        band=(0.797, 1.203),
    ),
    3: Poles(
        scale=0.7535808261229593,
        weights=(0.0035760362832380926, 0.03501017703087387, 0.3839824479796434),
        shifts=(2.1970018509047223e-06, 0.00030533458938383074, 0.03559275060058716),
        reach=1e-3,
        band=(0.937, 1.063),
    ),
    4: Poles(
        scale=0.5866317333455883,
        weights=(0.0029111104232693316, 0.01593775228629019, 0.1004629916351845, 0.6829743713426036),
        shifts=(1.1186386040848806e-06, 6.249901835724296e-05, 0.0025158710490168538, 0.10548525373433998),
        reach=1e-3,
        band=(0.981, 1.019),
    ),
}
MAX_POLES = max(POLES)


def rational_factor(r: Tensor, poles: Poles) -> Tensor:
    """The Q for which Q X approximates the polar factor of X.

    Math     R = X X^T / |X X^T|_F  ->  scale (I + sum_j weights_j (R + shifts_j I)^-1)
    Shapes   r (batch, n, n) -> same
    Differs  from a plain Cholesky: it fails where rounding beats the smallest shift, silently so in `cholesky_ex`; such
             a matrix is solved again with a small multiple of I added, which only lifts `reach`. Looks at the outcome,
             so on an accelerator it waits for the device
    """
    size = max(1, WORKSPACE_BYTES // (len(poles.shifts) * r[0].numel() * r.element_size()))
    q = torch.cat([_sum_of_inverses(chunk, poles) for chunk in r.split(size)])
    q.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return q.mul_(poles.scale)


def _sum_of_inverses(r: Tensor, poles: Poles, lift: float = 0.0) -> Tensor:
    shifts = torch.tensor(poles.shifts, dtype=r.dtype, device=r.device) + lift
    shifted = r.unsqueeze(1).repeat(1, len(shifts), 1, 1)
    shifted.diagonal(dim1=-2, dim2=-1).add_(shifts[:, None])
    total, failed = add_weighted_inverses(shifted, poles.weights)
    if failed.any():
        failed &= r.sum((-2, -1)).isfinite()  # NaN stays what it is, and with its own matrix
        if failed.any():
            total[failed] = _sum_of_inverses(r[failed], poles, lift=max(FIRST_LIFT, 10 * lift))
    return total
