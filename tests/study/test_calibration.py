"""The simulated studies, few of them: benchmarks/calibration.py runs the many."""

import math

import pytest

from muonlab.study.calibration import Landscape, Response, calibrate, claim_rate

STUDIES = 24


@pytest.fixture(scope="module")
def same():
    return calibrate(1.0, STUDIES, noises=(0.05, 0.05))


@pytest.fixture(scope="module")
def faster():
    return calibrate(1.4, STUDIES, noises=(0.02, 0.02))


def test_an_optimizer_is_not_found_better_than_itself(same):
    assert same.false_verdicts == same.verdicts <= 2 / STUDIES
    assert same.coverage >= 1 - 4 / STUDIES
    assert 0.85 < same.median_speedup < 1.18


def test_a_planted_speedup_is_found_and_held(faster):
    assert faster.verdicts >= 1 - 2 / STUDIES and faster.false_verdicts == 0
    assert faster.coverage >= 1 - 4 / STUDIES
    assert faster.median_speedup == pytest.approx(1.4, rel=0.07) and 1.0 < faster.median_width < 1.6
    assert faster.censored == 0


def test_is_deterministic():
    one, two, other = (calibrate(1.4, 3, noises=(0.05, 0.02), seed=seed) for seed in (0, 0, 1))
    assert one.to_dict() == two.to_dict() != other.to_dict()


def test_rates_have_standard_errors(same):
    assert set(same.standard_errors) == {"false_verdicts", "verdicts", "coverage", "censored"}
    rate, error = same.coverage, same.standard_errors["coverage"]
    assert error == pytest.approx(math.sqrt(rate * (1 - rate) / (STUDIES * (1 - same.censored))))


@pytest.mark.filterwarnings("error")
def test_a_speedup_beyond_all_brackets_is_censored_and_not_counted_as_covered():
    result = calibrate(60.0, 2, noises=(0.01, 0.01))
    assert result.censored == 1.0 and math.isnan(result.coverage)
    assert result.verdicts == 1.0 and result.false_verdicts == 0.0


def test_the_landscape_is_what_it_says(spec):
    response = Response(noise=0.0, speed=2.0, best_lr=0.008, floor=1.0, drop=1.0, exponent=0.5, lr_drift=0.0)
    loss = Landscape({"a": response}).record(spec()).final_loss
    assert loss == pytest.approx(1.0 + 2.0**-0.5)
    worse = Landscape({"a": response}).record(spec(**{"opt.lr": 0.032, "opt.weight_decay": 0.2})).final_loss
    assert worse - loss == pytest.approx(0.08 * 4 + 0.002)
    double = Landscape({"a": response}).record(spec(horizon_tokens=2 * 98_304)).final_loss
    assert double == pytest.approx(1.0 + 4.0**-0.5)
    lost = Landscape({"a": Response(diverges_above=0.001)}).record(spec())
    assert lost.outcome == "diverged" and lost.final_loss is None


def test_noise_has_the_size_and_the_share_that_are_asked_for(spec):
    """A seed brings `seed_share` of the variance to both horizons alike, and nothing from one optimizer to another."""
    response = Response(noise=0.1, noise_decay=0.5, seed_share=0.5)
    losses = {
        (name, horizon): [
            Landscape({name: response}, trial).record(spec(name, horizon_tokens=horizon)).final_loss
            for trial in range(1000)
        ]
        for name in "ab"
        for horizon in (98_304, 2 * 98_304)
    }

    def covariance(x, y) -> float:
        centre = [sum(z) / len(z) for z in (x, y)]
        return sum((a - centre[0]) * (b - centre[1]) for a, b in zip(x, y, strict=True)) / len(x)

    (short, long), other = (losses["a", h] for h in (98_304, 2 * 98_304)), losses["b", 98_304]
    assert covariance(short, short) == pytest.approx(0.01, rel=0.15)
    assert covariance(long, long) == pytest.approx(0.005, rel=0.15)
    assert covariance(short, long) == pytest.approx(0.005 / 2**0.5, rel=0.2)
    assert covariance(short, other) == pytest.approx(0.0, abs=0.001)


@pytest.mark.parametrize("noise", [0.002, 0.05])
def test_a_margin_that_the_challenger_is_just_not_within_is_rarely_said_to_hold(noise):
    """Worse by the margin itself. The quiet case is that of the grid, which the pairs know nothing of."""
    assert claim_rate(0.01, 0.01, STUDIES, noise=noise) <= 3 / STUDIES


def test_a_margin_that_holds_is_found():
    assert claim_rate(0.1, 0.0, STUDIES // 2, noise=0.02) >= 1 - 2 / STUDIES
    assert claim_rate(0.1, 0.2, STUDIES // 2, noise=0.02) == 0.0
