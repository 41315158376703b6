import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muonlab.records import Schedule
from muonlab.train.schedules import lr_factor, progress_at

KINDS = ("constant", "linear", "cosine", "wsd")
NUM_STEPS = 1000


@st.composite
def schedules(draw):
    kind = draw(st.sampled_from(KINDS))
    warmup = draw(st.floats(0, 1))
    decay = draw(st.floats(0, 1 - warmup if kind == "wsd" else 1))
    return Schedule(kind=kind, warmup_fraction=warmup, decay_fraction=decay, final_fraction=draw(st.floats(0, 1)))


def factors(schedule, num_steps=NUM_STEPS):
    return [lr_factor(schedule, progress_at(step, num_steps)) for step in range(1, num_steps + 1)]


def area(schedule):
    """Of the learning rate over the run, in closed form."""
    warmup, final = schedule.warmup_fraction, schedule.final_fraction
    decay = {"constant": 0.0, "wsd": schedule.decay_fraction}.get(schedule.kind, 1.0 - warmup)
    return warmup / 2 + (1 - warmup - decay) + decay * (1 + final) / 2


def test_progress_is_taken_at_the_middle_of_each_step():
    assert [progress_at(step, 2) for step in (1, 2)] == [0.25, 0.75]
    assert progress_at(1, 1) == 0.5
    middle = [progress_at(step, 7) for step in range(1, 8)]
    assert all(0 < p < 1 for p in middle) and sum(middle) / 7 == pytest.approx(0.5)


@settings(deadline=None)
@given(schedules())
def test_the_area_is_that_of_the_drawing(schedule):
    assert sum(factors(schedule)) / NUM_STEPS == pytest.approx(area(schedule), abs=2 / NUM_STEPS)


@settings(deadline=None)
@given(schedules())
def test_it_rises_to_the_peak_and_then_never_rises(schedule):
    curve = factors(schedule, 200)
    warm = [p for step, p in enumerate(curve, 1) if progress_at(step, 200) < schedule.warmup_fraction]
    rest = curve[len(warm) :]
    assert warm == sorted(warm) and rest == sorted(rest, reverse=True)
    assert all(0 < factor <= 1 for factor in warm)
    assert all(schedule.final_fraction - 1e-12 <= factor <= 1 for factor in rest)


@settings(deadline=None)
@given(schedules(), st.floats(0, 1))
def test_every_place_has_a_finite_fraction_of_the_peak(schedule, progress):
    assert 0.0 <= lr_factor(schedule, progress) <= 1.0


@settings(deadline=None)
@given(st.floats(0, 0.99), st.floats(0, 1))
def test_decaying_schedules_end_at_the_final_fraction(warmup, final):
    for kind in ("linear", "cosine"):
        assert lr_factor(Schedule(kind=kind, warmup_fraction=warmup, final_fraction=final), 1.0) == pytest.approx(final)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_wsd_is_linear_where_nothing_is_stable_and_constant_where_nothing_decays(warmup, progress):
    linear = Schedule(kind="linear", warmup_fraction=warmup, final_fraction=0.1)
    whole = Schedule(kind="wsd", warmup_fraction=warmup, decay_fraction=1 - warmup, final_fraction=0.1)
    assert lr_factor(whole, progress) == pytest.approx(lr_factor(linear, progress), abs=1e-6)
    none = Schedule(kind="wsd", warmup_fraction=warmup, decay_fraction=0.0)
    assert lr_factor(none, progress) == lr_factor(Schedule(kind="constant", warmup_fraction=warmup), progress)


@pytest.mark.parametrize("kind", ("linear", "cosine", "wsd"))
def test_a_final_fraction_of_one_never_decays(kind):
    assert set(factors(Schedule(kind=kind, warmup_fraction=0.0, final_fraction=1.0), 50)) == {1.0}


def test_values_of_each_kind():
    at = dict.fromkeys(KINDS)
    for kind in KINDS:
        schedule = Schedule(kind=kind, warmup_fraction=0.2, decay_fraction=0.4, final_fraction=0.1)
        at[kind] = [round(lr_factor(schedule, p), 4) for p in (0.05, 0.2, 0.6, 0.8, 1.0)]
    assert at == {
        "constant": [0.25, 1.0, 1.0, 1.0, 1.0],
        "linear": [0.25, 1.0, 0.55, 0.325, 0.1],
        "cosine": [0.25, 1.0, 0.55, round(0.1 + 0.45 * (1 + math.cos(0.75 * math.pi)), 4), 0.1],
        "wsd": [0.25, 1.0, 1.0, 0.55, 0.1],
    }


def test_a_run_of_warmup_only_and_a_run_of_one_step():
    assert factors(Schedule(warmup_fraction=1.0), 4) == [0.125, 0.375, 0.625, 0.875]
    assert lr_factor(Schedule(warmup_fraction=1.0), 1.0) == 1.0
    assert factors(Schedule(warmup_fraction=0.0), 1) == [0.5]
