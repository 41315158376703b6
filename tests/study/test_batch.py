"""The batch study in a world where tokens to a loss are known: what it runs, finds, and refuses to say."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # batch_world.py, which pytest's importlib mode does not find

from batch_world import BATCHES, FIRST, REFERENCE, World

from muonlab.errors import UsageError
from muonlab.records.evidence import BatchEvidence
from muonlab.study.batch import BatchRules, rescaled
from muonlab.study.fairness import conclude_batch
from muonlab.study.tune import TuningRules


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def evidence(world: World) -> BatchEvidence:
    return world.sweep()


@pytest.fixture(scope="module")
def finding(world: World, evidence: BatchEvidence):
    return conclude_batch(evidence, world.records)


def test_every_batch_is_tuned_and_run_on_fresh_seeds(world, evidence) -> None:
    assert [(p.name, p.batch_tokens) for p in evidence.points] == [(n, b) for n in ("adamw", "muon") for b in BATCHES]
    for point in evidence.points:
        specs = [world.records[key].spec for key in point.cell.keys]
        assert [spec.seed for spec in specs] == [0, 1, 2]
        assert {spec.batch_tokens for spec in specs} == {point.batch_tokens}
        assert {spec.horizon_tokens for spec in specs} == {point.cell.horizon_tokens}
        best = 0.01 * math.sqrt(point.batch_tokens / 2048)
        assert abs(math.log2(point.cell.settings["opt.lr"] / best)) < 1.0
        assert point.cell.settings["opt.momentum"] == 0.9


def test_warmup_takes_as_many_tokens_in_every_run(world, evidence) -> None:
    specs = [world.records[key].spec for key in evidence.record_keys()]
    warmups = {round(spec.schedule.warmup_fraction * spec.horizon_tokens) for spec in specs}
    assert max(warmups) - min(warmups) <= 2 and {spec.schedule.kind for spec in specs} == {"constant"}


def test_runs_are_as_long_as_the_hardest_target_takes(world, evidence, finding) -> None:
    for time in finding.times:
        assert time.flag == "" and time.tokens < time.horizon_tokens
        if time.target == evidence.targets[-1] and time.horizon_tokens > 16 * time.batch_tokens:
            assert time.horizon_tokens < 3 * time.tokens


def test_targets_come_from_the_baseline(world, evidence) -> None:
    first, *_, last = evidence.targets
    assert not evidence.targets_given and first > last
    assert last < 1.5 + (0.5 * FIRST / 2e4 / (1 + REFERENCE / 6000)) ** -0.5 < first
    assert all(round(target, 2) == target for target in evidence.targets)


def test_the_token_ratio_is_that_of_the_world(world, finding) -> None:
    assert len(finding.token_ratio) == 3 * len(BATCHES)
    for one in finding.token_ratio:
        truth = world.overhead("adamw", one.batch_tokens) / world.overhead("muon", one.batch_tokens)
        assert one.ratio == pytest.approx(truth, rel=0.1) and one.judgement == "better"
    assert {trend.verdict for trend in finding.trends} == {"grows"}


def test_intervals_of_the_ratio_hold_the_truth() -> None:
    """In at least 90 % of ratios over studies, of intervals that say 95 %, where tuning finds the best lr exactly."""
    held = total = 0
    for trial in range(16):
        world = World(noise=0.03, trial=trial)
        found = conclude_batch(world.sweep(tuning=TuningRules(first_seeds=2, max_runs=10)), world.records)
        lrs = {(s.optimizer, s.batch_tokens): s.chosen["opt.lr"] for s in found.settings}
        for one in found.token_ratio:
            overheads = []
            for name in ("adamw", "muon"):
                best = 0.01 * math.sqrt(one.batch_tokens / 2048)
                wrong = 0.1 * math.log2(lrs[name, one.batch_tokens] / best) ** 2
                overheads.append(world.overhead(name, one.batch_tokens) * math.exp(wrong))
            held += one.low <= overheads[0] / overheads[1] <= one.high
            total += 1
    assert held >= 0.9 * total


def test_the_critical_batches_are_those_of_the_world(world, finding) -> None:
    for one in finding.critical:
        truth = world.doubling[one.optimizer]
        assert one.doubling.low < truth < (one.doubling.high or math.inf)
        assert one.overhead.low < 0.2 * truth < one.overhead.high
        assert one.noise_scale.value == pytest.approx(truth, rel=0.01)
        assert one.nuclear_noise_scale.value == pytest.approx(truth, rel=0.01)
        assert one.sfo.flag == "below" and one.sfo.value == BATCHES[0]


def test_the_frontier_is_consistent(world, finding) -> None:
    measured = [p for p in finding.frontier if not p.modelled]
    assert measured and {p.devices for p in measured} == {1}
    for point in finding.frontier:
        assert point.batch_tokens / point.devices >= BATCHES[0]
        beaten = [
            other for other in finding.frontier
            if (other.optimizer, other.target) == (point.optimizer, point.target) and other != point
            and other.devices <= point.devices and other.seconds <= point.seconds
        ]  # fmt: skip
        assert point.on_frontier == (not beaten)
    assert {one.verdict for one in finding.dominance} == {"dominates"}
    (step, _) = finding.step_times
    assert (step.fixed_seconds, step.seconds_per_token) == pytest.approx((0.01, 2e-6), rel=1e-6)


def test_time_on_devices_is_by_the_stated_model(finding) -> None:
    point = next(p for p in finding.frontier if p.devices == 8 and p.batch_tokens == BATCHES[-1])
    exchange = 2 * 7 / 8 * 4 * 1_000_000 / 1e9
    step = 0.01 + 2e-6 * point.batch_tokens / 8 + exchange + 1e-4
    assert point.modelled and point.seconds == pytest.approx(point.tokens / point.batch_tokens * step, rel=1e-6)


def test_the_verdict_says_ratio_and_critical_batches(finding) -> None:
    assert "muon takes fewer tokens than tuned adamw at 7 of 7 batch sizes; adamw over muon: 1." in finding.verdict
    assert "growing with the batch" in finding.verdict and "The critical batch, of 20 % more tokens" in finding.verdict
    assert all(check.ok for check in finding.checks)


def test_evidence_survives_json(world, evidence) -> None:
    again = BatchEvidence.from_dict(json.loads(json.dumps(evidence.to_dict())))
    assert again == replace(evidence, config=again.config)
    assert conclude_batch(again, world.records).token_ratio == conclude_batch(evidence, world.records).token_ratio


def test_a_target_that_is_not_reached_is_said_to_be() -> None:
    world = World(unreachable=("adamw", 8192))
    evidence = world.sweep(targets=(2.5, 2.0))
    finding = conclude_batch(evidence, world.records)
    missed = [(t.optimizer, t.batch_tokens) for t in finding.times if t.flag == "unreached"]
    assert set(missed) == {("adamw", 8192), ("adamw", 16_384)} and len(missed) == 4
    lost = [t for t in finding.times if t.flag == "unreached"]
    assert all(t.tokens is t.low is t.high is t.seconds is None and t.by_seed == (None,) * 3 for t in lost)
    assert max(t.horizon_tokens for t in lost) == 8 * FIRST  # it was tried for as long as was allowed
    open_ratios = [r for r in finding.token_ratio if r.ratio is None]
    assert {(r.batch_tokens, r.detail) for r in open_ratios} == {(b, "adamw did not reach it") for b in (8192, 16_384)}
    assert all(r.low is r.high is r.judgement is None for r in open_ratios)
    check = next(check for check in finding.checks if check.name == "reached")
    assert check.ok and check.severity == "warning" and "2 by adamw at 16,384" in check.detail
    adamw = next(c for c in finding.critical if c.optimizer == "adamw")
    assert adamw.batches == BATCHES[:5]
    assert not [p for p in finding.frontier if p.optimizer == "adamw" and p.batch_tokens >= 8192]


class Coupled(World):
    """Half the tokens for momentum 0.8 with four times the lr; at small batches neither helps without the other."""

    def loss(self, spec, tokens, luck):
        low, best = spec.get("opt.momentum") == 0.8, 0.01 * math.sqrt(spec.batch_tokens / 2048)
        wrong = 0.1 * math.log2(spec.get("opt.lr") / (4 * best if low else best)) ** 2
        small = spec.batch_tokens <= REFERENCE
        wrong += 0.0 if low else 0.2 if small else 0.7
        effective = tokens / self.overhead(spec.optimizer, spec.batch_tokens) * math.exp(self.noise * luck - wrong)
        return 1.5 + (effective / 2e4) ** -0.5


def test_what_is_found_at_one_batch_is_tried_at_all() -> None:
    """The search finds it where one step leads there, and it wanders from batch to batch."""
    evidence = Coupled().sweep()
    for point in evidence.points:
        best = 0.01 * math.sqrt(point.batch_tokens / 2048)
        assert point.cell.settings["opt.momentum"] == 0.8
        assert abs(math.log2(point.cell.settings["opt.lr"] / best) - 2) < 1.0
        assert point.cell.tuning.best.items() <= point.cell.settings.items()
    small = evidence.point("muon", BATCHES[0])
    assert (
        small.predicted["opt.momentum"] == 0.9
        and len({t.settings["opt.momentum"] for t in small.cell.tuning.trials}) > 1
    )


def test_final_runs_that_miss_are_made_longer() -> None:
    class Unlucky(World):
        def loss(self, spec, tokens, luck):
            return super().loss(spec, tokens / (1.9 if spec.seed == 2 else 1.0), luck)

    world = Unlucky()
    evidence = world.sweep()
    finding = conclude_batch(evidence, world.records)
    assert {t.flag for t in finding.times} == {""}
    other = World()
    lucky = {(p.name, p.batch_tokens): p.cell.horizon_tokens for p in other.sweep().points}
    assert any(p.cell.horizon_tokens > lucky[p.name, p.batch_tokens] for p in evidence.points)
    assert all(key in world.records for key in evidence.record_keys())


def test_every_run_is_counted(world, evidence, finding) -> None:
    assert set(evidence.record_keys()) == set(world.records) and finding.num_runs == len(world.records)


def test_a_busy_machine_gives_no_verdict_on_time(world, evidence) -> None:
    slow = evidence.point("muon", 1024).cell.keys
    records = world.records | {key: replace(world.records[key], step_seconds=0.1) for key in slow}
    finding = conclude_batch(evidence, records)
    check = next(check for check in finding.checks if check.name == "wall_clock")
    assert check.ok is False and "muon" in check.detail and not finding.verdict.startswith("Verdict withheld")
    assert {one.verdict for one in finding.dominance} == {"withheld"}
    assert {one.judgement for one in finding.token_ratio} == {"better"}


def test_an_impossible_target_gives_no_number_anywhere() -> None:
    world = World()
    finding = conclude_batch(world.sweep(targets=(1.0,)), world.records)
    assert {t.flag for t in finding.times} == {"unreached"} and not finding.frontier
    assert all(r.ratio is None for r in finding.token_ratio)
    assert all(c.overhead.value is None and c.noise_scale.value is None for c in finding.critical)
    assert "muon and tuned adamw reach it at no batch size both" in finding.verdict
    assert {d.verdict for d in finding.dominance} == {"undefined"}


def test_a_broken_rule_withholds_every_judgement() -> None:
    world = World()
    evidence = world.sweep(tuning=TuningRules(first_seeds=2, max_runs=10))
    point = evidence.points[0]
    edged = replace(point, cell=replace(point.cell, tuning=replace(point.cell.tuning, edges=("opt.lr",))))
    finding = conclude_batch(replace(evidence, points=(edged, *evidence.points[1:])), world.records)
    assert {r.judgement for r in finding.token_ratio} == {"withheld"}
    assert {one.verdict for one in (*finding.trends, *finding.dominance)} == {"withheld"}
    assert "adamw, batch 256 opt.lr = " in next(c.detail for c in finding.checks if c.name == "interior")
    assert finding.verdict == "Verdict withheld: interior is broken."


def test_no_run_is_longer_than_allowed(world) -> None:
    assert max(spec.horizon_tokens for spec in world.asked) <= 8 * FIRST
    assert all(spec.horizon_tokens % spec.batch_tokens == 0 and spec.num_steps >= 8 for spec in world.asked)


def test_rules_that_clash_are_refused() -> None:
    with pytest.raises(UsageError, match="final seeds must not be used for tuning"):
        BatchRules(baseline="a", batches=BATCHES, reference=REFERENCE, final_seeds=(0, 1000))
    with pytest.raises(UsageError, match="at least 2 final seeds"):
        BatchRules(baseline="a", batches=BATCHES, reference=REFERENCE, final_seeds=(0,))


def test_settings_are_rescaled_by_rule() -> None:
    found = rescaled({"opt.lr": 0.01, "opt.weight_decay": 0.1, "opt.beta2": 0.98, "aux.beta2": 0.9, "x": True}, 0.25)
    assert found.pop("x") is True
    expected = {"opt.lr": 0.005, "opt.weight_decay": 0.05, "opt.beta2": 0.98**0.25, "aux.beta2": 0.9**0.25}
    assert found == pytest.approx(expected, rel=1e-9)
    assert rescaled({"opt.beta2": 0.9}, 64.0) == {"opt.beta2": 0.8}
    assert rescaled({"opt.beta2": 0.7}, 64.0) == {"opt.beta2": 0.7}
    assert rescaled({"opt.beta2": 0.99}, 1e-4) == {"opt.beta2": 0.9999}
