"""The task `components`: classes made of orthogonal components, to compare the margins of linear classifiers on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muonlab.errors import UsageError, unknown
from muonlab.representations import margins, spectral_ranks
from muonlab.roles import Role
from muonlab.tasks.stream import counter_hash

__all__ = ["KINDS", "Components"]

KINDS = ("frequency", "hierarchy", "symmetric")


class _Classifier(nn.Module):
    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, dim, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


@dataclass(frozen=True, kw_only=True)
class Components:
    """A linear classifier W from zero on all of a small set of data: no noise, no held-out split, float64.

    Math     u are orthonormal; classes k = 1 ... K, logits W x, mean cross-entropy over the distribution of samples
             frequency  samples (k, j), j = 1 ... parts, x = j^-0.5 u_kj; class k is drawn in proportion to k^-1.5
             symmetric  the same with all classes equally often
             hierarchy  one sample a class, x_k = sum over levels l = 0 ... log2(K) - 1 of 2^(-0.75 l) u_(l, the first
                        l + 1 bits of k): what classes share is the stronger the earlier they part
    Source   ours, after what is known to us of Ruan et al. 2026 (2606.09658): the abstract and digests, not the theorem
    Differs  from the paper's problem in whatever it has that those do not say
    Raises   UsageError for a value that no such problem has

    >>> task = Components()
    >>> round(task.loss(task.build(), task.batch(0, 0, 1)).item(), 6) == round(math.log(16), 6)
    True
    """

    numerics_version: ClassVar[str] = "1"
    tokens_per_sample: ClassVar[int] = 1

    kind: str = "frequency"
    num_classes: int = 16
    parts: int = 3  # components of a class; `hierarchy` has levels instead
    dim: int = 96
    aligned: bool = False  # components lie along the axes, which element-wise optimizers see; else in a random basis
    rotation: int = 0  # which random basis

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("task.kind", self.kind, KINDS)
        for name, least in {"num_classes": 2, "parts": 1, "dim": 1, "rotation": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"task.{name} must be a whole number of at least {least}, got {value!r}")
        if not isinstance(self.aligned, bool):
            raise UsageError(f"task.aligned must be true or false, got {self.aligned!r}")
        if self.kind == "hierarchy" and self.num_classes & (self.num_classes - 1):
            raise UsageError(f"task.num_classes of a hierarchy must be a power of two, got {self.num_classes}")
        if self.dim < self.num_components:
            raise UsageError(f"task.dim must be at least {self.num_components}, the number of components")

    def build(self) -> nn.Module:
        return _Classifier(self.num_classes, self.dim)

    def batch(self, seed: int, start: int, count: int) -> Tensor:
        """Nothing to be chosen: every step sees all data."""
        return torch.zeros(count)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        x, labels, weights = (torch.from_numpy(a).to(model.weight.device) for a in (self.x, self.labels, self.weights))
        return (weights * F.cross_entropy(model(x), labels, reduction="none")).sum()

    def evaluation(self) -> Iterator[tuple[Tensor, int]]:
        """The training data: what is compared is what is found in them at one loss."""
        yield torch.zeros(1), 1

    def roles(self, model: nn.Module) -> dict[str, Role]:
        return {"weight": Role.HIDDEN}

    def measures(self, model: nn.Module) -> dict[str, float]:
        """Margins over samples, each counted once, and effective ranks of W and of the logits, neither centred; of W =
        0 nothing.
        """
        w = model.weight.detach().cpu().numpy()
        if not w.any():
            return {}
        logits = self.x @ w.T
        found, spectrum = margins(logits, self.labels), np.linalg.svd(w, compute_uv=False)
        return {
            "components.margin_mean": float(found.mean()),
            "components.margin_min": float(found.min()),
            "components.margin_min_over_norm": float(found.min() / spectrum[0]),  # spectral norm of W
            "components.rank_weight": spectral_ranks(spectrum).effective,
            "components.rank_logits": spectral_ranks(np.linalg.svd(logits, compute_uv=False)).effective,
        }

    @property
    def num_components(self) -> int:
        return 2 * self.num_classes - 2 if self.kind == "hierarchy" else self.num_classes * self.parts

    @cached_property
    def x(self) -> NDArray[np.float64]:
        """(samples, dim)."""
        return self._strengths @ self._basis

    @property
    def labels(self) -> NDArray[np.int64]:
        """(samples,)."""
        return np.repeat(np.arange(self.num_classes), 1 if self.kind == "hierarchy" else self.parts)

    @property
    def weights(self) -> NDArray[np.float64]:
        """(samples,): how often each is drawn; their sum is 1."""
        power = -1.5 if self.kind == "frequency" else 0.0
        found = (self.labels + 1.0) ** power
        return found / found.sum()

    @property
    def _strengths(self) -> NDArray[np.float64]:
        """Of components in samples: (samples, components)."""
        if self.kind != "hierarchy":
            return np.diag(np.tile(np.arange(1.0, self.parts + 1) ** -0.5, self.num_classes))
        levels = self.num_classes.bit_length() - 1
        found = np.zeros((self.num_classes, self.num_components))
        classes = np.arange(self.num_classes)
        for level in range(levels):
            branch = 2 ** (level + 1) - 2 + (classes >> (levels - 1 - level))
            found[classes, branch] = 2 ** (-0.75 * level)
        return found

    @cached_property
    def _basis(self) -> NDArray[np.float64]:
        """Rows are the components: (components, dim)."""
        if self.aligned:
            return np.eye(self.num_components, self.dim)
        uniform = (counter_hash(self.rotation, 0, 2 * self.dim**2) + 0.5) / 2.0**64
        radius, angle = np.sqrt(-2.0 * np.log(uniform[::2])), 2.0 * math.pi * uniform[1::2]
        turned, upper = np.linalg.qr((radius * np.cos(angle)).reshape(self.dim, self.dim))
        return (turned * np.sign(np.diag(upper))).T[: self.num_components]
