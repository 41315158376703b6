"""The first crossing of a loss on a curve."""

import math

import pytest

from muonlab.analyze.reaching import reached
from muonlab.records import Record, RunSpec

SPEC = RunSpec(task="text", optimizer="muon", horizon_tokens=6400, batch_tokens=100)


def run(points: dict[int, float], **values) -> Record:
    return Record(spec=SPEC, **{"outcome": "ok", **values}, eval_steps=tuple(points), eval_loss=tuple(points.values()))


def test_between_two_points_it_is_linear_in_log_tokens() -> None:
    found = reached(run({4: 3.0, 16: 2.0, 64: 1.0}), 2.5)
    assert found.tokens == pytest.approx(100 * 8) and not found.early


def test_on_a_point_it_is_the_point() -> None:
    assert reached(run({4: 3.0, 16: 2.0}), 2.0).tokens == pytest.approx(1600)


def test_the_first_crossing_counts_though_the_loss_rises_again() -> None:
    assert reached(run({4: 3.0, 16: 2.0, 32: 3.0, 64: 1.0}), 2.5).tokens == pytest.approx(800)


def test_below_at_the_first_evaluation_is_a_bound() -> None:
    found = reached(run({4: 1.0, 16: 0.5}), 2.5)
    assert found.tokens == 400 and found.early


def test_not_reached_is_none_also_for_a_run_that_diverged() -> None:
    assert reached(run({4: 3.0, 64: 2.6}), 2.5).tokens is None
    assert reached(run({}), 2.5).tokens is None
    assert reached(run({4: 3.0, 16: math.nan}, outcome="diverged"), 2.5).tokens is None


def test_a_run_that_diverged_had_reached_what_it_had() -> None:
    assert reached(run({4: 3.0, 16: 2.0, 32: math.nan}, outcome="diverged"), 2.5).tokens == pytest.approx(800)


def test_after_a_loss_that_was_not_finite_the_next_point_counts() -> None:
    assert reached(run({4: math.nan, 16: 2.0}), 2.5).tokens == pytest.approx(1600)
