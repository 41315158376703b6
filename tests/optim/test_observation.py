"""What a rule observes beside the gradient: asked for, taken in, and missed where nobody gives it."""

import copy
import math
import warnings

import pytest
import torch
from stepping import NAMES, bits, each, fill_gradients, state_bits, steps, weights

import muonlab

OBSERVING = ("sophia",)


def warned(optimizer) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.step()
    return [str(warning.message) for warning in found]


@each
def test_a_first_step_without_an_observation_is_told_once(cls, arguments, path) -> None:
    params = weights(3)
    optimizer = cls([{"params": params[:2]}, {"params": params[2:]}], **arguments)
    fill_gradients(params, 0)
    found = warned(optimizer)
    assert len(found) == (NAMES[cls] in OBSERVING) and all("call `observe`" in message for message in found)
    assert warned(optimizer) == []
    twins = weights(3)
    other = cls([{"params": twins[:2]}, {"params": twins[2:]}], **arguments)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    fill_gradients(twins, 0)
    assert warned(other) == []


@each
def test_only_what_observes_asks_for_it_and_is_moved_by_it(cls, arguments) -> None:
    params, twins = weights(2), weights(2)
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    asked = []
    for seed in range(5):
        asked.append(optimizer.wants_observation())
        for one, these in ((optimizer, params), (other, twins)):
            fill_gradients(these, 10 + seed)
            if one is optimizer:
                before = bits(these)
                one.observe(num_samples=100.0)
                assert bits(these) == before
            fill_gradients(these, seed)
            one.step()
    assert asked == [NAMES[cls] in OBSERVING and seed % 2 == 0 for seed in range(5)]
    assert (bits(params) != bits(twins)) is (NAMES[cls] in OBSERVING)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_observation_that_is_not_finite_is_dropped(bad: float) -> None:
    params = weights(2)
    optimizer = muonlab.Sophia(params)
    steps(optimizer, params, [0])
    before = state_bits(optimizer)
    fill_gradients(params, 1)
    params[1].grad[0, 0] = bad
    optimizer.observe(num_samples=4.0)
    assert state_bits(optimizer) == before and optimizer.num_skipped == 0


def test_curvature_too_large_for_a_number_stops_what_it_is_of_alone() -> None:
    (w,) = weights(1)
    before = w.detach().clone()
    optimizer = muonlab.Sophia([w], lr=0.1, weight_decay=0.0)
    for seed in range(4):
        fill_gradients([w], seed)
        w.grad[0, 0] = 1e30
        optimizer.observe(num_samples=4.0)
        fill_gradients([w], seed)
        optimizer.step()
    assert w.isfinite().all() and w[0, 0] == before[0, 0] and (w != before).any(dim=1).all()


def test_curvature_is_the_square_of_the_sampled_gradient_times_the_number_of_samples() -> None:
    (w,) = weights(1)
    optimizer = muonlab.Sophia([w], betas=(0.9, 0.75))
    w.grad = torch.full_like(w, 3.0)
    optimizer.observe(num_samples=8.0)
    torch.testing.assert_close(optimizer.state[w]["hessian"], torch.full_like(w, 0.25 * 8 * 9))


@pytest.mark.parametrize("count", [0, -1.0, float("nan"), float("inf"), "4", True, None])
def test_the_number_of_samples_is_a_number_above_zero(count) -> None:
    (w,) = params = weights(1)
    fill_gradients(params, 1)
    optimizer = muonlab.Sophia(params)
    with pytest.raises(ValueError, match="num_samples must be a number above 0"):
        optimizer.observe(count)
    assert not optimizer.state.get(w)


def test_an_observation_wants_gradients() -> None:
    with pytest.raises(RuntimeError, match="there are no gradients to observe"):
        muonlab.Sophia(weights(1)).observe(4)
    muonlab.AdamW(weights(1)).observe(4)  # which observes nothing
