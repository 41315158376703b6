"""Sign descent: Lion and Signum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from muonlab.kernels.moments import ema_, mix, momentum_
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import WEN, betas_hp, hp, lr_hp, momentum_hp, weight_decay_hp
from muonlab.optim.rule import Rule, StateField

__all__ = ["Lion", "LionRule", "Signum", "SignumRule"]

GRID = (0.0005, 0.001, 0.002, 0.004, 0.008)
UNIT = "change per element"
DECAYS = (0.0, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True, kw_only=True)
class LionRule(Rule):
    """The sign of a momentum that looks ahead.

    Math     u = sign(beta1 m + (1 - beta1) g), then m <- ema(g, beta2)
    Units    lr is change per element and step
    Source   Chen et al. 2023 (2302.06675), "Symbolic Discovery of Optimization Algorithms"
    """

    name: ClassVar[str] = "lion"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Chen et al. 2023 (2302.06675)"
    state: ClassVar[Mapping[str, StateField]] = {"exp_avg": StateField("param")}
    step_count: ClassVar[str] = "none"
    bundles: ClassVar[bool] = True

    lr: float = lr_hp(1e-4, GRID, UNIT, WEN)
    betas: tuple[float, float] = betas_hp((0.9, 0.99), (0.8, 0.9, 0.95, 0.98))
    weight_decay: float = weight_decay_hp(0.0, DECAYS, f"{WEN}, extended to 0")

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m = state["exp_avg"]
        u = mix(g, m, self.betas[0]).sign_()
        ema_(m, g, self.betas[1])
        return u


class Lion(Engine):
    """The sign of a momentum that looks ahead; see `LionRule`.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> w.grad = torch.tensor([0.3, -7.0])
    >>> Lion([w], lr=0.5).step()
    >>> w.tolist()
    [0.5, 2.5]
    """

    rule = LionRule


@dataclass(frozen=True, kw_only=True)
class SignumRule(Rule):
    """The sign of momentum.

    Math     m <- ema(g, momentum);  u = sign(m), or sign(g + momentum (m - g)) with Nesterov
    Units    lr is change per element and step
    Source   Bernstein et al. 2018 (1802.04434), "signSGD"
    Differs  from an implementation that starts the momentum buffer with the parameter: it starts at zero
    """

    name: ClassVar[str] = "signum"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Bernstein et al. 2018 (1802.04434)"
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param")}
    step_count: ClassVar[str] = "none"
    bundles: ClassVar[bool] = True

    lr: float = lr_hp(1e-4, GRID, UNIT, "the grid of Lion")
    momentum: float = momentum_hp(0.9, (0.8, 0.9, 0.95, 0.98), "the grid of Muon")
    weight_decay: float = weight_decay_hp(0.0, DECAYS, "the grid of Lion")
    nesterov: bool = hp(False, kind=bool)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return momentum_(state["momentum_buffer"], g, self.momentum, nesterov=self.nesterov).sign_()


class Signum(Engine):
    """The sign of momentum; see `SignumRule`."""

    rule = SignumRule
