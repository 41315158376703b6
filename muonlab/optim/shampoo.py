"""Shampoo: the gradient between inverse fourth roots of its two second moments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from muonlab.kernels.moments import bias_correction, ema_, momentum_
from muonlab.kernels.roots import inverse_root
from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import hp, lr_hp, momentum_hp, weight_decay_hp
from muonlab.optim.orthogonal import SPECTRAL_GRID
from muonlab.optim.rule import LEFT, RIGHT, Rule, StateField

__all__ = ["Shampoo", "ShampooRule"]

LIKE_MUON = "the grid of Muon, whose updates are about as large"


@dataclass(frozen=True, kw_only=True)
class ShampooRule(Rule):
    """The gradient whitened from both sides, then averaged.

    Math     L <- ema(g g^T, beta2), R <- ema(g^T g, beta2), corrected for their start at zero; with beta2 = 1 sums
             p = L^(-1/4) g R^(-1/4), the roots renewed every `precondition_frequency` steps;  m <- ema(p, momentum)
             u = m, or p + momentum (m - p) with Nesterov. beta2 = momentum = 0 and roots at each step: the polar factor
    Shapes   L and its root (..., fan_out, fan_out), R and its root (..., fan_in, fan_in), whatever their size
    Units    lr is about the spectral norm of an update (averages), or falls as steps^(-1/2) (sums)
    Source   Gupta, Koren, Singer 2018 (1802.09568), "Shampoo"
    Differs  from the paper: averages unless beta2 = 1, and eps is relative to the largest eigenvalue. From Meta's and
             others' code: no grafting, no blocks
    """

    name: ClassVar[str] = "shampoo"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Gupta et al. 2018 (1802.09568)"
    state: ClassVar[Mapping[str, StateField]] = {
        "momentum_buffer": StateField("param", "finish"),
        "left": LEFT,
        "right": RIGHT,
        "left_root": LEFT,
        "right_root": RIGHT,
    }
    step_unit: ClassVar[str] = "spectral norm, about"

    lr: float = lr_hp(1e-2, SPECTRAL_GRID, "about the spectral norm per update", LIKE_MUON)
    momentum: float = momentum_hp(0.95, source="the grid of Muon")
    beta2: float = hp(
        0.95, grid=(0.9, 0.95, 0.98), low=0.0, high=1.0, log=False, fixed=True, source="the grid of SOAP's shampoo_beta"
    )
    eps: float = hp(1e-6, low=0.0, unit="largest eigenvalue")
    weight_decay: float = weight_decay_hp(0.1, source="the grid of Muon")
    nesterov: bool = hp(False, kind=bool)
    precondition_frequency: int = hp(10, kind=int, low=1, unit="steps")

    def phase_at(self, t: int) -> str:
        return "refresh" if (t - 1) % self.precondition_frequency == 0 else ""

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return g

    def matrix(self, u: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        g = u.to(state["left"].dtype)
        for side, gram in (("left", g @ g.mT), ("right", g.mT @ g)):
            self._accumulate(state[side], gram)
            if self.phase == "refresh":
                state[f"{side}_root"].copy_(inverse_root(state[side] / self._gathered(t), 4, self.eps))
        return (state["left_root"] @ g @ state["right_root"]).to(u.dtype)

    def _accumulate(self, total: Tensor, gram: Tensor) -> None:
        if self.beta2 == 1.0:
            total.add_(gram)
        else:
            ema_(total, gram, self.beta2)

    def _gathered(self, t: int) -> float:
        return 1.0 if self.beta2 == 1.0 else bias_correction(self.beta2, t)

    def finish(self, u: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return momentum_(state["momentum_buffer"], u, self.momentum, nesterov=self.nesterov)


class Shampoo(Engine):
    """The gradient whitened from both sides; see `ShampooRule`. What is no matrix goes to AdamW."""

    rule = ShampooRule
    companion = AdamWRule
    companion_defaults = BETAS
