"""Orthogonal-SGDM: orthogonalise first, then average."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from muonlab.kernels.moments import momentum_
from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import hp
from muonlab.optim.orthogonal import OrthogonalRule
from muonlab.optim.rule import StateField

__all__ = ["OrthogonalSGDM", "OrthogonalSGDMRule"]


@dataclass(frozen=True, kw_only=True)
class OrthogonalSGDMRule(OrthogonalRule):
    """The momentum of orthogonalised gradients: Muon with its two steps exchanged.

    Math     o = polar(g);  m <- ema(o, momentum);  u = m, or o + momentum (m - o) with Nesterov
    Units    lr x scale bounds the spectral norm of an update
    Source   Tuddenham, Pruegel-Bennett, Hare 2022 (2202.07052), "Orthogonalising gradients to speed up neural network
             optimisation"
    Differs  from the paper: momentum is an average unless momentum_form="heavy_ball", and the polar factor Muon's
             unless polar="exact", so that only the order distinguishes it from Muon
    """

    name: ClassVar[str] = "orthogonal_sgdm"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Tuddenham et al. 2022 (2202.07052)"
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param", "finish")}
    step_count: ClassVar[str] = "none"

    nesterov: bool = hp(False, kind=bool)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return g

    def finish(self, u: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return momentum_(state["momentum_buffer"], u, self.momentum, nesterov=self.nesterov, form=self.momentum_form)


class OrthogonalSGDM(Engine):
    """Orthogonalised gradients, averaged; see `OrthogonalSGDMRule`. What is no matrix goes to AdamW."""

    rule = OrthogonalSGDMRule
    companion = AdamWRule
    companion_defaults = BETAS
