"""SGD with momentum."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import choice, hp
from muonlab.optim.rule import DECAYS, Rule, StateField

__all__ = ["SGD", "SGDRule"]

OURS = "our choice"


@dataclass(frozen=True, kw_only=True)
class SGDRule(Rule):
    """Stochastic gradient descent with momentum, dampening, Nesterov and L2 decay.

    Math     g' = g + weight_decay w;  m_1 = g', m <- momentum m + (1 - dampening) g';  u = m, or g' + momentum m
    Units    lr is per unit of gradient
    Source   Sutskever et al. 2013; torch.optim.SGD
    Differs  from torch.optim.SGD: momentum that is switched on in mid-run starts from (1 - dampening) g, not from g
    """

    name: ClassVar[str] = "sgd"
    numerics_version: ClassVar[str] = "2"
    source: ClassVar[str] = "Sutskever et al. 2013; torch.optim.SGD"
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param")}
    step_count: ClassVar[str] = "optional"
    bundles: ClassVar[bool] = True
    step_unit: ClassVar[str] = "of the gradient"
    unsupported: ClassVar[tuple[str, ...]] = ("differentiable",)

    lr: float = hp(1e-3, grid=(0.025, 0.05, 0.1, 0.2, 0.4, 0.8), low=0.0, unit="1/grad", source=OURS)
    momentum: float = hp(0.0, grid=(0.8, 0.9, 0.95, 0.98), low=0.0, high=1.0, high_closed=False, log=False, source=OURS)
    dampening: float = hp(0.0, low=0.0, high=1.0)
    weight_decay: float = hp(0.0, grid=(0.0, 1e-4, 1e-3), low=0.0, unit="L2 coefficient", source=OURS)
    nesterov: bool = hp(False, kind=bool)
    decay: str = hp("coupled", check=choice("decay", DECAYS), keyword=True)

    def validate(self) -> None:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def active_state(self) -> Mapping[str, StateField]:
        return self.state if self.momentum else {}

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        if "momentum_buffer" not in state or not (isinstance(self.momentum, Tensor) or self.momentum):
            return g
        m = state["momentum_buffer"]
        if isinstance(t, Tensor):  # a compiled step, which cannot ask whether it is the first
            fresh = (t == 1).to(g.device)
            m.copy_(torch.where(fresh, g, m * self.momentum + g * (1 - self.dampening)))
        elif t == 1:
            m.copy_(g)
        else:
            m.mul_(self.momentum).add_(g, alpha=1 - self.dampening)
        if not self.nesterov:
            return m.clone()
        return g + m * self.momentum if isinstance(self.momentum, Tensor) else g.add(m, alpha=self.momentum)


class SGD(Engine):
    """Drop-in for torch.optim.SGD; with a module or `roles`, vectors are exempt from decay.

    Differs  from torch.optim.SGD: skips a step whose gradients are not finite; `foreach` and `fused` are only hints

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> SGD([w], lr=0.5).step()
    >>> w.tolist()
    [0.5, 2.5]
    """

    rule = SGDRule
