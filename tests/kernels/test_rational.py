"""Zolotarev's functions recomputed from their definition, and what happens where float32 is not enough for them."""

import numpy as np
import pytest
import torch
from scipy.special import ellipj, ellipkm1
from spectra import gaussian, low_rank, spectral_norm

from muonlab.kernels import rational
from muonlab.kernels.polar import polar
from muonlab.kernels.rational import POLES


def zolotarev(num_poles: int, reach: float) -> tuple[float, np.ndarray, np.ndarray, tuple[float, float]]:
    """(scale, weights, shifts, band) of the best odd rational approximation of 1 on [reach, 1]."""
    index = np.arange(1, 2 * num_poles + 1)
    sn, cn, _, _ = ellipj(index * ellipkm1(reach**2) / (2 * num_poles + 1), 1 - reach**2)
    squares = reach**2 * sn**2 / cn**2
    shifts, zeros = squares[::2], squares[1::2]
    weights = np.array(
        [-np.prod(shift - zeros) / np.prod(np.delete(shift - shifts, j)) for j, shift in enumerate(shifts)]
    )
    s = np.geomspace(reach, 1, 200_001)
    value = s * (1 + (weights / (s[:, None] ** 2 + shifts)).sum(1))
    scale = 2 / (value.min() + value.max())
    return scale, weights, shifts, (scale * value.min(), scale * value.max())


@pytest.mark.parametrize("num_poles", POLES)
def test_the_records_are_zolotarevs_functions(num_poles: int) -> None:
    poles = POLES[num_poles]
    scale, weights, shifts, band = zolotarev(num_poles, poles.reach)
    np.testing.assert_allclose(poles.weights, weights, rtol=1e-9)
    np.testing.assert_allclose(poles.shifts, shifts, rtol=1e-9)
    assert poles.scale == pytest.approx(scale, rel=1e-9)
    assert poles.band[0] <= band[0] and band[1] <= poles.band[1]
    assert poles.band == pytest.approx(band, abs=2e-3)  # and it is no wider than it must be


@pytest.mark.parametrize("num_poles", POLES)
def test_factor_is_the_function_of_the_singular_values(num_poles: int) -> None:
    x = gaussian(9, 14, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s /= (s**4).sum() ** 0.25
    poles = POLES[num_poles]
    value = poles.scale * s * (1 + sum(w / (s**2 + c) for w, c in zip(poles.weights, poles.shifts, strict=True)))
    o = polar(x, method="rational", num_poles=num_poles, dtype=torch.float64)
    torch.testing.assert_close(o, (u * value) @ vh, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", low_rank(768, 1024))
def test_low_rank_of_full_size_stays_in_the_band(name: str) -> None:
    x = low_rank(768, 1024)[name]
    for num_poles, poles in POLES.items():
        assert spectral_norm(polar(x, method="rational", num_poles=num_poles)) < poles.band[1] + 5e-3


def test_a_matrix_that_cholesky_refuses_is_solved_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lifts = []
    solve = rational._sum_of_inverses

    def watched(r, poles, lift=0.0):
        lifts.append((len(r), lift))
        return solve(r, poles, lift)

    monkeypatch.setattr(rational, "_sum_of_inverses", watched)
    r = torch.diag_embed(torch.tensor([[1.0, 0.5, 0.1], [1.0, 0.5, -3e-5], [1.0, 0.2, 0.0]]))  # rounding may do that
    q = rational.rational_factor(r, POLES[3])
    assert [count for count, _ in lifts] == [3, 1, 1, 1]
    assert [lift for _, lift in lifts] == pytest.approx([0.0, 1e-6, 1e-5, 1e-4])
    assert q.isfinite().all()
    for index in (0, 2):
        torch.testing.assert_close(q[index], rational.rational_factor(r[index : index + 1], POLES[3])[0])
    s = r[1].diagonal().clamp(min=0).sqrt()
    assert (q[1].diagonal() * s).max() < POLES[3].band[1]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(5, 40, 40)
    whole = polar(x, method="rational")
    monkeypatch.setattr(rational, "WORKSPACE_BYTES", 2 * 3 * 40 * 40 * 4)
    torch.testing.assert_close(polar(x, method="rational"), whole, atol=1e-5, rtol=0)
