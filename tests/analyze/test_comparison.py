"""From evidence to finding: every figure recomputed by hand from a handful of runs."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from muonlab.analyze.comparison import compare, final_losses
from muonlab.records.evidence import Evidence

H = 1024
BASE = {512: [3.1, 3.0, 3.2], 1024: [2.5, 2.4, 2.6], 2048: [2.1, 2.0, 2.2]}  # the same noise, variance 0.01, everywhere
OURS = [2.31, 2.29, 2.30]  # variance 0.0001
LR, TWO = {"opt.lr": 0.01}, {"opt.lr": 0.01, "opt.weight_decay": 0.1}


@pytest.fixture
def plain(story):
    """A baseline at three horizons, a challenger at one; no tuning runs: the noise is that of the final runs."""
    for horizon, losses in BASE.items():
        story.cell("base", losses, horizon_tokens=horizon)
    story.cell("ours", OURS)
    return story


def finding(story, **changes):
    return compare(replace(story.evidence(), **changes), story.records)


def test_losses_and_intervals(plain):
    found = finding(plain)
    base, ours = found.optimizers["base"], found.optimizers["ours"]
    assert base.loss_mean == pytest.approx(2.5) and ours.loss_mean == pytest.approx(2.30)
    assert base.loss_std == pytest.approx(0.1) and ours.loss_std == pytest.approx(0.01)
    assert [at.horizon_tokens for at in base.horizons] == [512, 1024, 2048] and base.num_seeds == 3
    for at, losses in zip(base.horizons, BASE.values(), strict=True):
        half = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)  # 3 - 1 degrees
        assert at.losses == tuple(losses) and at.seeds == (0, 1, 2)
        assert (at.low, at.mean, at.high) == pytest.approx(
            (np.mean(losses) - half, np.mean(losses), np.mean(losses) + half)
        )
        assert [plain.records[key].final_loss for key in at.keys] == losses


def test_contrast(plain):
    test = finding(plain).contrasts["ours"]
    parts = 1e-4 / 3, 1e-2 / 3
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 2)
    assert test.difference_nats == pytest.approx(-0.2)
    assert test.p_value == pytest.approx(2 * stats.t.sf(0.2 / math.sqrt(sum(parts)), degrees))


@pytest.mark.parametrize(
    ("finals", "tuning", "variance"),
    [([2.2, 2.3, 2.4], [2.3, 2.3, 2.3], 0.01), ([2.3, 2.3, 2.3], [2.2, 2.3, 2.4], 0.005)],
    ids=["calm tuning runs", "calm final runs"],
)
def test_tuning_runs_never_calm_the_final_ones(plain, finals, tuning, variance):
    plain.cell("tuned", finals, best=LR, trials=[(LR, tuning)])
    assert finding(plain).optimizers["tuned"].loss_std == pytest.approx(math.sqrt(variance))


def test_paired_by_seed(plain):
    test = finding(plain, margin_nats=0.05).paired["ours"]
    differences = np.subtract(OURS, BASE[H])
    error = np.std(differences, ddof=1) / math.sqrt(3)
    assert test.difference_nats == pytest.approx(-0.2) and test.num_pairs == 3
    assert (test.low, test.high) == pytest.approx(stats.t.interval(0.95, 2, -0.2, error))
    assert (test.tuning_nats, test.margin_nats, test.no_worse) == (0.0, 0.05, True)
    assert finding(plain, margin_nats=0.03).paired["ours"].no_worse is False  # the interval ends at 0.037
    assert finding(plain).paired["ours"].no_worse is None


def test_a_coarse_grid_makes_the_paired_bound_wider_than_the_interval(plain):
    """An optimum anywhere within half a step of a slice that rises by 0.3: a standard deviation of 0.3 * 0.0745.

    That the chosen setting was run on a third seed, with a high loss, is no part of the slice.
    """
    rates = {0.005: [2.6, 2.7], 0.01: [2.3, 2.4, 9.0], 0.02: [2.6, 2.7]}
    plain.cell("tuned", OURS, best=LR, trials=[({"opt.lr": rate}, losses) for rate, losses in rates.items()])
    test, without = (finding(plain).paired[name] for name in ("tuned", "ours"))
    assert test.tuning_nats == pytest.approx(0.3 / math.sqrt(180), rel=0.1)
    assert (test.low, test.high) == (without.low, without.high) and test.bound_nats > without.bound_nats


def test_what_a_seed_brings_to_every_setting_alike_moves_no_choice(plain):
    """Two settings 0.3 apart on each of two seeds, which are 0.4 apart; or on the mean of seeds that disagree."""
    for name, losses in (("sure", [2.6, 3.0]), ("unsure", [2.8, 2.8])):
        trials = [(LR, [2.3, 2.7]), ({"opt.lr": 0.02}, losses)]
        plain.cell(name, OURS, best=LR, trials=trials)
    found = finding(plain).paired
    assert found["sure"].tuning_nats < 1e-9 and found["unsure"].tuning_nats > 0.05


def test_tuning_runs_of_the_chosen_settings_sharpen_the_noise(plain):
    """(2.6, 2.9): 0.045 over 1 degree, beside 0.06 over 6; what was not chosen does not count."""
    plain.cell("third", [2.5, 2.4, 2.6], best=LR, trials=[(LR, [2.6, 2.9]), ({"opt.lr": 0.02}, [1.0, 9.0])])
    assert finding(plain).optimizers["third"].loss_std ** 2 == pytest.approx((0.02 + 0.045) / 3)


def test_each_horizon_has_its_own_noise(story):
    for horizon, losses in {**BASE, 2048: [2.10, 2.11, 2.09]}.items():
        story.cell("base", losses, horizon_tokens=horizon)
    horizons = finding(story).optimizers["base"].horizons
    assert [(at.high - at.low) / 2 for at in horizons] == pytest.approx(
        [stats.t.ppf(0.975, 2) * sd / math.sqrt(3) for sd in (0.1, 0.1, 0.01)]
    )


def test_speedup_in_tokens(plain):
    """Baseline means 3.1, 2.5, 2.1: 0.6 and 0.4 apart, so exponent log2(1.5); 2.30 is reached at 1401 tokens."""
    found = finding(plain)
    exponent = math.log2(1.5)
    a = 0.6 / (2**exponent - 1)  # loss = a (tokens / 1024)^-exponent + b
    tokens = 1024 * ((2.30 - (2.5 - a)) / a) ** (-1 / exponent)
    speedup = found.speedup["ours"]
    assert speedup.tokens == pytest.approx(tokens / 1024, rel=0.005)  # the prior pulls the exponent a little
    assert speedup.flag == "" and speedup.horizon_tokens == 1024 and speedup.bound == ""
    assert speedup.low < 1.2 and speedup.high > 1.5
    law = found.law
    assert law["exponent"] == pytest.approx(exponent, rel=0.1) and law["scale_tokens"] == pytest.approx(1024)
    assert law["a"] + law["b"] == pytest.approx(2.5, abs=0.01)


def test_the_speedup_is_read_at_the_longest_horizon_that_is_bracketed(plain):
    plain.cell("fast", [1.9, 1.9, 2.0])
    plain.cell("fast", [2.2, 2.3, 2.4], horizon_tokens=512)
    plain.cell("fast", [2.9, 2.8, 3.0], horizon_tokens=256)
    speedup = finding(plain).speedup["fast"]
    assert speedup.horizon_tokens == 512 and speedup.flag == ""
    assert speedup.tokens == pytest.approx(
        2 * finding(plain).speedup["ours"].tokens, rel=1e-9
    )  # 2.30 at half the tokens


@pytest.mark.parametrize(
    ("cells", "bound", "value", "at"),
    [
        ({1024: 1.9}, ">", 2.0, 1024),
        ({1024: 1.5, 512: 1.9}, ">", 4.0, 512),
        ({1024: 3.5}, "<", 0.5, 1024),
        ({1024: 3.2, 512: 3.5}, "<", 0.5, 1024),
        ({1024: 1.9, 512: 3.5}, ">", 2.0, 1024),  # jumps over the baseline between the two
    ],
)
def test_outside_the_baselines_horizons_there_is_a_bound(plain, cells, bound, value, at):
    for horizon, mean in cells.items():
        plain.cell("far", [mean - 0.01, mean, mean + 0.01], horizon_tokens=horizon)
    speedup = finding(plain).speedup["far"]
    assert (speedup.flag, speedup.bound, speedup.tokens, speedup.horizon_tokens) == ("censored", bound, value, at)
    assert (speedup.low, speedup.high) == ((value, None) if bound == ">" else (None, value))


@pytest.mark.parametrize("losses", [[3.1, 3.0, 3.2], [2.9, 2.8, 3.0]])
def test_a_baseline_that_does_not_learn_from_tokens_gives_no_speedup(story, losses):
    for horizon, shift in ((512, 0.0), (1024, 0.05), (2048, 0.05)):
        story.cell("base", [x + shift for x in losses], horizon_tokens=horizon)
    story.cell("ours", [np.mean(losses) + 0.04] * 2)
    speedup = finding(story).speedup["ours"]
    assert (speedup.tokens, speedup.wall, speedup.flag) == (None, None, "undefined")


@pytest.mark.parametrize(("ours", "side"), [(2.045, -1), (2.009, 1)])
def test_a_law_read_far_outside_the_baselines_horizons_is_flagged(story, ours, side):
    """The means bracket the loss, by noise: the fitted law hardly falls at all."""
    for horizon, mean in ((512, 2.0), (1024, 2.05), (2048, 1.99)):
        story.cell("base", [mean - 0.1, mean, mean + 0.1], horizon_tokens=horizon)
    story.cell("ours", [ours - 0.1, ours, ours + 0.1])
    speedup = finding(story).speedup["ours"]
    assert speedup.flag == "extrapolated" and speedup.bound == ""
    assert speedup.tokens < 0.45 if side < 0 else speedup.tokens > 2.2
    assert speedup.low < 0.1 and speedup.high is None


def test_too_few_horizons_or_seeds_give_no_speedup(story):
    for horizon in (512, 1024):
        story.cell("base", BASE[horizon], horizon_tokens=horizon)
    story.cell("ours", OURS)
    found = finding(story)
    assert found.speedup["ours"].flag == "undefined" and found.law is None
    assert found.contrasts["ours"].p_value is not None
    story.cell("base", [2.1], horizon_tokens=2048)
    story.cell("one", [2.3])
    found = finding(story)
    assert found.speedup["ours"].flag == "undefined"  # one run has no known error
    story.cell("base", [2.1, 2.2], horizon_tokens=2048)
    found = finding(story)
    assert found.speedup["ours"].flag == "" and found.speedup["one"].flag == "undefined"
    assert found.contrasts["one"].p_value is None and found.optimizers["one"].loss_std is None
    assert found.optimizers["one"].horizons[0].low is None


def test_lost_runs_are_counted_and_stay_out_of_the_means(plain):
    plain.cell("shaky", [2.3, None, 2.4])
    plain.alter(plain.run("shaky", H, 0, LR, 2.3), outcome="failed", final_loss=None)
    found = finding(plain)
    shaky = found.optimizers["shaky"]
    assert (shaky.num_seeds, shaky.num_diverged, shaky.loss_mean) == (1, 1, 2.4)
    assert shaky.horizons[0].losses == (None, None, 2.4) and len(shaky.horizons[0].keys) == 3
    assert found.num_failed == 1 and found.num_runs == 15


def test_a_final_loss_of_a_run_that_did_not_end_well_is_not_read(plain):
    plain.alter(plain.run("ours", H, 0, LR, 2.31), outcome="diverged")  # its record still has a loss
    assert final_losses(plain.evidence().arms["ours"].cells[0], plain.records) == OURS[1:]


def test_wall_clock(story):
    """Half the seconds per token: the speedup in seconds is twice that in tokens."""
    for horizon, losses in BASE.items():
        story.cell("base", losses, horizon_tokens=horizon, step_seconds=0.4)
    story.cell("ours", OURS, step_seconds=0.2)
    found = finding(story)
    speedup = found.speedup["ours"]
    assert (speedup.wall, speedup.wall_low, speedup.wall_high) == pytest.approx(
        (2 * speedup.tokens, 2 * speedup.low, 2 * speedup.high)
    )
    assert found.optimizers["base"].wall_seconds == pytest.approx(0.4 * 16)  # 1024 tokens in batches of 64
    assert found.optimizers["ours"].step_seconds == 0.2


def test_wall_clock_holds_what_a_busy_machine_can_have_done(story):
    for horizon, losses in BASE.items():
        story.cell("base", losses, horizon_tokens=horizon)
    story.cell("ours", OURS)
    base, ours = (story.evidence().arms[name].cell(H).keys for name in ("base", "ours"))
    for keys, seconds in ((base, (0.4, 0.4, 0.6)), (ours, (0.2, 0.4, 0.2))):
        for key, step in zip(keys, seconds, strict=True):
            story.alter(key, step_seconds=step)
    speedup = finding(story).speedup["ours"]  # seed by seed 2, 1 and 3 times the cost; medians 0.4 and 0.2
    assert (speedup.wall, speedup.wall_low, speedup.wall_high) == pytest.approx(
        (2 * speedup.tokens, 1 * speedup.low, 3 * speedup.high)
    )


def test_wall_clock_counts_seconds_per_token_and_not_per_step(plain):
    """The same step time with batches twice as long is half the cost."""
    slow = finding(plain).speedup["ours"]
    for key in plain.evidence().arms["ours"].cell(H).keys:
        plain.alter(key, spec=replace(plain.records[key].spec, batch_tokens=128))
    assert finding(plain).speedup["ours"].wall == pytest.approx(2 * slow.wall)


def test_wall_clock_pairs_by_seed_whatever_their_number_and_order(plain):
    plain.cell("more", [2.3, 2.3, 2.3, 2.3])
    base, more = (plain.evidence().arms[name].cell(H).keys for name in ("base", "more"))
    for keys in (base, more):
        for key in keys:
            plain.alter(key, step_seconds=0.1 * (1 + plain.records[key].spec.seed))
    evidence = plain.evidence()
    (cell,) = evidence.arms["more"].cells
    turned = replace(evidence.arms["more"], cells=(replace(cell, keys=more[::-1]),))
    speedup = compare(replace(evidence, arms={**evidence.arms, "more": turned}), plain.records).speedup["more"]
    assert speedup.wall == pytest.approx(speedup.tokens * 0.2 / 0.25)  # medians of 3 and 4 seeds
    assert (speedup.wall_low, speedup.wall_high) == pytest.approx((speedup.low, speedup.high))  # equal seed by seed


@pytest.mark.parametrize("change", [{"environment": {"machine": "two"}}, {"step_seconds": None}])
def test_wall_clock_is_null_where_it_can_not_be_known(plain, change):
    assert finding(plain).speedup["ours"].wall is not None
    plain.alter(plain.evidence().arms["ours"].cell(H).keys[1], **change)
    speedup = finding(plain).speedup["ours"]
    assert speedup.wall is speedup.wall_low is speedup.wall_high is None and speedup.tokens is not None


def test_slices_hold_the_trials_that_differ_in_one_coordinate(story):
    for horizon, losses in BASE.items():
        story.cell("base", losses, horizon_tokens=horizon)
    trials = [
        ({"opt.lr": 0.02, "opt.weight_decay": 0.1}, [2.9, 3.1]),
        (TWO, [2.4, 2.2, 2.3]),
        ({"opt.lr": 0.04, "opt.weight_decay": 0.1}, [2.5, None]),
        ({"opt.lr": 0.01, "opt.weight_decay": 0.0}, [2.6, 2.8]),
        ({"opt.lr": 0.04, "opt.weight_decay": 0.0}, [9.0, 9.0]),  # differs in both
    ]
    story.cell("ours", OURS, best=TWO, trials=trials)
    lr, decay = (s for s in finding(story).slices if s.optimizer == "ours")
    assert (lr.coordinate, lr.chosen, lr.horizon_tokens) == ("opt.lr", 0.01, H)
    assert [(p.value, p.num_seeds, p.num_diverged) for p in lr.points] == [(0.01, 3, 0), (0.02, 2, 0), (0.04, 2, 1)]
    assert [p.mean for p in lr.points] == [pytest.approx(2.3), pytest.approx(3.0), None]
    assert lr.points[0].standard_error == pytest.approx(0.1 / math.sqrt(3)) and lr.points[2].standard_error is None
    assert [(p.value, p.mean) for p in decay.points] == [(0.0, pytest.approx(2.7)), (0.1, pytest.approx(2.3))]


def test_slices_of_categories_are_sorted_too(story):
    for horizon, losses in BASE.items():
        story.cell("base", losses, horizon_tokens=horizon)
    kinds = ({"opt.lr": 0.01, "schedule.kind": kind} for kind in ("wsd", "cosine", "linear"))
    story.cell("ours", OURS, best={"opt.lr": 0.01, "schedule.kind": "wsd"}, trials=[(k, [2.5, 2.6]) for k in kinds])
    line = finding(story).slices[-1]
    assert line.coordinate == "schedule.kind" and [p.value for p in line.points] == ["cosine", "linear", "wsd"]


def test_curves(plain):
    curves = finding(plain).curves
    assert len(curves) == 12  # every final run, no tuning run
    first = next(c for c in curves if (c.optimizer, c.seed) == ("ours", 2))
    assert first.tokens == (64, 128) and first.loss == (4.0, 3.0) and first.horizon_tokens == H


def test_totals_count_every_run_once(plain):
    plain.cell("third", [2.4, 2.5], best=LR, trials=[(LR, [2.6, 2.9]), ({"opt.lr": 0.02}, [2.0, 2.1])])
    found = finding(plain)
    assert found.num_runs == 18 and found.total_tokens == 3 * (512 + 1024 + 2048) + 3 * 1024 + 6 * 1024
    assert (found.optimizers["third"].tuning_runs, found.optimizers["third"].tuning_tokens) == (4, 4096)
    assert found.task == "made-up" and found.config == {"note": "by hand"} and found.environment == {"machine": "one"}
    assert found.optimizers["ours"].num_params == 15


def test_what_depends_on_the_order_of_seeds_or_arms(plain):
    evidence = plain.evidence()
    turned = {
        name: replace(arm, cells=tuple(replace(c, keys=c.keys[::-1]) for c in arm.cells))
        for name, arm in reversed(evidence.arms.items())
    }
    one, two = compare(evidence, plain.records), compare(replace(evidence, arms=turned), plain.records)
    for name in ("tokens", "low", "high", "wall"):
        assert getattr(one.speedup["ours"], name) == pytest.approx(getattr(two.speedup["ours"], name), rel=1e-9)
    assert one.contrasts["ours"].p_value == pytest.approx(two.contrasts["ours"].p_value, rel=1e-9)


def test_doubled_losses_under_other_names_change_nothing(plain):
    """A second challenger with the same losses gets the same answer, and leaves the first as it was."""
    alone = finding(plain)
    plain.cell("twin", OURS)
    both = finding(plain)
    assert both.speedup["ours"] == alone.speedup["ours"] == both.speedup["twin"]
    assert both.contrasts["twin"] == alone.contrasts["ours"]


def test_a_finding_is_plain_values(plain):
    text = json.dumps(finding(plain).to_dict(), allow_nan=False)
    assert json.loads(text)["speedup"]["ours"]["horizon_tokens"] == H
    again = Evidence.from_dict(json.loads(json.dumps(plain.evidence().to_dict())))
    assert compare(again, plain.records) == finding(plain)


def test_a_missing_record_is_an_error(plain):
    del plain.records[plain.evidence().arms["base"].cells[0].keys[0]]
    with pytest.raises(KeyError):
        finding(plain)


def test_an_arm_without_the_horizon_of_the_comparison_is_an_error(plain):
    with pytest.raises(KeyError):
        finding(plain, horizon_tokens=4096)
