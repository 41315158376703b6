"""Kron: whitening by Kronecker factors that follow their own gradient (PSGD)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import bias_correction, ema_
from muonlab.kernels.noise import normal_noise
from muonlab.kernels.normalise import normalise
from muonlab.kernels.whitening import fit_factors_, whiten
from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import WEN, hp, lr_hp, momentum_hp, weight_decay_hp
from muonlab.optim.rule import LEFT, RIGHT, Rule, Shape, StateField

__all__ = ["Kron", "KronRule"]

MAX_RMS = 1.1  # of an update
DECAY = 1e-3  # per step, of the share of steps that refresh, once it falls


def _identity(w: Tensor, shape: Shape) -> Tensor:
    return torch.eye(shape[-1], dtype=w.dtype, device=w.device).repeat(*shape[:-2], 1, 1)


@dataclass(frozen=True, kw_only=True)
class KronRule(Rule):
    """Momentum, whitened from both sides by triangular factors.

    Math     g' = g / rms(g), of each matrix;  m <- ema(g', momentum), m' bias-corrected;  u = QL^T QL m' QR^T QR, its
             root mean square at most 1.1. QL, QR take a step of size precondition_lr (`muonlab.kernels.whitening`) on
             m' and a normal probe: at each of the first `update_flat_steps` steps, then ever less often, down to
             `update_probability`
    Shapes   QL (..., fan_out, fan_out), QR (..., fan_in, fan_in), whatever their size
    Units    lr is root mean square of an update, about
    Source   Li 2018 (1512.04202); Kron as in Wen et al. 2025 (2509.02046)
    Differs  from kron-torch: the probe is a hash of seed, step and shape, so neither a global generator nor the order
             of parameters matters; which steps refresh is a function of the step; factors are balanced at each refresh;
             gradients have a root mean square of 1, where levanter's have norm 1; no damping; no blocks
    """

    name: ClassVar[str] = "kron"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Li 2018 (1512.04202), as in Wen et al. 2025 (2509.02046)"
    state: ClassVar[Mapping[str, StateField]] = {
        "momentum_buffer": StateField("param", "matrix"),
        "left": StateField("matrix", "matrix", LEFT.shape, _identity),
        "right": StateField("matrix", "matrix", RIGHT.shape, _identity),
    }
    step_unit: ClassVar[str] = "root mean square"

    lr: float = lr_hp(1e-3, (0.0005, 0.001, 0.002, 0.004, 0.008), "root mean square of an update")
    momentum: float = momentum_hp(0.95, (0.9, 0.95, 0.98))
    weight_decay: float = weight_decay_hp(0.0, (0.0, 0.5, 0.7, 0.9))
    precondition_lr: float = hp(0.2, grid=(0.1, 0.2, 0.4), low=0.0, unit="per refresh", source=f"{WEN}; 0.4 is ours")
    update_probability: float = hp(0.1, low=0.0, low_closed=False, high=1.0, fixed=True, unit="share of steps")
    update_flat_steps: int = hp(2000, kind=int, low=0, unit="steps")
    seed: int = hp(0, kind=int, keyword=True)

    def phase_at(self, t: int) -> str:
        return "refresh" if math.floor(self._refreshes(t)) > math.floor(self._refreshes(t - 1)) else ""

    def _refreshes(self, t: int) -> float:
        """How many refreshes are due in the first `t` steps: the sum of max(exp(-DECAY (t - flat)), probability)."""
        after = t - self.update_flat_steps
        if after <= 0:
            return float(t)
        falling = min(after, math.floor(-math.log(self.update_probability) / DECAY))
        ratio = math.exp(-DECAY)
        total = self.update_flat_steps + ratio * (1 - ratio**falling) / (1 - ratio)
        return total + (after - falling) * self.update_probability

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return g

    def matrix(self, u: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        left, right = state["left"], state["right"]
        g = normalise(u.to(left.dtype)).mul_(math.sqrt(math.prod(u.shape[-2:]))).to(u.dtype)
        m = ema_(state["momentum_buffer"], g, self.momentum).to(left.dtype) / bias_correction(self.momentum, t)
        if self.phase == "refresh":
            fit_factors_(left, right, m, normal_noise(tuple(u.shape[-2:]), self.seed, t, m), self.precondition_lr)
        found = whiten(m, left, right)
        rms = found.square().mean((-2, -1), keepdim=True).sqrt()
        return (found * (MAX_RMS / rms.clamp(min=MAX_RMS))).to(u.dtype)


class Kron(Engine):
    """Momentum whitened by Kronecker factors (PSGD); see `KronRule`. What is no matrix goes to AdamW."""

    rule = KronRule
    companion = AdamWRule
    companion_defaults = BETAS
