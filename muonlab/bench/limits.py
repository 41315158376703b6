"""What the arithmetic alone would take: flops of each way to a polar factor, and how fast this machine multiplies."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

__all__ = ["Work", "flop_overhead", "matmul_flops_per_second", "model_flops", "synchronizer"]

SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192)}
REPEATS = 7
SLOW_SECONDS = 0.1  # no peak, whatever the size


@dataclass(frozen=True)
class Work:
    """One way to a polar factor: a method, how many steps (poles of `rational`), the dtype of its products.

    Math     with n = min(shape), a = max(shape) / n and the unit 2 n^3 flops, T steps cost
             newton_schulz  T (2 a + 1)                 X X^T, its square, their sum times X
             gram           4 T - 3 + 2 a, and 2 a - 3 more per restart; all products but two are n x n
             rational       1.5 a + T / 2               triangle of X X^T, T Cholesky inverses, one product
    Units    products are counted as dense ones, but for those of `rational`: a kernel that computes only one triangle
             of a symmetric product may get below the limit of the other two

    >>> [Work(*work).units(3.0) for work in (("newton_schulz", 5, ""), ("gram", 5, ""), ("rational", 2, ""))]
    [35.0, 23.0, 5.5]
    """

    method: str
    num_steps: int
    dtype: str
    num_restarts: int = 0

    def units(self, aspect: float) -> float:
        steps = self.num_steps
        if self.method == "newton_schulz":
            return steps * (2 * aspect + 1)
        if self.method == "gram":
            return 4 * steps - 3 + 2 * aspect + self.num_restarts * (2 * aspect - 3)
        if self.method == "rational":
            return 1.5 * aspect + steps / 2
        raise ValueError(f"no flops are known for {self.method}")

    def flops(self, shape: Sequence[int]) -> float:
        """
        >>> Work("newton_schulz", 5, "bfloat16").flops((768, 3072)) / 1e9
        40.76863488
        """
        short, long = sorted(shape[-2:])
        return 2.0 * short**3 * self.units(long / short) * prod(shape[:-2])

    def __str__(self) -> str:
        noun = "poles" if self.method == "rational" else "steps"
        restarts = f", {self.num_restarts} restart" if self.num_restarts else ""
        return f"{self.method}, {self.num_steps} {noun}{restarts}, {self.dtype}"


def flop_overhead(num_steps: int, width: int, batch_tokens: int, num_ranks: int = 1) -> float:
    """Flops of Newton-Schulz over those of the forward and backward pass, at most.

    Math     num_steps width / batch_tokens, times the ranks that repeat the work (1 where it is shared out)
    Units    `batch_tokens` of the whole batch, all ranks together; `width` is the short side of the matrices
    Source   Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"

    >>> flop_overhead(5, 768, 524288), flop_overhead(5, 768, 2048), flop_overhead(5, 768, 524288, num_ranks=8)
    (0.00732421875, 1.875, 0.05859375)
    """
    return num_steps * width / batch_tokens * num_ranks


def model_flops(shapes: Sequence[Sequence[int]], batch_tokens: int) -> float:
    """Forward and backward pass of linear layers of these shapes.

    >>> model_flops([(192, 64), (64, 64)], 1024)
    100663296.0
    """
    return 6.0 * batch_tokens * sum(map(prod, shapes))


def synchronizer(device: str) -> Callable[[], None]:
    """What waits until the device has done what it was told."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def matmul_flops_per_second(dtype: str, device: str) -> float:
    """The best of a few square products in that dtype: a speed that was reached, not one from a data sheet."""
    wait, best = synchronizer(device), 0.0
    for size in SIZES[device]:
        x = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        out = torch.empty_like(x)
        for _ in range(REPEATS):
            wait()
            started = time.perf_counter()
            torch.mm(x, x, out=out)
            wait()
            seconds = time.perf_counter() - started
            best = max(best, 2.0 * size**3 / seconds)
            if seconds > SLOW_SECONDS:
                break
    return best
