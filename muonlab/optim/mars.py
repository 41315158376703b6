"""MARS: AdamW on gradients whose variance a difference of gradients reduces."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import adam_direction, ema_, ema_square_
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import WEN, betas_hp, eps_hp, hp, lr_hp, weight_decay_hp
from muonlab.optim.rule import Rule, StateField

__all__ = ["MARS", "MARSRule"]


@dataclass(frozen=True, kw_only=True)
class MARSRule(Rule):
    """AdamW on a gradient that is corrected by its difference from the last one, and clipped.

    Math     c = g + gamma beta1 / (1 - beta1) (g - g_last), divided by its norm over the parameter where that is above
             1; then m, v and u as AdamW, of c instead of g. g_last starts at zero
    Units    lr is change per element and step
    Source   Yuan et al. 2024 (2411.10438), "MARS", the approximate form (MARS-AdamW)
    Differs  from the authors' code: vectors are treated like everything else, not by a plain AdamW. From timm: the
             first step has no exception
    """

    name: ClassVar[str] = "mars"
    numerics_version: ClassVar[str] = "2"
    source: ClassVar[str] = "Yuan et al. 2024 (2411.10438)"
    state: ClassVar[Mapping[str, StateField]] = {
        "exp_avg": StateField("param"),
        "exp_avg_sq": StateField("param"),
        "previous_grad": StateField("param"),
    }
    sees: ClassVar[str] = "whole"

    lr: float = lr_hp(3e-3, (0.002, 0.004, 0.008, 0.016, 0.032), "change per element")
    betas: tuple[float, float] = betas_hp((0.95, 0.99), (0.8, 0.9, 0.95, 0.98), (0.9, 0.95, 0.98, 0.99))
    eps: float = eps_hp(1e-8)
    weight_decay: float = weight_decay_hp(0.0)
    gamma: float = hp(0.025, grid=(0.0125, 0.025, 0.05, 0.1), low=0.0, unit="weight of the correction", source=WEN)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        beta1, beta2 = self.betas
        last = state["previous_grad"]
        c = (g - last).mul_(self.gamma * beta1 / (1 - beta1)).add_(g)
        last.copy_(g)
        low, high = torch.aminmax(c)
        peak = torch.maximum(-low, high).clamp(min=1.0)  # so that no square overflows
        norm = torch.linalg.vector_norm(c.div_(peak)) * peak
        c.div_(norm.clamp(min=1.0) / peak)
        m, v = ema_(state["exp_avg"], c, beta1), ema_square_(state["exp_avg_sq"], c, beta2)
        return adam_direction(m, v, self.betas, t, self.eps)


class MARS(Engine):
    """AdamW with variance reduction; see `MARSRule`."""

    rule = MARSRule
