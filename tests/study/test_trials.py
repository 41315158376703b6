"""The book of a tuning: gains, noise, the cap."""

import math
import warnings

import numpy as np
import pytest

from muonlab.analyze.significance import Noise, student_errors
from muonlab.records import Record
from muonlab.study.protocol import drive
from muonlab.study.trials import CapReachedError, Gain, TrialBook

SEEDS = (1000, 1001, 1002, 1003)


def settings(lr: float) -> dict:
    return {"opt.lr": lr}


def table(losses: dict[float, list[float]]):
    """Losses by lr, in the order of the seeds, as a loss of a spec."""
    return lambda spec: losses[spec.get("opt.lr")][SEEDS.index(spec.seed)]


@pytest.fixture
def book(spec, bench):
    """A book with the losses given, each configuration run on as many seeds as it has losses."""

    def make(losses: dict[float, list[float]], max_runs: int = 100) -> TrialBook:
        made = TrialBook(spec(), SEEDS, max_runs)
        drive(made.measure([(settings(lr), len(row)) for lr, row in losses.items()]), bench(table(losses)))
        return made

    return make


def test_gain_is_the_mean_difference_on_shared_seeds(book):
    made = book({0.1: [3.0, 5.0], 0.2: [2.0, 3.0, 100.0]})
    gain = made.gain(settings(0.1), settings(0.2))
    assert (gain.mean, gain.num_seeds) == (1.5, 2)  # the third seed of 0.2 has no partner
    assert made.gain(settings(0.2), settings(0.1)).mean == -1.5
    assert made.mean(settings(0.2)) == 35.0 and made.num_seeds(settings(0.2)) == 3


def test_noise_of_a_complete_table_equals_two_way_anova(book):
    rows = {0.1: [1.0, 1.5, 1.1], 0.2: [1.2, 1.8, 0.9], 0.3: [1.3, 1.6, 1.7]}
    x = np.array(list(rows.values()))
    residuals = x - x.mean(1, keepdims=True) - x.mean(0, keepdims=True) + x.mean()
    made = book({**rows, 0.4: [9.0, 1.0, 5.0], 0.5: [2.0, 9.0, 5.0]})  # the worse half, and noisier
    noise = made.noise()
    assert noise.variance == pytest.approx((residuals**2).sum() / 4, rel=1e-9) and noise.degrees == 4
    gain = made.gain(settings(0.1), settings(0.2))
    assert gain.standard_error == pytest.approx(math.sqrt(2 * noise.variance / 3), rel=1e-9) and gain.degrees == 4


def test_noise_of_unequal_rows_by_hand(book):
    """Rows (1, 2), (4, 7, 3): on the seeds they share the differences are 3 and 5; the third seed fits itself."""
    noise = book({0.1: [1.0, 2.0], 0.2: [4.0, 7.0, 3.0]}).noise()
    assert noise.degrees == 1 and noise.variance == pytest.approx((5 - 3) ** 2 / 4)


def test_pairing_removes_what_a_seed_does_to_all(book):
    seed_effect = [0.0, 5.0, -3.0]
    base = {0.1: [1.0, 1.1, 0.9], 0.2: [0.8, 0.75, 0.85], 0.3: [0.9, 1.0, 1.0]}
    shifted = {lr: [x + s for x, s in zip(row, seed_effect, strict=True)] for lr, row in base.items()}
    plain, paired = (book(t).gain(settings(0.1), settings(0.2)) for t in (base, shifted))
    assert paired.mean == pytest.approx(plain.mean) and paired.standard_error == pytest.approx(plain.standard_error)
    assert paired.mean == pytest.approx(0.2) and 0 < paired.standard_error < 0.1


def test_the_two_compared_always_enter_the_noise(book):
    """Bad configurations are left out of the noise, unless the gain is about one of them."""
    made = book({0.1: [1.0, 1.0], 0.2: [1.0, 1.0], 0.3: [5.0, 9.0], 0.4: [6.0, 6.0]})
    assert made.noise().variance == pytest.approx(0.0, abs=1e-20)
    assert made.noise(settings(0.3)).variance > 1.0
    assert made.gain(settings(0.3), settings(0.1)).standard_error > 1.0


def test_a_single_run_says_nothing_about_noise(book):
    made = book({0.1: [1.0], 0.2: [0.5]})
    gain = made.gain(settings(0.1), settings(0.2))
    assert made.noise() == Noise(math.inf, 0)
    assert gain.mean == 0.5 and math.isinf(gain.standard_error) and not gain.resolved(3.0, 1e-3)


@pytest.mark.filterwarnings("error")
def test_a_diverged_run_is_never_best_and_never_noise(book):
    good, odd, bad = [1.0, 1.2, 1.1], [0.1, math.inf, 0.1], [math.inf] * 3
    made = book({0.1: good, 0.2: [1.1, 1.2, 1.3], 0.4: odd, 0.8: bad})
    assert math.isinf(made.mean(settings(0.4))) and math.isinf(made.mean(settings(0.8)))
    assert made.noise() == book({0.1: good, 0.2: [1.1, 1.2, 1.3]}).noise()
    for lr in (0.4, 0.8):
        assert not made.gain(settings(0.1), settings(lr)).resolved(3.0, 1e-3)
        assert made.gain(settings(lr), settings(0.1)).resolved(3.0, 1e-3)
    assert not made.gain(settings(0.8), settings(0.4)).resolved(3.0, 1e-3)
    assert not made.gain(settings(0.8), settings(0.8)).resolved(3.0, 1e-3)


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_a_run_that_did_not_end_well_is_lost_whatever_its_record_says(spec, outcome):
    def crash(specs):
        return {s.key: Record(spec=s, outcome=outcome, final_loss=0.5) for s in specs}

    made = TrialBook(spec(), SEEDS, 10)
    drive(made.measure([(settings(0.1), 2)]), crash)
    assert math.isinf(made.mean(settings(0.1))) and made.num_runs == 2


@pytest.mark.parametrize(
    ("gain", "resolved"),
    [
        (Gain(0.031, 0.01, 3, 10**6), True),
        (Gain(0.029, 0.01, 3, 10**6), False),  # within the noise
        (Gain(0.031, 0.01, 3, 4), False),  # of which four residuals know too little
        (Gain(0.067, 0.01, 3, 4), True),
        (Gain(0.0029, 0.0, 3, 4), False),  # beyond the noise, but not worth having
        (Gain(0.0031, 0.0, 3, 4), True),
        (Gain(-0.5, 0.01, 3, 10**6), False),
        (Gain(5.0, math.inf, 1, 0), False),
    ],
)
def test_a_gain_counts_above_noise_and_threshold(gain, resolved):
    assert gain.resolved(3.0, 0.003) is resolved
    assert resolved == (gain.mean >= gain.needed(3.0, 0.003))


def test_student_errors_keep_the_rate_of_false_gains():
    """Of gains over an error estimated from few residuals, as many pass as of gains over a known error."""
    rng, degrees, num = np.random.default_rng(0), 5, 400_000
    ratio = rng.standard_normal(num) / np.sqrt(rng.chisquare(degrees, num) / degrees)
    rate = float(np.mean(ratio > student_errors(2.0, degrees)))
    assert rate == pytest.approx(0.02275, rel=0.04)
    assert float(np.mean(ratio > 2.0)) > 2 * rate


def test_the_cap_is_on_new_runs_and_leaves_the_book_as_it_was(spec, bench):
    made, run = TrialBook(spec(), SEEDS, 6), bench(lambda s: s.get("opt.lr") + s.seed)
    drive(made.measure([(settings(0.1), 2), (settings(0.2), 3)]), run)
    with pytest.raises(CapReachedError):
        drive(made.measure([(settings(0.1), 3), (settings(0.2), 4)]), run)
    assert made.num_runs == 5 == len(run.asked) and made.num_seeds(settings(0.1)) == 2
    drive(made.measure([(settings(0.1), 3), (settings(0.2), 3)]), run)  # two more are asked for, one is new
    assert made.num_runs == 6 and made.tokens == 6 * spec().horizon_tokens
    drive(made.measure([(settings(0.1), 3)]), run)
    assert len(run.batches) == 2  # what is known is not asked for again


def test_trials_name_settings_and_keys_in_the_order_of_the_seeds(spec, bench):
    made = TrialBook(spec(), SEEDS, 10)
    drive(made.measure([(settings(0.2), 2), (settings(0.1), 1)]), bench(lambda s: 1.0))
    drive(made.measure([(settings(0.2), 3)]), bench(lambda s: 1.0))
    assert [(dict(t.settings), len(t.keys)) for t in made.trials()] == [({"opt.lr": 0.2}, 3), ({"opt.lr": 0.1}, 1)]
    assert made.trials()[0].keys == tuple(spec(**{"opt.lr": 0.2, "seed": s}).key for s in SEEDS[:3])


def test_an_unmeasured_configuration_is_never_best(spec):
    made = TrialBook(spec(), SEEDS, 10)
    assert math.isinf(made.mean(settings(0.1))) and not made.measured(settings(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made.noise() == Noise(math.inf, 0) and made.trials() == ()
