"""What corruption takes, and how like models are, of runs in which it was planted."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))

from feature_world import World

from muonlab.analyze.feature_looks import Look
from muonlab.analyze.features import analyze
from muonlab.analyze.robustness import corruption_error, overall_rows


def look(**values: float) -> Look:
    return Look(1.0, {name.replace("__", "."): value for name, value in values.items()})


def looks(clean: float, *corrupted: float) -> Look:
    kinds = {f"{kind}__{i + 1}": corrupted[2 * k + i] for k, kind in enumerate(("a", "b")) for i in (0, 1)}
    losses = {"corrupted__clean__0": 1.0, **{f"corrupted__{name}": 2.0 for name in kinds}}
    return look(accuracy__clean__0=clean, **{f"accuracy__{name}": value for name, value in kinds.items()}, **losses)


def test_the_error_is_a_mean_over_corruptions_of_ratios_of_sums_over_severities() -> None:
    pairs = {seed: (looks(0.9, 0.8, 0.6, 0.5, 0.5), looks(0.8, 0.6, 0.4, 0.8, 0.7)) for seed in (0, 1)}
    found = corruption_error("muon", "loss", pairs)
    assert found.ratio == pytest.approx(((0.2 + 0.4) / (0.4 + 0.6) + (0.5 + 0.5) / (0.2 + 0.3)) / 2)
    assert found.effect.difference == pytest.approx(found.ratio - 1)
    assert (found.low, found.high) == pytest.approx((1 + found.effect.low, 1 + found.effect.high))
    perfect = {0: (looks(0.9, 0.8, 0.6, 0.5, 0.5), looks(1.0, 1.0, 1.0, 0.8, 0.7))}
    assert corruption_error("muon", "loss", perfect).ratio is None


def test_a_drop_is_relative_to_clean_accuracy_seed_by_seed() -> None:
    pairs = {0: (looks(0.8, 0.6, 0.4, 0.4, 0.6), looks(0.5, 0.5, 0.5, 0.0, 0.0))}
    row = overall_rows("muon", "loss", pairs)[-1]
    assert (row.severity, row.corruption) == (0, "all")
    assert row.drop == pytest.approx((0.8 - 0.5) / 0.8) and row.baseline_drop == pytest.approx(0.5)
    assert row.accuracy == pytest.approx(0.5) and row.rise == pytest.approx(1.0)
    by_severity = {one.severity: one.accuracy for one in overall_rows("muon", "loss", pairs)[:-1]}
    assert by_severity == pytest.approx({1: 0.5, 2: 0.5})


def test_without_classes_there_is_no_accuracy() -> None:
    world = World(classes=False)
    finding = analyze(world.study(), world.records)
    assert finding.errors == () and all(row.accuracy is None and row.drop_effect is None for row in finding.severities)
    assert not any("accuracy" in claim.claim for claim in finding.claims) and finding.severities


def test_what_makes_fewer_errors_is_found_to() -> None:
    world = World()
    finding = analyze(world.study(), world.records)
    assert {(one.optimizer, one.effect.judgement) for one in finding.errors} == {("muon", "lower"), ("sgd", "lower")}
    assert all(0 < one.ratio < 1 for one in finding.errors)
    alike = World(gain=0.0)
    found = analyze(alike.study(), alike.records)
    assert all(one.ratio == pytest.approx(1.0, abs=0.05) for one in found.errors)


def test_likeness_between_optimizers_is_less_than_between_seeds_of_one() -> None:
    world = World()
    rows = analyze(world.study(), world.records).cka
    assert len(rows) == 2 * 2 * 3  # challengers, with decay and without, layers
    for row in rows:
        own = min(row.own_seeds.mean, row.baseline_seeds.mean)
        assert row.same_seed.greatest < own and row.other_seeds.mean < own
        assert (row.same_seed.num_pairs, row.other_seeds.num_pairs, row.own_seeds.num_pairs) == (3, 6, 3)
        assert row.same_seed.least <= row.same_seed.mean <= row.same_seed.greatest
    means = [row.same_seed.mean for row in rows[:3]]
    assert means == sorted(means, reverse=True)  # as planted


def test_likeness_of_records_without_matrices_is_not_there() -> None:
    world = World(grams=False)
    assert analyze(world.study(), world.records).cka == ()
    some = World()
    evidence = some.study()
    key = evidence.arms["muon"].cells[0].keys[0]
    collapsed = replace(some.records[key], grams=dict.fromkeys(some.records[key].grams, ""))
    row = analyze(evidence, some.records | {key: collapsed}).cka[0]
    assert row.same_seed.num_pairs == 2 and row.own_seeds.num_pairs == 1
