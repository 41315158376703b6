"""The finding of a study of features from records that were made up, with what was planted in them."""

from dataclasses import replace

import pytest

from muonlab.analyze.feature_looks import look_of
from muonlab.analyze.features import analyze
from muonlab.analyze.findings import Effect
from muonlab.analyze.significance import effect, judge_effects
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Arm, Cell, Tuning
from muonlab.records.features import FeaturesEvidence
from muonlab.records.record import Series
from muonlab.records.watch import CLEAN

STEPS = (10, 20, 40, 80)
SEEDS = (0, 1, 2)


def run(optimizer: str, seed: int, losses, decay: float = 0.1, **probes) -> Record:
    spec = RunSpec(
        task="text", optimizer=optimizer, horizon_tokens=80, batch_tokens=1, seed=seed,
        hyperparameters={"opt.weight_decay": decay},
    )  # fmt: skip
    wiggle = 0.01 * (seed - 1)
    series = {
        name.replace("__", "."): Series(STEPS, tuple(v + wiggle for v in values)) for name, values in probes.items()
    }
    losses = tuple(float(loss) for loss in losses)
    series[CLEAN] = Series(STEPS, losses)
    return Record(
        spec=spec, outcome="ok", final_loss=losses[-1], eval_steps=STEPS, eval_loss=losses, probes=series, tokens=80
    )


def evidence_of(runs):
    def arm(name, decay):
        keys = tuple(r.key for r in runs if r.spec.optimizer == name and r.spec.get("opt.weight_decay") == decay)
        tuning = Tuning(
            optimizer=name, horizon_tokens=80, coordinates=("opt.lr",), best={}, trials=(), moves=(), edges=(),
            converged=True, num_runs=0, tokens=0,
        )  # fmt: skip
        return Arm(name=name, optimizer=name, cells=(Cell(horizon_tokens=80, settings={}, keys=keys, tuning=tuning),))

    return FeaturesEvidence(
        task="text", baseline="adamw", horizon_tokens=80, final_seeds=SEEDS,
        arms={name: arm(name, 0.1) for name in ("adamw", "muon")},
        controls={name: arm(name, 0.0) for name in ("adamw", "muon")},
    )  # fmt: skip


def planted(muon_margin, adamw_margin=(0.1, 0.1, 0.1, 0.1), corrupted=(4.0, 4.0, 4.0, 4.0)):
    runs = []
    for seed in SEEDS:
        for decay in (0.1, 0.0):
            for name, margin, losses in (("muon", muon_margin, (4, 3, 2, 1)), ("adamw", adamw_margin, (5, 4, 3, 2))):
                noise = 1e-3 * (seed if name == "muon" else -seed)
                probes = {
                    "features__blocks.0__margin_normalised": [m + noise for m in margin],
                    "features__blocks.0__rank_effective": [5 + noise] * 4,
                    "corrupted__swap__3": [c + (0.5 if name == "adamw" else 0) + noise for c in corrupted],
                }
                runs.append(run(name, seed, losses, decay, **probes))
    return evidence_of(runs), {r.key: r for r in runs}


def claims(finding):
    return {(claim.claim.split()[2], claim.at): claim.held for claim in finding.claims}


def test_a_claim_about_every_layer_is_open_where_one_is_not_resolved():
    evidence, records = planted((0.5, 0.5, 0.5, 0.5))
    assert claims(analyze(evidence, records))["normalised", "budget"] is True
    other = "features.blocks.1.margin_normalised"
    records = {
        key: replace(one, probes={**one.probes, other: Series(STEPS, (0.1 + 1e-3 * one.spec.seed * sign,) * 4)})
        for key, one in records.items()
        for sign in [1 if one.spec.optimizer == "muon" else -1]
    }
    assert claims(analyze(evidence, records))["normalised", "budget"] is None


def test_a_look_between_two_is_linear_in_the_loss():
    record = run("muon", 1, (4, 3, 2, 1), features__a__accuracy=(0.1, 0.2, 0.4, 0.8))
    assert look_of(record).values["features.a.accuracy"] == 0.8 and look_of(record).fraction == 1.0
    half = look_of(record, 1.5)
    assert half.values["features.a.accuracy"] == pytest.approx(0.6) and half.fraction == pytest.approx(0.75)
    assert look_of(record, 2.0).values["features.a.accuracy"] == pytest.approx(0.4)
    assert look_of(record, 4.5) is None and look_of(record, 0.5) is None
    assert look_of(replace(record, outcome="diverged")) is None and look_of(replace(record, probes={})) is None


def test_at_one_loss_it_is_the_better_one_that_is_looked_at_earlier():
    """Muon's margin is larger at the end, and smaller where it has the other's loss."""
    evidence, records = planted((0.0, 0.0, 0.05, 0.9))
    finding = analyze(evidence, records)
    at = {row.at: row for row in finding.layers if row.measure == "margin_normalised"}
    assert at["budget"].value == pytest.approx(0.9, abs=0.01) and at["loss"].value == pytest.approx(0.05, abs=0.01)
    assert at["budget"].effect.judgement == "higher" and at["loss"].effect.judgement == "lower"
    assert claims(finding)["normalised", "budget"] is True and claims(finding)["normalised", "loss"] is False
    assert finding.fractions["muon"] == pytest.approx({"muon": 0.5, "adamw": 1.0})


def test_a_difference_as_small_as_the_noise_is_open():
    evidence, records = planted((0.1, 0.1, 0.1, 0.1))
    finding = analyze(evidence, records)
    assert claims(finding)["normalised", "loss"] is None
    assert claims(finding)["effective", "budget, no decay"] is None


def test_a_rise_is_over_the_clean_loss_of_the_same_look():
    evidence, records = planted((0.1,) * 4)
    finding = analyze(evidence, records)
    rows = {row.at: row for row in finding.corruptions}
    assert rows["budget"].rise == pytest.approx(3.0, abs=0.01) and rows["loss"].rise == pytest.approx(2.0, abs=0.01)
    assert rows["loss"].baseline_rise == pytest.approx(2.5, abs=0.01)
    assert claims(finding)["rise", "loss"] is True and claims(finding)["rise", "budget"] is False


def test_a_lost_run_takes_its_pair_along():
    evidence, records = planted((0.9,) * 4)
    key = evidence.arms["adamw"].cells[0].keys[0]
    finding = analyze(evidence, records | {key: replace(records[key], outcome="diverged", final_loss=None)})
    row = next(row for row in finding.layers if row.measure == "margin_normalised" and row.at == "budget")
    assert row.effect.num_pairs == 2 and finding.losses["adamw"][0] is None


def test_without_corruptions_nothing_is_said_of_them():
    evidence, records = planted((0.9,) * 4)
    bare = {
        k: replace(r, probes={n: s for n, s in r.probes.items() if n != "corrupted.swap.3"}) for k, r in records.items()
    }
    finding = analyze(evidence, bare)
    assert finding.corruptions == () and claims(finding)["rise", "loss"] is None


def test_an_effect_is_that_of_a_paired_test():
    found = effect({0: 2.0, 1: 4.0, 2: 7.0}, {0: 1.0, 1: 2.0, 2: 4.0})
    assert (found.difference, found.size, found.num_pairs) == (pytest.approx(2.0), pytest.approx(2.0), 3)
    assert found.p_value == pytest.approx(0.0742, abs=1e-4) and found.low < 0 < found.high
    assert effect({0: 1.0}, {0: 0.0}).p_value is None and effect({}, {}).difference is None
    assert effect({0: 1.0, 1: None}, {0: 0.0, 1: 1.0}).num_pairs == 1


def test_what_one_claim_is_about_is_judged_together():
    def of(p: float, difference: float = 1.0) -> Effect:
        return Effect(difference=difference, low=0.0, high=2.0, size=1.0, p_value=p, num_pairs=3)

    assert [e.judgement for e in judge_effects([of(0.04)])] == ["higher"]
    assert [e.judgement for e in judge_effects([of(0.04), of(0.04)])] == ["unresolved"] * 2
    assert [e.judgement for e in judge_effects([of(0.04), of(0.01, -1.0)])] == ["higher", "lower"]


def test_evidence_survives_json():
    import json

    from muonlab.records.record import json_text

    evidence, records = planted((0.9,) * 4)
    assert FeaturesEvidence.from_dict(json.loads(json_text(evidence.to_dict()))) == evidence
    assert set(evidence.record_keys()) == set(records)
