"""How far the update that was really applied is from U V^T."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["SPECTRA", "Problem", "orthogonality_error", "problems"]

SPECTRA = ("gaussian", "loguniform")
CONDITION = 1e3


@dataclass(frozen=True)
class Problem:
    """A gradient U S V^T and its polar factor U V^T in float64."""

    gradient: Tensor
    factor: Tensor


def problems(shapes: Sequence[Sequence[int]], device: str, seed: int = 0) -> dict[str, list[Problem]]:
    """By spectrum: Gaussian entries, and the same singular vectors with singular values log-uniform over 1e3.

    Matrices of one shape share their problem, so that each shape costs one SVD.
    """
    generator = torch.Generator().manual_seed(seed)
    of_shape: dict[tuple[int, ...], dict[str, Problem]] = {}
    for shape in map(tuple, shapes):
        if shape in of_shape:
            continue
        u, s, vh = torch.linalg.svd(
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device), full_matrices=False
        )
        spectra = {"gaussian": s, "loguniform": CONDITION ** -torch.linspace(0, 1, len(s), dtype=s.dtype).to(s)}
        of_shape[shape] = {name: Problem(((u * values) @ vh).float(), u @ vh) for name, values in spectra.items()}
    return {name: [of_shape[tuple(shape)][name] for shape in shapes] for name in SPECTRA}


def orthogonality_error(build: Callable[[list[nn.Parameter]], Optimizer], problems: Sequence[Problem]) -> float:
    """Distance of a first step's change of weights from U V^T, relative, over all matrices.

    Math     sqrt(sum_i |c_i D_i - U_i V_i^T|_F^2 / sum_i |U_i V_i^T|_F^2), D = -change of the weights,
             c = <D, U V^T> / <D, D>: the scale that suits D best, so that neither learning rate nor the conventions of
             its scale matter
    Units    weights begin at zero, so that weight decay changes nothing and no digit is lost in a difference
    Raises   RuntimeError if the step changed nothing or not to finite values

    >>> planted = problems([(16, 8)], "cpu")["gaussian"]
    >>> error = orthogonality_error(lambda ps: torch.optim.Muon(ps, ns_steps=5), planted)
    >>> 0.05 < error < 0.3
    True
    """
    parameters = [nn.Parameter(torch.zeros_like(problem.gradient)) for problem in problems]
    for parameter, problem in zip(parameters, problems, strict=True):
        parameter.grad = problem.gradient.clone()
    build(parameters).step()
    missed = total = 0.0
    for parameter, problem in zip(parameters, problems, strict=True):
        change = -parameter.detach().double()
        power = float(change.square().sum())
        if not 0.0 < power < float("inf"):
            raise RuntimeError("the first step left weights unchanged or not finite")
        fitted = float((change * problem.factor).sum()) / power * change
        missed += float((fitted - problem.factor).square().sum())
        total += float(problem.factor.square().sum())
    return (missed / total) ** 0.5
