"""Who is measured, as data: where a class is found and how it is set up, so that all do the same job."""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn
from torch.optim import Optimizer

from muonlab.bench.limits import Work
from muonlab.errors import unknown
from muonlab.kernels.gram import gram_factors
from muonlab.kernels.polar import METHODS, coefficients_for, resolve
from muonlab.optim import MuonRule

__all__ = ["ADAMW_PEERS", "LR", "MUON_PEERS", "Contender", "find_peer", "ours"]

LR = 1e-3
DECAY = {"weight_decay": 0.1}
MOMENTUM = {"momentum": 0.95, "nesterov": True}
FIVE_STEPS = Work("newton_schulz", 5, "bfloat16")


@dataclass(frozen=True)
class Contender:
    """An optimizer and its settings; nothing is imported before `build`.

    `group` are keys that its parameter group needs. `work` is what the class computes per matrix, None where that
    depends on the shape or has no formula.
    """

    module: str
    attribute: str
    distribution: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    work: Work | None = None
    group: Mapping[str, Any] = field(default_factory=dict)

    @property
    def optimizer(self) -> str:
        """
        >>> MUON_PEERS["torch.optim.Muon"].optimizer, ours("exact").config
        ('torch.optim.Muon', 'weight_decay=0.1, momentum=0.95, nesterov=True, polar=exact')
        """
        return f"{self.module}.{self.attribute}"

    @property
    def config(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    @property
    def version(self) -> str | None:
        """Of the package, None where it was not installed as one."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    @property
    def is_installed(self) -> bool:
        """Whether its package is there; it is not imported, so it may still fail."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    def build(self, parameters: Sequence[nn.Parameter]) -> Optimizer:
        """The optimizer on these parameters.

        Raises   whatever the package raises
        """
        cls = getattr(importlib.import_module(self.module), self.attribute)
        group = [{"params": list(parameters), **self.group}] if self.group else list(parameters)
        optimizer: Optimizer = cls(group, lr=LR, **self.settings)
        return optimizer

    def work_on(self, shape: Sequence[int], device: str) -> Work | None:
        """What is computed for a matrix of that shape."""
        method = self.settings.get("polar")
        return self.work if method is None else _resolved(method, shape, device)


def _resolved(method: str, shape: Sequence[int], device: str) -> Work | None:
    """The work that muonlab.Muon's default settings mean; None for the exact factor, whose flops have no formula."""
    rule = MuonRule(polar=method)
    route = resolve(
        *shape[-2:], method=rule.polar, coefficients=coefficients_for(rule.ns_coefficients, rule.ns_steps),
        num_poles=rule.num_poles, dtype=None, device_type=device,
    )  # fmt: skip
    if route.method == "exact":
        return None
    dtype = str(route.dtype).removeprefix("torch.")
    if route.method == "rational":
        return Work(route.method, route.num_poles, dtype)
    if route.is_alone:
        return Work(route.method, route.coefficients.num_steps, dtype)
    num_restarts = len(gram_factors(route.coefficients, route.dtype)) - 1
    return Work("gram", route.coefficients.num_steps, dtype, num_restarts)


def ours(method: str) -> Contender:
    """muonlab.Muon with one method for the polar factor.

    Raises   UsageError for another method
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return Contender("muonlab", "Muon", "muonlab", {**DECAY, **MOMENTUM, "polar": method})


def _named(*contenders: Contender) -> dict[str, Contender]:
    return {contender.optimizer: contender for contender in contenders}


# The first of each is the reference.
MUON_PEERS = _named(
    Contender("torch.optim", "Muon", "torch", {**DECAY, **MOMENTUM}, FIVE_STEPS),
    Contender(
        "pytorch_optimizer", "Muon", "pytorch_optimizer", {**DECAY, **MOMENTUM}, FIVE_STEPS, {"use_muon": True}
    ),
    Contender("heavyball", "Muon", "heavyball", {**DECAY, "betas": (0.95, 0.95), "nesterov": True}, FIVE_STEPS),
    Contender(
        "gram_newton_schulz", "Muon", "gram-newton-schulz", {**DECAY, **MOMENTUM},
        Work("gram", 5, "float16", num_restarts=1),
    ),
    Contender("timm.optim", "Muon", "timm", {**DECAY, **MOMENTUM}, FIVE_STEPS),
    Contender("muon", "SingleDeviceMuon", "muon-optimizer", {**DECAY, "momentum": 0.95}, FIVE_STEPS),
    Contender("dion", "Muon", "dion", {**DECAY, "mu": 0.95, "nesterov": True}, FIVE_STEPS),
)  # fmt: skip
ADAMW_PEERS = _named(
    Contender("torch.optim", "AdamW", "torch", {**DECAY, "fused": True}),
    Contender("muonlab", "AdamW", "muonlab", DECAY),
)


def find_peer(name: str) -> Contender:
    """
    Raises   UsageError for another name
    """
    if name not in MUON_PEERS:
        raise unknown("peer", name, MUON_PEERS)
    return MUON_PEERS[name]
