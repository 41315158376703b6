"""Saving, loading and copying: everything continues bit for bit, and bad state is refused whole."""

import copy
import io
import math
import pickle

import pytest
import torch
from stepping import (
    CLASSES,
    bits,
    declared_dtype,
    each,
    fill_gradients,
    in_float64,
    small_model,
    state_bits,
    steps,
    twins_of,
    weights,
)
from torch import nn

import muonlab


@each
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict", "weights_only"])
def test_copies_continue_identically(cls, arguments, way) -> None:
    model = small_model()
    optimizer = cls(model, **arguments)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    steps(optimizer, params, range(3))
    if way in ("deepcopy", "pickle"):
        twin = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        twins = [p for group in twin.param_groups for p in group["params"]]
        assert twin.explain() == optimizer.explain() and twin.defaults.keys() == optimizer.defaults.keys()
    else:
        copied = copy.deepcopy(model)
        twin = cls(copied, **arguments)
        twins = [p for group in twin.param_groups for p in group["params"]]
        state = optimizer.state_dict()
        if way == "weights_only":
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
        twin.load_state_dict(state_dict=state)
    for seed in (5, 6):
        steps(optimizer, params, [seed])
        steps(twin, twins, [seed])
    assert bits(params) == bits(twins)


@each
def test_loading_fills_missing_keys_and_accepts_a_plain_step(cls, arguments) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments)
    steps(optimizer, params, range(2))
    state = optimizer.state_dict()
    for key in ("maximize", "foreach", "fused", "algorithm", "num_skipped", "weight_decay"):
        state["param_groups"][0].pop(key)
    for value in state["state"].values():
        if "step" in value:
            value["step"] = value["step"].item()
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = cls(twins, **arguments)
    other.load_state_dict(state)
    steps(optimizer, params, [4])
    steps(other, twins, [4])
    assert bits(params) == bits(twins)


@each
def test_bad_state_dicts_are_refused_and_the_old_state_survives(cls, arguments) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments)
    steps(optimizer, params, range(2))
    before = copy.deepcopy(optimizer.state_dict())

    def corrupt(change):
        state = copy.deepcopy(before)
        change(state)
        return state

    name = next(key for key in before["state"][0] if key != "step")
    bad = [
        corrupt(lambda s: s["param_groups"].append(s["param_groups"][0])),
        corrupt(lambda s: s["param_groups"][0]["params"].append(7)),
        corrupt(lambda s: s["state"][0].update({name: torch.zeros(4, 6)})),
        corrupt(lambda s: s["state"][0].update({"exp_inf": torch.zeros(6, 4)})),
        corrupt(lambda s: s["state"][0].update({name: "x"})),
        corrupt(lambda s: s["param_groups"][0].update(lr=math.nan)),
        corrupt(lambda s: s["param_groups"][0].update(algorithm="lyon")),
    ]
    if cls.rule.step_count == "required":
        bad.append(corrupt(lambda s: s["state"][0].pop("step")))
    if len(cls.rule.state) > 1:
        bad += [corrupt(lambda s, key=key: s["state"][0].pop(key)) for key in cls.rule(**arguments).active_state()]
    for state in bad:
        with pytest.raises(ValueError):
            optimizer.load_state_dict(state)
        after = optimizer.state_dict()
        assert after["param_groups"] == before["param_groups"]
        torch.testing.assert_close(after["state"], before["state"], atol=0, rtol=0)


def test_a_loaded_state_is_not_shared_with_its_source() -> None:
    params, twins = weights(1), weights(1)
    a, b = muonlab.AdamW(params), muonlab.AdamW(twins)
    steps(a, params, [0])
    b.load_state_dict(a.state_dict())
    steps(b, twins, [1])
    assert a.state[params[0]]["step"] == 1 and b.state[twins[0]]["step"] == 2


@each
def test_a_state_of_a_capturable_torch_optimizer_with_tensor_lr_loads(cls, arguments) -> None:
    """Its step counters and its lr are tensors; where they lived says nothing about what they mean."""
    params, twins = weights(2), weights(2)
    optimizer = cls(params, **arguments)
    steps(optimizer, params, range(2))
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group.update(lr=torch.tensor(group["lr"], dtype=torch.float64), capturable=True, foreach=True)
    other = cls(twins, **arguments)
    with torch.no_grad():
        for p, q in zip(params, twins, strict=True):
            q.copy_(p)
    other.load_state_dict(saved)
    steps(optimizer, params, [3])
    steps(other, twins, [3])
    assert bits(params) == bits(twins)


@each
def test_state_that_does_not_fit_is_refused_whole(cls, arguments) -> None:
    """Item by item: shapes swapped between two parameters, another optimizer's state, one tensor missing."""
    params = [*weights(1, (6, 4)), *weights(1, (4, 6))]
    optimizer = cls(params, **arguments)
    steps(optimizer, params, range(2))
    before, groups = state_bits(optimizer), repr(optimizer.param_groups)
    swapped = copy.deepcopy(optimizer.state_dict())
    swapped["state"][0], swapped["state"][1] = swapped["state"][1], swapped["state"][0]
    foreign = []
    for other, their_arguments in CLASSES.values():
        elsewhere = twins_of(params)
        stranger = other(elsewhere, **their_arguments)
        steps(stranger, elsewhere, [0])
        foreign += [stranger.state_dict()] if other is not cls else []
    for state in (swapped, *foreign):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(state)
        assert state_bits(optimizer) == before and repr(optimizer.param_groups) == groups


@each
def test_nothing_hides_outside_what_a_state_dict_holds(cls, arguments) -> None:
    """Every tensor that an optimizer owns is in its state or is a parameter."""
    model = small_model()
    optimizer = cls(model, **arguments)
    params = list(model.parameters())
    steps(optimizer, params, range(2))
    hidden = [
        value
        for name, value in vars(optimizer).items()
        if name not in ("state", "param_groups") and isinstance(value, torch.Tensor | list | dict)
        for value in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value])
        if isinstance(value, torch.Tensor)
    ]
    assert not hidden
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    assert sum(len(state) for state in saved["state"].values()) == sum(map(len, optimizer.state.values()))


@each
@pytest.mark.parametrize("moment", ["before any step", "after skipping one parameter"])
def test_an_incomplete_state_loads_and_is_completed(cls, arguments, moment) -> None:
    params, twins = weights(2), weights(2)
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    if moment != "before any step":
        fill_gradients(params, 0)
        params[1].grad = None
        optimizer.step()
    other.load_state_dict(optimizer.state_dict())
    with torch.no_grad():
        for p, q in zip(params, twins, strict=True):
            q.copy_(p)
    steps(optimizer, params, [1])
    steps(other, twins, [1])
    assert bits(params) == bits(twins) and state_bits(optimizer) == state_bits(other)


@each
def test_loading_into_another_dtype_casts_as_torch_does(cls, arguments) -> None:
    params, twins = weights(2, dtype=torch.float64), weights(2, dtype=torch.bfloat16)
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    steps(optimizer, params, range(2))
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, twins, strict=True):
        for name, value in other.state[q].items():
            assert value.dtype == declared_dtype(cls, name, q)
            assert torch.equal(value, optimizer.state[p][name].to(value.dtype))
    steps(other, twins, [3])


@each
def test_state_follows_a_parameter_that_changes_its_memory_format(cls, arguments) -> None:
    """model.to(memory_format=channels_last) in mid-run: kernels that walk memory in order must not mix elements."""
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(4, 3, 2, 2, generator=generator))
    twin = nn.Parameter(w.detach().clone())
    settings = {**in_float64(cls, arguments), "roles": {"w": "conv"}}
    optimizer, other = (cls([("w", p)], **settings) for p in (w, twin))
    steps(optimizer, [w], [0])
    steps(other, [twin], [0])
    w.data = w.data.to(memory_format=torch.channels_last)
    for seed in (1, 2):
        fill_gradients([w], seed)
        fill_gradients([twin], seed)
        w.grad = w.grad.to(memory_format=torch.channels_last)
        optimizer.step()
        other.step()
    torch.testing.assert_close(w.detach().contiguous(), twin.detach(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name,ours", [("AdamW", "adamw"), ("NAdam", "nadamw"), ("RAdam", None)])
def test_a_state_of_another_adam_of_torchs_is_refused(name: str, ours: str | None) -> None:
    """They have the same state, and no name: the keys of their groups tell them apart."""
    params = weights(1)
    theirs = getattr(torch.optim, name)(params)
    steps(theirs, params, [0])
    for cls in (muonlab.AdamW, muonlab.NAdamW, muonlab.CautiousAdamW, muonlab.ADOPT):
        optimizer = cls(params)
        if cls.rule.name == ours:
            optimizer.load_state_dict(theirs.state_dict())
            continue
        with pytest.raises(ValueError):
            optimizer.load_state_dict(theirs.state_dict())


def test_a_state_of_torchs_adam_brings_its_kind_of_decay() -> None:
    params = weights(1)
    theirs = torch.optim.Adam(params, weight_decay=0.1)
    steps(theirs, params, [0])
    with pytest.raises(ValueError, match='decay="coupled"'):
        muonlab.AdamW(params).load_state_dict(theirs.state_dict())
    optimizer = muonlab.AdamW(params, decay="coupled")
    optimizer.load_state_dict(theirs.state_dict())
    again = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(again)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
