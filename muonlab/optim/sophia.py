"""Sophia: momentum over an estimate of the diagonal of the Hessian, clipped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from muonlab.kernels.moments import ema_, ema_square_, floor_of
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import WEN, betas_hp, hp, lr_hp, weight_decay_hp
from muonlab.optim.rule import Rule, StateField

__all__ = ["Sophia", "SophiaRule"]


@dataclass(frozen=True, kw_only=True)
class SophiaRule(Rule):
    """Momentum divided by a sampled curvature, each element clipped to 1 (the Gauss-Newton-Bartlett form, Sophia-G).

    Math     m <- ema(g, beta1);  u = clip(m / max(gamma h, eps), 1)
             every `observe_every` steps: h <- ema(n g_s^2, beta2), g_s the gradient of a loss averaged over n samples
             whose labels are drawn from the model's own predictions
    Units    lr is change per element and step
    Source   Liu et al. 2023 (2305.14342), "Sophia"
    Differs  from the authors' code: n enters when the curvature is observed, not at each step, and `gamma` is their
             rho; max(gamma h, eps) as in the paper, where the code adds eps
    """

    name: ClassVar[str] = "sophia"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Liu et al. 2023 (2305.14342)"
    state: ClassVar[Mapping[str, StateField]] = {"exp_avg": StateField("param"), "hessian": StateField("param")}
    bundles: ClassVar[bool] = True
    observes: ClassVar[str] = "curvature: the gradient of the loss against labels drawn from the model's predictions"

    lr: float = lr_hp(1e-3, (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032), "change per element")
    betas: tuple[float, float] = betas_hp((0.965, 0.99), (0.8, 0.9, 0.95, 0.98), (0.9, 0.95, 0.98, 0.99, 0.995))
    gamma: float = hp(0.0125, grid=(0.00625, 0.0125, 0.025, 0.05), low=0.0, unit="1/clipped share", source="ours")
    eps: float = hp(1e-12, grid=(1e-17, 1e-12, 1e-7), low=0.0, low_closed=False, unit="curvature", source=WEN)
    weight_decay: float = weight_decay_hp(0.1, (0.0, 0.1, 0.2, 0.3))
    observe_every: int = hp(10, kind=int, low=1, unit="steps", keyword=True)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m = ema_(state["exp_avg"], g, self.betas[0])
        return (m / (state["hessian"] * self.gamma).clamp_(min=floor_of(self.eps, m))).clamp_(-1.0, 1.0)

    def observe(self, g: Tensor, state: Mapping[str, Tensor], num_samples: float) -> None:
        h = state["hessian"]
        ema_square_(h, g.to(h.dtype) * math.sqrt(num_samples), self.betas[1])

    def wants_observation(self, t: int) -> bool:
        return (t - 1) % self.observe_every == 0


class Sophia(Engine):
    """Momentum over sampled curvature; the training loop has to feed it. See `SophiaRule`.

    ```
    if optimizer.wants_observation():
        labels = torch.distributions.Categorical(logits=model(inputs)).sample()
        cross_entropy(model(inputs), labels).backward()
        optimizer.observe(num_samples=labels.numel())
        optimizer.zero_grad()
    loss(model, batch).backward()
    optimizer.step()
    ```

    Without an observation every step is the sign of the momentum.
    """

    rule = SophiaRule
