"""The study that ships with the project: its file, the curves of its arms, and its answers to planted effects."""

import importlib.util
from pathlib import Path

import pytest

from muonlab.study.compare import ComparisonRules, compare
from muonlab.study.fairness import conclude
from muonlab.study.protocol import drive

SCRIPT = Path(__file__).parents[2] / "studies" / "response_curve.py"
ARMS = {
    "muon": {},
    "jordan-5-high": {"opt.ns_steps": 5},
    "jordan-4-low": {"opt.ns_steps": 3},
}
LOSSES = {None: 2.0, 5: 2.03, 3: 2.01}  # by steps: f(1) costs 0.03, the slope 0.01


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("response_curve", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("zero_init", [True, False])
def test_every_arm_can_be_run(script, zero_init):
    config = script.configured(zero_init, 2, None)
    plan = script.refined(script.plan_comparison(config))
    assert set(plan.bases) == {"muon", *config.variants} and config.margin_nats == 0.01
    assert {base.get("task.zero_init") for base in plan.bases.values()} == {zero_init}
    assert {tuple(h.name for h in space) for space in plan.spaces.values()} == {("opt.lr",)}
    assert {space[0].grid for space in plan.spaces.values()} == {script.LRS}
    assert len(plan.rules.final_seeds) == 2


def test_the_curves_are_those_that_the_study_is_about(script):
    config = script.configured(True, None, None)
    curves = {
        name: dict(zip(script.SIGMAS, script.response(config.fixed(name)), strict=True)) for name in config.optimizers
    }
    assert curves["muon"][1.0] == pytest.approx(0.7, abs=0.04) == curves["jordan-4-low"][1.0]
    assert curves["jordan-5-high"][1.0] == pytest.approx(1.1, abs=0.04)
    assert all(curves["jordan-5-high"][s] == pytest.approx(curves["muon"][s], abs=0.01) for s in (0.001, 0.01, 0.1))
    assert curves["jordan-4-low"][0.001] == pytest.approx(0.14, abs=0.01)
    for name in ("exact", "rational-2"):
        lowered = {s: value - 0.5 * s for s, value in curves[name].items()}
        assert curves[f"{name}-damped"] == pytest.approx(lowered, abs=1e-3)
    assert curves["exact"] == pytest.approx(dict.fromkeys(script.SIGMAS, 1.0), abs=1e-6)


def test_planted_effects_are_found(script, spec, bench, lr):
    made = bench(lambda run: LOSSES[run.hyperparameters.get("opt.ns_steps")] + 0.1 * run.seed)
    bases = {name: spec("muon").set(fixed) for name, fixed in ARMS.items()}
    rules = ComparisonRules(baseline="muon", final_seeds=(0, 1, 2), margin_nats=0.025)
    finding = conclude(drive(compare(bases, dict.fromkeys(bases, (lr,)), rules, fixed=ARMS), made), made.records)
    assert script.answers(finding) == [  # and nothing of the question whose arms are not there
        "* f(1) 1.1 rather than 0.7, all else equal: +0.0300 [+0.0300, +0.0300] nats",
        "* one step fewer at the same f(1): +0.0100 [+0.0100, +0.0100] nats",
        "",
    ]
    columns, _, *rows = (line.strip("| ").split(" | ") for line in script.table(finding) if line)
    assert [len(row) for row in rows] == [len(columns)] * 3
    found = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert found["jordan-5-high"]["difference by seed"] == "+0.0300 [+0.0300, +0.0300]"
    assert [found[name]["no worse by 0.025"] for name in ARMS] == ["baseline", "not shown", "shown"]
    assert float(found["jordan-5-high"]["f(0.001)"]) == pytest.approx(0.47, abs=0.02)
