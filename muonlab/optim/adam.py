"""AdamW, the baseline and the companion of every rule that only handles matrices, and what is made of its moments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import adam_direction, adam_root, bias_correction, ema_, ema_square_, floor_of
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import betas_hp, eps_hp, hp, lr_hp, optional_number, weight_decay_hp
from muonlab.optim.rule import Rule, StateField

__all__ = [
    "ADOPT",
    "BETAS",
    "ADOPTRule",
    "AdEMAMix",
    "AdEMAMixRule",
    "AdamMini",
    "AdamMiniRule",
    "AdamW",
    "AdamWRule",
    "CautiousAdamW",
    "CautiousAdamWRule",
    "NAdamW",
    "NAdamWRule",
]

GRID = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032)
UNIT = "change per element"
WIDE = (0.8, 0.9, 0.95, 0.98)
LIKE_ADAMW = "the grid of AdamW"
BETAS = {"betas": (0.9, 0.95)}  # of AdamW as a companion
MOMENTS = {"exp_avg": StateField("param"), "exp_avg_sq": StateField("param")}


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
    state: ClassVar[Mapping[str, StateField]] = MOMENTS
    bundles: ClassVar[bool] = True
    unsupported: ClassVar[tuple[str, ...]] = ("amsgrad", "capturable", "differentiable")
    fused = fused_adamw_

    lr: float = lr_hp(1e-3, GRID, UNIT)
    betas: tuple[float, float] = betas_hp((0.9, 0.999))
    eps: float = eps_hp(1e-8)
    weight_decay: float = weight_decay_hp(1e-2)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m, v = ema_(state["exp_avg"], g, self.betas[0]), ema_square_(state["exp_avg_sq"], g, self.betas[1])
        return adam_direction(m, v, self.betas, t, self.eps)


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


@dataclass(frozen=True, kw_only=True)
class NAdamWRule(Rule):
    """AdamW with Nesterov's look-ahead.

    Math     m, v as AdamW;  u = (mu_next m / (1 - p mu_next) + (1 - mu) g / (1 - p)) / (sqrt(v') + eps)
             mu = mu_next = beta1 and p = beta1^t; with `momentum_decay` (psi) given, mu = beta1 (1 - 0.96^(t psi) / 2),
             mu_next the same at t + 1, and p the product of all mu so far
    Units    lr is change per element and step
    Source   Dozat 2016; optax.nadamw; with momentum_decay: torch.optim.NAdam(decoupled_weight_decay=True)
    Differs  from torch.optim.NAdam: beta1 is constant unless `momentum_decay` is given, as in the published
             comparisons; torch's default for that is 4e-3
    """

    name: ClassVar[str] = "nadamw"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Dozat 2016, with the decay of Loshchilov & Hutter 2019 (1711.05101)"
    state: ClassVar[Mapping[str, StateField]] = MOMENTS | {
        "mu_product": StateField("scalar", start=lambda w, shape: w.new_ones(shape))
    }
    bundles: ClassVar[bool] = True

    lr: float = lr_hp(1e-3, GRID, UNIT)
    betas: tuple[float, float] = betas_hp((0.9, 0.999), WIDE)
    eps: float = eps_hp(1e-8)
    weight_decay: float = weight_decay_hp(1e-2)
    momentum_decay: float | None = hp(None, check=optional_number("momentum_decay"), keyword=True)

    def active_state(self) -> Mapping[str, StateField]:
        return MOMENTS if self.momentum_decay is None else self.state

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        beta1, beta2 = self.betas
        m, v = ema_(state["exp_avg"], g, beta1), ema_square_(state["exp_avg_sq"], g, beta2)
        if self.momentum_decay is None:
            mu = ahead = beta1
            product = beta1**t
        else:
            mu, ahead = (beta1 * (1 - 0.5 * 0.96 ** ((t + i) * self.momentum_decay)) for i in (0, 1))
            product = state["mu_product"].mul_(mu)
        u = m * (ahead / (1 - product * ahead)) + g * ((1 - mu) / (1 - product))
        return u.div_(adam_root(v, beta2, t, self.eps))


class NAdamW(Engine):
    """AdamW with Nesterov momentum; see `NAdamWRule`."""

    rule = NAdamWRule


@dataclass(frozen=True, kw_only=True)
class CautiousAdamWRule(Rule):
    """AdamW that leaves out elements where the averaged and the new gradient disagree, and lengthens the rest.

    Math     u as AdamW, times mask / max(mean(mask), 1e-3), mask = (m g > 0), the mean over the whole parameter
    Units    lr is change per element and step
    Source   Liang et al. 2024 (2411.16085), "Cautious Optimizers"; agrees with timm and heavyball
    """

    name: ClassVar[str] = "cautious"
    numerics_version: ClassVar[str] = "2"
    source: ClassVar[str] = "Liang et al. 2024 (2411.16085)"
    state: ClassVar[Mapping[str, StateField]] = MOMENTS
    sees: ClassVar[str] = "whole"

    lr: float = lr_hp(1e-3, GRID, UNIT)
    betas: tuple[float, float] = betas_hp((0.9, 0.999), WIDE)
    eps: float = eps_hp(1e-8)
    weight_decay: float = weight_decay_hp(1e-2)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m, v = ema_(state["exp_avg"], g, self.betas[0]), ema_square_(state["exp_avg_sq"], g, self.betas[1])
        mask = m.sign().mul_(g).gt_(0)  # 0 or 1; the product m g could underflow
        share = mask.mean(dtype=torch.promote_types(g.dtype, torch.float32)).clamp(min=1e-3)
        return adam_direction(m, v, self.betas, t, self.eps).mul_(mask.div_(share))


class CautiousAdamW(Engine):
    """AdamW whose update is masked where it disagrees with the gradient; see `CautiousAdamWRule`."""

    rule = CautiousAdamWRule


@dataclass(frozen=True, kw_only=True)
class AdamMiniRule(Rule):
    """AdamW with one second moment for each block of a parameter instead of each element.

    Math     v_block <- ema(mean over the block of g^2, beta2), the rest as AdamW
    Shapes   a block is a head where `num_heads` says so, else a row (output neuron, token); a vector is one block
    Units    lr is change per element and step, averaged over a block
    Source   Zhang et al. 2024 (2406.16793), "Adam-mini: use fewer learning rates to gain more"
    Differs  from the package adam-mini: the partition comes from roles and `num_heads`, not from patterns of names, and
             vectors are blocks like the rest, where theirs have a plain Adam.
             Layers stored as (fan_in, fan_out) are partitioned by their rows, which are inputs
    """

    name: ClassVar[str] = "adam_mini"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Zhang et al. 2024 (2406.16793)"
    state: ClassVar[Mapping[str, StateField]] = {"exp_avg": StateField("param"), "exp_avg_sq": StateField("block")}
    sees: ClassVar[str] = "rows"

    lr: float = lr_hp(1e-3, GRID, UNIT)
    betas: tuple[float, float] = betas_hp((0.9, 0.999))
    eps: float = eps_hp(1e-8)
    weight_decay: float = weight_decay_hp(1e-2)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m, v = ema_(state["exp_avg"], g, self.betas[0]), state["exp_avg_sq"]
        mean_square = g.reshape(len(v), -1).to(v.dtype).square().mean(1, keepdim=True)
        v.mul_(self.betas[1]).add_(mean_square * (1 - self.betas[1]))  # an `ema_` of infinities would be NaN
        return adam_direction(m.reshape(len(v), -1), v, self.betas, t, self.eps).reshape(g.shape)


class AdamMini(Engine):
    """AdamW with one second moment per block; see `AdamMiniRule`.

    >>> w = torch.nn.Parameter(torch.zeros(64, 16))
    >>> w.grad = torch.ones(64, 16)
    >>> optimizer = AdamMini([w], num_heads={"parameter 0": 4})
    >>> optimizer.step()
    >>> optimizer.state[w]["exp_avg_sq"].shape
    torch.Size([4, 1])
    """

    rule = AdamMiniRule


@dataclass(frozen=True, kw_only=True)
class ADOPTRule(Rule):
    """Adam whose second moment excludes the gradient that it scales, so that it converges with any beta2.

    Math     first step: v = g^2, no move;  then m <- ema(clip(g / max(sqrt(v), eps), (t - 1)^(1/4)), beta1), u = m,
             and v <- ema(g^2, beta2) afterwards
    Units    lr is change per element and step
    Source   Taniguchi et al. 2024 (2411.02853), "ADOPT: Modified Adam Can Converge with Any beta2"
    """

    name: ClassVar[str] = "adopt"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Taniguchi et al. 2024 (2411.02853)"
    state: ClassVar[Mapping[str, StateField]] = MOMENTS
    bundles: ClassVar[bool] = True

    lr: float = lr_hp(1e-3, GRID, UNIT, LIKE_ADAMW)
    betas: tuple[float, float] = betas_hp((0.9, 0.9999), (0.9, 0.95, 0.98), (0.99, 0.999, 0.9999), source="ours")
    eps: float = eps_hp(1e-6, ())
    weight_decay: float = weight_decay_hp(1e-2, source=LIKE_ADAMW)

    def phase_at(self, t: int) -> str:
        return "first" if t == 1 else ""

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if self.phase == "first":
            v.copy_(g * g)
            return g - g
        bound = (t - 1) ** 0.25
        bound = bound.to(g.device, g.dtype) if isinstance(bound, Tensor) else bound
        ratio = (g / v.sqrt().clamp_(min=floor_of(self.eps, v))).clamp_(-bound, bound)
        ema_square_(v, g, self.betas[1])
        return ema_(m, ratio, self.betas[0]).clone()


class ADOPT(Engine):
    """Adam that converges with any beta2; see `ADOPTRule`."""

    rule = ADOPTRule


@dataclass(frozen=True, kw_only=True)
class AdEMAMixRule(Rule):
    """AdamW with a second, much slower average of gradients added to the first.

    Math     m1, v as AdamW;  m2 <- ema(g, beta3);  u = (m1' + alpha m2) / (sqrt(v') + eps)
             over `mix_warmup_steps` (T) steps alpha grows as t / T, and beta3 from beta1 so that its half-life grows
             linearly: ln beta3(t) = ln beta1 ln beta3 / ((1 - t / T) ln beta3 + (t / T) ln beta1)
    Units    lr is change per element and step
    Source   Pagliardini, Ablin, Grangier 2024 (2409.03137), "The AdEMAMix Optimizer"
    """

    name: ClassVar[str] = "ademamix"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Pagliardini et al. 2024 (2409.03137)"
    state: ClassVar[Mapping[str, StateField]] = MOMENTS | {"exp_avg_slow": StateField("param")}
    bundles: ClassVar[bool] = True

    lr: float = lr_hp(1e-3, GRID, UNIT, LIKE_ADAMW)
    betas: tuple[float, float, float] = betas_hp(
        (0.9, 0.999, 0.9999), (0.9, 0.95, 0.98), (0.95, 0.98, 0.999), (0.99, 0.999, 0.9999), source="ours"
    )
    eps: float = eps_hp(1e-8, source=LIKE_ADAMW)
    weight_decay: float = weight_decay_hp(1e-2, source=LIKE_ADAMW)
    alpha: float = hp(5.0, grid=(1.0, 2.0, 4.0, 8.0), low=0.0, unit="slow average over fast one", source="ours")
    mix_warmup_steps: int = hp(0, kind=int, low=0, unit="steps")

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        beta1, beta2, beta3 = self.betas
        alpha = self.alpha
        if self.mix_warmup_steps:
            done = torch.as_tensor(t / self.mix_warmup_steps, dtype=torch.float64).clamp(max=1.0)
            fast, slow = (torch.as_tensor(beta, dtype=torch.float64).log() for beta in (beta1, beta3))
            alpha, beta3 = alpha * done, (fast * slow / ((1 - done) * slow + done * fast)).exp()
            if not isinstance(t, Tensor):
                alpha, beta3 = float(alpha), float(beta3)
        m, v = ema_(state["exp_avg"], g, beta1), ema_square_(state["exp_avg_sq"], g, beta2)
        mixed = ema_(state["exp_avg_slow"], g, beta3) * alpha + m / bias_correction(beta1, t)
        return mixed.div_(adam_root(v, beta2, t, self.eps))


class AdEMAMix(Engine):
    """AdamW with a second, slower average; see `AdEMAMixRule`."""

    rule = AdEMAMixRule
