import math
import random
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from muonlab.analyze.profiles import score
from muonlab.analyze.trials import Trial, from_rows
from muonlab.errors import UsageError

INF = math.inf

# AlgoPerf's self-tuning leaderboard, seconds to target (mlcommons/submissions_algorithms, analysis/data, commit
# 0007993ec77e), and the scores by wall-clock published beside it.
WORKLOADS = ("criteo1tb", "fastmri", "finewebedu", "resnet", "vit", "conformer", "deepspeech", "ogbg", "wmt")
PUBLISHED = {
    "ademamix": (
        0.5067340067340069,
        "7839.19316 1517.73219 18025.89690 inf inf 48894.85427 inf 6329.96625 17399.63994",
    ),
    "cautious_nadamw": (0.2951739618406281, "inf 1608.18866 25738.98169 inf inf inf inf 4992.68682 14232.45871"),
    "lion": (0.2626262626262625, "inf 1394.17502 23172.03932 inf inf inf inf 7223.98721 15475.55273"),
    "muon": (0.269921436588103, "inf 1869.76528 20594.03775 inf 77162.91657 inf inf inf inf"),
    "muon_torch": (0.41189674523007774, "7141.60469 inf 15471.92256 inf inf inf inf 1833.47367 14214.77958"),
    "muon_jax_hps": (0.0, "inf inf inf inf inf - inf inf inf"),
    "muon_achandr": (0.21492704826038114, "inf 1357.46879 10338.73408 inf inf - inf inf inf"),
    "muon_lr_fix": (0.30246913580246876, "inf 1482.86161 15474.61425 inf inf inf inf 1848.25569 inf"),
    "nadamw": (0.36531986531986466, "7492.69468 1800.77320 25733.84767 inf 72015.57873 inf inf inf inf"),
    "nadamw_v05": (0.4360269360269367, "8206.10313 1620.51538 20589.91286 inf inf inf inf 4089.77563 14865.78860"),
    "nadamw_resnet": (0.17003367003367006, "inf 1920.54531 23163.02199 inf inf inf inf 6349.50622 inf"),
    "sf_adamw": (0.466891133557801, "10337.67169 1188.91314 inf inf inf inf 40463.38815 3640.14854 19957.71788"),
    "sf_jax": (0.40123456790123496, "inf 2397.40203 12875.28308 inf 87468.86082 inf inf 5446.97383 16161.20225"),
    "sf_jax_v2": (0.42929292929292967, "8204.54054 1850.62538 15451.99135 inf 84891.75502 inf inf 5444.01930 inf"),
    "sf_v2": (
        0.5679012345679016,
        "7480.57133 1128.83788 inf inf inf 55846.44081 41911.17555 6325.43066 10325.45705",
    ),
    "diloco": (0.11672278338944997, "inf 2379.34257 28314.81919 inf inf inf inf inf inf"),
}


def trials(times, studies=1):
    """{submission: [time of each workload w0, w1, ...]}; None leaves the row out."""
    return [
        Trial(submission=name, workload=f"w{i}", study=str(study), trial="1", time=float(time))
        for name, row in times.items()
        for i, time in enumerate(row)
        if time is not None
        for study in range(studies)
    ]


def scores(found):
    return {one.submission: one.score for one in found.standings}


def published():
    return [
        Trial(submission=name, workload=workload, time=float(time))
        for name, (_, row) in PUBLISHED.items()
        for workload, time in zip(WORKLOADS, row.split(), strict=True)
        if time != "-"
    ]


def trapezoids(profile):
    """The score as AlgoPerf's code sums it: 100 points of the profile between 1 and 4."""
    taus = np.linspace(1, 4, 100)
    rho = [max((rho for tau, rho in profile if tau <= at), default=0.0) for at in taus]
    return float(np.trapezoid(rho, taus)) / 3


def test_the_published_leaderboard():
    found = score(published())
    for one in found.standings:
        want = PUBLISHED[one.submission][0]
        assert trapezoids(one.profile) == pytest.approx(want, abs=1e-9)
        assert one.score == pytest.approx(want, abs=0.0051)
    order = [one.submission for one in found.standings]
    assert order == sorted(PUBLISHED, key=lambda name: -PUBLISHED[name][0])


def test_a_case_by_hand():
    """r of a: 1, 2, missed; of b: 2, 1, 1; of c: 4 (nothing, but within), missed, 5 (missed)."""
    found = score(trials({"a": [10, 40, INF], "b": [20, 20, 6], "c": [40, INF, 30]}))
    a, b, c = (next(one for one in found.standings if one.submission == name) for name in "abc")
    assert a.score == pytest.approx((1 + 2 / 3) / 3, abs=1e-15)
    assert b.score == pytest.approx((2 / 3 + 1 + 1) / 3, abs=1e-15)
    assert c.score == 0
    assert [one.submission for one in found.standings] == ["b", "a", "c"]
    assert a.profile == ((1.0, 1 / 3), (2.0, 2 / 3)) and b.profile == ((1.0, 2 / 3), (2.0, 1.0))
    assert c.profile == ((1.0, 0.0), (4.0, 1 / 3))
    assert (a.num_reached, a.num_credited) == (2, 2) and (c.num_reached, c.num_credited) == (2, 1)
    assert a.behind == pytest.approx(1 / 3) and b.behind == 0
    assert found.num_workloads == 3


def test_the_score_is_the_area_under_the_profile():
    rng = np.random.default_rng(0)
    found = score(trials({f"s{i}": np.where(rng.random(7) < 0.2, INF, rng.lognormal(size=7)) for i in range(5)}))
    for one in found.standings:
        steps = [*one.profile, (4.0, 0.0)]
        area = sum(rho * (b - a) for (a, rho), (b, _) in pairwise(steps))
        assert one.score == pytest.approx(area / 3, abs=1e-12)


def test_the_best_trial_of_a_study_and_the_median_of_the_studies():
    def of(name, *studies):
        return [
            Trial(submission=name, workload="w", study=str(s), trial=str(t), time=time)
            for s, times in enumerate(studies)
            for t, time in enumerate(times)
        ]

    found = score(of("a", [9, 3, INF], [INF, 5], [7]) + of("b", [10], [2], [10]))
    assert found.workloads[0].times == {"a": 5.0, "b": 10.0}
    assert score(of("a", [4], [INF], [6])).workloads[0].times == {"a": 6.0}
    assert score(of("a", [4], [6])).workloads[0].times == {"a": 5.0}
    assert score(of("a", [4], [INF])).workloads[0].times == {"a": None}  # one of two is not enough
    assert score(of("a", [4], [6], [INF], [INF])).workloads[0].times == {"a": None}
    assert score(of("a", [INF], [INF], [4])).workloads[0].times == {"a": None}


def held_out(times, held):
    """Workload w0 with its variant v0, and w1 without."""
    variants = [Trial(submission=n, workload="v0", base="w0", time=float(t)) for n, t in held.items() if t is not None]
    return score([replace(one, study="", trial="") for one in trials(times)] + variants)


@pytest.mark.parametrize(
    ("held", "cancelled"),
    [
        ({"a": 5, "b": 6, "c": 20}, ""),
        ({"a": 5, "b": INF, "c": 20}, "b"),
        ({"a": 5, "b": 20.1, "c": 20}, "b"),  # more than four times the fastest
        ({"a": 5, "b": None, "c": 5}, "b"),  # no row is a miss
        ({"a": INF, "b": 1, "c": 1}, "a"),
    ],
)
def test_a_miss_on_a_held_out_variant_cancels_its_base(held, cancelled):
    found = held_out({"a": [10, 10], "b": [20, 10], "c": [30, 10]}, held)
    assert found.num_workloads == 2 and [row.workload for row in found.workloads] == ["w0", "v0", "w1"]
    times = {"a": 10, "b": 20, "c": 30}
    left = {name: time for name, time in times.items() if name not in cancelled}
    ratios = {name: time / min(left.values()) if name in left else None for name, time in times.items()}
    assert found.workloads[0].ratios == ratios  # the fastest is one that was not cancelled
    assert found.workloads[2].ratios == {"a": 1, "b": 1, "c": 1}
    assert found.workloads[0].times == times
    said = [line for line in found.warnings if "held-out variant v0" in line]
    assert said == ([f"w0 is cancelled by a miss on its held-out variant v0: {cancelled}"] if cancelled else [])


def test_who_missed_the_base_sets_no_pace_on_its_variant():
    found = held_out({"a": [10, 10], "b": [INF, 10]}, {"a": 100, "b": 1})
    assert found.workloads[0].ratios == {"a": 1, "b": None} and found.workloads[1].ratios == {"a": 1, "b": None}
    assert found.workloads[1].times == {"a": 100, "b": 1}


def test_who_was_too_slow_stays_so_when_the_fastest_is_cancelled():
    found = held_out({"a": [1, 1], "b": [5, 1], "c": [3, 1]}, {"a": INF, "b": 1, "c": 1})
    assert found.workloads[0].ratios == {"a": None, "b": None, "c": 1}


def test_each_variant_of_a_base_must_be_reached():
    rows = [Trial(submission=s, workload=w, base="w" * (w != "w"), time=1) for s in "ab" for w in ("w", "v", "u")]
    assert scores(score(rows)) == {"a": 1, "b": 1}
    rows[4] = replace(rows[4], time=INF)
    assert scores(score(rows)) == {"a": 1, "b": 0}


def test_order_and_unit_do_not_matter():
    rng = np.random.default_rng(1)
    rows = trials({f"s{i}": np.where(rng.random(6) < 0.2, INF, rng.lognormal(size=6)) for i in range(4)}, studies=3)
    rows = [replace(one, time=one.time * (1 + int(one.study))) for one in rows]
    rows += [replace(one, workload="v", base="w0") for one in rows if one.workload == "w0"]
    found, shuffled = score(rows), list(rows)
    random.Random(0).shuffle(shuffled)
    assert score(shuffled) == found
    minutes = score([replace(one, time=one.time / 60) for one in rows])
    assert scores(minutes) == pytest.approx(scores(found), abs=1e-12)
    assert [(s.submission, s.num_credited) for s in minutes.standings] == [
        (s.submission, s.num_credited) for s in found.standings
    ]


def test_a_ratio_of_exactly_four_is_within_in_any_unit():
    for unit in (1, 60, 3600, 1 / 60, 0.1, 1 / 3):
        found = score(trials({"a": [0.7 * unit], "b": [2.8 * unit]}))
        assert found.standings[1].num_credited == 1 and found.standings[1].score == pytest.approx(0, abs=1e-9)


def test_a_workload_that_nobody_reached_counts_nothing_for_all():
    found = score(trials({"a": [1, INF], "b": [2, INF]}))
    assert scores(found) == {"a": 0.5, "b": pytest.approx(1 / 3)}
    assert "w1: nobody reached the target, so that it counts 0 for all" in found.warnings


def test_what_is_lacking_is_missed_and_said():
    found = score(trials({"a": [1, 1, 1], "b": [None, 1, None]}))
    assert scores(found) == {"a": 1, "b": pytest.approx(1 / 3)}
    assert "b has no rows, which counts as missed, on w0, w2" in found.warnings


def test_one_submission_is_qualified():
    found = score(trials({"a": [1, 2, INF, 4, 5, 6]}))
    assert found.standings[0].score == pytest.approx(5 / 6) and found.standings[0].low is None
    assert any(line.startswith("one submission: it is compared with itself") for line in found.warnings)


def test_unequal_numbers_are_said():
    rows = trials({"a": [1, 2]}, studies=3) + trials({"b": [1, 2]}, studies=2)
    rows += [replace(rows[0], trial="2")]
    lines = [line for line in score(rows).warnings if line.startswith("unequal")]
    assert lines == [
        "unequal numbers of studies, and more are more chances: w0 (a 3, b 2), w1 (a 3, b 2)",
        "unequal numbers of trials a study, and more are more chances: w0 (a 1 to 2, b 1)",
    ]
    assert not [line for line in score(trials({"a": [1], "b": [1]}, studies=3)).warnings if "unequal" in line]


def test_intervals_hold_the_score_and_are_the_same_again():
    found = score(published())
    for one in found.standings:
        if one.low is not None:
            assert 0 <= one.low <= one.score <= one.high <= 1
    first = found.standings[0]
    assert (first.behind, first.behind_low, first.behind_high) == (0, None, None)
    assert score(published()) == found
    nothing = next(one for one in found.standings if one.submission == "muon_jax_hps")
    assert (nothing.low, nothing.high) == (None, None)
    assert "no interval, since all workloads give the same credit: muon_jax_hps" in found.warnings


def test_too_few_workloads_give_no_interval():
    found = score(trials({"a": [1, 2, 3, 4], "b": [2, 1, 6, 4]}))
    assert all(one.low is None and one.behind_low is None for one in found.standings)
    assert "no intervals: 4 workloads are fewer than the 5 they need" in found.warnings


def test_a_difference_that_all_workloads_share_has_a_narrow_interval():
    """Paired: the scores vary between workloads, their difference hardly does."""
    rng, even = np.random.default_rng(0), np.arange(12) % 2 == 0
    pace = {"even": np.where(even, 1, INF), "odd": np.where(even, INF, 1)}
    slow = rng.uniform(1.1, 2.5, 12)
    first, second, *_ = score(trials({**pace, "a": slow, "b": slow + rng.uniform(0.29, 0.31, 12)})).standings
    assert (first.submission, second.submission) == ("a", "b") and second.behind == pytest.approx(0.1, abs=0.01)
    assert first.high - first.low > 0.1 and second.behind_high - second.behind_low < 0.01


def test_studies_that_differ_widen_the_interval():
    def rows(spread):
        times = {"a": np.linspace(1, 2, 8), "b": np.linspace(2, 3, 8)}
        return [replace(one, time=one.time * (1 + spread * int(one.study))) for one in trials(times, studies=3)]

    def width(one):
        return one.high - one.low

    calm, wild = score(rows(0.0)), score(rows(0.4))
    assert width(wild.standings[1]) > width(calm.standings[1])


@pytest.mark.slow
def test_the_interval_covers():
    """Workloads drawn from a population: the score on all of them lies inside as often as claimed, nearly."""
    rng, held, num = np.random.default_rng(2), 0, 200
    population = np.where(rng.random((2, 4000)) < 0.25, INF, rng.lognormal(0, 0.5, (2, 4000)))
    truth = scores(score(trials({"a": population[0], "b": population[1]})))["a"]
    for _ in range(num):
        chosen = population[:, rng.integers(0, 4000, 8)]
        one = next(s for s in score(trials({"a": chosen[0], "b": chosen[1]})).standings if s.submission == "a")
        held += one.low is not None and one.low <= truth <= one.high
    assert held / num > 0.9


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"time_to_target": 0}], "f line 2: time_to_target must be above 0, or inf or empty .* got 0"),
        ([{"time_to_target": -3.5}], "f line 2: .* got -3.5"),
        ([{"time_to_target": math.nan}], "f line 2: .* got nan"),
        ([{"submission": None}], "f line 2: submission is empty"),
        ([{"workload": " "}], "f line 2: workload is empty"),
        ([{"base": "w"}], "f line 2: 'w' can't be a held-out variant of itself"),
        ([{}, {}], r"f line 3 and f line 2 are the same trial twice \(s, w\)"),
        ([{}, {"study": 2, "base": "v"}], "f line 3: 'w' has base 'v', but 'none' in f line 2"),
        ([{}, {"workload": "v", "base": "ww"}], "f line 3: unknown base workload 'ww': did you mean 'w'"),
        ([{"workload": "v", "base": "u"}, {"workload": "u", "base": "w"}, {}], "f line 2: unknown base workload 'u'"),
    ],
)
def test_each_mistake_is_one_line(rows, message):
    given = {"submission": "s", "workload": "w", "time_to_target": 1}
    with pytest.raises(UsageError, match=message) as caught:
        score(from_rows([{**given, **row, "line": i} for i, row in enumerate(rows, 2)], "f"))
    assert "\n" not in str(caught.value)


def test_no_warning_from_numpy():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(trials({"a": [INF] * 6, "b": [INF] * 6}, studies=2))
        score(published())


def test_r_max_must_leave_room():
    with pytest.raises(UsageError, match="r_max must be above 1"):
        score(trials({"a": [1]}), r_max=1)
