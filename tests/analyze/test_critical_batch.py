"""Critical batches: planted ones are found within their intervals, and what cannot be told is said so."""

import math

import numpy as np
import pytest

from muonlab.analyze.critical_batch import (
    OVERHEAD,
    Estimate,
    TokenCurve,
    fit_overhead,
    noise_scale,
    overhead_batches,
    sfo_minimum,
    token_optimal,
)
from muonlab.analyze.significance import Noise, pooled_noise

BATCHES = np.array([512.0 * 2**k for k in range(7)])
SEEDS, STUDIES = 3, 60


def curve(logs: np.ndarray, sd: float, generator: np.random.Generator, batches: np.ndarray = BATCHES) -> TokenCurve:
    tokens = [np.exp(mean + sd * generator.standard_normal(SEEDS)).tolist() for mean in logs]
    return TokenCurve(batches, tokens, pooled_noise([np.log(own).tolist() for own in tokens]))


def planted(critical: float, power: float = 1.0, batches: np.ndarray = BATCHES) -> np.ndarray:
    return np.log(1e6 * (1.0 + OVERHEAD * (batches / critical) ** power))


def holds(estimate: Estimate, value: float) -> bool:
    return (estimate.low or 0.0) <= value <= (estimate.high or math.inf)


@pytest.mark.parametrize("sd", [0.01, 0.05])
@pytest.mark.parametrize(("critical", "power"), [(1500.0, 1.0), (4000.0, 1.4), (4000.0, 0.7), (12_000.0, 1.0)])
def test_a_planted_critical_batch_lies_in_its_interval(critical: float, power: float, sd: float) -> None:
    """In at least 90 % of studies, of an interval that says 95 %."""
    generator = np.random.default_rng(7)
    found = [overhead_batches(curve(planted(critical, power), sd, generator)) for _ in range(STUDIES)]
    doubled = critical * 5.0 ** (1.0 / power)
    assert sum(holds(overhead, critical) for overhead, _, _ in found) >= 0.9 * STUDIES
    assert sum(holds(doubling, doubled) for _, doubling, _ in found) >= 0.9 * STUDIES
    widths = [math.log((o.high or math.inf) / (o.low or 1.0)) for o, _, _ in found]
    assert np.median(widths) < 45 * sd  # and says something


def test_without_noise_it_is_found_exactly() -> None:
    fit = fit_overhead(BATCHES, planted(3000.0, 1.2), np.full(7, 1e-4))
    assert (fit.critical, fit.power, fit.least) == pytest.approx((3000.0, 1.2, 1e6), rel=1e-3)
    assert fit.batch(OVERHEAD) == pytest.approx(3000.0, rel=1e-3)
    assert fit.tokens(np.array([fit.batch(1.0)])) == pytest.approx(2e6, rel=1e-3)


def test_few_batches_fix_the_power() -> None:
    few = BATCHES[::2]
    fit = fit_overhead(few, planted(3000.0, 1.0, few), np.full(4, 0.01))
    assert fit.power == pytest.approx(1.0, abs=1e-6) and fit.critical == pytest.approx(3000.0, rel=1e-3)


@pytest.mark.parametrize(("critical", "flag", "edge"), [(80.0, "below", 512.0), (4e5, "above", 32_768.0)])
def test_one_outside_the_measured_batches_is_only_bounded(critical: float, flag: str, edge: float) -> None:
    overhead, _, fit = overhead_batches(curve(planted(critical), 0.005, np.random.default_rng(1)))
    assert (overhead.value, overhead.flag) == (edge, flag) and fit is not None
    assert holds(overhead, critical)


@pytest.mark.parametrize("minimum", [1200.0, 5000.0])
def test_a_planted_minimum_lies_in_its_interval(minimum: float) -> None:
    generator = np.random.default_rng(3)
    logs = np.log(1e6) + 0.08 * np.log2(BATCHES / minimum) ** 2
    found = [sfo_minimum(curve(logs, 0.02, generator)) for _ in range(STUDIES)]
    assert sum(holds(one, minimum) for one in found) >= 0.9 * STUDIES
    assert sfo_minimum(curve(logs, 1e-9, generator)).value == pytest.approx(minimum, rel=1e-3)


def test_a_minimum_at_an_end_is_none() -> None:
    generator = np.random.default_rng(3)
    rising = sfo_minimum(curve(planted(1000.0), 0.005, generator))
    falling = sfo_minimum(curve(-planted(1000.0), 0.005, generator))
    assert (rising.value, rising.flag) == (512.0, "below") and (falling.value, falling.flag) == (32_768.0, "above")


def test_the_largest_batch_that_costs_no_tokens() -> None:
    tokens = [[1.04e6], [1.0e6], [1.02e6], [1.049e6], [1.2e6], [1.01e6 * 2], [4e6]]
    assert token_optimal(TokenCurve(BATCHES, tokens, Noise(1e-4, 10))) == BATCHES[3]
    assert token_optimal(TokenCurve(BATCHES[:0], [], Noise(math.nan, 0))) is None


def test_two_batches_or_one_seed_tell_nothing() -> None:
    generator = np.random.default_rng(0)
    two = curve(planted(1000.0, 1.0, BATCHES[:2]), 0.01, generator, BATCHES[:2])
    alone = TokenCurve(BATCHES, [[1e6]] * 7, Noise(math.nan, 0))
    for one in (two, alone):
        overhead, doubling, fit = overhead_batches(one)
        assert overhead.flag == doubling.flag == sfo_minimum(one).flag == "undefined" and fit is None
        assert overhead.value is overhead.low is overhead.high is None


def test_a_planted_noise_scale_lies_in_its_interval() -> None:
    """Gradients of 8 runs, some probes each: the ratio of means, whose mean of ratios would be far off."""
    generator, hits = np.random.default_rng(5), 0
    for _ in range(200):
        trace = 1.3 * generator.chisquare(8, 8) / 8
        square = 2.5e-4 + 6e-5 * generator.standard_normal(8)
        hits += holds(noise_scale(trace, square), 1.3 / 2.5e-4)
    assert hits >= 180


def test_a_noise_scale_without_a_gradient_is_undefined() -> None:
    assert noise_scale([1.0, 1.2], [-1e-5, 2e-6]).flag == "undefined"
    assert noise_scale([1.0], [1.0]).flag == "undefined"
    assert noise_scale([1.0, 1.2, 1.1], [1e-3, -4e-4, -4e-4]).flag == "undefined"  # by one run alone it has a sign
    assert noise_scale([1.0, 1.2, 1.1], [1e-3, 1e-7, 1e-5]).flag == "undefined"  # open by a factor of 100


def test_the_nuclear_ratio_is_squared() -> None:
    assert noise_scale([6.0, 6.0], [2.0, 2.0], power=2.0).value == pytest.approx(9.0)
