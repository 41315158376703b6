"""Matrices with known singular values, and matrices that have broken polar factors before."""

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def with_singular_values(fan_out: int, fan_in: int, values: Tensor, seed: int = 0) -> Tensor:
    generator = seeded(seed)
    k = min(fan_out, fan_in)
    left = torch.linalg.qr(torch.randn(fan_out, k, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(fan_in, k, generator=generator, dtype=torch.float64))[0]
    return (left * values.double()) @ right.T


def spectra(k: int) -> dict[str, Tensor]:
    """Singular values, largest first: every shape of decay, condition numbers from 1 to 1e6."""
    index = torch.arange(1, k + 1, dtype=torch.float64)
    return {
        "flat": torch.ones(k, dtype=torch.float64),
        "linear": torch.linspace(1, 0.1, k, dtype=torch.float64),
        "gaussian": torch.linalg.svdvals(gaussian(k, k, dtype=torch.float64)),
        "power law 1e3": index ** (-3 / torch.log10(index[-1])),
        "log-uniform 1e3": torch.logspace(0, -3, k, dtype=torch.float64),
        "log-uniform 1e6": torch.logspace(0, -6, k, dtype=torch.float64),
        "one large": torch.cat([index[:1], torch.full((k - 1,), 4e-3, dtype=torch.float64)]),
    }


def low_rank(n: int, m: int) -> dict[str, Tensor]:
    """Float32 matrices without full rank: what gradients are early in training."""
    return {
        "ones": torch.ones(n, m),
        "rank 1": torch.outer(gaussian(n), gaussian(m, seed=1)),
        "rank 1, spikes": torch.outer(gaussian(n) ** 5, gaussian(m, seed=1) ** 5),
        "rank 3": gaussian(n, 3) @ gaussian(3, m, seed=1),
        "half rank": gaussian(n, n // 2) @ gaussian(n // 2, m, seed=1),
        "rows twice": gaussian(n // 2, m).repeat(2, 1),
        "sparse": (torch.rand(n, m, generator=seeded(0)) < 1e-3).float(),
    }


def spectral_norm(x: Tensor) -> float:
    short = x.double() if x.shape[-2] <= x.shape[-1] else x.double().mT
    return torch.linalg.eigvalsh(short @ short.mT)[-1].sqrt().item()
