"""Every rule and every form of decay once more, as plainly as the formulas: what the engine is compared with."""

import math

import torch
from torch import Tensor

JORDAN = (3.4445, -4.7750, 2.0315)


def polar(x: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz with Jordan's coefficients, on the singular values themselves."""
    a, b, c = JORDAN
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / x.norm()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vh


class Reference:
    """One parameter under one rule; `step` returns the new weight."""

    def __init__(self, rule: str, w: Tensor, *, lr: float, weight_decay: float, decay: str, **hyper) -> None:
        self.rule, self.w, self.peak, self.weight_decay, self.decay = rule, w.detach().clone(), lr, weight_decay, decay
        self.hyper, self.t, self.m, self.v = hyper, 0, torch.zeros_like(w), torch.zeros_like(w)

    def step(self, g: Tensor, lr: float | None = None) -> Tensor:
        lr = self.peak if lr is None else lr
        self.t += 1
        w = self.w
        if self.decay == "coupled":
            g = g + self.weight_decay * w
        u = getattr(self, self.rule)(g, **self.hyper)
        if self.decay == "decoupled":
            w = w - lr * self.weight_decay * w
        elif self.decay == "independent":
            w = w - lr / self.peak * self.weight_decay * w
        elif self.decay == "cautious":
            w = torch.where(u.sign() * w.sign() >= 0, w - lr * self.weight_decay * w, w)
        self.w = w - lr * u
        return self.w

    def sgd(self, g: Tensor, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False) -> Tensor:
        if not momentum:
            return g
        self.m = g.clone() if self.t == 1 else momentum * self.m + (1 - dampening) * g
        return g + momentum * self.m if nesterov else self.m

    def adamw(self, g: Tensor, betas=(0.9, 0.999), eps: float = 1e-8) -> Tensor:
        self.m = betas[0] * self.m + (1 - betas[0]) * g
        self.v = betas[1] * self.v + (1 - betas[1]) * g * g
        return self.m / (1 - betas[0] ** self.t) / ((self.v / (1 - betas[1] ** self.t)).sqrt() + eps)

    def muon(self, g: Tensor, momentum: float = 0.95, nesterov: bool = True, momentum_form: str = "ema") -> Tensor:
        gain = 1 - momentum if momentum_form == "ema" else 1.0
        self.m = momentum * self.m + gain * g
        u = momentum * self.m + gain * g if nesterov else self.m
        return math.sqrt(max(1.0, g.shape[0] / g.shape[1])) * polar(u)
