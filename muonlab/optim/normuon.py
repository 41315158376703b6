"""Muon with second moments of its orthogonal update: per row (NorMuon) or per element (AdaMuon)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import ema_, ema_square_, floor_of
from muonlab.kernels.normalise import normalise
from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import eps_hp, hp, lr_hp, momentum_hp
from muonlab.optim.orthogonal import OrthogonalRule, check_scale
from muonlab.optim.rule import StateField

__all__ = ["AdaMuon", "AdaMuonRule", "NorMuon", "NorMuonRule"]

GRID = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
UNIT = "5 x root mean square of an update, with the default scale"
LIKE_ADAMW = "the grid of AdamW, whose updates are about as large"


def _row_means(o: Tensor) -> Tensor:
    return o.to(torch.promote_types(o.dtype, torch.float32)).square().mean(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class RescaledRule(OrthogonalRule):
    """Base of the two: orthogonal updates over the root of their own second moments, as long as they were before."""

    step_count: ClassVar[str] = "none"
    step_unit: ClassVar[str] = "root mean square"

    lr: float = lr_hp(1e-3, GRID, UNIT, LIKE_ADAMW)
    adjust_lr_fn: Any = hp("match_rms_adamw", check=check_scale)  # noqa: RUF009
    beta2: float = momentum_hp(0.95, (0.9, 0.95, 0.98), "ours")
    moment_eps: float = eps_hp(1e-8, ())

    def step_size(self, shape: tuple[int, ...]) -> tuple[float, str]:
        return self.lr * self.scale(shape) / math.sqrt(max(shape[-2:])), self.step_unit

    def rescaled(self, o: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        """o / (sqrt(v) + moment_eps), with the Frobenius norm of an orthogonal matrix of its shape."""
        u = o / (v.sqrt() + floor_of(self.moment_eps, v))
        wide = torch.promote_types(u.dtype, torch.float32)
        return normalise(u.to(wide)).mul_(math.sqrt(min(u.shape[-2:]))).to(dtype)


@dataclass(frozen=True, kw_only=True)
class NorMuonRule(RescaledRule):
    """Muon whose rows are given equal length by their second moments.

    Math     o = polar(momentum), v <- ema(mean of o^2 over a row, beta2);  u = o / (sqrt(v) + moment_eps), rescaled to
             the Frobenius norm sqrt(min(fan_out, fan_in)) of an orthogonal matrix
    Shapes   v (..., fan_out, 1)
    Units    with the default scale ("match_rms_adamw") an update has a root mean square of 0.2 lr
    Source   Li et al. 2025 (2510.05491), "NorMuon"
    Differs  from the paper, which has no look-ahead (nesterov=False). From dion: the norm is that of the whole matrix,
             however it is sharded
    """

    name: ClassVar[str] = "normuon"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Li et al. 2025 (2510.05491)"
    state: ClassVar[Mapping[str, StateField]] = {
        "momentum_buffer": StateField("param"),
        "row_moment": StateField("row", "matrix"),
    }

    def matrix_each(self, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> list[Tensor]:
        found = []
        for u, o, state in zip(us, self.polar_each(us), states, strict=True):
            v = ema_(state["row_moment"], _row_means(o), self.beta2)
            found.append(self.rescaled(o, v, u.dtype))
        return found


class NorMuon(Engine):
    """Muon with rows of equal length; see `NorMuonRule`. What is no matrix goes to AdamW."""

    rule = NorMuonRule
    companion = AdamWRule
    companion_defaults = BETAS


@dataclass(frozen=True, kw_only=True)
class AdaMuonRule(RescaledRule):
    """Muon on the signs of its momentum, with an element-wise second moment of the orthogonal update.

    Math     o = polar(sign(m)), v <- ema(o^2, beta2);  u = o / (sqrt(v) + moment_eps), rescaled to the Frobenius norm
             sqrt(min(fan_out, fan_in)) of an orthogonal matrix
    Units    with the default scale ("match_rms_adamw") an update has a root mean square of 0.2 lr
    Source   Si et al. 2025 (2507.11005), "AdaMuon"
    Differs  from the paper, where beta2 is the momentum: the same by default, but of its own
    """

    name: ClassVar[str] = "adamuon"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Si et al. 2025 (2507.11005)"
    state: ClassVar[Mapping[str, StateField]] = {
        "momentum_buffer": StateField("param"),
        "exp_avg_sq": StateField("param", "matrix"),
    }

    nesterov: bool = hp(False, kind=bool)

    def matrix_each(self, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> list[Tensor]:
        found = []
        for u, o, state in zip(us, self.polar_each([u.sign() for u in us]), states, strict=True):
            v = ema_square_(state["exp_avg_sq"], o, self.beta2)
            found.append(self.rescaled(o, v, u.dtype))
        return found


class AdaMuon(Engine):
    """Muon with an element-wise second moment; see `AdaMuonRule`. What is no matrix goes to AdamW."""

    rule = AdaMuonRule
    companion = AdamWRule
    companion_defaults = BETAS
