"""The fair comparison as a protocol: seeds, horizons, bracketing, lost runs, interruption."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from muonlab.errors import UsageError
from muonlab.execute.runner import Runner
from muonlab.records import Record
from muonlab.records.evidence import Evidence
from muonlab.study.calibration import Landscape, Response
from muonlab.study.compare import ComparisonRules, compare
from muonlab.study.fairness import conclude
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules

QUIET = Response(noise=0.005)
H = 98_304  # horizon of the comparison


def quiet(speed: float, **changes) -> Response:
    return replace(QUIET, speed=speed, **changes)


def horizons(studied, name: str) -> list[int]:
    return [cell.horizon_tokens for cell in studied.evidence.arms[name].cells]


@pytest.fixture(scope="module")
def plain(study):
    """A challenger 1.4 times as fast."""
    return study({"a": QUIET, "b": quiet(1.4)})


def test_baseline_at_three_horizons_challenger_at_one(plain):
    assert horizons(plain, "a") == [H // 2, H, 2 * H] and horizons(plain, "b") == [H]
    for arm in plain.evidence.arms.values():
        for cell in arm.cells:
            specs = [plain.records[key].spec for key in cell.keys]
            assert [s.seed for s in specs] == [0, 1, 2, 3, 4]
            assert {s.horizon_tokens for s in specs} == {cell.horizon_tokens} and {s.optimizer for s in specs} == {
                arm.name
            }
            assert all(s.get(name) == value for s in specs for name, value in cell.settings.items())
            assert dict(cell.tuning.best).items() <= dict(cell.settings).items()


def test_final_seeds_are_fresh(plain):
    tuned = {plain.records[k].spec.seed for a in plain.evidence.arms.values() for c in a.cells
             for t in c.tuning.trials for k in t.keys}  # fmt: skip
    assert tuned <= set(plain.evidence.tuning_seeds) and not tuned & set(plain.evidence.final_seeds)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"final_seeds": (0, 1003)}, r"final seeds must not be used for tuning: \[1003\]"),
        ({"final_seeds": (0,)}, "at least 2 final seeds"),
        ({"horizon_ratios": (0.5, 1.0)}, "at least three horizons, 1 among them"),
        ({"horizon_ratios": (0.5, 0.75, 2.0)}, "1 among them"),
        ({"horizon_ratios": (1.0, 1.0, 2.0)}, "at least three horizons"),
        ({"horizon_ratios": (-0.5, 1.0, 2.0)}, "must be positive, got -0.5"),
    ],
)
def test_rules_that_prove_nothing_are_refused(rules, message):
    with pytest.raises(UsageError, match=message):
        ComparisonRules(baseline="a", **rules)


def test_horizons_that_fall_together_are_refused_before_the_first_run(spec, lr, bench):
    ran = bench(lambda s: 1.0)
    bases = {name: replace(spec(name), horizon_tokens=8 * 256) for name in "ab"}
    rules = ComparisonRules(baseline="a", horizon_ratios=(0.98, 1.0, 1.02))
    with pytest.raises(UsageError, match="same whole number of batches"):
        drive(compare(bases, dict.fromkeys(bases, (lr,)), rules), ran)
    assert ran.batches == []


def test_a_horizon_that_is_no_whole_number_of_batches(spec, lr, bench):
    """The baseline must have final runs at exactly the challengers' horizon."""
    landscape = Landscape({"a": QUIET, "b": quiet(1.4)})
    ran = bench(lambda s: 0.0)
    ran.record = landscape.record
    bases = {name: replace(spec(name), horizon_tokens=100_000) for name in "ab"}
    evidence = drive(compare(bases, dict.fromkeys(bases, (lr,)), ComparisonRules(baseline="a")), ran)
    assert [c.horizon_tokens for c in evidence.arms["a"].cells] == [195 * 256, 100_000, 781 * 256]
    assert conclude(evidence, ran.records).contrasts["b"].judgement == "better"


def test_lr_is_tuned_again_at_each_horizon_and_nothing_else_is(study, lr, weight_decay):
    """The best lr falls as tokens^-2."""
    drift = {"a": quiet(1.0, lr_drift=2.0, best_weight_decay=0.2, decay_curvature=0.05), "b": quiet(1.4, lr_drift=2.0)}
    made = study(drift, tune=(lr, weight_decay))
    cells = made.evidence.arms["a"].cells
    assert [cell.settings["opt.weight_decay"] for cell in cells] == [0.2, 0.2, 0.2]
    assert [cell.tuning.coordinates for cell in cells] == [("opt.lr",), ("opt.lr", "opt.weight_decay"), ("opt.lr",)]
    low, mid, high = (cell.settings["opt.lr"] for cell in cells)
    assert (low, mid, high) == (0.032, 0.008, 0.002)
    assert all(c.name != "interior" or c.ok for c in made.finding.checks)


@pytest.mark.parametrize(
    ("speed", "challenger", "at"),
    [(1.4, [H], H), (3.0, [H // 2, H], H // 2), (6.0, [H // 4, H // 2, H], H // 4)],
)
def test_a_fast_challenger_is_shortened_until_it_is_bracketed(study, speed, challenger, at):
    made = study({"a": QUIET, "b": quiet(speed)})
    assert horizons(made, "b") == challenger and horizons(made, "a") == [H // 2, H, 2 * H]
    speedup = made.finding.speedup["b"]
    assert speedup.flag == "" and speedup.horizon_tokens == at
    assert speedup.low <= speed <= speedup.high and speedup.tokens == pytest.approx(speed, rel=0.1)
    assert made.finding.contrasts["b"].judgement == "better"


def test_a_challenger_beyond_all_brackets_gets_a_bound(study):
    made = study({"a": QUIET, "b": quiet(40.0)})
    assert horizons(made, "b") == [H // 16, H // 8, H // 4, H // 2, H]
    speedup = made.finding.speedup["b"]
    assert (speedup.flag, speedup.bound, speedup.tokens, speedup.low, speedup.high) == (
        "censored",
        ">",
        32.0,
        32.0,
        None,
    )
    assert made.finding.contrasts["b"].judgement == "better" and "> 32.00x" in made.finding.verdict


def test_a_slow_challenger_gets_a_shorter_baseline(study):
    made = study({"a": QUIET, "b": quiet(1 / 3)})
    assert horizons(made, "b") == [H] and horizons(made, "a") == [H // 4, H // 2, H, 2 * H]
    speedup = made.finding.speedup["b"]
    assert speedup.flag == "" and speedup.low <= 1 / 3 <= speedup.high
    assert made.finding.contrasts["b"].judgement == "worse"


def test_a_hopeless_challenger_gets_a_bound_the_other_way(study):
    made = study({"a": QUIET, "b": quiet(1 / 40)})
    assert horizons(made, "a") == [H // 16, H // 8, H // 4, H // 2, H, 2 * H]
    speedup = made.finding.speedup["b"]
    assert (speedup.flag, speedup.bound, speedup.tokens, speedup.high, speedup.low) == (
        "censored",
        "<",
        1 / 16,
        1 / 16,
        None,
    )
    assert made.finding.contrasts["b"].judgement == "worse"


def test_a_challenger_that_jumps_over_the_baseline_is_not_called_slow(study):
    """Below the baseline's best at the horizon, above its worst at half of it: still better at the horizon."""
    flat = quiet(1.0, exponent=0.05, drop=0.1)
    made = study({"a": flat, "b": quiet(1.0, floor=0.5, drop=1.1, exponent=1.0)})
    means = {
        c.horizon_tokens: sum(made.records[k].final_loss for k in c.keys) / 5 for c in made.evidence.arms["b"].cells
    }
    base = [sum(made.records[k].final_loss for k in c.keys) / 5 for c in made.evidence.arms["a"].cells]
    assert means[H] < min(base) and means[H // 2] > max(base)
    speedup = made.finding.speedup["b"]
    assert (speedup.flag, speedup.bound, speedup.tokens, speedup.horizon_tokens) == ("censored", ">", 2.0, H)
    assert made.finding.contrasts["b"].judgement == "better"


def test_no_run_is_shorter_than_eight_steps(spec, lr, bench):
    landscape = Landscape({"a": QUIET, "b": quiet(40.0)})
    ran = bench(lambda s: 0.0)
    ran.record = landscape.record
    bases = {name: replace(spec(name), batch_tokens=H // 24) for name in "ab"}
    evidence = drive(compare(bases, dict.fromkeys(bases, (lr,)), ComparisonRules(baseline="a")), ran)
    assert min(s.num_steps for s in ran.asked if s.optimizer == "b") == 12
    assert conclude(evidence, ran.records).speedup["b"].flag == "censored"


@pytest.fixture(scope="module")
def crowd(study):
    return study({"a": QUIET, "fast": quiet(3.0), "same": quiet(1.0), "slow": quiet(1 / 3)})


def test_several_challengers_share_one_baseline(crowd):
    assert horizons(crowd, "a") == [H // 4, H // 2, H, 2 * H]
    assert horizons(crowd, "fast") == [H // 2, H] and horizons(crowd, "same") == horizons(crowd, "slow") == [H]
    finding = crowd.finding
    assert {n: c.judgement for n, c in finding.contrasts.items()} == {
        "fast": "better", "same": "unresolved", "slow": "worse",
    }  # fmt: skip
    for name, speed in (("fast", 3.0), ("same", 1.0), ("slow", 1 / 3)):
        assert finding.speedup[name].low <= speed <= finding.speedup[name].high


def test_the_order_of_the_optimizers_changes_nothing(crowd, study):
    turned = study({"slow": quiet(1 / 3), "same": quiet(1.0), "a": QUIET, "fast": quiet(3.0)})
    assert turned.evidence.arms == crowd.evidence.arms and turned.records == crowd.records
    one, two = crowd.finding, turned.finding
    assert one.speedup == two.speedup and one.contrasts == two.contrasts and one.law == two.law
    assert [(c.name, c.ok) for c in one.checks] == [(c.name, c.ok) for c in two.checks]


def test_runs_of_all_optimizers_are_asked_for_together(spec, lr, bench):
    ran = bench(lambda s: 0.0)
    ran.record = Landscape({"a": QUIET, "b": quiet(1.4)}).record
    bases = {name: spec(name) for name in "ab"}
    drive(compare(bases, dict.fromkeys(bases, (lr,)), ComparisonRules(baseline="a")), ran)
    assert Counter(s.optimizer for s in ran.batches[0]) == {"a": 18, "b": 18}
    assert max(Counter(s.key for batch in ran.batches for s in batch).values()) == 1
    assert len(ran.batches) < 12


def test_a_run_more_makes_no_difference_to_a_study_that_is_capped(study):
    """The cap is per optimizer and horizon, and what the capped tuning found is used."""
    made = study({"a": replace(QUIET, best_lr=1e-6), "b": quiet(1.4)}, tuning=TuningRules(max_runs=20))
    main = {n: arm.cell(H).tuning for n, arm in made.evidence.arms.items()}
    assert not main["a"].converged and main["a"].num_runs <= 20 and main["b"].converged
    assert made.evidence.max_runs == 20 and not next(c.ok for c in made.finding.checks if c.name == "converged")
    assert made.finding.verdict.startswith("Verdict withheld: interior: on an edge of what was tried: a opt.lr = ")


def spoiled(landscape: Landscape, outcome: str, wanted):
    """Runs of the landscape, those that `wanted` picks with another outcome."""

    def make(spec) -> Record:
        record = landscape.record(spec)
        return replace(record, outcome=outcome, final_loss=None) if wanted(spec) else record

    return make


@pytest.mark.parametrize("outcome", ["diverged", "failed"])
def test_a_lost_final_run_is_kept_in_the_books_and_the_verdict_withheld(study, outcome):
    responses = {"a": QUIET, "b": quiet(1.4)}
    make = spoiled(Landscape(responses), outcome, lambda s: (s.optimizer, s.seed) == ("b", 2))
    made = study(responses, make=make)
    at = made.finding.optimizers["b"].horizons[0]
    assert at.losses[2] is None and at.losses.count(None) == 1 and len(at.keys) == 5
    assert made.finding.optimizers["b"].num_seeds == 4
    assert made.finding.optimizers["b"].num_diverged == (outcome == "diverged")
    assert made.finding.num_failed == (outcome == "failed")
    assert made.finding.contrasts["b"].judgement == "withheld"
    assert made.finding.verdict.startswith("Verdict withheld: complete: 20 final runs")


@pytest.mark.parametrize("arm", ["a", "b"])
def test_all_final_runs_of_an_arm_lost(study, arm):
    responses = {"a": QUIET, "b": quiet(1.4)}
    make = spoiled(Landscape(responses), "diverged", lambda s: s.optimizer == arm and s.seed < 1000)
    made = study(responses, make=make)
    finding = made.finding
    assert finding.optimizers[arm].loss_mean is None and finding.optimizers[arm].num_seeds == 0
    assert finding.speedup["b"].flag == "undefined" and finding.speedup["b"].tokens is None
    assert finding.contrasts["b"].difference_nats is None and finding.verdict.startswith("Verdict withheld: complete")
    assert (finding.law is None) == (arm == "a")


@pytest.mark.filterwarnings("error")
def test_an_optimizer_that_always_diverges(study):
    made = study({"a": QUIET, "b": quiet(1.0, diverges_above=0.0)})
    assert made.finding.optimizers["b"].num_diverged == 5 and made.finding.speedup["b"].flag == "undefined"
    assert made.finding.verdict.startswith("Verdict withheld: complete")


@pytest.fixture(scope="module")
def whole(spec, lr, weight_decay, notebook, machine):
    """A study without interruption: its protocol, landscape, evidence, and the number of runs."""
    responses = {"a": Response(noise=0.05), "b": Response(noise=0.05, speed=3.0, best_lr=0.02)}
    bases = {name: spec(name) for name in responses}
    landscape = Landscape(responses)

    def protocol():
        rules = ComparisonRules(baseline="a", tuning=TuningRules(max_runs=80))
        return compare(bases, dict.fromkeys(bases, (lr, weight_decay)), rules, {"optimizers": ["a", "b"]})

    worker = machine(landscape.record)
    evidence = drive(protocol(), Runner(notebook(), worker))
    return protocol, landscape, evidence, len(worker.executed)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.35, 0.6, 0.9, 0.999])
def test_an_interrupted_study_goes_on_where_it_stopped(whole, notebook, machine, fraction):
    protocol, landscape, evidence, num_runs = whole
    memory, first = notebook(), machine(landscape.record, dies_at=int(fraction * num_runs))
    with pytest.raises(KeyboardInterrupt):
        drive(protocol(), Runner(memory, first))
    second = machine(landscape.record)
    runner = Runner(memory, second)
    again = drive(protocol(), runner)
    assert again == evidence
    assert not set(first.executed) & set(second.executed)  # nothing is run twice
    assert len(first.executed) + len(second.executed) == num_runs and runner.num_executed == len(second.executed)
    assert conclude(again, memory.records).to_dict() == conclude(evidence, memory.records).to_dict()


def test_a_finished_study_runs_nothing(whole, notebook, machine):
    protocol, landscape, evidence, _ = whole
    memory = notebook()
    drive(protocol(), Runner(memory, machine(landscape.record)))
    idle = machine(landscape.record, dies_at=0)
    assert drive(protocol(), Runner(memory, idle)) == evidence and idle.executed == []


def test_runs_that_failed_are_tried_again_and_leave_no_trace(whole, notebook, machine):
    protocol, landscape, evidence, num_runs = whole
    memory = notebook()
    bad = spoiled(landscape, "failed", lambda s: s.get("opt.lr") == 0.004 and s.seed in (1001, 3))
    runner = Runner(memory, machine(bad))
    spoilt = drive(protocol(), runner)
    assert runner.num_failed > 0 and conclude(spoilt, memory.records).verdict.startswith("Verdict withheld: complete")
    worker = machine(landscape.record)
    assert drive(protocol(), Runner(memory, worker)) == evidence
    assert len(worker.executed) < num_runs
    assert conclude(evidence, memory.records).num_failed == 0


def test_evidence_survives_json(whole):
    evidence = whole[2]
    assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence


def test_a_longer_study_reuses_the_runs_of_a_shorter_one(whole, spec, lr, weight_decay, notebook, machine):
    """More final seeds: only those are run."""
    protocol, landscape, evidence, _ = whole
    memory = notebook()
    drive(protocol(), Runner(memory, machine(landscape.record)))
    bases = {name: spec(name) for name in "ab"}
    rules = ComparisonRules(baseline="a", final_seeds=tuple(range(7)), tuning=TuningRules(max_runs=80))
    worker = machine(landscape.record)
    more = drive(compare(bases, dict.fromkeys(bases, (lr, weight_decay)), rules), Runner(memory, worker))
    cells = sum(len(arm.cells) for arm in more.arms.values())
    assert len(worker.executed) == 2 * cells
    assert {memory.records[key].spec.seed for key in worker.executed} == {5, 6}
    assert [len(arm.cells) for arm in more.arms.values()] == [len(arm.cells) for arm in evidence.arms.values()]
