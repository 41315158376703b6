"""What a step does and leaves alone: gradients of every kind, shapes, dtypes, ages."""

import pytest
import torch
from stepping import (
    CLASSES,
    IDLE_AT_FIRST,
    NAMES,
    UNDECAYED,
    batch_noise,
    bits,
    decaying,
    declared_dtype,
    each,
    each_of_matrices,
    fill_gradients,
    in_float64,
    steps,
    twins_of,
    weights,
)
from torch import nn

import muonlab
from muonlab.errors import UsageError
from muonlab.optim import update as update_module


@each
def test_exceptions_are_as_declared(cls, arguments) -> None:
    """Of an optimizer that is listed as one, the property is indeed absent; all others have it."""
    name, params = NAMES[cls], weights(2)
    optimizer = cls(params, **arguments, **decaying(cls, 0.0))
    before = bits(params)
    steps(optimizer, params, [0])
    assert (bits(params) == before) is (name in IDLE_AT_FIRST)
    steps(optimizer, params, [1])
    assert all(a != b for a, b in zip(bits(params), before, strict=True))
    try:
        cls(weights(1), weight_decay=0.1)
    except ValueError as error:
        assert name in UNDECAYED and "weight_decay must be 0" in str(error)
    else:
        assert name not in UNDECAYED
    assert {*IDLE_AT_FIRST, *UNDECAYED} <= set(CLASSES)


@each
def test_missing_gradients_leave_everything_alone(cls, arguments) -> None:
    params = weights(3)
    optimizer = cls(params, **arguments, **decaying(cls, 0.5))
    before = bits(params)
    optimizer.step()
    assert bits(params) == before and not optimizer.state
    fill_gradients(params, 0)
    params[1].grad = None
    optimizer.step()
    assert bits(params)[1] == before[1] and params[1] not in optimizer.state
    assert bits(params)[0] != before[0]
    params[1].requires_grad_(False)
    optimizer.zero_grad()
    optimizer.step()


@each
def test_zero_gradients_without_decay_move_nothing(cls, arguments) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        params = weights(2, dtype=dtype)
        optimizer = cls(params, **arguments, **decaying(cls, 0.0))
        before = bits(params)
        for p in params:
            p.grad = torch.zeros_like(p)
        for _ in range(3):
            optimizer.step()
        assert bits(params) == before


@each
@pytest.mark.parametrize("magnitude", [1e-20, 1e18])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 5), (5, 3)])
def test_extreme_gradients_and_shapes(cls, arguments, shape, magnitude) -> None:
    params = weights(2, shape)
    optimizer = cls(params, **arguments)
    fill_gradients(params, 0)
    for p in params:
        p.grad *= magnitude
    for _ in range(3):
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


@each
def test_gradients_are_never_written(cls, arguments) -> None:
    params = weights(3)
    optimizer = cls(params, **arguments, **decaying(cls, 0.5), maximize=True)
    for seed in range(3):
        fill_gradients(params, seed)
        before, owners = bits(p.grad for p in params), [p.grad for p in params]
        optimizer.step()
        assert bits(p.grad for p in params) == before
        assert all(p.grad is owner for p, owner in zip(params, owners, strict=True))


@each
@pytest.mark.parametrize("kind", ["sparse", "complex", "meta", "int"])
def test_unsupported_gradients_raise_before_anything_changes(cls, arguments, kind) -> None:
    good = weights(1)[0]
    bad = nn.Parameter(torch.ones(3, 3, dtype=torch.complex64 if kind == "complex" else None))
    if kind == "meta":
        bad = nn.Parameter(torch.ones(3, 3, device="meta"))
    if kind == "int":
        bad = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    optimizer = cls([good, bad], **arguments)
    fill_gradients([good], 0)
    bad.grad = torch.ones_like(bad).to_sparse() if kind == "sparse" else torch.ones_like(bad)
    before = bits([good])
    with pytest.raises(RuntimeError, match=kind):
        optimizer.step()
    assert bits([good]) == before and not optimizer.state


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(cls, arguments, dtype) -> None:
    params = weights(3, dtype=dtype)
    optimizer = cls(params, **arguments)
    steps(optimizer, params, range(3))
    for p in params:
        assert p.dtype == dtype and p.isfinite().all()
        tensors = {name: value for name, value in optimizer.state[p].items() if name != "step"}
        for name, value in tensors.items():
            wanted = cls.rule.state[name].shape_for(tuple(p.shape), tuple(p.shape))
            assert value.dtype == declared_dtype(cls, name, p) and value.shape == wanted and value.isfinite().all()
        assert tensors and not {t.data_ptr() for t in tensors.values()} & {p.data_ptr(), p.grad.data_ptr()}


@each
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_tensor_lr(cls, arguments, shape) -> None:
    params, twins = weights(2), weights(2)
    lr = torch.full(shape, 0.25)
    optimizer, other = cls(params, lr=lr), cls(twins, lr=0.25)
    steps(optimizer, params, [0])
    steps(other, twins, [0])
    assert bits(params) == bits(twins)
    lr.fill_(0.125)
    other.param_groups[0]["lr"] = 0.125
    steps(optimizer, params, [1])
    steps(other, twins, [1])
    assert bits(params) == bits(twins)


@each
def test_closure(cls, arguments) -> None:
    params, calls = weights(1), []
    optimizer = cls(params, **arguments)

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True] and loss.requires_grad and optimizer.step() is None


@each
def test_descends_and_maximize_ascends(cls, arguments) -> None:
    goals = [p.detach() for p in weights(2, seed=1)]
    for maximize in (False, True):
        params = weights(2)
        optimizer = cls(params, **arguments, **decaying(cls, 0.0), maximize=maximize)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = sum((p - goal).square().sum() for p, goal in zip(params, goals, strict=True))
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        assert (losses[-1] > losses[0]) is maximize


@each
def test_order_does_not_matter_and_the_global_generator_is_untouched(cls, arguments) -> None:
    params, twins = weights(3), weights(3)
    before = torch.get_rng_state()
    optimizer, other = cls(params, **arguments), cls(twins[::-1], **arguments)
    steps(optimizer, params, range(3))
    steps(other, twins, range(3))
    for a, b in zip(params, twins, strict=True):
        torch.testing.assert_close(a, b, atol=batch_noise(cls), rtol=0)
    assert torch.equal(before, torch.get_rng_state())


@each_of_matrices
@pytest.mark.parametrize("num_in_workspace", [0, 1, 2, 100])
def test_stacking_does_not_mix_matrices(cls, arguments, num_in_workspace: int, monkeypatch) -> None:
    """Matrices of very different scales, float64: what leaks from one to another shows. Square: see `some_basis`."""
    monkeypatch.setattr(update_module, "WORKSPACE_BYTES", num_in_workspace * update_module.COPIES * 5 * 5 * 8)
    params = weights(4, (5, 5), dtype=torch.float64) + weights(3, (4, 4), dtype=torch.float64)
    twins, settings = twins_of(params), in_float64(cls, arguments)
    together, alone = cls(params, **settings), [cls([p], **settings) for p in twins]
    for seed in range(4):
        for these in (params, twins):
            fill_gradients(these, seed)
            for i, p in enumerate(these):
                p.grad *= 10.0 ** (3 * i - 9)
        together.step()
        for optimizer in alone:
            optimizer.step()
    for a, b in zip(params, twins, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@each
def test_what_a_cache_cannot_hold_is_updated_by_rows_with_the_same_result(cls, arguments, monkeypatch) -> None:
    settings = in_float64(cls, arguments)
    params = [*weights(2, (7, 3), dtype=torch.float64), *weights(1, (5,), dtype=torch.float64)]
    twins = twins_of(params)
    optimizer, other = cls(params, **settings), cls(twins, **settings)
    for seed in range(4):
        for these, one, elements in ((params, optimizer, 8), (twins, other, 2**16)):
            monkeypatch.setattr(update_module, "CACHE_ELEMENTS", elements)
            fill_gradients(these, seed)
            one.step()
    for a, b in zip(params, twins, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_parameters_of_different_age_keep_their_own_step() -> None:
    params, twins = weights(2), weights(2)
    optimizer, other = muonlab.AdamW(params, lr=0.1), torch.optim.AdamW(twins, lr=0.1)
    for seed in range(5):
        for these in (params, twins):
            fill_gradients(these, seed)
            if seed in (0, 2):
                these[1].grad = None
        optimizer.step()
        other.step()
    for a, b in zip(params, twins, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("cls", [muonlab.MuonHyperball, muonlab.AdamHyperball])
def test_a_weight_without_a_sphere_is_named(cls) -> None:
    """The second of its group starts at zero."""
    w, zero = weights(1)[0], nn.Parameter(torch.zeros(6, 4))
    for params, name in (([("a.w", w), ("b.w", zero)], "b.w"), ([w, zero], "parameter 1 of its group")):
        optimizer = cls(params)
        fill_gradients([w, zero], 0)
        with pytest.raises(UsageError) as error:
            optimizer.step()
        assert str(error.value).startswith(f"{name} of shape (6, 4): a matrix in it starts at zero, where a sphere")
