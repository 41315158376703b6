"""Hyperball: weights turn on the sphere where they started, by the direction of Muon or of Adam."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from muonlab.kernels.moments import adam_direction, ema_, ema_square_
from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import betas_hp, eps_hp, hp, lr_hp
from muonlab.optim.orthogonal import OrthogonalRule
from muonlab.optim.rule import RADIUS, Rule, StateField

__all__ = ["AdamHyperball", "AdamHyperballRule", "MuonHyperball", "MuonHyperballRule"]

GRID = (0.004, 0.008, 0.016, 0.032, 0.064)
UNIT = "change relative to the weight's norm"
SOURCE = "Wen et al. 2026 (2606.16899)"


def _no_decay(value: Any) -> float:
    if value != 0:
        raise ValueError("weight_decay must be 0: the norm of the weights is fixed, decay would do nothing")
    return 0.0


@dataclass(frozen=True, kw_only=True)
class MuonHyperballRule(OrthogonalRule):
    """Muon's direction, on the sphere.

    Math     w <- R normalised(w - lr R normalised(polar(momentum))), R the Frobenius norm of the first weight
    Units    lr is the tangent of the angle of a step, where direction and weight are orthogonal
    Raises   UsageError at the first step for a weight that starts at zero; it names the weight
    Source   Wen et al. 2026 (2606.16899), "Hyperball" (MuonH)
    """

    name: ClassVar[str] = "muon_hyperball"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = SOURCE
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param"), "radius": RADIUS}
    step_count: ClassVar[str] = "none"
    application: ClassVar[str] = "sphere"

    lr: float = lr_hp(0.02, GRID, UNIT, "ours")
    weight_decay: float = hp(0.0, check=_no_decay)

    def scale(self, shape: tuple[int, ...]) -> float:
        return 1.0


class MuonHyperball(Engine):
    """Muon with weights of fixed norm; see `MuonHyperballRule`. What is no matrix goes to AdamW."""

    rule = MuonHyperballRule
    companion = AdamWRule
    companion_defaults = BETAS


@dataclass(frozen=True, kw_only=True)
class AdamHyperballRule(Rule):
    """Adam's direction, on the sphere.

    Math     w <- R normalised(w - lr R normalised(u)), u as AdamW, R the Frobenius norm of the first weight
    Units    lr is the tangent of the angle of a step, where direction and weight are orthogonal
    Raises   UsageError at the first step for a weight that starts at zero; it names the weight
    Source   Wen et al. 2026 (2606.16899), "Hyperball" (AdamH)
    """

    name: ClassVar[str] = "adam_hyperball"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = SOURCE
    state: ClassVar[Mapping[str, StateField]] = {
        "exp_avg": StateField("param"),
        "exp_avg_sq": StateField("param"),
        "radius": RADIUS,
    }
    bundles: ClassVar[bool] = True
    application: ClassVar[str] = "sphere"

    lr: float = lr_hp(0.02, GRID, UNIT, "ours")
    betas: tuple[float, float] = betas_hp((0.9, 0.95), source="the grid of AdamW")
    eps: float = eps_hp(1e-8, source="the grid of AdamW")
    weight_decay: float = hp(0.0, check=_no_decay)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m, v = ema_(state["exp_avg"], g, self.betas[0]), ema_square_(state["exp_avg_sq"], g, self.betas[1])
        return adam_direction(m, v, self.betas, t, self.eps)


class AdamHyperball(Engine):
    """Adam with weights of fixed norm; see `AdamHyperballRule`. What is no matrix goes to AdamW."""

    rule = AdamHyperballRule
    companion = AdamWRule
    companion_defaults = BETAS
