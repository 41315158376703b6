"""RunSpec: what its key depends on, and what it refuses."""

import dataclasses
import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muonlab.errors import UsageError
from muonlab.records import RunSpec, Schedule
from muonlab.records.spec import canonical_json

BASE = {"task": "text", "optimizer": "adamw", "horizon_tokens": 4096, "batch_tokens": 512}

# A different value for every field that determines a run. A new field belongs here, or is declared `in_key: False`.
CHANGES = {
    "task": "digits",
    "optimizer": "muon",
    "horizon_tokens": 8192,
    "batch_tokens": 256,
    "seed": 1,
    "task_options": {"width": 64},
    "hyperparameters": {"opt.lr": 0.02},
    "polar": "newton_schulz:quintic5",
    "schedule": Schedule(kind="cosine"),
    "averaging": 0.1,
    "clip": 0.0,
    "micro_batch_tokens": 128,
    "precision": "bf16",
    "compile": True,
    "device": "cuda",
    "torch": "2.13",
    "numerics": {"rule": 2},
    "data_fingerprint": "ab",
    "init_from": "cd",
    "fresh_head": True,
}
TOGETHER = {"parametrization": "mup", "base": {"width": 32}}  # either alone changes nothing
OBSERVING = {
    "source": "/home/ann/task.py", "optimizer_source": "/home/ann/rule.py", "data": ("/data/train.bin",),
}  # fmt: skip

scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(scalars | st.text(), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=5)
mappings = st.dictionaries(st.text(min_size=1), values, max_size=4)


def test_canonical_json_is_one_text_per_meaning():
    text = canonical_json({"b": (1.0, True, None), "a": {"y": 0.1 + 0.2, "x": -0.0}, "é": "ü"})
    assert text == '{"a":{"x":0,"y":0.3},"b":[1,true,null],"\\u00e9":"\\u00fc"}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(math.inf)


def test_key_is_frozen():
    """A key that changes makes everybody's store worthless: think twice before editing this one."""
    text = b'{"batch_tokens":512,"horizon_tokens":4096,"optimizer":"adamw","task":"text"}'
    assert RunSpec(**BASE).key == hashlib.sha256(text).hexdigest()
    spec = RunSpec(**BASE, hyperparameters={"opt.lr": 0.003, "aux.k": 2.0}, schedule=Schedule(kind="wsd"), seed=1)
    assert (
        spec.key
        == hashlib.sha256(
            b'{"batch_tokens":512,"horizon_tokens":4096,"hyperparameters":{"aux.k":2,"opt.lr":0.003},'
            b'"optimizer":"adamw","schedule":{"kind":"wsd"},"seed":1,"task":"text"}'
        ).hexdigest()
    )


def test_every_field_is_in_the_key_or_declared_not_to_be():
    names = {field.name for field in dataclasses.fields(RunSpec)}
    assert names == CHANGES.keys() | TOGETHER.keys() | OBSERVING.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_changing_a_field_changes_the_key(name):
    changed = RunSpec(**{**BASE, name: CHANGES[name]})
    assert changed.key != RunSpec(**BASE).key
    assert RunSpec.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_a_parametrization_changes_the_key_where_it_changes_the_run():
    plain = RunSpec(**BASE, task_options={"width": 64})
    made = plain.set({"parametrization": "mup", "base.width": 32})
    assert (made.get("parametrization"), made.get("base.width"), made.is_parametrized) == ("mup", 32, True)
    assert RunSpec.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    others = [made.set({"parametrization": "spectral"}), made.set({"base.width": 16}), made.set({"base.depth": 1})]
    assert len({spec.key for spec in (plain, made, *others)}) == 5
    idle = [made.set({"parametrization": "standard"}), made.set({"base.width": 64}), made.set({"base.width": 64.0})]
    for spec in (*idle, plain.set({"parametrization": "mup"}), plain.set({"base.width": 32})):
        assert spec.key == plain.key and not spec.is_parametrized
        assert RunSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_every_schedule_field_changes_the_key():
    changes = {"kind": "wsd", "warmup_fraction": 0.2, "decay_fraction": 0.3, "final_fraction": 0.1}
    assert changes.keys() == {field.name for field in dataclasses.fields(Schedule)}
    keys = {RunSpec(**BASE, schedule=Schedule(**{name: value})).key for name, value in changes.items()}
    assert len(keys | {RunSpec(**BASE).key}) == 5


@pytest.mark.parametrize("name", OBSERVING)
def test_moving_a_file_keeps_the_key(name):
    moved = RunSpec(**BASE, **{name: OBSERVING[name]})
    assert moved.key == RunSpec(**BASE).key
    assert RunSpec.from_dict(json.loads(json.dumps(moved.to_dict()))) == moved


def test_defaults_are_omitted_and_do_not_change_the_key():
    explicit = RunSpec(**BASE, clip=1.0, seed=0, schedule=Schedule(kind="linear", warmup_fraction=0.1))
    assert explicit.to_dict() == BASE
    assert explicit.key == RunSpec(**BASE).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"clip": 2}, {"clip": 2.0}),
        ({"hyperparameters": {"opt.k": 1}}, {"hyperparameters": {"opt.k": 1.0}}),
        ({"hyperparameters": {"opt.lr": 0.3}}, {"hyperparameters": {"opt.lr": 0.1 + 0.2}}),
        ({"hyperparameters": {"opt.betas": [0.9, 0.95]}}, {"hyperparameters": {"opt.betas": (0.9, 0.95)}}),
        ({"task_options": {"a": 1, "b": 2}}, {"task_options": {"b": 2, "a": 1}}),
    ],
)
def test_same_meaning_same_key(one, other):
    assert RunSpec(**BASE, **one).key == RunSpec(**BASE, **other).key


@given(hyperparameters=mappings, options=mappings, seed=st.integers(0, 2**63 - 1), text=st.text())
def test_round_trip_through_json(hyperparameters, options, seed, text):
    spec = RunSpec(**BASE, seed=seed, hyperparameters=hyperparameters, task_options=options, polar=text)
    again = RunSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert again.key == spec.key
    assert len(spec.key) == 64 and hash(again) == hash(spec)


def test_editing_the_dictionary_does_not_edit_the_run():
    spec = RunSpec(**BASE, hyperparameters={"opt.lr": 0.1})
    spec.to_dict()["hyperparameters"]["opt.lr"] = 0.2
    assert spec.get("opt.lr") == 0.1


def test_get_and_set_by_dotted_name():
    spec = RunSpec(**BASE, hyperparameters={"opt.lr": 0.1, "aux.lr_ratio": 2}, task_options={"width": 8})
    changed = spec.set({"opt.lr": 0.2, "task.width": 16, "schedule.kind": "wsd", "batch_tokens": 1024, "seed": 3})
    names = ("opt.lr", "aux.lr_ratio", "task.width", "schedule.kind", "batch_tokens", "seed")
    assert [changed.get(name) for name in names] == [0.2, 2, 16, "wsd", 1024, 3]
    assert (spec.get("opt.lr"), changed.num_steps) == (0.1, 4)


@pytest.mark.parametrize(
    ("name", "hint"), [("schedule.warmup", "schedule.warmup_fraction"), ("batch_token", "batch_tokens")]
)
def test_unknown_key_names_the_nearest(name, hint):
    with pytest.raises(UsageError, match=f"did you mean '{hint}'"):
        RunSpec(**BASE).set({name: 1})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizon_tokens": 0}, "horizon_tokens must be at least 1"),
        ({"horizon_tokens": 1e6}, "whole number"),
        ({"batch_tokens": True}, "whole number"),
        ({"batch_tokens": 8192}, "exceeds horizon_tokens"),
        ({"micro_batch_tokens": 100}, "must divide"),
        ({"micro_batch_tokens": -1}, "micro_batch_tokens must be at least 0"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"seed": 2**63}, "below 2\\^63"),
        ({"averaging": 1.0}, "averaging must lie in"),
        ({"clip": -1}, "clip must be 0"),
        ({"clip": math.nan}, "finite"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"parametrization": "muP"}, "unknown parametrization .*did you mean 'mup'"),
        ({"base": {"width": math.inf}}, "width must be a finite number"),
        ({"hyperparameters": {"opt.lr": math.inf}}, "opt.lr must be a finite number"),
        ({"hyperparameters": {"opt.betas": (0.9, math.nan)}}, "opt.betas"),
        ({"hyperparameters": {"opt.lr": object()}}, "opt.lr must be a number"),
    ],
)
def test_a_run_that_cannot_be_is_refused(change, words):
    with pytest.raises(UsageError, match=words):
        RunSpec(**{**BASE, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "cos"}, "did you mean 'cosine'"),
        ({"warmup_fraction": 1.5}, r"\[0, 1\]"),
        ({"final_fraction": "a"}, "finite"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(change, words):
    with pytest.raises(UsageError, match=words):
        Schedule(**change)
    with pytest.raises(UsageError, match="must not exceed 1"):
        Schedule(kind="wsd", warmup_fraction=0.7, decay_fraction=0.6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizon_token": 1}, "did you mean 'horizon_tokens'"),
        ({"schedule": {"warmup": 1}}, "not a run: .*warmup"),
        ({"schedule": 3}, "not a run"),
        ({"hyperparameters": [1]}, "not a run"),
    ],
)
def test_from_dict_refuses_what_it_does_not_know(change, words):
    with pytest.raises(UsageError, match=words):
        RunSpec.from_dict({**BASE, **change})
    with pytest.raises(UsageError, match=r"not a run: .*task"):
        RunSpec.from_dict({"optimizer": "adamw", "horizon_tokens": 1, "batch_tokens": 1})


@pytest.mark.parametrize("value", ["False", 0, None])
def test_compile_is_a_truth_value(value):
    with pytest.raises(UsageError, match="compile must be true or false"):
        RunSpec(task="text", optimizer="adamw", horizon_tokens=8, batch_tokens=8, compile=value)
