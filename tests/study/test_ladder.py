"""The ladder on a made-up landscape whose laws are known: what it tunes, freezes, predicts and concludes."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from muonlab.analyze.laws import predict
from muonlab.analyze.speedup import Bootstrap
from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import LadderEvidence
from muonlab.study.fairness import conclude_ladder
from muonlab.study.ladder import LadderRules, Regime, ladder, phases
from muonlab.study.ladder_calibration import calibrate_ladder
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules

GRID = tuple(0.001 * 2.0**k for k in range(8))
LR = Hyperparameter("opt.lr", 0.016, GRID, low=0.0, low_closed=False)
MOMENTUM = Hyperparameter("opt.momentum", 0.9, (0.8, 0.9, 0.95), low=0.0, high=1.0, high_closed=False, log=False)
SIZES = {"s": 10_000, "m": 40_000, "l": 160_000}
RATIOS = (1.0, 2.0, 4.0)
BATCH = 1024


def best_lr(params: float, tokens: float) -> float:
    return 0.032 * (params / 1e4) ** -0.5 * (tokens / 2e5) ** -0.1


def expected(spec: RunSpec, speed: float) -> float:
    params, tokens = SIZES[spec.task_options["size"]], spec.horizon_tokens
    best = best_lr(params, tokens)
    law = 1.5 + (params / 1e4) ** -0.3 + 2.0 * (speed * tokens / 2e5) ** -0.4
    return law + 0.06 * math.log2(spec.get("opt.lr") / best) ** 2 + 2.0 * (spec.get("opt.momentum") - 0.9) ** 2


def normal(text: str) -> float:
    return float(np.random.default_rng(list(text.encode())).standard_normal())


class World:
    """Runs specs by formula; `speeds` are tokens speedups over the first optimizer."""

    def __init__(self, speeds: dict[str, float], noise: float = 0.003, trial: int = 0) -> None:
        self.speeds, self.noise, self.trial = speeds, noise, trial
        self.records: dict[str, Record] = {}

    def __call__(self, specs) -> dict[str, Record]:
        made = {spec.key: self.record(spec) for spec in specs}
        self.records.update(made)
        return made

    def record(self, spec: RunSpec) -> Record:
        loss = expected(spec, self.speeds[spec.optimizer]) + self.noise * normal(f"{self.trial} {spec.key}")
        return Record(
            spec=spec, outcome="ok", final_loss=loss, tokens=spec.horizon_tokens, step_seconds=0.01,
            environment={"machine": "made up"}, params={"hidden": SIZES[spec.task_options["size"]]},
        )  # fmt: skip

    def climb(self, **rules) -> LadderEvidence:
        start = {"opt.lr": LR.default, "opt.momentum": MOMENTUM.default}
        bases = {
            name: {
                Regime(size, ratio): RunSpec(
                    task="made up", optimizer=name, task_options={"size": size}, batch_tokens=BATCH,
                    horizon_tokens=round(20 * ratio * params / BATCH) * BATCH, hyperparameters=start,
                )
                for size, params in SIZES.items() for ratio in RATIOS
            }
            for name in self.speeds
        }  # fmt: skip
        chosen = LadderRules(
            **{"baseline": "adamw", "final_seeds": (0, 1, 2, 3), "tuning": TuningRules(max_runs=120), **rules}
        )
        return drive(ladder(bases, dict.fromkeys(bases, (LR, MOMENTUM)), SIZES, chosen), self)


@pytest.fixture(scope="module")
def world() -> World:
    return World({"adamw": 1.0, "muon": 1.4})


@pytest.fixture(scope="module")
def evidence(world) -> LadderEvidence:
    return world.climb(default_settings={"adamw": {"opt.lr": 0.001, "opt.momentum": 0.9}})


def test_each_regime_is_tuned_as_its_phase_says(evidence) -> None:
    origins = {(rung.name, rung.size, rung.ratio): rung.origin for rung in evidence.rungs}
    parted = phases(list(SIZES), RATIOS)
    assert all(origins["muon", *regime] == "tuned" for regime in parted.first)
    assert all(origins["muon", *regime] == "retuned" for regime in parted.second)
    assert all(origins["muon", *regime] == "predicted" for regime in parted.third[1:])
    assert len(origins) == 2 * len(SIZES) * len(RATIOS)


def test_what_scales_is_found_and_the_rest_frozen(evidence) -> None:
    for name in ("adamw", "muon"):
        assert evidence.sensitive[name] == ("opt.lr",)
        assert evidence.frozen[name] == {"opt.momentum": 0.9}


def test_the_second_phase_tunes_nothing_but_that(evidence) -> None:
    tuned = {(rung.origin, rung.cell.tuning.coordinates) for rung in evidence.rungs}
    assert ("retuned", ("opt.lr",)) in tuned and ("tuned", ("opt.lr", "opt.momentum")) in tuned
    assert ("predicted", ()) in tuned


def test_the_prediction_at_the_largest_size_is_near_what_is_best_there(evidence) -> None:
    for forecast in evidence.forecasts:
        assert (forecast.size, forecast.ratio) == ("l", 1.0)
        best = best_lr(SIZES["l"], forecast.predicted.horizon_tokens)
        assert abs(math.log2(forecast.predicted.settings["opt.lr"] / best)) < 0.8  # the grid's step is 1


def test_predictions_follow_the_law_through_all_that_was_tuned_in_size_and_length(evidence) -> None:
    for name in ("adamw", "muon"):
        own = [rung for rung in evidence.rungs if rung.name == name]
        points = [(SIZES[r.size], r.cell.horizon_tokens, r.cell.settings["opt.lr"]) for r in own if r.size != "l"]
        predicted = [r for r in own if r.origin == "predicted" and r.ratio != 1.0]
        assert len(points) == 6 and len(predicted) == 2
        for rung in predicted:
            expected = predict(points, SIZES["l"], rung.cell.horizon_tokens, "opt.lr")
            assert rung.cell.settings["opt.lr"] == pytest.approx(expected)


def test_final_seeds_are_fresh_and_every_rung_has_them(world, evidence) -> None:
    tuned = {world.records[key].spec.seed for rung in evidence.rungs for t in rung.cell.tuning.trials for key in t.keys}
    for rung in evidence.rungs:
        assert [world.records[key].spec.seed for key in rung.cell.keys] == [0, 1, 2, 3]
    assert not tuned & {0, 1, 2, 3}


def test_planted_speedups_are_found_at_every_size_and_length(world, evidence) -> None:
    finding = conclude_ladder(evidence, world.records)
    assert len(finding.rows) == 9 and all(check.ok for check in finding.checks)
    inside = [row.low <= 1.4 <= (row.high or math.inf) for row in finding.rows]
    assert sum(inside) >= 8
    assert sum(row.judgement == "better" for row in finding.rows) >= 6
    assert finding.verdict.startswith("muon against tuned adamw: better at ")


def test_holm_corrects_the_speedups_too_and_not_the_losses_alone(world, evidence, monkeypatch) -> None:
    replicates = np.where(np.arange(1000) < 10, 0.9, 1.4)  # p = 0.022: enough for one row, not for one of nine
    monkeypatch.setattr("muonlab.analyze.ladder.bootstrap", lambda *arms: Bootstrap(1.4, replicates))
    rows = conclude_ladder(evidence, world.records).rows
    assert {row.low for row in rows} == {1.4} and {row.judgement for row in rows} == {"unresolved"}


def test_controls_say_what_tuning_is_worth(world, evidence) -> None:
    finding = conclude_ladder(evidence, world.records)
    defaults = [one for one in finding.controls if one.settings_of == ""]
    assert {(one.optimizer, one.size) for one in defaults} == {("adamw", size) for size in SIZES}
    assert all(one.low > 0 and one.speedup > 1 for one in defaults if one.size == "s")
    swaps = {(one.optimizer, one.settings_of) for one in finding.controls if one.settings_of}
    assert swaps == {("adamw", "muon"), ("muon", "adamw")}


def test_evidence_survives_json(evidence) -> None:
    assert LadderEvidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
    assert len(evidence.record_keys()) == len(set(evidence.record_keys()))


def test_the_same_optimizer_twice_is_not_told_apart() -> None:
    false = 0
    for trial in range(5):
        world = World({"adamw": 1.0, "copy": 1.0}, noise=0.02, trial=trial)
        finding = conclude_ladder(world.climb(), world.records)
        false += any(row.judgement in ("better", "worse") for row in finding.rows)
    assert false <= 1


def test_simulated_ladders_are_rarely_wrong_and_their_intervals_hold() -> None:
    nothing = calibrate_ladder(1.0, 6, noise=0.02)
    assert nothing.false_verdicts <= 0.34 and nothing.coverage >= 0.85
    planted = calibrate_ladder(1.5, 4, noise=0.01)
    assert planted.verdicts >= 0.5 and planted.false_verdicts == 0.0 and planted.coverage >= 0.8


def test_the_checks_of_a_ladder_count_over_all_sizes_and_need_no_comparison(world, evidence, monkeypatch) -> None:
    monkeypatch.setattr("muonlab.analyze.comparison.compare", None)
    found = {check.name: check.detail for check in conclude_ladder(evidence, world.records).checks}
    tuned = {key for rung in evidence.rungs for trial in rung.cell.tuning.trials for key in trial.keys}
    final = {key for rung in evidence.rungs for key in rung.cell.keys}
    assert found["complete"] == f"{2 * 9 * 4} final runs, 0 diverged; 0 of all {len(tuned | final)} runs failed"
    seeds = {world.records[key].spec.seed for key in tuned}
    assert found["fresh_seeds"] == f"4 final seeds, {len(seeds)} tuning seeds, disjoint"


def test_a_broken_rule_is_named_with_its_size_and_what_can_not_be_checked_is_not_ok(world, evidence) -> None:
    records = dict(world.records)
    key = evidence.rung("muon", "m", 2.0).cell.keys[0]
    records[key] = replace(records[key], outcome="diverged", final_loss=None)
    finding = conclude_ladder(evidence, records)
    (broken,) = (check for check in finding.checks if not check.ok)
    assert (broken.name, broken.ok) == ("complete", False)
    assert broken.detail.startswith("m: 24 final runs, 1 diverged, 0 of all ") and ";" not in broken.detail
    assert finding.verdict == "Verdict withheld: complete is broken."
    elsewhere = {
        key: replace(record, spec=replace(record.spec, device="external"), environment={})
        for key, record in world.records.items()
    }
    (unknown,) = (check for check in conclude_ladder(evidence, elsewhere).checks if not check.ok)
    assert (unknown.name, unknown.ok) == ("same_conditions", None) and unknown.detail.startswith("not checked: ")


def test_an_optimum_on_an_edge_withholds_the_verdict() -> None:
    world = World({"adamw": 1.0, "muon": 1.4})
    evidence = world.climb(tuning=TuningRules(max_runs=26))
    finding = conclude_ladder(evidence, world.records)
    assert {check.name for check in finding.checks if not check.ok} == {"converged", "interior"}
    assert finding.verdict == "Verdict withheld: interior is broken."
    assert all(row.judgement == "withheld" for row in finding.rows)


@pytest.mark.parametrize(
    ("rules", "message"), [({"final_seeds": (0,)}, "at least 2 final seeds"), ({"final_seeds": (1000, 1)}, "tuning")]
)
def test_rules_that_cannot_be(rules, message) -> None:
    with pytest.raises(UsageError, match=message):
        LadderRules(baseline="a", **rules)
