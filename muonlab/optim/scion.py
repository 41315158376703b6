"""Scion: a norm for each kind of parameter. Spectral for matrices, the largest element for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import hp
from muonlab.optim.lion import SignumRule
from muonlab.optim.orthogonal import OrthogonalRule, check_scale
from muonlab.optim.rule import StateField

__all__ = ["Scion", "ScionRule"]


@dataclass(frozen=True, kw_only=True)
class ScionRule(OrthogonalRule):
    """Steepest descent under the norm that maps root mean squares to root mean squares.

    Math     m <- ema(g, momentum);  u = sqrt(fan_out / fan_in) polar(m)
    Units    lr x sqrt(fan_out / fan_in) is the spectral norm of an update
    Source   Pethick et al. 2025 (2502.07529), "Training Deep Learning Models with Norm-Constrained LMOs"
    Differs  from the authors' code: `momentum` is 1 minus theirs. Their constrained form with scale rho and lr gamma is
             lr = gamma rho and weight_decay = 1 / rho here, the unconstrained one weight_decay = 0. Embeddings, head
             and vectors move by the sign of their momentum at `aux_lr`, where theirs have a scale for each layer
    """

    name: ClassVar[str] = "scion"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Pethick et al. 2025 (2502.07529)"
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param")}
    step_count: ClassVar[str] = "none"

    nesterov: bool = hp(False, kind=bool)
    adjust_lr_fn: Any = hp("spectral", check=check_scale)  # noqa: RUF009


class Scion(Engine):
    """A norm for each kind of parameter; see `ScionRule`. What is no matrix goes to Signum."""

    rule = ScionRule
    companion = SignumRule
    companion_defaults: ClassVar[Mapping[str, Any]] = {"momentum": 0.95}
