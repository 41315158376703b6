"""What is watched: steps of a curve, and whether a record holds it."""

import json
from itertools import pairwise

import pytest

from muonlab.errors import UsageError
from muonlab.records import Record, RunSpec
from muonlab.records.record import Series, json_text
from muonlab.records.watch import CHANGE, CURVE_SPAN, NOISE, Watch

SPEC = RunSpec(task="text", optimizer="muon", horizon_tokens=6400, batch_tokens=100)


def test_a_curve_is_even_in_the_logarithm_of_tokens() -> None:
    steps = sorted(Watch(curve_points=11).steps(SPEC))
    assert steps[0] == 64 / CURVE_SPAN and steps[-1] == SPEC.num_steps and len(steps) == 11
    assert all(1.2 < b / a < 1.7 for a, b in pairwise(steps[3:]))


def test_explicit_steps_and_those_of_a_curve_are_both_taken() -> None:
    assert {5, 64} <= Watch(frozenset({5}), curve_points=3).steps(SPEC)
    assert Watch().steps(SPEC) == frozenset()


def test_a_record_holds_what_was_asked_for_or_not() -> None:
    watch = Watch(curve_points=4, noise_cost=0.1)
    steps = tuple(sorted(watch.steps(SPEC)))
    bare = {"spec": SPEC, "outcome": "ok", "eval_steps": steps, "eval_loss": (1.0,) * len(steps)}
    noise = dict.fromkeys(NOISE, Series((), ()))
    assert watch.seen_in(Record(**bare, probes=noise)) and not watch.seen_in(Record(**bare))
    assert not watch.seen_in(
        Record(**{**bare, "eval_steps": steps[1:], "eval_loss": bare["eval_loss"][1:]}, probes=noise)
    )
    assert watch.seen_in(Record(spec=SPEC, outcome="diverged"))


def test_probes_survive_json() -> None:
    record = Record(spec=SPEC, outcome="ok", final_loss=1.0, probes={"noise.trace": Series((2, 4), (0.1, 1 / 3))})
    again = Record.from_dict(json.loads(json_text(record.to_dict())))
    assert again.probes == record.probes and isinstance(again.probes["noise.trace"], Series)


@pytest.mark.parametrize("damaged", [[[1]], [[1], [2.0, 3.0]], 7, [1, 2]])
def test_a_damaged_probe_is_refused(damaged) -> None:
    values = Record(spec=SPEC, outcome="ok").to_dict() | {"probes": {"noise.trace": damaged}}
    with pytest.raises(UsageError, match="not a record"):
        Record.from_dict(values)


def test_the_steps_of_a_coordinate_check_must_all_be_in_the_record() -> None:
    watch = Watch(coordinates=frozenset({1, 4, 1000}))  # the run has 64
    assert watch.coordinate_steps(SPEC) == {1, 4}
    seen = {f"{CHANGE}head": Series((1, 2, 4), (0.1, 0.2, 0.3))}
    assert watch.seen_in(Record(spec=SPEC, outcome="ok", probes=seen))
    assert not watch.seen_in(Record(spec=SPEC, outcome="ok", probes={f"{CHANGE}head": Series((1, 2), (0.1, 0.2))}))
    assert not watch.seen_in(Record(spec=SPEC, outcome="ok"))


def test_of_a_study_only_the_runs_that_are_named_are_looked_at() -> None:
    other = SPEC.set({"seed": 7})
    watch = Watch(coordinates=frozenset({1}), runs=frozenset({SPEC.key}))
    assert watch.of(SPEC) is watch and watch.of(other) == Watch()
    assert watch.seen_in(Record(spec=other, outcome="ok")) and not watch.seen_in(Record(spec=SPEC, outcome="ok"))


@pytest.mark.parametrize("steps", [{0, 1}, {-1}, set(range(1, 300))])
def test_steps_that_no_coordinate_check_has_are_refused(steps: set[int]) -> None:
    with pytest.raises(UsageError, match="256 steps"):
        Watch(coordinates=frozenset(steps))
