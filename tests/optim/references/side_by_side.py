"""Two optimizers on the same gradients: random problems, the paths of their weights, and how far these are apart."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.optim import Sophia, catalog

MATRICES = ((8, 8), (12, 5), (5, 12), (7, 1))
SQUARE = ((8, 8), (5, 5), (12, 12))
ANY_SHAPE = (*MATRICES, (6,), (3, 4, 2))
LR = 0.03
SINGLE_SHARE = 2e-7  # a tolerance: the share of elements that `cautious` keeps is a float32

Path = list[list[Tensor]]  # per parameter, its weights after each step


@dataclass(frozen=True)
class Problem:
    """Parameters as they start, and all their gradients."""

    starts: list[Tensor]
    gradients: list[list[Tensor]]  # per parameter, one for each step

    def path(self, optimizer_of: Callable[[list[nn.Parameter]], Any]) -> Path:
        """Where an optimizer takes the parameters; it may write into the gradients."""
        params = [nn.Parameter(w.clone()) for w in self.starts]
        optimizer, path = optimizer_of(params), [[] for _ in params]
        for grads in zip(*self.gradients, strict=True):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            optimizer.step()
            for p, weights in zip(params, path, strict=True):
                weights.append(p.detach().clone())
        return path

    def path_by(self, move: Callable[[Tensor, Sequence[Tensor]], Iterable[Tensor]]) -> Path:
        """Where a function from a first weight and its gradients to the weights after each step takes them."""
        return [list(move(w, gs)) for w, gs in zip(self.starts, self.gradients, strict=True)]

    def after(self, num_steps: int) -> "Problem":
        """The same gradients without the first ones."""
        return replace(self, gradients=[gs[num_steps:] for gs in self.gradients])


def random_problem(
    shapes: Sequence[tuple[int, ...]] = MATRICES, *, num_steps: int = 20, dtype: torch.dtype = torch.float64
) -> Problem:
    """Gradients with a mean of their own, under noise, on a scale that changes from step to step by up to 10^3."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    starts, means = [noise(*shape) for shape in shapes], [noise(*shape) for shape in shapes]
    scales = 10 ** (3 * torch.rand(num_steps, generator=generator, dtype=torch.float64) - 2)
    gradients = [
        [(scale * (noise(*shape) + mean / 2)).to(dtype) for scale in scales]
        for shape, mean in zip(shapes, means, strict=True)
    ]
    return Problem([w.to(dtype) for w in starts], gradients)


def ours(problem: Problem, name: str, **arguments) -> Path:
    """The path of one of our optimizers, without decay unless the arguments say so."""
    return problem.path(lambda params: catalog.get(name)(params, **{"lr": LR, "weight_decay": 0.0, **arguments}))


def errors(problem: Problem, ours: Path, reference: Path) -> list[float]:
    """After each step |w - w_ref| / |w_ref - w_start|, the largest over the parameters; 0 where neither has moved."""
    found = []
    for step in range(len(reference[0])):
        apart = [(a[step].double() - b[step].double()).norm() for a, b in zip(ours, reference, strict=True)]
        moved = [(b[step].double() - w.double()).norm() for b, w in zip(reference, problem.starts, strict=True)]
        found.append(max(float(x / y) if x or y else 0.0 for x, y in zip(apart, moved, strict=True)))
    return found


def assert_same_path(problem: Problem, ours: Path, reference: Path, tolerance: float) -> None:
    """Raises   AssertionError that names the first step at which the two are further apart than `tolerance`"""
    found = errors(problem, ours, reference)
    wrong = [f"{error:.2g} at step {t}" for t, error in enumerate(found, 1) if not error <= tolerance]
    assert not wrong, f"relative error above {tolerance:g}: {', '.join(wrong[:3])}; {found[-1]:.2g} at the last"
    assert any(a[-1].ne(w).any() for a, w in zip(ours, problem.starts, strict=True)), "nothing moved"


def some_basis(a: Tensor) -> Tensor:
    """One orthogonal matrix for each size."""
    generator = torch.Generator().manual_seed(a.shape[-1])
    q = torch.linalg.qr(torch.randn(a.shape[-2:], generator=generator, dtype=torch.float64))[0]
    return q.expand_as(a)


class Observing:
    """Sophia with the observations that each step is preceded by."""

    def __init__(self, params: list[nn.Parameter], observed: list, **arguments) -> None:
        self.params, self.observed, self.optimizer = params, iter(observed), Sophia(params, **arguments)

    def step(self) -> None:
        seen = next(self.observed)
        if seen is not None:
            kept = [p.grad for p in self.params]
            for p, sampled in zip(self.params, seen[0], strict=True):
                p.grad = sampled.clone()
            self.optimizer.observe(num_samples=seen[1])
            for p, g in zip(self.params, kept, strict=True):
                p.grad = g
        self.optimizer.step()


def observations(problem: Problem, every: int) -> list[tuple[list[Tensor], float] | None]:
    """Before every few steps the gradients of some other problem, and a number of samples that changes."""
    other = random_problem([tuple(w.shape) for w in problem.starts], num_steps=len(problem.gradients[0]) + 1).after(1)
    return [
        ([gs[step] for gs in other.gradients], 3.0 + step) if step % every == 0 else None
        for step in range(len(problem.gradients[0]))
    ]
