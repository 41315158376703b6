"""Weights in half precision: rounded to the nearest, without bias, or from a float32 master copy."""

import copy
import io
import pickle

import pytest
import torch
from stepping import (
    batch_noise,
    bits,
    decaying,
    declared_dtype,
    each,
    each_decay,
    each_of_torch,
    fill_gradients,
    has,
    in_float64,
    state_bits,
    steps,
    weights,
)
from torch import nn

import muonlab

HALF = [torch.bfloat16, torch.float16]
ULP = 2.0**-7  # of bfloat16 between 1 and 2


def drifted(rounding: str, count: int = 4096, num_steps: int = 64, seed: int = 0) -> torch.Tensor:
    """How far weights in [1.25, 1.75) have moved, in spacings, by steps of a sixteenth on average."""
    start = (1.25 + 0.5 * torch.rand(count, generator=torch.Generator().manual_seed(seed))).bfloat16()
    w = nn.Parameter(start.clone())
    optimizer = muonlab.SGD([w], lr=ULP / 16, rounding=rounding)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(num_steps):
        w.grad = (0.5 + torch.rand(count, generator=generator)).bfloat16()
        optimizer.step()
    return (w.detach().double() - start.double()) / ULP


def test_stochastic_rounding_is_unbiased_where_the_nearest_stands_still() -> None:
    assert not drifted("nearest").any()
    moved = drifted("stochastic")
    deviation = (64 * (1 / 16) * (15 / 16)) ** 0.5  # of 64 independent draws
    assert moved.mean().item() == pytest.approx(-4.0, abs=4 * deviation / 4096**0.5)
    assert 0.8 * deviation < moved.std().item() < 1.2 * deviation


@each
def test_stochastic_rounding_repeats_itself_in_any_order_and_draws_from_no_generator(cls, arguments) -> None:
    def run(order: slice) -> list[bytes]:
        params = weights(3, dtype=torch.bfloat16)
        precise = {"polar": "exact"} if has(cls, "polar") else {}
        optimizer = cls(params[order], **arguments, **precise, rounding="stochastic")
        for seed in range(4):
            for p, s in zip(params, (0, 1, 2), strict=True):
                fill_gradients([p], 10 * seed + s)
            optimizer.step()
        return bits(params)

    before = torch.get_rng_state()
    first = run(slice(None))
    assert first == run(slice(None)) == run(slice(None, None, -1))
    assert torch.equal(before, torch.get_rng_state())


@each
def test_stochastic_rounding_draws_anew_at_each_step(cls, arguments) -> None:
    """Else a weight that is rounded up once would always be."""
    outcomes = set()
    for skip in range(6):
        w = nn.Parameter(torch.full((8, 8), 1.0, dtype=torch.bfloat16))
        optimizer = cls([w], **{**arguments, "lr": 0.0}, **decaying(cls, 0.0), rounding="stochastic")
        for _ in range(skip):
            w.grad = torch.eye(8, dtype=torch.bfloat16)
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 1e-3
        w.grad = torch.eye(8, dtype=torch.bfloat16)
        optimizer.step()
        outcomes.add(bits([w])[0])
    assert len(outcomes) > 1


@each
@each_decay
@pytest.mark.parametrize("dtype", HALF)
def test_a_master_copy_is_a_float32_run_that_is_rounded_to_be_seen(cls, arguments, decay, dtype) -> None:
    params = weights(3, dtype=dtype)
    wide = [nn.Parameter(p.detach().float()) for p in params]
    settings = {**in_float64(cls, arguments), **decaying(cls, 0.1), "decay": decay}
    optimizer, reference = cls(params, **settings, rounding="master"), cls(wide, **settings)
    for seed in range(6):
        fill_gradients(params, seed)
        for p, q in zip(params, wide, strict=True):
            q.grad = p.grad.float()
        optimizer.step()
        reference.step()
        for p, q in zip(params, wide, strict=True):
            assert torch.equal(p.detach(), optimizer.state[p]["master"].to(dtype))
            torch.testing.assert_close(optimizer.state[p]["master"], q.detach(), atol=1e-6, rtol=0)
            for name, value in reference.state[q].items():
                torch.testing.assert_close(optimizer.state[p][name], value, atol=1e-6, rtol=1e-5)


def test_a_master_copy_moves_by_less_than_a_spacing() -> None:
    assert not drifted("nearest").any()
    assert (drifted("master") + 4.0).abs().max() < 1.5  # the gradients' own scatter, and half a spacing


@each
@pytest.mark.parametrize("rounding", ["stochastic", "master"])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict", "weights_only"])
def test_state_stays_float32_through_every_copy_and_continues_bit_for_bit(cls, arguments, rounding, way) -> None:
    """torch's load_state_dict casts state to the dtype of the parameter; what that loses shows in the bits."""
    params = weights(2, dtype=torch.bfloat16)
    optimizer = cls(params, **arguments, rounding=rounding)
    steps(optimizer, params, range(3))
    if way in ("deepcopy", "pickle"):
        twin = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        twins = twin.param_groups[0]["params"]
    else:
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        twin, state = cls(twins, **arguments, rounding=rounding), optimizer.state_dict()
        if way == "weights_only":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        twin.load_state_dict(state)
    assert state_bits(twin) == state_bits(optimizer)
    for state in twin.state.values():
        assert {value.dtype for value in state.values()} == {torch.float32}
        assert ("master" in state) is (rounding == "master")
    for seed in (5, 6):
        steps(optimizer, params, [seed])
        steps(twin, twins, [seed])
    assert bits(params) == bits(twins) and state_bits(twin) == state_bits(optimizer)


@each_of_torch
@pytest.mark.parametrize("rounding", ["stochastic", "master"])
def test_a_checkpoint_of_torch_is_widened(cls, arguments, rounding) -> None:
    params, twins = weights(2, dtype=torch.bfloat16), weights(2, dtype=torch.bfloat16)
    theirs = getattr(torch.optim, cls.__name__)(twins, **arguments)
    steps(theirs, twins, range(2))
    optimizer = cls(params, **arguments, rounding=rounding)
    optimizer.load_state_dict(theirs.state_dict())
    for p, q in zip(params, twins, strict=True):
        for name, value in theirs.state[q].items():
            if value is not None and name != "step":
                assert optimizer.state[p][name].dtype == torch.float32
                assert torch.equal(optimizer.state[p][name], value.float())
    steps(optimizer, params, [4])
    assert all(value.dtype == torch.float32 for state in optimizer.state.values() for value in state.values())


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rounding", ["stochastic", "master"])
def test_full_precision_has_nothing_to_round(cls, arguments, dtype, rounding) -> None:
    params, twins = weights(2, dtype=dtype), weights(2, dtype=dtype)
    rounded, plain = cls(params, **arguments, rounding=rounding), cls(twins, **arguments)
    steps(rounded, params, range(3))
    steps(plain, twins, range(3))
    assert bits(params) == bits(twins) and state_bits(rounded) == state_bits(plain)


@each
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
def test_mixed_dtypes_each_keep_theirs(cls, arguments, rounding) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.bfloat16]
    params = [weights(1, dtype=dtype, seed=seed)[0] for seed, dtype in enumerate(dtypes)]
    alone = [nn.Parameter(p.detach().clone()) for p in params]
    together = cls(params, **arguments, rounding=rounding)
    apart = [cls([p], **arguments, rounding=rounding) for p in alone]
    for seed in range(3):
        fill_gradients(params, seed)
        for p, q, optimizer in zip(params, alone, apart, strict=True):
            q.grad = p.grad.clone()
            optimizer.step()
        together.step()
    for p, q, dtype in zip(params, alone, dtypes, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p, q, atol=10 * batch_noise(cls), rtol=0)


@each
def test_half_precision_that_no_bfloat16_holds_is_refused(cls, arguments) -> None:
    half = weights(1, dtype=torch.float16)
    for make in (
        lambda: cls(half, rounding="stochastic"),
        lambda: cls([{"params": half, "rounding": "stochastic"}]),
        lambda: cls(weights(1)).add_param_group({"params": half, "rounding": "stochastic"}),
    ):
        with pytest.raises(ValueError, match="bfloat16"):
            make()
    for bad in ("up", None, True):
        with pytest.raises(ValueError, match="rounding"):
            cls(weights(1), rounding=bad)


@each
@pytest.mark.parametrize("rounding", ["stochastic", "master"])
def test_values_that_bfloat16_holds_are_left_alone(cls, arguments, rounding) -> None:
    params = weights(2, dtype=torch.bfloat16)
    optimizer = cls(params, **arguments, **decaying(cls, 0.0), rounding=rounding)
    before = bits(params)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert bits(params) == before


@each
def test_without_rounding_state_has_the_dtypes_that_are_declared_also_after_loading(cls, arguments) -> None:
    params, twins = weights(2, dtype=torch.bfloat16), weights(2, dtype=torch.bfloat16)
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    steps(optimizer, params, range(3))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, twins, strict=True):
        for name, value in optimizer.state[p].items():
            assert value.dtype == other.state[q][name].dtype == declared_dtype(cls, name, p)
            assert torch.equal(value, other.state[q][name])


@each
def test_a_master_copy_yields_to_weights_that_somebody_else_has_changed(cls, arguments) -> None:
    """A checkpoint of the model alone, an average swapped in: the next step starts from what is there."""
    params = weights(2, dtype=torch.bfloat16)
    changed = [torch.full_like(p, float(p.detach().square().mean().sqrt())) for p in params]  # of the same norm
    optimizer = cls(params, **{**arguments, "lr": 1e-4}, **decaying(cls, 0.0), rounding="master")
    steps(optimizer, params, range(2))
    with torch.no_grad():
        for p, value in zip(params, changed, strict=True):
            p.copy_(value)
    steps(optimizer, params, [2])
    for p, value in zip(params, changed, strict=True):
        torch.testing.assert_close(p.detach(), value, atol=0.02, rtol=0)
