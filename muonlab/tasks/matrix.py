"""The task `matrix`: one noisy matrix whose every constant is known, to hold theorems against."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muonlab.errors import UsageError, unknown
from muonlab.roles import Role
from muonlab.tasks.stream import counter_hash

__all__ = ["NOISES", "Matrix"]

NOISES = ("signs", "skewed")
RARITY = 16  # samples of which one, on average, has the large value of skewed noise
WORD = 64  # random bits per hash


class _Weight(nn.Module):
    def __init__(self, rows: int, cols: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, cols))


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Minimise a smooth function of one matrix, seen through noise on its gradient; the start is zero.

    Math     f(W) = sum_ij h_ij q(W_ij - W*_ij); q(d) = d^2 / 2, or tail^2 log(1 + (d / tail)^2) / 2, which is not
             convex; h falls from `smoothness` to smoothness / condition over rows and columns; W* has `rank` singular
             values of `distance`, the others are 0. A sample adds <N, W>, so its gradient is the true one + N, with
             E N = 0 and E |N|_F^2 = sigma^2, independent of all others:
             signs   every element is +-sigma / sqrt(rows cols)
             skewed  z times the direction of W*; one sample in 16, on average, has z = -3.9 sigma, all others 0.26
                     sigma: most samples point away from the optimum
    Range    f is `smoothness`-smooth in the Frobenius norm, tightly; f* = 0
    Source   ours
    Raises   UsageError for a value that no such problem has

    >>> task = Matrix(rows=2, cols=2, rank=2, condition=1, sigma=0.5)
    >>> round(task.start_loss, 6), round(task.start_nuclear, 6), round(task.start_norm, 6)
    (1.0, 2.0, 1.414214)
    >>> task.batch(seed=0, start=0, count=1).square().sum().item()
    0.25
    """

    numerics_version: ClassVar[str] = "1"
    tokens_per_sample: ClassVar[int] = 1

    rows: int = 8
    cols: int = 8
    rank: int = 4  # of the optimum
    distance: float = 1.0  # spectral norm of the optimum
    smoothness: float = 1.0  # Lipschitz constant of the gradient
    condition: float = 10.0  # largest curvature over the smallest, at the optimum
    tail: float = 0.0  # deviation beyond which the function is concave; 0 = quadratic everywhere
    sigma: float = 1.0
    noise: str = "signs"

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"task.{name} must be a whole number of at least 1, got {value!r}")
        shorter = min(self.rows, self.cols)
        if self.rank > shorter:
            raise UsageError(f"task.rank must be at most {shorter}, the shorter side, got {self.rank}")
        for name, least in {"distance": 0, "smoothness": 0, "condition": 1, "tail": 0, "sigma": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
                raise UsageError(f"task.{name} must be a finite number of at least {least}, got {value!r}")
        if not self.distance or not self.smoothness:
            raise UsageError("task.distance and task.smoothness must be above 0: there is nothing to learn otherwise")
        if self.noise not in NOISES:
            raise unknown("task.noise", self.noise, NOISES)

    def build(self) -> nn.Module:
        return _Weight(self.rows, self.cols)

    def batch(self, seed: int, start: int, count: int) -> Tensor:
        """The noise of samples start ... start + count - 1: (count, rows, cols) float32."""
        if self.noise == "skewed":
            p = 1 / RARITY
            z = np.where(counter_hash(seed, start, count) % RARITY == 0, -math.sqrt(1 / p - 1), math.sqrt(p / (1 - p)))
            return torch.from_numpy((z[:, None, None] * self.sigma * self.direction).astype(np.float32))
        size = self.rows * self.cols
        words = -(-size // WORD)
        hashes = counter_hash(seed, start * words, count * words).astype("<u8")
        bits = np.unpackbits(hashes.view(np.uint8)).reshape(count, words * WORD)[:, :size]
        signs = (2.0 * bits.astype(np.float32) - 1) * np.float32(self.sigma / math.sqrt(size))
        return torch.from_numpy(signs.reshape(count, self.rows, self.cols))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        """f(W) + <mean noise, W>."""
        d = model.weight - self._tensor("optimum", model.weight)
        q = d.square() if not self.tail else self.tail**2 * torch.log1p((d / self.tail).square())
        noise = (batch.mean(0) * model.weight).sum()
        return (self._tensor("curvature", model.weight) * q).sum() / 2 + noise

    def evaluation(self) -> Iterator[tuple[Tensor, int]]:
        """The true function: a sample without noise."""
        yield torch.zeros(1, self.rows, self.cols), 1

    def roles(self, model: nn.Module) -> dict[str, Role]:
        return {"weight": Role.HIDDEN}

    def measures(self, model: nn.Module) -> dict[str, float]:
        """Norms of the true gradient G and of the weight W. G's nuclear norm + weight_decay <G, W> is the Frank-Wolfe
        gap over the matrices of spectral norm up to 1 / weight_decay.
        """
        w = model.weight.detach().double().cpu().numpy()
        gradient = self.gradient(w)
        return {
            "matrix.gradient_nuclear": float(np.linalg.norm(gradient, "nuc")),
            "matrix.gradient_norm": float(np.linalg.norm(gradient)),
            "matrix.gradient_dot_weight": float((gradient * w).sum()),
            "matrix.weight_spectral": float(np.linalg.norm(w, 2)),
        }

    def gradient(self, w: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of f, without noise."""
        d = w - self.optimum
        return self.curvature * (d / (1 + (d / self.tail) ** 2) if self.tail else d)

    @property
    def start_loss(self) -> float:
        """f at the start, and f - f* there."""
        d = self.optimum
        q = self.tail**2 * np.log1p((d / self.tail) ** 2) if self.tail else d**2
        return float((self.curvature * q).sum() / 2)

    @property
    def start_norm(self) -> float:
        """Frobenius norm of the gradient at the start."""
        return float(np.linalg.norm(self.gradient(np.zeros_like(self.optimum))))

    @property
    def start_nuclear(self) -> float:
        """Nuclear norm of the gradient at the start."""
        return float(np.linalg.norm(self.gradient(np.zeros_like(self.optimum)), "nuc"))

    @cached_property
    def optimum(self) -> NDArray[np.float64]:
        """W*: the same for all seeds."""
        bases = [_orthonormal(size, self.rank, stream) for stream, size in enumerate((self.rows, self.cols))]
        return self.distance * bases[0] @ bases[1].T

    @property
    def direction(self) -> NDArray[np.float64]:
        """W* / |W*|_F."""
        return self.optimum / (self.distance * math.sqrt(self.rank))

    @cached_property
    def curvature(self) -> NDArray[np.float64]:
        """h: (rows, cols)."""
        exponent = 0.5 if min(self.rows, self.cols) > 1 else 1.0
        sides = (self.condition ** -np.linspace(0, exponent, size) for size in (self.rows, self.cols))
        return self.smoothness * np.outer(*sides)

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        return torch.from_numpy(getattr(self, name)).to(like)


def _orthonormal(size: int, rank: int, stream: int) -> NDArray[np.float64]:
    uniform = counter_hash(stream, 0, size * rank) / 2.0**64 - 0.5
    return np.linalg.qr(uniform.reshape(size, rank))[0]
