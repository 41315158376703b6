"""Each fairness rule on evidence where it holds, and on the same evidence with the least change that breaks it."""

import subprocess
import sys
from dataclasses import replace

import pytest

from muonlab.records import Schedule
from muonlab.study.calibration import Response
from muonlab.study.fairness import conclude

RULES = (
    "complete", "same_conditions", "fresh_seeds", "same_tuning", "tuning_effort", "converged", "interior",
    "own_schedule", "enough_seeds", "interpolated", "wall_clock",
)  # fmt: skip
WITHHOLDING = {"complete", "same_conditions", "fresh_seeds", "interior"}
H = 98_304


class Case:
    """Evidence and records that can be altered in one place."""

    def __init__(self, studied) -> None:
        self.evidence, self.records = studied.evidence, dict(studied.records)

    def cell(self, name: str, horizon_tokens: int = H):
        return self.evidence.arms[name].cell(horizon_tokens)

    def final(self, name: str, seed: int, horizon_tokens: int = H) -> str:
        return next(k for k in self.cell(name, horizon_tokens).keys if self.records[k].spec.seed == seed)

    def tuning_key(self, name: str, horizon_tokens: int = H) -> str:
        return self.cell(name, horizon_tokens).tuning.trials[0].keys[0]

    def record(self, key: str, **changes) -> None:
        self.records[key] = replace(self.records[key], **changes)

    def spec(self, key: str, **changes) -> None:
        self.record(key, spec=replace(self.records[key].spec, **changes))

    def change(self, name: str, horizon_tokens: int = H, **changes) -> None:
        cells = tuple(
            replace(c, **changes) if c.horizon_tokens == horizon_tokens else c for c in self.evidence.arms[name].cells
        )
        arms = {**self.evidence.arms, name: replace(self.evidence.arms[name], cells=cells)}
        self.evidence = replace(self.evidence, arms=arms)

    def tuning(self, name: str, horizon_tokens: int = H, **changes) -> None:
        self.change(name, horizon_tokens, tuning=replace(self.cell(name, horizon_tokens).tuning, **changes))

    def tuned_also(self, name: str, **settings) -> None:
        """As if the main tuning of `name` had had more coordinates, which stayed at these values."""
        tuning = self.cell(name).tuning
        self.tuning(
            name,
            coordinates=(*tuning.coordinates, *settings),
            best={**tuning.best, **settings},
            trials=tuple(replace(t, settings={**t.settings, **settings}) for t in tuning.trials),
        )

    def made_elsewhere(self, **changes) -> None:
        """As if all runs had been asked for, and told with nothing but what is given."""
        for key, record in self.records.items():
            spec = replace(record.spec, device="external", torch="")
            self.records[key] = replace(record, **{"spec": spec, "environment": {}, "step_seconds": None, **changes})

    def conclude(self):
        return conclude(self.evidence, self.records)


@pytest.fixture(scope="module")
def studied(study, lr, weight_decay):
    return study({"a": Response(noise=0.01), "b": Response(noise=0.01, speed=1.4)}, tune=(lr, weight_decay))


@pytest.fixture
def case(studied) -> Case:
    return Case(studied)


def broken(finding) -> set[str]:
    return {check.name for check in finding.checks if check.ok is False}


def unknown(finding) -> set[str]:
    return {check.name for check in finding.checks if check.ok is None}


def detail(finding, name: str) -> str:
    return next(check.detail for check in finding.checks if check.name == name)


def assert_breaks(case: Case, name: str, text: str, *, also: frozenset[str] = frozenset()) -> None:
    """That rule and no other is broken, says why, and withholds the verdict if it must."""
    finding = case.conclude()
    assert broken(finding) == {name} | also
    assert text in detail(finding, name)
    if name in WITHHOLDING:
        assert finding.verdict.startswith(f"Verdict withheld: {name}: ") and text in finding.verdict
        assert {c.judgement for c in finding.contrasts.values()} == {"withheld"}
    else:
        assert "better than tuned a" in finding.verdict
        assert finding.contrasts["b"].judgement == "better"


def test_a_sound_comparison_holds_them_all(case):
    finding = case.conclude()
    assert tuple(check.name for check in finding.checks) == RULES and broken(finding) == unknown(finding) == set()
    assert all(check.detail for check in finding.checks)
    assert "b is better than tuned a: 1." in finding.verdict and "withheld" not in finding.verdict


@pytest.mark.parametrize(("name", "horizon"), [("b", H), ("a", H // 2)])
@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_complete_is_broken_by_any_lost_final_run(case, outcome, name, horizon):
    case.record(case.final(name, 3, horizon), outcome=outcome, final_loss=None)
    lost = {"diverged": "20 final runs, 1 diverged; 0 of all", "failed": "20 final runs, 0 diverged; 1 of all"}
    assert_breaks(case, "complete", lost[outcome])


def test_complete_counts_tuning_runs_that_failed_but_not_those_that_diverged(case):
    case.record(case.tuning_key("a"), outcome="diverged", final_loss=None)
    assert broken(case.conclude()) == set()
    case.record(case.tuning_key("a"), outcome="failed", final_loss=None)
    assert_breaks(case, "complete", "1 of all")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "digits"), ("task_options", {"width": 64}), ("data_fingerprint", "ab"), ("precision", "bf16"),
        ("compile", True), ("device", "cuda"), ("torch", "2.13"), ("parametrization", "mup"),
    ],
)  # fmt: skip
def test_same_conditions_is_broken_by_one_run_made_otherwise(case, field, value):
    case.spec(case.final("b", 3), **{field: value})
    assert_breaks(case, "same_conditions", f"differ in {field}")


@pytest.mark.parametrize(("name", "horizon"), [("b", H), ("a", H // 2), ("a", H), ("a", 2 * H)])
def test_same_conditions_is_broken_by_other_seeds_at_any_horizon(case, name, horizon):
    case.spec(case.final(name, 3, horizon), seed=77)
    assert_breaks(case, "same_conditions", "differ in seed")


def test_fresh_seeds_is_broken_by_a_tuning_run_on_a_final_seed(case):
    case.spec(case.tuning_key("a", H // 2), seed=3)
    assert_breaks(case, "fresh_seeds", "seeds [3] served both")


def test_same_tuning_is_broken_by_a_shared_coordinate_tuned_for_one_only(case):
    case.tuned_also("b", **{"schedule.warmup_fraction": 0.1})
    assert_breaks(case, "same_tuning", "b: opt.lr, opt.weight_decay, schedule.warmup_fraction")


def test_same_tuning_is_broken_by_weight_decay_left_out_for_the_baseline(case):
    case.tuning("a", coordinates=("opt.lr",))
    assert_breaks(case, "same_tuning", "a: opt.lr; b: opt.lr, opt.weight_decay")


def test_same_tuning_allows_what_only_one_rule_has(case):
    case.tuned_also("b", **{"opt.momentum": 0.95, "aux.lr_ratio": 0.3})
    assert broken(case.conclude()) == set()


def test_tuning_effort_is_broken_by_a_baseline_with_less_than_half_the_runs(case):
    case.tuning("b", num_runs=2 * case.cell("a").tuning.num_runs)
    assert broken(case.conclude()) == set()
    case.tuning("b", num_runs=2 * case.cell("a").tuning.num_runs + 1)
    assert_breaks(case, "tuning_effort", "cap 80 runs a horizon for each")


@pytest.mark.parametrize(("name", "horizon"), [("b", H), ("a", 2 * H)])
def test_converged_is_broken_by_a_cap_at_any_horizon(case, name, horizon):
    case.tuning(name, horizon, converged=False)
    assert_breaks(case, "converged", f"stopped by the cap: {name} at {horizon:,} tokens")


@pytest.mark.parametrize(("name", "horizon"), [("b", H), ("a", 2 * H)])
def test_interior_is_broken_by_an_optimum_on_an_edge_at_any_horizon(case, name, horizon):
    case.tuning(name, horizon, edges=("opt.lr",))
    value = case.cell(name, horizon).settings["opt.lr"]
    assert_breaks(case, "interior", f"on an edge of what was tried: {name} opt.lr = {value} at {horizon:,} tokens")


def test_own_schedule_is_broken_by_a_loss_read_before_the_end(case):
    key = case.final("b", 3)
    case.spec(key, horizon_tokens=2 * H)
    assert_breaks(case, "own_schedule", "not trained for their own horizon")


def test_own_schedule_is_broken_by_a_constant_rate(case):
    case.spec(case.final("b", 3), schedule=Schedule(kind="constant"))
    assert_breaks(case, "own_schedule", "lr is not decayed")


def test_enough_seeds_is_broken_by_two(study):
    made = study({"a": Response(noise=1e-3), "b": Response(noise=1e-3, speed=1.4)}, final_seeds=(0, 1))
    assert_breaks(Case(made), "enough_seeds", "2 seeds a horizon")


def test_enough_seeds_counts_finished_runs_at_the_worst_horizon(case):
    for seed in (1, 2, 3):
        case.record(case.final("a", seed, H // 2), outcome="diverged", final_loss=None)
    finding = case.conclude()
    assert broken(finding) == {"complete", "enough_seeds"} and "2 seeds a horizon" in detail(finding, "enough_seeds")


def test_interpolated_is_broken_by_a_bound(study):
    made = study({"a": Response(noise=0.01), "b": Response(noise=0.01, speed=40.0)})
    assert_breaks(Case(made), "interpolated", "not between the baseline's horizons: b censored")


def test_wall_clock_is_broken_by_a_second_machine(case):
    assert case.conclude().speedup["b"].wall is not None
    case.record(case.final("a", 3), environment={"machine": "another"})
    assert_breaks(case, "wall_clock", "records of 2 machines: null")
    assert case.conclude().speedup["b"].wall is None


def test_wall_clock_is_broken_by_a_busy_machine_and_its_interval_says_how_much(case):
    quiet = case.conclude().speedup["b"]
    case.record(case.final("a", 3), step_seconds=0.03)
    assert_breaks(case, "wall_clock", "equal runs differ by up to 200%: the machine was busy")
    busy = case.conclude().speedup["b"]
    assert busy.wall == quiet.wall and busy.wall_low == quiet.wall_low
    assert busy.wall_high == pytest.approx(3 * quiet.wall_high)


def test_of_runs_made_elsewhere_nothing_is_called_ok_that_was_not_checked(case):
    case.made_elsewhere()
    finding = case.conclude()
    assert broken(finding) == set() and unknown(finding) == {"same_conditions", "wall_clock"}
    assert detail(finding, "same_conditions").startswith("not checked: ")
    assert detail(finding, "wall_clock") == "not checked: the final runs of a, b have no step times"
    assert "b is better than tuned a: 1." in finding.verdict and finding.speedup["b"].wall is None


def test_of_runs_made_elsewhere_the_times_are_compared_but_not_whether_the_machine_was_one(case):
    case.made_elsewhere(step_seconds=0.01)
    finding = case.conclude()
    assert unknown(finding) == {"same_conditions", "wall_clock"} and finding.speedup["b"].wall is not None
    assert "the results do not say their machine; equal runs differ by up to 0%" in detail(finding, "wall_clock")
    assert "in wall-clock" in finding.verdict


def test_of_runs_made_elsewhere_what_the_results_say_is_held_against_one_another(case):
    told = {"machine": "8 of them", "torch": "2.13", "precision": "bf16"}
    case.made_elsewhere(step_seconds=0.01, environment=told)
    finding = case.conclude()
    assert broken(finding) == unknown(finding) == set()
    assert detail(finding, "same_conditions") == "same precision, torch, as the results say"
    case.record(case.final("b", 3), environment={**told, "precision": "fp32"})
    assert detail(case.conclude(), "same_conditions") == "differ in precision"
    assert broken(case.conclude()) == {"same_conditions"}


def test_all_broken_rules_that_withhold_are_named(case):
    case.tuning("a", edges=("opt.weight_decay",))
    case.spec(case.final("b", 3), torch="2.13")
    case.tuning("b", converged=False)
    finding = case.conclude()
    assert broken(finding) == {"interior", "same_conditions", "converged"}
    assert "interior: " in finding.verdict and "same_conditions: " in finding.verdict
    assert "converged" not in finding.verdict and finding.contrasts["b"].judgement == "withheld"


def test_a_record_that_is_missing_is_an_error_and_not_left_out(case):
    del case.records[case.final("b", 3)]
    with pytest.raises(KeyError):
        case.conclude()


@pytest.mark.parametrize(
    "module", ["muonlab.study.fairness", "muonlab.analyze.comparison", "muonlab.report.page", "muonlab.report.tables"]
)
def test_analysis_needs_no_torch(module):
    code = f"""
import sys
class NoTorch:  # not sys.modules["torch"] = None, on which scipy stumbles
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")
sys.meta_path.insert(0, NoTorch())
import {module}
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_same_tuning_does_not_ask_for_a_hyperparameter_that_an_optimizer_has_not(case):
    case.tuning("a", coordinates=("opt.lr",))
    for key in case.cell("a").keys:
        settings = {k: v for k, v in case.records[key].spec.hyperparameters.items() if k != "opt.weight_decay"}
        case.spec(key, hyperparameters=settings)
    assert {check.name: check.ok for check in case.conclude().checks}["same_tuning"]
