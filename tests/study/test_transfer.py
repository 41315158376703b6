"""The transfer study in a world where the best settings are known at every width."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the worlds, which pytest's importlib mode does not find

from transfer_world import FINAL, SPACE, WIDTHS, World

from muonlab.analyze.tracking import track
from muonlab.errors import UsageError
from muonlab.records.transfer_evidence import TransferEvidence
from muonlab.study.transfer import TransferRules
from muonlab.study.transfer_fairness import conclude_transfer


@pytest.mark.parametrize(("num_axes", "points"), [(1, 16), (2, 7), (3, 4)])
def test_a_planted_drift_is_followed(num_axes: int, points: int) -> None:
    world = World(rate=(20.0, -12.0, 8.0))
    evidence = world.study(num_axes=num_axes, points=points)
    arm = evidence.arms[0]
    assert world.regret(arm.settings, FINAL) < 1e-6 < world.regret(world.asked[0].hyperparameters, FINAL)
    finding = conclude_transfer(evidence, world.records)
    for drift, planted in zip(finding.drifts, world.rate, strict=False):
        sign = -1 if drift.hyperparameter == "opt.momentum" else 1
        assert drift.rate == pytest.approx(sign * planted, abs=0.05) and drift.lawful
    assert finding.arms[0].direct_nats == pytest.approx(
        sum(
            c * (r * (1 / 32 - 1 / FINAL)) ** 2 / 2
            for c, r in zip(world.curvature, world.rate[:num_axes], strict=False)
        ),
        rel=0.05,
    )


def test_final_runs_are_at_the_final_width_on_fresh_seeds() -> None:
    world = World()
    evidence = world.study(("adamw", "muon"), final_seeds=(5, 6))
    for arm in evidence.arms:
        specs = [world.records[key].spec for key in arm.final]
        assert [spec.seed for spec in specs] == [5, 6] and {spec.get("task.width") for spec in specs} == {FINAL}
        assert all(spec.get(name) == value for spec in specs for name, value in arm.settings.items())
        assert {spec.optimizer for spec in specs} == {arm.optimizer}
    assert [spec.get("task.width") for spec in world.asked].count(FINAL) == 4


def test_each_mesh_costs_as_much_as_the_first() -> None:
    """Eight points an axis and two axes halve evenly; where one is left nothing is run."""
    world = World()
    arm = world.study(points=8).arms[0]
    assert [stage.width for stage in arm.stages] == [32, 64, 128]
    costs = [sum(world.records[k].flops for t in stage.trials for k in t.keys) for stage in arm.stages]
    assert costs == pytest.approx([costs[0]] * 3)
    assert [math.prod(stage.points.values()) for stage in arm.stages] == [64, 16, 4]


@pytest.mark.parametrize(
    ("num_axes", "points", "stages"),
    [
        (1, 7, [(32, 7), (64, 2), (128, 2)]),
        (1, 40, [(32, 40), (64, 10), (128, 3)]),
        (2, 7, [(32, 7), (64, 4), (128, 2)]),
        (2, 3, [(32, 3), (64, 2), (128, 2)]),
        (3, 7, [(32, 7), (64, 5), (128, 3), (256, 2)]),
    ],
)
def test_three_widths_are_meshed_at_least(num_axes: int, points: int, stages: list[tuple[int, int]]) -> None:
    rules = TransferRules(baseline="a", widths=WIDTHS, points=points)
    assert rules.stages(num_axes) == stages
    assert TransferRules(baseline="a", widths=WIDTHS[:2], points=points).stages(num_axes) == stages[:2]


def test_the_drift_of_one_hyperparameter_can_be_told_from_another_law() -> None:
    for power, lawful in ((0.0, True), (1.0, False)):
        world = World(noise=0.0005, rate=(8.0, 0.0, 0.0), power=power)
        finding = conclude_transfer(world.study(num_axes=1), world.records)
        check = next(check for check in finding.checks if check.name == "drift")
        assert check.ok and finding.drifts[0].lawful == lawful and (check.severity == "") == lawful


def test_windows_hold_the_cell_before_them_and_the_drift() -> None:
    world = World(noise=0.002, rate=(12.0, 6.0, 0.0))
    arm = world.study().arms[0]
    axes = arm.axes
    for i in range(1, len(arm.stages)):
        before = track(arm.stages[:i], axes, world.records)
        assert before is not None
        here, last = arm.stages[i], arm.stages[i - 1]
        moved = before.slack(last.width, here.width)
        for k, name in enumerate(axes):
            places = sorted({math.log(float(t.settings[name])) for t in here.trials})
            low, high = places[0] - here.steps[name] / 2, places[-1] + here.steps[name] / 2
            centre = before.at(here.width)[k]
            assert low <= centre - last.steps[name] / 2 - moved[k] + 1e-5
            assert high >= centre + last.steps[name] / 2 + moved[k] - 1e-5
            assert moved[k] <= arm.stages[0].steps[name] / 2 / 2 ** (i - 1) + 1e-9


def test_an_edge_extends_the_window_there() -> None:
    far = 3.4 * math.log(2)  # the first mesh ends at 3 steps
    world = World(best=(far, -far, 0.0), rate=(0.0, 0.0, 0.0))
    evidence = world.study()
    first = evidence.arms[0].stages[0]
    assert first.extended == {"opt.lr": 1, "opt.weight_decay": 1} and first.edges == ()
    assert max(t.settings["opt.lr"] for t in first.trials) == pytest.approx(0.16)
    assert min(t.settings["opt.weight_decay"] for t in first.trials) == pytest.approx(0.1 / 16)
    assert world.regret(evidence.arms[0].settings, FINAL) < 1e-5


def test_a_drift_that_leaves_the_window_is_caught_by_extending_it() -> None:
    world = World(rate=(90.0, 0.0, 0.0))
    evidence = world.study()
    assert any("opt.lr" in stage.extended for stage in evidence.arms[0].stages[1:])
    assert world.regret(evidence.arms[0].settings, FINAL) < 1e-4


def test_an_optimum_that_is_never_inside_withholds_the_verdict() -> None:
    world = World(best=(20.0, 0.0, 0.0))
    evidence = world.study(max_extensions=1)
    finding = conclude_transfer(evidence, world.records)
    assert evidence.arms[0].stages[0].edges == ("opt.lr",)
    assert {check.name for check in finding.checks if check.ok is False} == {"interior"}
    assert finding.verdict == "Verdict withheld: interior is broken."


def test_no_mesh_is_extended_beyond_the_cap() -> None:
    world = World(best=(20.0, 0.0, 0.0))
    evidence = world.study(max_runs=105)
    stage = evidence.arms[0].stages[0]
    assert len(stage.trials) * 2 <= 105 and stage.edges == ("opt.lr",)


def test_a_flat_landscape_ends_and_says_that_nothing_is_known() -> None:
    world = World(curvature=(0.0, 0.0, 0.0), noise=0.003)
    evidence = world.study()
    finding = conclude_transfer(evidence, world.records)
    assert len(evidence.arms[0].final) == 3
    noise = next(check for check in finding.checks if check.name == "noise")
    assert noise.severity == "warning" or finding.arms[0].regret_high is not None
    for place in finding.stages[0].optimum.values():
        assert place.low is not None and place.high is not None and place.high > 2 * place.low


def test_noise_does_not_choose() -> None:
    regrets = []
    for trial in range(6):
        world = World(noise=0.003, trial=trial)
        regrets.append(world.regret(world.study().arms[0].settings, FINAL))
    assert sum(regret <= 3e-3 for regret in regrets) >= 5


def test_what_noise_may_cost_is_said() -> None:
    """The bound that is given holds the regret in most studies, and grows with the noise."""
    held, bounds = 0, {}
    for noise in (0.001, 0.004):
        for trial in range(4):
            world = World(noise=noise, trial=trial)
            evidence = world.study()
            arm = conclude_transfer(evidence, world.records).arms[0]
            assert arm.regret_high is not None and arm.noise_nats == pytest.approx(noise, rel=0.5)
            bounds.setdefault(noise, []).append(arm.regret_high)
            held += world.regret(evidence.arms[0].settings, FINAL) <= arm.regret_high
    assert held >= 6 and np.median(bounds[0.004]) > 4 * np.median(bounds[0.001])


def test_runs_that_diverge_at_high_lr_do_no_harm() -> None:
    world = World(best=(-0.6, 0.0, 0.0), rate=(0.0, 0.0, 0.0), diverges_above=0.03)
    evidence = world.study(widths=(32, 64), final_width=64)
    finding = conclude_transfer(evidence, world.records)
    assert finding.stages[0].num_lost > 0
    assert world.regret(evidence.arms[0].settings, 64) < 5e-3


def test_an_arm_of_which_all_runs_diverge_ends_without_final_runs() -> None:
    world = World(diverges_above=0.0)
    evidence = world.study(("adamw",))
    finding = conclude_transfer(evidence, world.records)
    assert len(evidence.arms[0].stages) == 1 and evidence.arms[0].final == () and not finding.arms[0].best
    assert "complete" in finding.verdict and finding.cost_ratio is None


def test_costs_add_up() -> None:
    world = World()
    evidence = world.study()
    finding = conclude_transfer(evidence, world.records)
    arm = finding.arms[0]
    final = 6.0 * FINAL**2 * 65_536
    assert arm.flops == sum(stage.flops for stage in finding.stages) + 3 * final
    assert arm.grid_flops == pytest.approx(49 * 2 * final + 3 * final)
    assert arm.direct_flops == finding.stages[0].flops + 3 * final
    assert finding.cost_ratio == pytest.approx(arm.flops / arm.grid_flops)
    assert finding.total_tokens == 65_536 * finding.num_runs


def test_the_survey_finds_the_slope() -> None:
    for power, verdict in ((1.0, "falls"), (0.0, "unresolved")):
        world = World(noise=0.001, power=power, rate=(0.0, 0.0, 0.0))
        evidence = world.study(survey=True, final_width=None)
        finding = conclude_transfer(evidence, world.records)
        slope = finding.slopes[0]
        assert slope.slope == pytest.approx(-power, abs=0.06) and slope.low <= slope.slope <= slope.high
        assert slope.verdict == verdict and slope.widths == WIDTHS
        truth = world.curvature[0] * (power * math.log(WIDTHS[-1] / WIDTHS[0])) ** 2 / 2
        assert slope.given_up_nats == pytest.approx(truth, abs=0.006)
        assert not finding.stages and not finding.drifts and finding.cost_ratio is None


def test_intervals_of_the_survey_hold_the_truth() -> None:
    held = total = 0
    for trial in range(8):
        world = World(noise=0.003, trial=trial)
        evidence = world.study(survey=True, final_width=None)
        for one in conclude_transfer(evidence, world.records).survey:
            truth = 0.01 * math.exp(world.optimum(one.width)[0])
            total += 1
            held += (one.low is None or one.low <= truth) and (one.high is None or truth <= one.high)
    assert held >= 0.88 * total


def test_an_optimum_at_the_edge_of_a_survey_is_unbounded_there() -> None:
    world = World(best=(20.0, 0.0, 0.0))
    evidence = world.study(survey=True, final_width=None, max_extensions=0)
    for one in conclude_transfer(evidence, world.records).survey:
        assert one.flag == "edge" and one.high is None and one.low is not None
    finding = conclude_transfer(evidence, world.records)
    assert finding.slopes[0].verdict == "undefined" and finding.checks[-1].severity == "warning"


def test_evidence_survives_json() -> None:
    world = World()
    evidence = world.study(("adamw", "muon"), survey=True)
    assert TransferEvidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
    assert set(evidence.record_keys()) == set(world.records)


def test_final_seeds_are_fresh() -> None:
    with pytest.raises(UsageError, match="must not be used for tuning"):
        TransferRules(baseline="a", widths=(32, 64), seeds=(1, 2), final_seeds=(2, 3))


def test_the_world_is_as_it_says() -> None:
    """The least loss is at the planted optimum of each width."""
    world = World()
    for width in (*WIDTHS, FINAL):
        best = dict(zip((h.name for h in SPACE), world.optimum(width), strict=True))
        settings = {
            h.name: h.default * math.exp(best[h.name]) if h.log else 1 - (1 - h.default) * math.exp(best[h.name])
            for h in SPACE
        }
        assert world.regret(settings, width) == pytest.approx(0.0, abs=1e-12)
