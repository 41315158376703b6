"""What a step allocates beyond weights, gradients and state: bounded, however many parameters there are."""

import pytest
import torch
from stepping import fill_gradients, weights
from torch.profiler import ProfilerActivity, profile

import muonlab
from muonlab.optim import update as update_module

SIDE = 128
MATRIX_BYTES = 4 * SIDE * SIDE


def peak_of(function) -> int:
    """Bytes allocated at the same time at most, over what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_of_a_step(count: int, **arguments) -> int:
    params = weights(count, (SIDE, SIDE))
    optimizer = muonlab.Muon(params, **arguments)
    fill_gradients(params, 0)
    optimizer.step()  # the state is there from now on
    return peak_of(optimizer.step)


def test_the_measure_sees_what_is_allocated() -> None:
    assert MATRIX_BYTES * 3 <= peak_of(lambda: torch.ones(3, SIDE, SIDE) * 1.0) <= MATRIX_BYTES * 6 + 4096


@pytest.mark.parametrize("momentum_form", ["ema", "heavy_ball"])
@pytest.mark.parametrize("polar_dtype", ["bfloat16", "float32"])
def test_many_matrices_cost_no_more_than_the_cap(polar_dtype, momentum_form, path, monkeypatch) -> None:
    cap = 5 * update_module.COPIES * MATRIX_BYTES
    monkeypatch.setattr(update_module, "WORKSPACE_BYTES", cap)
    arguments = {"polar_dtype": polar_dtype, "momentum_form": momentum_form}
    few, many = (peak_of_a_step(count, **arguments) for count in (10, 40))
    assert many <= cap * 1.05 and many <= few * 1.05 + 4096


def test_without_the_cap_it_would_grow() -> None:
    few, many = (peak_of_a_step(count, polar_dtype="float32") for count in (5, 40))
    assert many > 5 * few


def test_one_matrix_above_the_cap_is_still_updated(monkeypatch) -> None:
    monkeypatch.setattr(update_module, "WORKSPACE_BYTES", 1)
    params, twins = weights(3), weights(3)
    fill_gradients(params, 0)
    fill_gradients(twins, 0)
    muonlab.Muon(params, polar_dtype="float64").step()
    monkeypatch.undo()
    muonlab.Muon(twins, polar_dtype="float64").step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in twins], atol=1e-6, rtol=0)


def test_elements_cost_no_copy_of_the_model_on_the_fused_path() -> None:
    params = weights(20, (SIDE, SIDE))
    optimizer = muonlab.AdamW(params)
    fill_gradients(params, 0)
    optimizer.step()
    assert peak_of(optimizer.step) < MATRIX_BYTES
