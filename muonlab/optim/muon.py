"""Muon: momentum, orthogonalised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.orthogonal import OrthogonalRule
from muonlab.optim.rule import StateField

__all__ = ["Muon", "MuonRule"]


@dataclass(frozen=True, kw_only=True)
class MuonRule(OrthogonalRule):
    """Momentum whose singular values are pushed to 1: steepest descent under the spectral norm.

    Math     ema:        m <- momentum m + (1 - momentum) g;  u = g + momentum (m - g) if nesterov else m
             heavy_ball: m <- momentum m + g;                 u = g + momentum m if nesterov else m
             w <- w - lr scale polar(u), and weight decay
    Shapes   whole matrices (..., fan_out, fan_in)
    Units    lr x scale is the spectral norm of an update
    Source   Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"; the four variants with and
             without Nesterov and decay: Sato et al. 2025 (2507.01598)
    Differs  from Jordan's first code: momentum is an average, as in torch; both forms have the same direction while
             `momentum` is constant. From torch.optim.Muon: `eps` never shrinks a small gradient; never normalises a
             momentum buffer in place
    """

    name: ClassVar[str] = "muon"
    numerics_version: ClassVar[str] = "2"
    source: ClassVar[str] = 'Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"'
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param")}
    step_count: ClassVar[str] = "none"
    unsaid: ClassVar[Mapping[str, Any]] = {"momentum_form": "ema"}


class Muon(Engine):
    """Drop-in for torch.optim.Muon that also takes a whole model: matrices to Muon, everything else to AdamW.

    `lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn` are torch's. `aux_lr`,
    `aux_betas`, `aux_eps`, `aux_weight_decay` are AdamW's; None is the value of the main rule, and for the learning
    rate that is rarely right: AdamW wants some tenths of Muon's, unless `adjust_lr_fn` is "match_rms_adamw". `polar,
    num_poles, polar_dtype, damping` say how the polar factor is computed, `momentum_form` and `decay` which variant it
    is, `roles, split_sizes, num_heads` what parameters are, `rounding, skip_nonfinite, compile` how a step is made.

    Differs  from torch.optim.Muon: a module, or parameters that are not all matrices, are routed by kind (see
             `explain`); convolutions are flattened; skips a step whose gradients are not finite

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    >>> print(Muon(model, lr=0.02, aux_lr=0.003).explain())
    parameter  shape   role    rule   why                                   step size
    0.weight   32 x 8  hidden  muon   a matrix between hidden layers        0.04 spectral norm
    2.weight   4 x 32  head    adamw  last linear layer, outside any block  0.003 per element
    0.bias     32      vector  adamw  at most one dimension above one       0.003 per element
    2.bias     4       vector  adamw  at most one dimension above one       0.003 per element
    """

    rule = MuonRule
    companion = AdamWRule
    companion_defaults = BETAS
