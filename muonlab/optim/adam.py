"""AdamW: the baseline, and the companion of every rule that only handles matrices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import bias_correction, ema_, ema_square_
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import hp
from muonlab.optim.rule import Rule, StateField

__all__ = ["AdamW", "AdamWRule"]

WEN = "Wen et al. 2025 (2509.02046), phase I"


def fused_adamw_(
    rule: "AdamWRule",
    ws: Sequence[Tensor],
    gs: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    t: int,
    lr: float,
    weight_decay: float,
    live: Tensor | None = None,
) -> None:
    """Whole AdamW step on parameters of one dtype and device, by torch's fused kernel.

    Raises   never checks strides: torch 2.13's CPU kernel walks memory in order and is silently wrong if a parameter
             and its gradient are laid out differently. The engine only hands over those that are alike
    """
    torch._fused_adamw_(
        list(ws),
        list(gs),
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [torch.full((), float(t), device=ws[0].device)] * len(ws),
        amsgrad=False,
        lr=lr,
        beta1=rule.betas[0],
        beta2=rule.betas[1],
        weight_decay=weight_decay,
        eps=rule.eps,
        maximize=False,
        grad_scale=None,
        found_inf=None if live is None else (~live).to(torch.float32),
    )


@dataclass(frozen=True, kw_only=True)
class AdamWRule(Rule):
    """Adam with decoupled weight decay.

    Math     m <- ema(g, beta1), v <- ema(g^2, beta2);  u = m' / (sqrt(v') + eps), primes being bias-corrected
    Units    lr is change per element and step
    Source   Loshchilov & Hutter 2019 (1711.05101); torch.optim.AdamW
    """

    name: ClassVar[str] = "adamw"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Loshchilov & Hutter 2019 (1711.05101)"
    state: ClassVar[Mapping[str, StateField]] = {"exp_avg": StateField("param"), "exp_avg_sq": StateField("param")}
    unsupported: ClassVar[tuple[str, ...]] = ("amsgrad", "capturable", "differentiable")
    fused = fused_adamw_

    lr: float = hp(
        1e-3,
        grid=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032),
        low=0.0,
        unit="change per element",
        source=f"{WEN}, extended downwards by their optima at scale",
    )
    betas: tuple[float, float] = hp(
        (0.9, 0.999),
        parts=("beta1", "beta2"),
        grid=((0.9, 0.95, 0.98), (0.9, 0.95, 0.98)),
        low=0.0,
        high=1.0,
        high_closed=False,
        log=False,
        source=WEN,
    )
    eps: float = hp(1e-8, grid=(1e-25, 1e-20, 1e-15, 1e-10), low=0.0, unit="gradient", source=WEN)
    weight_decay: float = hp(1e-2, grid=(0.0, 0.1, 0.2), low=0.0, unit="1/lr per step", source=WEN)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        beta1, beta2 = self.betas
        m, v = ema_(state["exp_avg"], g, beta1), ema_square_(state["exp_avg_sq"], g, beta2)
        root = v.sqrt().div_(bias_correction(beta2, t) ** 0.5).add_(self.eps)
        return (m / bias_correction(beta1, t)).div_(root)


class AdamW(Engine):
    """Drop-in for torch.optim.AdamW; with a module or `roles`, vectors are exempt from decay.

    Differs  from torch.optim.AdamW: no `amsgrad`; skips a step whose gradients are not finite; takes the fused kernel
             whenever it can, `foreach` and `fused` are only hints

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> AdamW([w], lr=0.5, weight_decay=0.0).step()
    >>> [round(value, 4) for value in w.tolist()]
    [0.5, 2.5]
    """

    rule = AdamWRule
