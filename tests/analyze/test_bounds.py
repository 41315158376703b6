"""The bounds against numerical minima, their own limits, sums of weights, and a simulation that they must hold for."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from muonlab.analyze.bounds import Bound, Derived, TunedBound, claimed_noise

positive = st.floats(0.1, 10.0)
momenta = st.floats(0.0, 0.99)
bounds = st.builds(Bound, start=positive, noise=positive, floor=positive, power=st.sampled_from([0.5, 1.0]))
tuned_bounds = st.builds(TunedBound, gap=positive, initial=st.floats(0.0, 100.0), noise=positive, drift=positive)
PLAIN = Derived(gap=1.0, start_norm=1.0, smoothness=1.0, sigma=2.0, rank=3, momentum=0.9)


def check_minimum(bound, target: float) -> None:
    """SFO falls from b_min to b* and rises beyond; b* is where a search finds the minimum."""
    least, best = bound.least_batch(target), bound.critical_batch(target)
    assert least < best and math.isinf(bound.steps(target, least * (1 - 1e-9)))
    falling = [bound.samples(target, least + (best - least) * part) for part in (0.1, 0.3, 0.6, 0.9, 1.0)]
    rising = [bound.samples(target, best * factor) for factor in (1.0, 1.1, 2.0, 10.0, 100.0)]
    assert falling == sorted(falling, reverse=True) and rising == sorted(rising)
    limits = np.log([least * 1.001, best * 100])
    found = minimize_scalar(lambda at: math.log(bound.samples(target, math.exp(at))), bounds=limits, method="bounded")
    assert math.exp(found.x) == pytest.approx(best, rel=1e-2)
    assert bound.samples(target, best) <= math.exp(found.fun) * (1 + 1e-9)


@given(bounds, positive)
@settings(deadline=None, max_examples=50)
def test_the_critical_batch_is_the_minimum(bound, margin):
    target = bound.floor + margin
    check_minimum(bound, target)
    assert bound.least_samples(target) == pytest.approx(bound.samples(target, bound.critical_batch(target)))
    assert bound.value(bound.steps(target, 2 * bound.critical_batch(target)), 2 * bound.critical_batch(target)) == (
        pytest.approx(target)
    )
    assert bound.steps(target, 1e30) == pytest.approx(bound.start / margin)


@given(positive, positive, positive)
def test_the_published_minima_are_special_cases(start, noise, margin):
    first, fifth = (Bound(start=start, noise=noise, floor=0.3, power=power) for power in (1.0, 0.5))
    target = 0.3 + margin
    assert first.critical_batch(target) == pytest.approx(2 * noise / margin)
    assert first.least_samples(target) == pytest.approx(4 * start * noise / margin**2)
    assert fifth.critical_batch(target) == pytest.approx(9 * noise**2 / (4 * margin**2))
    assert fifth.critical_batch(target) == pytest.approx(2.25 * fifth.least_batch(target))
    assert fifth.least_samples(target) == pytest.approx(27 * start * noise**2 / (4 * margin**3))


def test_below_the_floor_no_batch_will_do():
    bound = Bound(start=1.0, noise=1.0, floor=0.5, power=0.5)
    found = bound.least_batch(0.5), bound.critical_batch(0.4), bound.least_samples(0.5), bound.steps(0.5, 1e9)
    assert found == (math.inf,) * 4


@given(tuned_bounds, positive)
@settings(deadline=None, max_examples=50)
def test_tuned_the_critical_batch_is_the_minimum_too(bound, target):
    check_minimum(bound, target)
    limits = [factor * bound.noise**2 / target**2 for factor in (9 / 4, 4)]
    assert limits[0] <= bound.critical_batch(target) <= limits[1] * (1 + 1e-6)
    assert replace(bound, initial=0.0).critical_batch(target) == pytest.approx(limits[1], rel=1e-6)
    assert replace(bound, initial=1e9).critical_batch(target) == pytest.approx(limits[0], rel=1e-2)


@given(momenta, st.booleans(), st.sampled_from([0.0, 0.3]), st.floats(1.5, 100.0), st.floats(0.01, 100.0))
@settings(deadline=None, max_examples=50)
def test_the_tuned_learning_rate_takes_the_fewest_steps(momentum, nesterov, decay, above, factor):
    derived = replace(PLAIN, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    tuned, target = derived.tuned(), 0.5
    batch = above * tuned.least_batch(target)
    lr, steps = tuned.lr(target, batch), tuned.steps(target, batch)
    assert derived.fixed(lr).steps(target, batch) == pytest.approx(steps, rel=1e-6)
    if factor * lr * decay <= 1:
        assert derived.fixed(factor * lr).steps(target, batch) >= steps * (1 - 1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_noise_is_the_sum_of_the_squared_weights_of_all_gradients(momentum, nesterov):
    weights = (1 - momentum) * momentum ** np.arange(2000.0)
    if nesterov:
        weights = momentum * weights
        weights[0] += 1 - momentum
    found = replace(PLAIN, momentum=momentum, nesterov=nesterov).noise
    assert found == pytest.approx(2 * math.sqrt(3) * 2.0 * math.sqrt((weights**2).sum()))


def test_limits_of_the_derived_bound():
    still, decayed = replace(PLAIN, momentum=0.0), replace(PLAIN, weight_decay=0.5)
    assert still.fixed(0.1) == replace(still, nesterov=True).fixed(0.1)
    assert still.initial == 0 and still.drift == pytest.approx(1.5) and still.noise == pytest.approx(4 * math.sqrt(3))
    assert decayed.noise == PLAIN.noise and decayed.drift == pytest.approx(2 * 3 + 4 * 3 * 9)
    assert replace(decayed, weight_decay=2.0).tuned() == decayed.tuned()  # how much decay does not matter
    near = [replace(PLAIN, momentum=beta).noise ** 2 / (1 - beta) for beta in (0.999, 0.9999)]
    assert near[0] == pytest.approx(near[1], rel=1e-3)  # like 1 - momentum


def test_momentum_lowers_the_critical_batch_where_lr_is_tuned_and_may_raise_it_where_it_is_fixed():
    derived = [replace(PLAIN, momentum=beta) for beta in (0.5, 0.9, 0.95)]
    tuned = [one.tuned().critical_batch(0.5) for one in derived]
    fixed = [one.fixed(0.004).critical_batch(0.5) for one in derived]
    assert tuned == sorted(tuned, reverse=True)
    assert fixed[2] > fixed[1] and math.isinf(derived[2].fixed(0.01).critical_batch(0.5))


def test_the_bound_asks_for_weights_that_stay_bounded():
    with pytest.raises(ValueError, match=r"lr x weight_decay is 1\.5: the bound needs at most 1"):
        replace(PLAIN, weight_decay=3.0).fixed(0.5)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_claims_for_the_four_variants(momentum):
    claimed = {
        (nesterov, decay): claimed_noise(momentum=momentum, nesterov=nesterov, weight_decay=decay, sigma=2.0)
        for nesterov in (False, True)
        for decay in (0.0, 0.5)
    }
    assert claimed[True, 0.5] == pytest.approx(2 * ((2 * momentum + 1) * (1 - momentum) + 0.5))
    assert claimed[False, 0.0] == pytest.approx(4 * (1 - momentum))
    for nesterov in (False, True):
        assert claimed[nesterov, 0.5] - claimed[nesterov, 0.0] == pytest.approx(1.0)


# A least-squares problem of its own, so that a mistake in the task would not hide one in the bound

CURVATURE = np.outer([1.0, 0.5, 0.3], [1.0, 0.8, 0.6, 0.2])
OPTIMUM = np.array([[0.8, 0, 0, 0.1], [0, -0.5, 0, 0], [0.1, 0, 0.3, 0]])


def simulated(setting: Derived, lr: float, batch: int, steps: int, seeds: int = 16) -> float:
    """Mean over iterates and seeds of what the bound is on."""
    generator = np.random.default_rng(0)
    w = m = np.zeros((seeds, *OPTIMUM.shape))
    total = 0.0
    for _ in range(steps):
        gradient = CURVATURE * (w - OPTIMUM)
        measure = np.linalg.svd(gradient, compute_uv=False).sum(-1)
        total += (measure + setting.weight_decay * (gradient * w).sum((-2, -1))).mean()
        g = gradient + generator.normal(size=w.shape) * setting.sigma / math.sqrt(OPTIMUM.size * batch)
        m = setting.momentum * m + (1 - setting.momentum) * g
        u, _, vh = np.linalg.svd(setting.momentum * m + (1 - setting.momentum) * g if setting.nesterov else m, False)
        w = (1 - lr * setting.weight_decay) * w - lr * u @ vh
    return total / steps


@pytest.mark.parametrize("decay", [0.0, 0.8])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("lr", "batch", "momentum"), [(0.02, 4, 0.5), (0.005, 64, 0.9), (0.2, 1, 0.0)])
def test_the_derived_bound_holds_in_a_simulation(lr, batch, momentum, nesterov, decay):
    start = CURVATURE * OPTIMUM
    setting = Derived(
        gap=(start * OPTIMUM).sum() / 2, start_norm=np.linalg.norm(start), smoothness=1.0, sigma=2.0, rank=3,
        momentum=momentum, nesterov=nesterov, weight_decay=decay,
    )  # fmt: skip
    found = [simulated(setting, lr, batch, steps) for steps in (20, 200)]
    bound = setting.fixed(lr)
    for steps, value in zip((20, 200), found, strict=True):
        assert value <= bound.value(steps, batch)
    assert found[1] > setting.gap / (lr * 200)  # the first term alone would not do
