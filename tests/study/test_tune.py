"""Coordinate descent on made-up losses: what it finds, what it is not fooled by, and what it says about itself."""

import math
from collections import Counter
from dataclasses import replace

import pytest

from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules, tune

RULES = TuningRules()
EXTRAS = tuple(Hyperparameter(f"opt.x{i}", 2, (1, 2, 3), low=1, high=3, log=False) for i in range(12))


def bowl(lr: float = 0.008, decay: float = 0.1, curvature: float = 0.1, decay_curvature: float = 0.05):
    """Quadratic in log2(lr) and in weight decay; optimum 2.0 at (lr, decay)."""

    def loss(spec) -> float:
        return (
            2.0
            + curvature * math.log2(spec.get("opt.lr") / lr) ** 2
            + decay_curvature * ((spec.get("opt.weight_decay") - decay) / 0.1) ** 2
        )

    return loss


@pytest.fixture
def tuned(spec, bench):
    """The tuning of `space` on `loss`, and the bench that ran it."""

    def run(loss, space, rules=RULES, **options):
        ran = bench(loss)
        return drive(tune(spec(), space, rules, **options), ran), ran

    return run


def tried(ran, name: str) -> set:
    return {s.get(name) for s in ran.asked}


@pytest.mark.parametrize("lr_optimum", [0.001, 0.0055, 0.008, 0.04])
@pytest.mark.parametrize("decay_optimum", [0.0, 0.1, 0.2])
def test_finds_the_bottom_of_a_bowl(tuned, lr, weight_decay, lr_optimum, decay_optimum):
    result, _ = tuned(bowl(lr_optimum, decay_optimum), (lr, weight_decay))
    assert abs(math.log2(result.best["opt.lr"] / lr_optimum)) <= 0.55  # the nearest value of a grid of doublings
    assert result.best["opt.weight_decay"] == decay_optimum
    assert result.converged and result.edges == ()


def test_finds_a_bottom_that_lies_across_both_coordinates(tuned, lr, weight_decay):
    """The best lr depends on the weight decay: one round is not enough."""

    def loss(spec) -> float:
        x, y = math.log2(spec.get("opt.lr") / 0.002), spec.get("opt.weight_decay") / 0.1 - 2.0
        return 2.0 + 0.1 * (x + 0.7 * y) ** 2 + 0.1 * y**2

    result, _ = tuned(loss, (lr, weight_decay))
    assert dict(result.best) == {"opt.lr": 0.002, "opt.weight_decay": 0.2}
    assert [m.coordinate for m in result.moves if m.accepted].count("opt.lr") >= 2


@pytest.mark.parametrize(("optimum", "beyond"), [(0.256, 0.512), (0.000125, 0.0000625)])
def test_extends_the_grid_until_the_optimum_is_interior(tuned, lr, weight_decay, optimum, beyond):
    result, ran = tuned(bowl(optimum), (lr, weight_decay))
    assert result.best["opt.lr"] == pytest.approx(optimum) and result.edges == ()
    outer = max if optimum > 0.008 else min
    assert outer(tried(ran, "opt.lr")) == pytest.approx(beyond)  # one value beyond the optimum and no more
    assert {0.001, 0.032} <= tried(ran, "opt.lr")


def test_the_first_pass_extends_by_the_argmin_too(tuned, lr):
    """Beyond the grid as within it: by 0.01 nats under noise of 0.03, which no later move would pass."""
    means = {0.016: 2.5, 0.032: 2.01, 0.064: 2.0, 0.128: 2.5}

    def loss(spec) -> float:
        value = spec.get("opt.lr")
        return means.get(value, 3.0) + 0.03 * (-1) ** (spec.seed + (value == 0.064))

    result, _ = tuned(loss, (lr,), TuningRules(first_seeds=4))
    assert result.best["opt.lr"] == 0.064 and result.edges == ()
    assert [(m.old, m.new) for m in result.moves if m.accepted] == [(0.008, 0.064)]


def test_extends_a_later_coordinate_upwards_too(tuned, lr, weight_decay):
    result, ran = tuned(bowl(decay=0.8), (lr, weight_decay))
    assert result.best["opt.weight_decay"] == 0.8 and result.edges == ()
    assert sorted(tried(ran, "opt.weight_decay")) == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6]


def test_a_natural_bound_is_interior_and_an_open_one_is_approached(tuned, lr, weight_decay):
    result, ran = tuned(bowl(decay=-0.3), (lr, weight_decay))
    assert result.best["opt.weight_decay"] == 0.0 and result.edges == () and result.converged
    assert min(tried(ran, "opt.weight_decay")) == 0.0
    beta = Hyperparameter("opt.beta1", 0.9, (0.9, 0.95), low=0.0, high=1.0, high_closed=False, log=False)
    result, ran = tuned(lambda s: bowl()(s) + 5.0 * abs(s.get("opt.beta1") - 0.9875), (lr, beta))
    assert result.best["opt.beta1"] == 0.9875 and max(tried(ran, "opt.beta1")) == 0.99375


@pytest.mark.parametrize("seed_effect", [0.0, 0.5])
def test_first_pass_is_the_argmin_of_seed_means(tuned, lr, seed_effect):
    """Not of the luckiest run, and however small the difference: there is nothing yet to defend."""
    by_lr = {0.002: (2.0, 2.3, 2.3), 0.004: (2.105, 2.105, 2.105), 0.008: (2.1, 2.1, 2.1)}

    def loss(spec) -> float:
        at = spec.seed - 1000
        return by_lr.get(spec.get("opt.lr"), (2.4,) * 3)[at] - seed_effect * (at == 0)

    result, _ = tuned(loss, (lr,), TuningRules(seeds=(1000, 1001, 1002)))
    assert result.best["opt.lr"] == 0.008
    assert result.moves[0].reason == "argmin of seed means over the whole grid"


def test_seeds_are_added_where_unresolved_and_only_there(tuned, lr, weight_decay):
    """0.004 and 0.008 differ by 0.02 nats under noise of 0.03: all eight seeds; what is clearly worse keeps three."""
    means = {0.001: 3.0, 0.002: 2.5, 0.004: 2.02, 0.008: 2.0, 0.016: 2.5, 0.032: 3.0}

    def loss(spec) -> float:
        shake = 0.03 * (-1) ** (spec.seed + (spec.get("opt.lr") == 0.004))
        return means[spec.get("opt.lr")] + (shake if spec.get("opt.lr") in (0.004, 0.008) else 0.0)

    result, _ = tuned(loss, (lr,))
    assert {t.settings["opt.lr"]: len(t.keys) for t in result.trials} == {
        0.001: 3, 0.002: 3, 0.004: 8, 0.008: 8, 0.016: 3, 0.032: 3,
    }  # fmt: skip
    assert result.best["opt.lr"] == 0.008
    quiet, _ = tuned(bowl(), (lr, weight_decay))
    assert {len(t.keys) for t in quiet.trials} == {3}


def test_diverging_rates_are_never_chosen_and_bound_the_grid(tuned, lr, weight_decay):
    def loss(spec) -> float:
        return math.inf if spec.get("opt.lr") > 0.01 else bowl(0.02)(spec)

    result, ran = tuned(loss, (lr, weight_decay))
    assert result.best["opt.lr"] == 0.008 and result.edges == () and result.converged
    assert max(tried(ran, "opt.lr")) == 0.032
    (edge, _) = tuned(lambda s: math.inf if s.get("opt.lr") > 0.05 else bowl(0.2)(s), (lr, weight_decay))
    assert edge.best["opt.lr"] == 0.032 and edge.edges == ()  # 0.064 was tried, and diverged


def test_one_diverged_seed_is_enough_to_lose(tuned, lr):
    def loss(spec) -> float:
        return math.inf if (spec.get("opt.lr"), spec.seed) == (0.008, 1002) else bowl(0.008)(spec)

    result, _ = tuned(loss, (lr,))
    assert result.best["opt.lr"] in (0.004, 0.016)


@pytest.mark.filterwarnings("error")
def test_everything_diverges(tuned, lr, weight_decay):
    result, ran = tuned(lambda s: math.inf, (lr, weight_decay))
    assert result.best["opt.lr"] == 0.001  # the smallest of the grid
    assert not any(m.accepted for m in result.moves if m.coordinate == "opt.weight_decay")
    first = result.moves[0]
    assert first.reason == "every value diverged" and (first.old, first.new) == (0.008, 0.001)
    assert first.gain is None and len(ran.asked) == result.num_runs < 40


def test_leaves_a_start_that_diverges(tuned, lr, weight_decay):
    """With `start` nothing is swept first, so the start itself may be a bad one."""

    def loss(spec) -> float:
        return math.inf if spec.get("opt.lr") > 0.005 else bowl(0.003)(spec)

    result, _ = tuned(loss, (lr,), start={"opt.lr": 0.016, "opt.weight_decay": 0.1})
    assert result.best["opt.lr"] == 0.016 and result.converged  # both neighbours diverge as well
    result, _ = tuned(loss, (lr,), start={"opt.lr": 0.008, "opt.weight_decay": 0.1})
    assert result.best["opt.lr"] in (0.002, 0.004)
    assert result.moves[0].reason == "the old value diverged" and result.moves[0].gain is None


def test_the_cap_ends_it_and_the_result_is_usable(tuned, lr, weight_decay):
    for cap in range(18, 40):
        result, ran = tuned(bowl(0.0002, decay=0.8), (lr, weight_decay), TuningRules(max_runs=cap))
        assert len(ran.asked) == result.num_runs <= cap and not result.converged
        assert set(result.best) == {"opt.lr", "opt.weight_decay"}
        assert any(dict(t.settings) == dict(result.best) for t in result.trials)
        assert sum(len(t.keys) for t in result.trials) == result.num_runs
        assert result.edges  # the optimum was not enclosed, and it says so


def test_a_cap_below_the_first_sweep_is_refused_before_the_first_run(spec, bench, lr):
    ran = bench(bowl())
    with pytest.raises(UsageError, match=r"max_runs 17 is below the 18 runs of the first opt\.lr sweep"):
        drive(tune(spec(), (lr,), TuningRules(max_runs=17)), ran)
    assert ran.batches == []


@pytest.mark.parametrize("first_seeds", [1, 9])
def test_impossible_numbers_of_seeds_are_refused(first_seeds):
    with pytest.raises(UsageError, match="first_seeds must lie between 2 and"):
        TuningRules(first_seeds=first_seeds)


def test_categories_are_swept_whole_and_have_no_edges(tuned, lr):
    kind = Hyperparameter("schedule.kind", "linear", ("constant", "linear", "cosine", "wsd"))
    costs = {"constant": 0.3, "linear": 0.1, "cosine": 0.05, "wsd": 0.0}
    result, ran = tuned(lambda s: bowl()(s) + costs[s.schedule.kind], (lr, kind))
    assert dict(result.best) == {"opt.lr": 0.008, "schedule.kind": "wsd"} and result.edges == ()
    assert tried(ran, "schedule.kind") == set(costs)
    switch = Hyperparameter("compile", False, (False, True))
    assert tuned(lambda s: bowl()(s) - 0.1 * s.compile, (lr, switch))[0].best["compile"] is True


def test_long_grids_are_swept_around_the_current_value(tuned, lr):
    warmup = Hyperparameter("schedule.warmup_fraction", 0.1, (0.0, 0.05, 0.1, 0.2, 0.4), low=0.0, high=1.0, log=False)
    result, ran = tuned(bowl(), (lr, warmup))
    assert result.converged and tried(ran, "schedule.warmup_fraction") == {0.05, 0.1, 0.2}
    result, ran = tuned(lambda s: bowl()(s) + s.schedule.warmup_fraction, (lr, warmup))
    assert result.best["schedule.warmup_fraction"] == 0.0 and result.edges == ()


def test_a_start_off_the_grid_joins_it(tuned, lr):
    odd = replace(lr, default=0.0065)
    result, ran = tuned(bowl(0.0065), (odd,))
    assert result.best["opt.lr"] == 0.0065 and tried(ran, "opt.lr") == {0.0065, *lr.grid}


def test_with_a_start_the_first_pass_is_left_out(tuned, lr, weight_decay):
    """What re-tuning lr at another horizon does: the neighbours of the start, then wherever gains lead."""
    start = {"opt.lr": 0.008, "opt.weight_decay": 0.1}
    result, ran = tuned(bowl(0.008), (lr,), start=start)
    assert tried(ran, "opt.lr") == {0.004, 0.008, 0.016} and result.num_runs == 9
    result, ran = tuned(bowl(0.002), (lr,), start=start)
    assert result.best["opt.lr"] == 0.002 and tried(ran, "opt.lr") == {0.001, 0.002, 0.004, 0.008, 0.016}
    assert [(m.old, m.new) for m in result.moves if m.accepted] == [(0.008, 0.004), (0.004, 0.002)]


def test_no_run_is_asked_for_twice(tuned, lr, weight_decay, noise):
    result, ran = tuned(lambda s: bowl(0.05, 0.4)(s) + 0.05 * noise(s.key), (lr, weight_decay, *EXTRAS[:3]))
    assert max(Counter(s.key for s in ran.asked).values()) == 1
    assert result.num_runs == len(ran.asked) and result.tokens == sum(s.horizon_tokens for s in ran.asked)
    assert {s.seed for s in ran.asked} <= set(RULES.seeds)


def test_is_deterministic(tuned, lr, weight_decay, noise):
    loss = lambda s: bowl(0.05, 0.4)(s) + 0.1 * noise(s.key)  # noqa: E731
    (one, ran), (two, again) = (tuned(loss, (lr, weight_decay)) for _ in range(2))
    assert one == two and [[s.key for s in b] for b in ran.batches] == [[s.key for s in b] for b in again.batches]


@pytest.mark.parametrize("trial", range(5))
def test_every_move_tells_the_truth(tuned, lr, weight_decay, noise, trial):
    """Replayed from the start, accepted moves lead to the best; gains and errors are those of the runs."""
    rules = TuningRules(max_runs=200)
    loss = lambda s: bowl(0.03, 0.3)(s) + 0.03 * noise(f"{trial} {s.key}")  # noqa: E731
    result, ran = tuned(loss, (lr, weight_decay), rules)
    theta = {"opt.lr": lr.default, "opt.weight_decay": weight_decay.default}
    losses = {
        (t.settings["opt.lr"], t.settings["opt.weight_decay"]): [ran.records[key].final_loss for key in t.keys]
        for t in result.trials
    }
    for at, move in enumerate(result.moves):
        assert move.old == theta[move.coordinate]
        new = {**theta, move.coordinate: move.new}
        before, after = (losses[tuple(s.values())][: move.num_seeds] for s in (theta, new))
        if at == 0:
            assert move.gain is None and move.accepted == (move.old != move.new)
            assert move.reason == "argmin of seed means over the whole grid"
        else:
            gain = sum(before) / len(before) - sum(after) / len(after)
            assert len(before) == len(after) == move.num_seeds and move.old != move.new
            assert move.gain == pytest.approx(gain, abs=1e-12) and move.standard_error > 0
            if move.accepted:
                assert gain > rules.num_errors * move.standard_error and gain >= rules.threshold_nats
                assert "above" in move.reason
            elif gain >= rules.threshold_nats:
                assert "within the noise" in move.reason and move.num_seeds == len(rules.seeds)
            else:
                assert move.reason == "gain below 0.003"
        theta = new if move.accepted else theta
    assert dict(result.best) == theta and result.converged
    assert not any(m.accepted for m in result.moves[-2:])  # the last round changed nothing


def noisy(noise, trial: int, sd: float, effect: float):
    """A steep bowl in lr, twelve hyperparameters without effect but for x5 = 3, and noise."""

    def loss(spec) -> float:
        gain = effect if spec.get("opt.x5") == 3 else 0.0
        return 2.0 + 0.3 * math.log2(spec.get("opt.lr") / 0.008) ** 2 - gain + sd * noise(f"{trial} {spec.key}")

    return loss


def test_noise_moves_nothing_that_has_no_effect(spec, bench, lr, noise):
    """At 0.1 nats of noise at most one tuning in twenty accepts any move among twelve idle hyperparameters."""
    rules, num = TuningRules(max_runs=400), 60
    false = 0
    for trial in range(num):
        result = drive(tune(spec(), (lr, *EXTRAS), rules), bench(noisy(noise, trial, 0.1, 0.0)))
        assert result.converged
        false += any(result.best[x.name] != 2 for x in EXTRAS)
    assert false / num <= 0.05


@pytest.mark.parametrize("trial", range(8))
def test_noise_hides_no_effect_of_half_a_nat(spec, bench, lr, noise, trial):
    result = drive(tune(spec(), (lr, *EXTRAS), TuningRules(max_runs=400)), bench(noisy(noise, trial, 0.1, 0.5)))
    assert result.best["opt.x5"] == 3 and result.best["opt.lr"] == 0.008
