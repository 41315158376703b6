"""Tests, intervals and who may say "better"."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from muonlab.analyze.findings import Check, Contrast, Speedup
from muonlab.analyze.significance import (
    WITHHOLDING,
    Noise,
    contrast,
    judge,
    judge_no_worse,
    mean_interval,
    paired,
    pooled_noise,
    student_errors,
    withheld,
)
from muonlab.analyze.verdicts import verdict

X = [2.31, 2.27, 2.40, 2.22, 2.35]
Y = [2.52, 2.33, 2.61, 2.47, 2.70, 2.39, 2.58]


def speedup(tokens=1.4, low=1.2, high=1.6, **changes) -> Speedup:
    values = {"wall": None, "wall_low": None, "wall_high": None, "flag": "", "horizon_tokens": 1, **changes}
    return Speedup(tokens=tokens, low=low, high=high, **values)


def unpooled(x, y) -> Contrast:
    return contrast(x, y, (pooled_noise([x]), pooled_noise([y])))


def check(name: str, ok: bool = False) -> Check:
    return Check(name=name, ok=ok, detail=f"why {name}")


def test_pooled_noise_by_hand():
    """(1, 2, 3): 2 over 2 degrees; (5, 7): 2 over 1; a single run has nothing to say."""
    assert pooled_noise([[1.0, 2.0, 3.0], [5.0, 7.0], [9.0]]) == Noise(4 / 3, 3)
    assert pooled_noise([X]).variance == pytest.approx(np.var(X, ddof=1)) and pooled_noise([X]).degrees == 4
    empty = pooled_noise([[1.0], []])
    assert math.isnan(empty.variance) and empty.degrees == 0


def test_means_do_not_enter_the_noise():
    assert pooled_noise([X, [y + 10 for y in X]]).variance == pytest.approx(pooled_noise([X]).variance)


@pytest.mark.parametrize(("x", "y"), [(X, Y), (Y, X), (X[:2], Y[:3])])
def test_unpooled_contrast_is_welchs_test(x, y):
    found, scipy = unpooled(x, y), stats.ttest_ind(x, y, equal_var=False)
    assert found.p_value == pytest.approx(scipy.pvalue, rel=1e-12)
    assert found.difference_nats == pytest.approx(np.mean(x) - np.mean(y))
    low, high = scipy.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_pooled_contrast_by_hand():
    """Baseline variance 0.04 known to 12 degrees, challenger 0.01 to 4, five runs each."""
    noises = (Noise(0.01, 4), Noise(0.04, 12))
    x, y = [1.0] * 5, [1.3] * 5
    found = contrast(x, y, noises)
    error = math.sqrt(0.01 / 5 + 0.04 / 5)  # 0.1
    degrees = 0.01**2 / (0.002**2 / 4 + 0.008**2 / 12)  # 15.8
    quantile = stats.t.ppf(0.975, degrees)
    assert found.p_value == pytest.approx(2 * stats.t.sf(0.3 / error, degrees))
    assert (found.low, found.high) == pytest.approx((-0.3 - quantile * error, -0.3 + quantile * error))
    assert found.resolvable_nats == pytest.approx((quantile + stats.t.ppf(0.8, degrees)) * error)
    assert found.judgement == "better"


def test_contrast_is_antisymmetric():
    one, two = unpooled(X, Y), unpooled(Y, X)
    assert one.difference_nats == -two.difference_nats and one.p_value == two.p_value
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low))
    assert (one.judgement, two.judgement) == ("better", "worse")


def test_the_judgement_is_the_interval_excluding_zero():
    rng = np.random.default_rng(0)
    seen = set()
    for shift in np.linspace(-0.3, 0.3, 61):
        found = unpooled(list(rng.normal(shift, 0.1, 5)), list(rng.normal(0, 0.1, 5)))
        seen.add(found.judgement)
        assert (found.judgement == "better") == (found.high < 0) and (found.judgement == "worse") == (found.low > 0)
        assert (found.p_value < 0.05) == (found.judgement != "unresolved")
    assert seen == {"better", "worse", "unresolved"}


def test_false_alarms_are_as_rare_as_promised():
    """Equal means, unequal noise, variances pooled over horizons: 5 % of contrasts find a difference."""
    rng, num, found = np.random.default_rng(1), 2000, 0
    for _ in range(num):
        base = [list(rng.normal(0, 0.1, 5)) for _ in range(3)]
        ours = list(rng.normal(0, 0.02, 5))
        found += contrast(ours, base[1], (pooled_noise([ours]), pooled_noise(base))).judgement != "unresolved"
    assert found / num == pytest.approx(0.05, abs=0.015)  # three standard errors


def test_the_resolvable_difference_is_found_four_times_out_of_five():
    noise = Noise(0.01, 12)
    able = contrast([0.0] * 5, [0.0] * 5, (noise, noise)).resolvable_nats
    rng, num, found = np.random.default_rng(2), 1500, 0
    for _ in range(num):
        ours, base = ([list(rng.normal(m, 0.1, 5)) for _ in range(3)] for m in (0.0, able))
        found += contrast(ours[1], base[1], (pooled_noise(ours), pooled_noise(base))).judgement == "better"
    assert found / num == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("x", "y"), [([1.0], Y), (X, [1.0]), ([], Y), (X, []), ([], [])])
def test_one_seed_or_none_is_no_test(x, y):
    found = unpooled(x, y)
    assert found.judgement == "unresolved"
    assert found.p_value is found.low is found.high is found.resolvable_nats is None
    expected = np.mean(x) - np.mean(y) if x and y else None
    assert found.difference_nats == (pytest.approx(expected) if x and y else None)


def test_one_seed_with_noise_known_from_other_horizons_is_a_test():
    found = contrast([1.0], [2.0], (Noise(0.01, 4), Noise(0.01, 4)))
    assert found.judgement == "better" and found.p_value < 0.01


def test_identical_losses():
    same = unpooled([1.5] * 3, [1.5] * 3)
    assert (same.difference_nats, same.p_value, same.judgement) == (0.0, 1.0, "unresolved")
    assert (same.low, same.high) == (0.0, 0.0)
    lower = unpooled([1.0] * 3, [1.5] * 3)
    assert (lower.difference_nats, lower.p_value, lower.judgement) == (-0.5, 0.0, "better")


def test_mean_interval():
    low, high = mean_interval(X, pooled_noise([X]))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 4, np.mean(X), stats.sem(X)))
    assert mean_interval([1.0], Noise(math.nan, 0)) == mean_interval([], Noise(1.0, 5)) == (None, None)


def test_student_errors():
    assert student_errors(3.0, 10**9) == pytest.approx(3.0)
    assert student_errors(1.96, 4) == pytest.approx(2.776, abs=1e-3) and math.isinf(student_errors(3.0, 0))


@pytest.mark.parametrize(
    ("difference", "low", "high", "expected"),
    [
        (-0.2, 1.1, 1.6, "better"),
        (-0.2, 0.99, 1.6, "unresolved"),  # losses differ, the speedup may be 1
        (-0.2, None, None, "unresolved"),
        (-0.2, 1.0, 1.6, "unresolved"),
        (0.2, 0.5, 0.9, "worse"),
        (0.2, 0.5, 1.01, "unresolved"),
        (0.2, 0.5, None, "unresolved"),  # unbounded above
        (0.2, 1.1, 1.6, "unresolved"),  # the two point opposite ways
        (-0.2, 0.5, 0.9, "unresolved"),
        (-0.001, 1.1, 1.6, "unresolved"),  # the interval excludes 1, the losses do not differ
    ],
)
def test_better_takes_both_the_losses_and_the_interval(difference, low, high, expected):
    noise = Noise(1e-4, 12)
    test = contrast([1.0 + difference] * 5, [1.0] * 5, (noise, noise))
    assert judge({"b": test}, {"b": speedup(low=low, high=high)})["b"].judgement == expected


def test_more_challengers_need_more_evidence():
    """Holm: of three, the smallest p value is held against a third of 5 %, the next against a half."""
    noise, quick = Noise(1e-2, 10**6), speedup(low=1.1, high=1.6)
    tests = {
        name: contrast([1.0 - gap] * 5, [1.0] * 5, (noise, noise))
        for name, gap in (("a", 0.130), ("b", 0.160), ("c", 0.200))  # p = 0.040, 0.011, 0.002
    }
    assert judge({"a": tests["a"]}, {"a": quick})["a"].judgement == "better"
    judged = judge(tests, dict.fromkeys(tests, quick))
    assert [judged[name].judgement for name in "abc"] == ["better", "better", "better"]
    tests["b"] = contrast([1.0 - 0.135] * 5, [1.0] * 5, (noise, noise))  # p = 0.033, above a half of 5 %
    judged = judge(tests, dict.fromkeys(tests, quick))
    assert [judged[name].judgement for name in "abc"] == ["unresolved", "unresolved", "better"]


def test_only_four_broken_rules_withhold_the_verdict():
    assert set(WITHHOLDING) == {"interior", "fresh_seeds", "same_conditions", "complete"}
    broken = [check("interior"), check("converged"), check("complete", ok=True), check("fresh_seeds")]
    assert [c.name for c in withheld(broken)] == ["interior", "fresh_seeds"]
    contrasts = {"b": unpooled(X, Y)}
    text = verdict("a", contrasts, {"b": speedup()}, {}, broken)
    assert text == "Verdict withheld: interior: why interior; fresh_seeds: why fresh_seeds"
    assert not verdict("a", contrasts, {"b": speedup()}, {}, [check("converged")]).startswith("Verdict withheld")


def test_the_sentence_of_every_result():
    noise = Noise(1e-4, 12)
    better, worse, equal = (contrast([1.0 + d] * 5, [1.0] * 5, (noise, noise)) for d in (-0.2, 0.2, -0.001))
    slower = speedup(0.7, 0.6, 0.8)
    bound = speedup(8.0, 8.0, None, flag="censored", bound=">")
    timed = replace(speedup(), wall=1.1, wall_low=0.9, wall_high=1.3)
    assert verdict("a", {"b": better}, {"b": timed}, {}, []) == (
        "b is better than tuned a: 1.40x [1.20, 1.60] in tokens and 1.10x [0.90, 1.30] in wall-clock, "
        "final loss lower by 0.200 nats at the same tokens."
    )
    for sped, checks in ((speedup(), []), (timed, [check("wall_clock")])):  # no times, or times of a busy machine
        assert verdict("a", {"b": better}, {"b": sped}, {}, checks) == (
            "b is better than tuned a: 1.40x [1.20, 1.60] in tokens (wall-clock could not be measured), "
            "final loss lower by 0.200 nats at the same tokens."
        )
    assert verdict("a", {"b": worse}, {"b": slower}, {}, []).startswith(
        "b is worse than tuned a: 0.70x [0.60, 0.80] in"
    )
    assert "> 8.00x (outside the baseline's horizons)" in verdict("a", {"b": better}, {"b": bound}, {}, [])
    able = f"{equal.resolvable_nats:.3f}"
    assert verdict("a", {"b": equal}, {"b": speedup()}, {}, []) == (
        f"No difference between b and a was resolved (-0.001 nats; {able} could have been resolved)."
    )
    nothing = contrast([], [1.0], (noise, noise))
    assert "(no final losses to compare)" in verdict("a", {"b": nothing}, {"b": speedup(None, None, None)}, {}, [])
    both = verdict("a", {"b": better, "c": worse}, {"b": speedup(), "c": slower}, {}, [])
    assert both.startswith("b is better") and "c is worse" in both


def seeded(values) -> dict[int, float | None]:
    return dict(enumerate(values))


def one(challenger, baseline, margin_nats=None, tuning_nats=0.0):
    return judge_no_worse(
        {"b": paired(seeded(challenger), seeded(baseline), margin_nats=margin_nats, tuning_nats=tuning_nats)}
    )["b"]


def test_paired_is_the_t_test_of_the_differences():
    found, scipy = one(X, Y[:5]), stats.ttest_rel(X, Y[:5])
    assert found.difference_nats == pytest.approx(np.mean(X) - np.mean(Y[:5]))
    assert (found.low, found.high) == pytest.approx(tuple(scipy.confidence_interval(0.95)))
    assert found.bound_nats == pytest.approx(found.high)  # one end of the interval, where tuning adds nothing
    assert found.correlation == pytest.approx(stats.pearsonr(X, Y[:5]).statistic)
    assert (found.num_pairs, found.num_lost) == (5, 0)
    assert found.no_worse is None and found.p_value is None  # nobody set a margin
    within = one(X, Y[:5], 0.1)
    assert within.p_value == pytest.approx(stats.ttest_rel(X, [y + 0.1 for y in Y[:5]], alternative="less").pvalue)


def test_pairs_are_made_by_seed_and_not_by_position():
    ours, theirs = {3: 1.0, 1: 2.0, 2: 4.0}, {1: 2.1, 2: 4.0, 3: 1.3}
    found = paired(ours, theirs)
    assert found.difference_nats == pytest.approx((-0.3 - 0.1 + 0.0) / 3)
    assert found == paired(dict(sorted(ours.items())), theirs)


def test_pairing_pays_where_losses_go_together():
    shared = np.random.default_rng(0).normal(0, 0.1, 8)
    theirs, ours = 2 + shared, 2.01 + shared + np.random.default_rng(1).normal(0, 0.005, 8)
    found, welch = one(ours, theirs, 0.03), unpooled(list(ours), list(theirs))
    assert found.correlation > 0.99 and found.high - found.low < 0.1 * (welch.high - welch.low)
    assert found.no_worse and welch.judgement == "unresolved"


def test_what_tuning_adds_widens_the_bound_and_only_that():
    plain, unsure = one(X, Y[:5], 0.1), one(X, Y[:5], 0.1, tuning_nats=0.05)
    assert (plain.low, plain.high) == (unsure.low, unsure.high)
    noise = np.var(np.subtract(X, Y[:5]), ddof=1) / 5
    error = math.sqrt(noise + 0.05**2)
    assert unsure.bound_nats == pytest.approx(plain.difference_nats + stats.t.ppf(0.975, 4) * error)
    assert unsure.p_value == pytest.approx(stats.t.sf((0.1 - plain.difference_nats) / error, 4))
    for added in (0.0, 0.001, 0.01, 1.0):  # never less by knowing less
        assert one(X, Y[:5], tuning_nats=added).bound_nats >= plain.bound_nats


def test_no_worse_is_the_bound_below_the_margin():
    rng, seen = np.random.default_rng(3), set()
    for shift in np.linspace(-0.05, 0.15, 81):
        found = one(rng.normal(shift, 0.05, 6), rng.normal(0, 0.05, 6), 0.1, tuning_nats=0.01)
        assert found.no_worse == (found.bound_nats < 0.1) == (found.p_value < 0.025)
        seen.add(found.no_worse)
    assert seen == {True, False}


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("share", [0.0, 0.9])
def test_no_worse_is_said_in_error_as_rarely_as_promised(num_seeds, share):
    """Worse by the margin itself: 2.5 % of claims, whatever the seeds have in common."""
    rng, num, margin = np.random.default_rng(4), 4000, 0.05
    shared = rng.normal(0, math.sqrt(share), (num, num_seeds))
    ours, theirs = (0.1 * (shared + rng.normal(0, math.sqrt(1 - share), (num, num_seeds))) for _ in range(2))
    said = sum(one(a + margin, b, margin).no_worse for a, b in zip(ours, theirs, strict=True))
    assert said / num == pytest.approx(0.025, abs=0.0075)  # three standard errors


def test_no_worse_is_found_where_it_is_true():
    rng = np.random.default_rng(5)
    said = [one(rng.normal(0, 0.01, 5), rng.normal(0, 0.01, 5), 0.05).no_worse for _ in range(200)]
    assert np.mean(said) > 0.95


def test_many_challengers_say_one_false_word_together_as_rarely():
    rng, num, wrong = np.random.default_rng(6), 1000, 0
    for _ in range(num):
        base = rng.normal(0, 0.1, 6)
        tests = {n: paired(seeded(rng.normal(0.05, 0.1, 6)), seeded(base), margin_nats=0.05) for n in "bcde"}
        wrong += any(test.no_worse for test in judge_no_worse(tests).values())
    assert wrong / num <= 0.025 + 0.015


def test_a_lost_run_is_no_pair_and_forbids_the_claim():
    ours, theirs = [2.0, 2.1, 2.2, None], [2.0, 2.1, 2.2, 2.3]
    assert one(ours[:3], theirs[:3], 0.01).no_worse
    for a, b in ((ours, theirs), (theirs, ours), (theirs[:3], theirs)):  # of the challenger, the baseline, never run
        found = one(a, b, 0.01)
        assert (found.num_pairs, found.num_lost, found.no_worse, found.p_value) == (3, 1, False, None)
        assert found.low == found.high == found.difference_nats == 0.0


def test_ties():
    same = one(X, X, 0.01)
    assert (same.difference_nats, same.low, same.high, same.bound_nats) == (0.0, 0.0, 0.0, 0.0)
    assert same.p_value == 0.0 and same.no_worse and same.correlation == pytest.approx(1.0)
    at_margin = one([1.5] * 3, [1.0] * 3, 0.5)
    assert at_margin.p_value == 1.0 and not at_margin.no_worse and at_margin.correlation is None


def test_few_pairs():
    two = one([2.0, 2.1], [2.0, 2.11], 0.01)
    assert two.high == pytest.approx(-0.005 + 12.706 * 0.005, abs=1e-5) and not two.no_worse
    assert two.correlation is None  # of two points it is always 1
    single, none = one([2.0], [2.5], 1.0), one([], [], 1.0)
    assert single.difference_nats == -0.5 and none.difference_nats is None
    for found in (single, none):
        assert found.low is found.high is found.bound_nats is found.p_value is None and found.no_worse is False


def test_the_sentence_of_a_margin():
    equal, text = unpooled(X, X), {"b": speedup()}

    def said(test) -> str:
        return verdict("a", {"b": equal}, text, {"b": test}, []).split("resolved). ")[-1]

    shown, hidden = one(X, [x + 0.001 for x in X], 0.01), one(Y[:5], X, 0.01)
    assert said(shown) == (
        "b is no worse than tuned a by more than 0.01 nats (paired over 5 seeds -0.0010, at most -0.0010; "
        "level 2.5% one-sided)."
    )
    assert said(hidden) == (
        "It is not shown that b is no worse than tuned a by more than 0.01 nats (paired over 5 seeds "
        f"{hidden.difference_nats:+.4f}, at most {hidden.bound_nats:+.4f})."
    )
    assert said(one([*X, None], [*X, 1.0], 0.01)).endswith("by more than 0.01 nats (1 of its seeds lost a run).")
    assert said(one([1.0], [1.0], 0.01)).endswith("by more than 0.01 nats (1 pairs of runs).")
    assert "no worse" not in verdict("a", {"b": equal}, text, {"b": one(X, X)}, [])
    assert "no worse" not in verdict("a", {"b": equal}, text, {"b": replace(shown, no_worse=None)}, [])
