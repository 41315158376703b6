"""Record: bit-exact through JSON, and suspicious of what comes from outside."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muonlab.errors import UsageError
from muonlab.records import Record, RunSpec
from muonlab.records.record import json_text, same_result

SPEC = RunSpec(task="text", optimizer="adamw", horizon_tokens=4096, batch_tokens=512)


def trip(record: Record) -> Record:
    return Record.from_dict(json.loads(json_text(record.to_dict())))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)), st.text(), st.dictionaries(st.text(), st.integers()))
def test_round_trip_is_bit_exact(losses, error, params):
    steps = tuple(range(1, len(losses) + 1))
    record = Record(
        spec=SPEC, outcome="failed", train_steps=steps, train_loss=tuple(losses), error=error, params=params
    )
    again = trip(record)
    assert again == record
    assert [x.hex() for x in again.train_loss] == [x.hex() for x in losses]
    assert again.num_params == sum(params.values())


def test_losses_that_are_not_finite_survive_as_nan(make):
    record = make(outcome="diverged", train_loss=(4.0, math.inf, math.nan), diverged_step=2)
    text = json_text(record.to_dict())
    assert "NaN" not in text and "Infinity" not in text
    first, *others = trip(record).train_loss
    assert first == 4.0 and all(math.isnan(loss) for loss in others)


def test_same_result_ignores_times_and_machines(make):
    a = make(wall_seconds=1.0, environment={"machine": "a"}, train_loss=(math.nan, 1.0, 2.0))
    assert same_result(a, make(wall_seconds=9.0, environment={"machine": "b"}, train_loss=(math.nan, 1.0, 2.0)))
    assert not same_result(a, make(train_loss=(math.nan, 1.0, 2.0 + 1e-15)))


def test_a_record_of_before_an_optimizer_could_be_a_users_keeps_its_key(make):
    spec = {
        "task": "own:Task", "optimizer": "muon", "horizon_tokens": 4096, "batch_tokens": 512,
        "hyperparameters": {"opt.lr": 0.02}, "numerics": {"rule": "muon:2+adamw:1", "task": "ab"},
        "source": "/home/ann/own.py",
    }  # fmt: skip
    key = "e74751da8420bb93acaf365639af17c9b296073bb761b134423565a23802a053"
    record = Record.from_dict({**make().to_dict(), "spec": spec, "key": key})
    assert record.key == key and record.spec.optimizer_source == "" and record.to_dict()["spec"] == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 99}, "update"),
        ({"schema_version": None}, "update"),
        ({"outcome": "fine"}, "unknown outcome"),
        ({"key": "0" * 64}, "does not match its spec"),
        ({"key": 5}, "does not match its spec"),
        ({"spec": {**SPEC.to_dict(), "seed": 7}}, "does not match its spec"),
        ({"spec": []}, "not a"),
        ({"train_loss": [1.0]}, "one length"),
        ({"train_loss": "abc"}, "one length"),
        ({"loss": 1}, "not a record: .*loss"),
    ],
)
def test_from_dict_refuses_what_is_not_a_record(make, change, words):
    with pytest.raises(UsageError, match=words):
        Record.from_dict({**make().to_dict(), **change})


@pytest.mark.parametrize("values", [[], "text", None, {}, {"schema_version": 1}])
def test_from_dict_refuses_what_is_not_even_close(values):
    with pytest.raises(UsageError):
        Record.from_dict(values)


def test_where_the_files_lay_is_no_part_of_a_result(make):
    record = make(0)
    moved = replace(record, spec=replace(record.spec, source="/elsewhere/task.py", data=("/elsewhere/text.txt",)))
    assert same_result(record, moved)
    assert not same_result(record, replace(record, spec=replace(record.spec, seed=7)))
