"""The data law, its inversion, and the interval of the speedup."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muonlab.analyze.significance import Noise
from muonlab.analyze.speedup import EXPONENTS, ArmLosses, Selection, bootstrap, fit_data_law, shared_fraction

TOKENS = [50_000, 100_000, 200_000]
ALONE = Selection(means=(0.0,), num_seeds=(5,))  # nothing to choose from


def law(tokens, exponent: float = 0.45, floor: float = 1.6, drop: float = 1.0):
    return floor + drop * (np.asarray(tokens, dtype=float) / 100_000) ** -exponent


def arm(tokens, means, sd: float, degrees: int = 12, num_seeds: int = 5, **values) -> ArmLosses:
    noises, seeds = [Noise(sd**2, degrees)] * len(means), [num_seeds] * len(means)
    return ArmLosses(tokens=tokens, means=list(means), num_seeds=seeds, noises=noises, selection=ALONE, **values)


def bootstrap_speedup(baseline: ArmLosses, challenger: ArmLosses) -> tuple[float, float, float]:
    """The figure and its interval."""
    found = bootstrap(baseline, challenger)
    return found.point, *found.interval


def measured(speed: float, sd: float = 1e-6, **values):
    """Baseline and a challenger that is `speed` times as fast, without luck."""
    return bootstrap_speedup(
        arm(TOKENS, law(TOKENS), sd, **values), arm([100_000], [law(100_000 * speed)], sd, degrees=4)
    )


@pytest.mark.parametrize("exponent", [0.1, 0.3, 0.45, 0.5, 1.0])
@pytest.mark.parametrize(("tokens", "error"), [(TOKENS, 0.003), ([1, 2, 4], 0.003), ([1000, 3000, 9000, 27_000], 0.02)])
def test_a_planted_law_is_recovered(exponent, tokens, error):
    """As well as its exponent lies on the grid, which is finer than any measurement."""
    scale = tokens[1]
    losses = 1.6 + 0.9 * (np.array(tokens) / scale) ** -exponent
    fitted = fit_data_law(tokens, losses, [1e-12] * len(tokens))
    assert float(fitted.exponent) == pytest.approx(exponent, rel=0.062)  # half a step of the grid of exponents
    between = np.geomspace(tokens[0], tokens[-1], 9)
    found = fitted.invert(1.6 + 0.9 * (between / scale) ** -exponent)
    assert found == pytest.approx(between, rel=error)


def test_inversion_undoes_the_law():
    fitted = fit_data_law(TOKENS, law(TOKENS), [1e-8] * 3)
    for tokens in (20_000, 70_000, 3e6):
        loss = fitted.a * (tokens / fitted.scale) ** -fitted.exponent + fitted.b
        assert float(fitted.invert(float(loss))) == pytest.approx(tokens, rel=1e-9)


def test_many_laws_at_once_equal_one_at_a_time():
    rng = np.random.default_rng(0)
    losses = law(TOKENS) + 0.05 * rng.standard_normal((40, 3))
    variances = [1e-3, 2e-3, 5e-4]
    together = fit_data_law(TOKENS, losses, variances)
    inverted = together.invert(np.full(40, 2.5))
    for i, row in enumerate(losses):
        alone = fit_data_law(TOKENS, row, variances)
        one = (float(alone.a), float(alone.b), float(alone.exponent), float(alone.invert(2.5)))
        many = (together.a[i], together.b[i], together.exponent[i], inverted[i])
        assert one == pytest.approx(many, rel=1e-12)
    assert len(set(together.exponent)) > 3


@pytest.mark.parametrize("trial", range(6))
def test_the_fit_is_weighted_least_squares_with_a_prior_on_the_exponent(trial):
    """Against a plain search, 300 times as fine: for each exponent numpy's least squares, and the prior."""
    rng = np.random.default_rng(trial)
    losses, variances = law(TOKENS) + 0.02 * rng.standard_normal(3), np.array([4e-4, 1e-4, 9e-4])
    fitted = fit_data_law(TOKENS, losses, variances)

    def cost(exponent: float) -> tuple[float, float, float]:
        x = np.stack([(np.array(TOKENS) / fitted.scale) ** -exponent, np.ones(3)], axis=1) / np.sqrt(variances)[:, None]
        y = losses / np.sqrt(variances)
        (a, b), *_ = np.linalg.lstsq(x, y, rcond=None)
        squares = float(((x @ [a, b] - y) ** 2).sum())
        return squares + (math.log(exponent / 0.5) / 0.7) ** 2, a, b

    costs = {exponent: cost(exponent) for exponent in np.geomspace(EXPONENTS[0], EXPONENTS[-1], 10_001)}
    found, a, b = cost(float(fitted.exponent))
    assert (fitted.a, fitted.b) == pytest.approx((a, b), rel=1e-9)
    assert found == pytest.approx(min(c[0] for c in costs.values()), rel=1e-4)
    assert min(c[0] for c in costs.values()) < 2.0


def test_where_the_noise_leaves_the_exponent_open_it_is_the_published_one():
    line = np.array([3.0, 2.5, 2.0])  # no curvature at all: the smallest exponent fits best
    sure, unsure = (float(fit_data_law(TOKENS, line, [variance] * 3).exponent) for variance in (1e-9, 1.0))
    assert sure == pytest.approx(0.05) and unsure == pytest.approx(0.5, rel=0.1)


def test_a_loss_at_or_below_the_floor_takes_infinite_tokens():
    fitted = fit_data_law(TOKENS, law(TOKENS), [1e-12] * 3)
    floor = float(fitted.b)
    assert np.all(np.isinf(fitted.invert(np.array([floor, floor - 0.1, -5.0]))))
    assert math.isfinite(float(fitted.invert(floor + 1e-3)))


@pytest.mark.parametrize("losses", [[2.0, 2.0, 2.0], [2.0, 2.1, 2.2], [2.1, 2.0, 2.15]])
def test_a_baseline_that_gains_nothing_from_tokens_defines_no_speedup(losses):
    fitted = fit_data_law(TOKENS, np.array(losses), [1e-6] * 3)
    assert float(fitted.a) == 0.0
    point, low, high = bootstrap_speedup(arm(TOKENS, losses, 1e-3), arm([100_000], [2.05], 1e-3, degrees=4))
    assert math.isinf(point) and not math.isnan(low) and not math.isnan(high)


def test_noise_about_a_flat_baseline_gives_no_bounds():
    """Half of the replicates rise: nothing is excluded."""
    _, low, high = bootstrap_speedup(arm(TOKENS, [2.0, 2.0, 2.0], 0.1), arm([100_000], [2.0], 0.1, degrees=4))
    assert low == 0.0 and math.isinf(high)


@pytest.mark.parametrize("speed", [0.6, 1.0, 1.4, 1.9])
def test_the_planted_speedup_is_the_point(speed):
    point, low, high = measured(speed)
    assert point == pytest.approx(speed, rel=0.003) and low <= point <= high
    assert high / low < 1.001


@settings(deadline=None)
@given(st.floats(1e-3, 1e6), st.sampled_from([0.7, 1.0, 1.4]))
def test_the_unit_of_tokens_does_not_matter(unit, speed):
    base, ours = law(TOKENS), law(100_000 * speed)
    plain = bootstrap_speedup(arm(TOKENS, base, 0.05), arm([100_000], [ours], 0.05, degrees=4))
    scaled = [t * unit for t in TOKENS]
    other = bootstrap_speedup(arm(scaled, base, 0.05), arm([100_000 * unit], [ours], 0.05, degrees=4))
    assert other == pytest.approx(plain, rel=1e-6)


def test_the_level_and_the_unit_of_the_loss_do_not_matter():
    plain = measured(1.4, 0.05)
    for factor, shift in ((1.0, 7.0), (1 / math.log(2), 0.0), (1 / math.log(2), -1.0)):
        base, ours = (shift + factor * law(t) for t in (TOKENS, [140_000]))
        other = bootstrap_speedup(arm(TOKENS, base, 0.05 * factor), arm([100_000], ours, 0.05 * factor, degrees=4))
        assert other == pytest.approx(plain, rel=1e-6)


def test_more_noise_is_a_wider_interval():
    widths = [high / low for _, low, high in (measured(1.4, sd) for sd in (0.002, 0.01, 0.03, 0.06))]
    assert widths == sorted(widths) and widths[0] < 1.02 and widths[-1] > 1.3


def test_fewer_degrees_of_freedom_are_a_wider_interval():
    known, guessed = (measured(1.4, 0.02, degrees=degrees) for degrees in (1000, 2))
    assert guessed[2] / guessed[1] > 1.03 * known[2] / known[1]


def test_what_a_seed_does_to_all_horizons_alike_moves_them_together():
    """A baseline that shifts as a whole is read off as surely from more noise: its law keeps its shape."""
    apart, together = (measured(1.9, 0.05, shared=shared) for shared in (0.0, 1.0))
    base = arm(TOKENS, law(TOKENS), 0.05, degrees=10**15, shared=1.0)  # so that no variance is redrawn
    draws = base.draw(np.random.default_rng(0), 500) - law(TOKENS)
    assert np.ptp(draws, axis=1).max() < 1e-8 and draws[:, 0].std() == pytest.approx(0.05 / math.sqrt(5), rel=0.2)
    assert together != apart


def test_shared_fraction():
    rng = np.random.default_rng(0)
    seed = rng.standard_normal((1, 4000))
    means = np.array([[1.0], [5.0], [9.0]])
    for share in (0.0, 0.3, 1.0):
        losses = means + math.sqrt(share) * seed + math.sqrt(1 - share) * rng.standard_normal((3, 4000))
        assert shared_fraction(losses) == pytest.approx(share, abs=0.03)
    assert shared_fraction(np.array([[1.0, 2.0, 3.0]])) == shared_fraction(np.ones((3, 1))) == 0.0
    assert shared_fraction(np.ones((3, 5))) == 0.0
    assert shared_fraction(np.array([[1.0, 2.0], [2.0, 1.0]])) == 0.0  # opposite: not below zero


def test_what_selection_costs():
    rng = np.random.default_rng(0)
    deviation = np.full(4000, 0.1)
    assert not ALONE.draw(deviation, rng).any()  # nothing to choose from
    clear = Selection(means=(1.0, 9.0), num_seeds=(5, 5))
    assert not clear.draw(deviation, rng).any()  # no doubt about the choice
    open_ = Selection(means=(1.0, 1.15), num_seeds=(5, 5)).draw(deviation, rng)
    assert open_.std() > 0.005 and abs(open_.mean()) < 1e-12
    coarse = Selection(means=(1.0,), num_seeds=(5,), curvatures=(0.12,)).draw(deviation, rng)
    assert coarse.std() == pytest.approx(0.12 * math.sqrt(1 / 80 - 1 / 144), rel=0.05)  # of u^2, u ~ U(-1/2, 1/2)
    assert abs(coarse.mean()) < 1e-12
    base, ours = arm(TOKENS, law(TOKENS), 0.01), arm([100_000], [law(140_000)], 0.01, degrees=4)
    plain = bootstrap_speedup(base, ours)
    wider = ArmLosses(**{**vars(ours), "selection": Selection(means=(1.0,), num_seeds=(5,), curvatures=(0.5,))})
    with_choice = bootstrap_speedup(base, wider)
    assert with_choice[0] == plain[0] and with_choice[2] / with_choice[1] > plain[2] / plain[1]


def test_is_deterministic():
    assert measured(1.4, 0.05) == measured(1.4, 0.05)


@pytest.mark.parametrize(("noises", "speed"), [((0.05, 0.05), 1.0), ((0.05, 0.015), 1.4)])
def test_the_interval_holds_the_truth_nineteen_times_out_of_twenty(noises, speed):
    """Losses drawn around a known law, three horizons and five seeds, nothing selected."""
    rng, num, held = np.random.default_rng(5), 300, 0
    for _ in range(num):
        base = law(TOKENS)[:, None] + noises[0] * rng.standard_normal((3, 5))
        ours = law(100_000 * speed) + noises[1] * rng.standard_normal(5)
        _, low, high = bootstrap_speedup(
            arm(TOKENS, base.mean(1), math.sqrt(base.var(1, ddof=1).mean())),
            arm([100_000], [ours.mean()], float(ours.std(ddof=1)), degrees=4),
        )
        held += low <= speed <= high
    assert 0.92 <= held / num <= 0.98
