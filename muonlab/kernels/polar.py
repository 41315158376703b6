"""The polar factor U V^T of a matrix U S V^T: one entry point, several methods."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from muonlab.kernels.coefficients import (
    COEFFICIENTS,
    JORDAN,
    POLAR_EXPRESS,
    YOUJIACHENG,
    YOUJIACHENG_6,
    Coefficients,
    coefficients_for,
)
from muonlab.kernels.gram import gram_factors, newton_schulz_each, through_gram
from muonlab.kernels.newton_schulz import newton_schulz
from muonlab.kernels.normalise import normalise
from muonlab.kernels.rational import POLES, rational_factor
from muonlab.kernels.routes import DTYPES, METHODS, Route, refuse_tf32, resolve

__all__ = [
    "COEFFICIENTS",
    "DTYPES",
    "JORDAN",
    "METHODS",
    "POLAR_EXPRESS",
    "YOUJIACHENG",
    "YOUJIACHENG_6",
    "Coefficients",
    "Route",
    "coefficients_for",
    "polar",
    "polar_each",
    "resolve",
]


def polar(
    x: Tensor,  # (24, 768, 3072)
    *,
    method: str = "newton_schulz",
    coefficients: Coefficients = JORDAN,
    num_poles: int = 3,
    dtype: torch.dtype | None = None,
    eps: float = 1e-7,
    damping: float = 0.0,
) -> Tensor:
    """Push the singular values of each matrix towards 1, keeping its singular vectors.

    Math     x = U S V^T  ->  U f(S / norm) V^T; f and norm by method:
             newton_schulz  the composed schedule; norm = safety |x|_F
             gram           the same polynomial, computed from x x^T; norm = safety sqrt(|x x^T|_F), which is tighter
             rational       the best rational function with `num_poles` poles; norm = sqrt(|x x^T|_F)
             exact          1 on S > 0, by SVD
             auto           one of these by shape and device: see `resolve`
             `damping` then lowers f(s) by damping s, where s = S / |x|_F: a matrix of rank 1 ends at 1 - damping, one
             whose singular values are alike hardly notices. auto brings its own
    Shapes   x (..., fan_out, fan_in), any float dtype -> same shape and dtype; `dtype` is the one it is computed in,
             None the method's own: bfloat16, float32, float32 and (always) float64. newton_schulz in float16 goes
             through Gram matrices: for accelerators
    Units    singular values are near 1, whatever the scale of x, from 1e-30 to 1e30; zero stays zero
    Raises   ValueError for fewer than 2 dims, another method or dtype, or a gradient through gram, rational or float16;
             TypeError for complex or integer tensors
    Range    S / norm in [coefficients.reach, 1] -> coefficients.band; rational: POLES[num_poles].reach and .band
    Source   Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"; gram: Dao-AILab 2026, "Gram
             Newton-Schulz"; rational: Nakatsukasa, Freund 2016
    Differs  from torch.optim.Muon: normalises in float32 before the cast and relative to the largest entry where that
             matters, so that `eps` only guards the division and never shrinks a small gradient; never writes x; takes
             a batch

    >>> x = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    >>> polar(x, method="exact").tolist()
    [[1.0, 0.0], [0.0, -1.0]]
    >>> [round(value, 2) for value in polar(x, dtype=torch.float32).diagonal().tolist()]
    [0.72, -1.12]
    >>> [round(value, 2) for value in polar(x, method="rational").diagonal().tolist()]
    [0.95, -1.03]
    """
    arguments = {"coefficients": coefficients, "num_poles": num_poles, "dtype": dtype, "eps": eps, "damping": damping}
    return polar_each([x], method=method, **arguments)[0]


def polar_each(
    xs: Sequence[Tensor],  # [(12, 768, 768), (12, 3072, 768)]
    *,
    method: str = "newton_schulz",
    coefficients: Coefficients = JORDAN,
    num_poles: int = 3,
    dtype: torch.dtype | None = None,
    eps: float = 1e-7,
    damping: float = 0.0,
) -> list[Tensor]:
    """`polar` of several stacks; those with the same shorter side share the work that depends on it alone.

    >>> [tuple(o.shape) for o in polar_each([torch.ones(2, 3), torch.ones(4, 3, 2)], method="gram")]
    [(2, 3), (4, 3, 2)]
    """
    results: list[Tensor | None] = [None] * len(xs)
    shared: dict[tuple, list[int]] = defaultdict(list)
    for index, x in enumerate(xs):
        route = _route(x, method, coefficients, num_poles, dtype, damping)
        if x.numel() == 0:
            results[index] = torch.zeros_like(x)
        elif route.is_alone:
            flat = x.reshape(-1, *x.shape[-2:])
            schedule = route.coefficients
            o = _exact(flat) if schedule is None else newton_schulz(flat, schedule, route.dtype, eps)
            results[index] = _damped(o, flat, route.damping, eps).reshape(x.shape).to(x.dtype)
        else:
            shared[route, min(x.shape[-2:]), x.device].append(index)
    for (route, _, _), indices in shared.items():
        wide = torch.float32 if route.dtype == torch.float16 else route.dtype
        stacks = [xs[index].reshape(-1, *xs[index].shape[-2:]).to(wide) for index in indices]
        for index, flat in zip(indices, _in_gram_space(stacks, route, eps), strict=True):
            results[index] = flat.reshape(xs[index].shape).to(xs[index].dtype)
    return results


def _damped(o: Tensor, x: Tensor, damping: float, eps: float) -> Tensor:
    """o - damping x / |x|_F."""
    if not damping:
        return o
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return o.sub(normalise(x.to(wide), eps).to(o.dtype), alpha=damping)


def _route(
    x: Tensor, method: str, coefficients: Coefficients, num_poles: int, dtype: torch.dtype | None, damping: float
) -> Route:
    if x.ndim < 2:
        raise ValueError(f"polar needs a matrix or a batch of matrices, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"polar needs a real floating-point tensor, got {x.dtype}")
    route = resolve(
        *x.shape[-2:],
        method=method,
        coefficients=coefficients,
        num_poles=num_poles,
        dtype=dtype,
        damping=damping,
        device_type=x.device.type,
    )
    refuse_tf32(route, x.device.type)
    if not route.is_alone and x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"polar method {route.describe()!r} is not differentiable: call it under torch.no_grad()")
    return route


def _in_gram_space(stacks: list[Tensor], route: Route, eps: float) -> list[Tensor]:
    if route.method == "rational":
        return through_gram(stacks, [partial(rational_factor, poles=POLES[route.num_poles])], 1.0, eps, route.damping)
    if route.method == "newton_schulz":
        os = newton_schulz_each(stacks, route.coefficients, eps)
    else:
        factors = gram_factors(route.coefficients, route.dtype)
        os = through_gram(stacks, factors, route.coefficients.safety, eps)
    return [_damped(o, x, route.damping, eps) for o, x in zip(os, stacks, strict=True)]


def _exact(x: Tensor) -> Tensor:
    """U V^T over the non-zero singular values only, in float64: what the iterations converge to."""
    x = x.to(torch.float64)
    peak = x.abs().amax((-2, -1), keepdim=True)
    finite = peak.isfinite()  # the SVD of a NaN raises, for the whole batch
    u, s, vh = torch.linalg.svd(torch.where(finite, x / torch.where(peak > 0, peak, 1.0), 0.0), full_matrices=False)
    floor = max(x.shape[-2:]) * torch.finfo(s.dtype).eps * s[..., :1]
    return torch.where(finite, (u * (s > floor).unsqueeze(-2)) @ vh, torch.nan)
