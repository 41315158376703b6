"""Optima by a parabola and their drift: planted ones are found, intervals hold them, nothing is made of nothing."""

import math

import numpy as np
import pytest

from muonlab.analyze.drift import fit_drift, fit_slope
from muonlab.analyze.optima import Surface, fit_bowl, regret_nats, residual_noise, vertex_interval
from muonlab.analyze.significance import Noise


def bowl(best: tuple[float, ...], curvature: np.ndarray, *, step: float = 1.0, count: int = 5, noise=0.0, seed=0):
    axis = (np.arange(count) - (count - 1) / 2) * step
    points = np.stack(np.meshgrid(*[axis] * len(best), indexing="ij"), axis=-1).reshape(-1, len(best))
    away = points - np.array(best)
    losses = 2 + np.einsum("ni,ij,nj->n", away, curvature, away) / 2
    losses = losses + noise * np.random.default_rng(seed).standard_normal(len(points))
    return Surface(points, losses, np.full(len(best), step), 1)


def test_one_curvature_serves_a_mesh_of_two_points() -> None:
    H = np.array([[0.4, 0.1], [0.1, 0.3]])
    surfaces = [bowl((0.3, -0.2), H), bowl((0.1, 0.05), H, count=2, step=0.5)]
    found = fit_bowl(surfaces, Noise(1e-6, 20))
    assert found.curvature == pytest.approx(H) and all(one.fitted for one in found.optima)
    assert found.optima[0].place == pytest.approx([0.3, -0.2]) and found.optima[1].place == pytest.approx([0.1, 0.05])
    alone = fit_bowl(surfaces[1:], Noise(1e-6, 20))
    assert alone.curvature is None and not alone.optima[0].fitted


def test_variances_are_those_of_the_noise() -> None:
    H, places, variances = np.diag([0.4, 0.3]), [], []
    for seed in range(300):
        optimum = fit_bowl([bowl((0.2, 0.1), H, noise=0.01, seed=seed)], Noise(1e-4, 1000)).optima[0]
        places.append(optimum.place)
        variances.append(optimum.variance)
    ratio = np.mean(variances, axis=0) / np.var(places, axis=0)  # above 1: the larger of two estimates is taken
    assert (ratio > 0.9).all() and (ratio < 1.7).all()


def test_a_hill_and_a_plain_have_no_optimum_but_the_best_point() -> None:
    for curvature in (-0.3, 0.0):
        found = fit_bowl([bowl((0.2,), np.array([[curvature]]))], Noise(1e-4, 10))
        assert found.curvature is None and found.optima[0].vertex is None
        assert found.optima[0].variance[0] == pytest.approx(5.0**2 / 12)


def test_intervals_of_a_vertex_hold_it() -> None:
    held = 0
    for seed in range(400):
        low, high = vertex_interval(bowl((0.2,), np.array([[0.1]]), noise=0.02, seed=seed), Noise(4e-4, 1000))
        held += (low is None or low <= 0.2) and (high is None or high >= 0.2)
    assert held >= 0.92 * 400
    assert vertex_interval(bowl((0.2,), np.array([[1e-5]])), Noise(1.0, 50)) == (None, None)


def test_luck_of_a_seed_is_no_noise() -> None:
    luck = np.random.default_rng(0).standard_normal(4)
    assert residual_noise([np.arange(6.0)[:, None] + luck]).variance == pytest.approx(0.0)
    assert math.isnan(residual_noise([np.zeros((5, 1))]).variance)


def test_a_prior_on_the_drift_gives_way_to_data() -> None:
    widths, places = (32, 64, 128), [1.0, 1.5, 1.75]
    free = fit_drift(widths, places, [1e-4] * 3, 20)
    assert fit_drift(widths, places, [1e-4] * 3, 20, spread=16.0).rate == pytest.approx(free.rate, rel=0.02)
    assert abs(fit_drift(widths, places, [4.0] * 3, 20, spread=16.0).rate) < 0.2 * free.rate
    assert free.lawful and not fit_drift(widths, [1.0, 0.0, 1.0], [1e-4] * 3, 20).lawful


def test_a_slope_has_an_interval_that_noise_alone_gives() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        places = [-0.5 * math.log(n) + 0.1 * rng.standard_normal() for n in (32, 64, 128, 256)]
        slope, half = fit_slope((32, 64, 128, 256), places, [0.01] * 4, 30)
        held += abs(slope + 0.5) <= half
    assert 0.92 * 300 <= held <= 0.995 * 300


def test_regret_is_that_of_places_drawn_with_the_variances() -> None:
    H, variances = np.array([[0.4, 0.05], [0.05, 0.2]]), np.array([0.01, 0.04])
    draws = np.random.default_rng(0).standard_normal((20_000, 2)) * np.sqrt(variances)
    regrets = np.einsum("ni,ij,nj->n", draws, H, draws) / 2
    mean, high = regret_nats(H, variances)
    assert mean == pytest.approx(regrets.mean(), rel=0.05) and high == pytest.approx(
        np.quantile(regrets, 0.95), rel=0.1
    )
