"""SOAP: AdamW in the eigenbasis of Shampoo's preconditioner; and its direction orthogonalised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import adam_direction, adam_root, ema_, ema_square_, momentum_
from muonlab.kernels.roots import eigenbasis, power_iterated
from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import WEN, betas_hp, eps_hp, hp, lr_hp, momentum_hp, weight_decay_hp
from muonlab.optim.orthogonal import OrthogonalRule
from muonlab.optim.rule import LEFT, RIGHT, Rule, StateField

__all__ = ["SOAP", "SOAPMuon", "SOAPMuonRule", "SOAPRule"]


BASES = {"left": LEFT, "right": RIGHT, "left_basis": LEFT, "right_basis": RIGHT}


def _phase(t: int, every: int) -> str:
    """The first step only builds the bases; they are refreshed after every `every` steps from then on."""
    return "first" if t == 1 else "refresh" if (t - 1) % every == 0 else ""


def _into(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    return state["left_basis"].mT @ x @ state["right_basis"]


def _out_of(x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    return state["left_basis"] @ x @ state["right_basis"].mT


def _defined(x: Tensor) -> Tensor:
    """Zero where gradients near the largest number have made it NaN, by an infinity over or less another."""
    return x.nan_to_num_(0.0)


def _track(g: Tensor, state: Mapping[str, Tensor], beta: float, phase: str, moment: str) -> None:
    """Move the averages of g g^T and g^T g, and in some phases their eigenbases; `moment` follows their order."""
    ema_(state["left"], g @ g.mT, beta)
    ema_(state["right"], g.mT @ g, beta)
    for side, dim in (("left", -2), ("right", -1)):
        basis = state[f"{side}_basis"]
        if phase == "first":
            basis.copy_(eigenbasis(state[side]))
        elif phase == "refresh":
            found, order = power_iterated(state[side], basis)
            basis.copy_(found)
            v = state[moment]
            index = order.unsqueeze(-1 if dim == -2 else -2).expand_as(v)
            v.copy_(v.gather(dim, index))


@dataclass(frozen=True, kw_only=True)
class SOAPRule(Rule):
    """AdamW on the gradient in the eigenbasis of Shampoo's two Kronecker factors.

    Math     L <- ema(g g^T, shampoo_beta), R <- ema(g^T g, shampoo_beta), QL and QR their eigenvectors
             m <- ema(g, beta1);  v <- ema((QL^T g QR)^2, beta2);  u = QL (m~' / (sqrt(v') + eps)) QR^T, m~ = QL^T m QR
             L, R move after the step; QL, QR follow by one step of orthogonal iteration every `precondition_frequency`
             steps. The first step only builds them, and moves nothing but by decay
    Shapes   L, QL (..., fan_out, fan_out), R, QR (..., fan_in, fan_in), whatever their size
    Units    lr is change per element in the rotated basis
    Source   Vyas et al. 2024 (2409.11321), "SOAP"
    Differs  from the authors' code: eps after the bias correction, decay before the update; matrices are neither
             merged, split into blocks nor preconditioned on one side only
    """

    name: ClassVar[str] = "soap"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Vyas et al. 2024 (2409.11321)"
    state: ClassVar[Mapping[str, StateField]] = {
        "exp_avg": StateField("param", "matrix"),
        "exp_avg_sq": StateField("param", "matrix"),
        **BASES,
    }
    step_unit: ClassVar[str] = "per element, rotated"

    lr: float = lr_hp(3e-3, (0.002, 0.004, 0.008, 0.016, 0.032), "change per element, rotated")
    betas: tuple[float, float] = betas_hp((0.95, 0.95), (0.8, 0.9, 0.95), (0.9, 0.95, 0.98, 0.99), source=WEN)
    shampoo_beta: float = momentum_hp(0.95, (0.9, 0.95, 0.98, 0.99), WEN)
    eps: float = eps_hp(1e-8, (1e-20, 1e-15, 1e-10), WEN)
    weight_decay: float = weight_decay_hp(0.01, (0.0, 0.1, 0.2, 0.3), WEN)
    precondition_frequency: int = hp(10, kind=int, low=1, unit="steps")

    def phase_at(self, t: int) -> str:
        return _phase(t, self.precondition_frequency)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return g

    def matrix(self, u: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        g, found = u.to(state["left"].dtype), torch.zeros_like(u)
        if self.phase != "first":
            m = ema_(state["exp_avg"], u, self.betas[0]).to(g.dtype)
            v = ema_square_(state["exp_avg_sq"], _into(g, state).to(u.dtype), self.betas[1]).to(g.dtype)
            rotated = _defined(adam_direction(_into(m, state), v, self.betas, t - 1, self.eps))
            found = _out_of(rotated, state).to(u.dtype)
        _track(g, state, self.shampoo_beta, self.phase, "exp_avg_sq")
        return found


class SOAP(Engine):
    """AdamW in Shampoo's eigenbasis; see `SOAPRule`. What is no matrix goes to AdamW."""

    rule = SOAPRule
    companion = AdamWRule
    companion_defaults: ClassVar[Mapping[str, Any]] = {"betas": (0.95, 0.95)}


@dataclass(frozen=True, kw_only=True)
class SOAPMuonRule(OrthogonalRule):
    """SOAP's direction, orthogonalised: Muon on a momentum that is whitened by element in Shampoo's eigenbasis.

    Math     m <- momentum, u~ = QL^T m QR / (sqrt(v') + moment_eps) as in SOAP;  u = polar(QL u~ QR^T)
    Units    lr x scale is the spectral norm of an update
    Source   ours, by composition of Vyas et al. 2024 (2409.11321) and Jordan 2024
    """

    name: ClassVar[str] = "soap_muon"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "ours: Vyas et al. 2024 (2409.11321) composed with Jordan 2024"
    state: ClassVar[Mapping[str, StateField]] = {
        "momentum_buffer": StateField("param", "matrix"),
        "exp_avg_sq": StateField("param", "matrix"),
        **BASES,
    }

    beta2: float = momentum_hp(0.95, (0.9, 0.95, 0.98, 0.99), WEN)
    shampoo_beta: float = momentum_hp(0.95, (0.9, 0.95, 0.98, 0.99), WEN)
    moment_eps: float = eps_hp(1e-8, ())
    precondition_frequency: int = hp(10, kind=int, low=1, unit="steps")

    def phase_at(self, t: int) -> str:
        return _phase(t, self.precondition_frequency)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return g

    def matrix_each(self, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> list[Tensor]:
        found = []
        for u, state in zip(us, states, strict=True):
            g, whitened = u.to(state["left"].dtype), torch.zeros_like(u)
            if self.phase != "first":
                options = {"nesterov": self.nesterov, "form": self.momentum_form}
                m = momentum_(state["momentum_buffer"], u, self.momentum, **options).to(g.dtype)
                v = ema_square_(state["exp_avg_sq"], _into(g, state).to(u.dtype), self.beta2).to(g.dtype)
                root = adam_root(v, self.beta2, t - 1, self.moment_eps)
                whitened = _out_of(_defined(_into(m, state).div_(root)), state).to(u.dtype)
            _track(g, state, self.shampoo_beta, self.phase, "exp_avg_sq")
            found.append(whitened)
        return found if self.phase == "first" else self.polar_each(found)


class SOAPMuon(Engine):
    """SOAP's direction, orthogonalised; see `SOAPMuonRule`. What is no matrix goes to AdamW."""

    rule = SOAPMuonRule
    companion = AdamWRule
    companion_defaults = BETAS
