"""The properties of torch's own optimizer suite, on its own inputs.

The inputs come from `torch.testing._internal.common_optimizers`, which torch installs; the tests that use them there
are not installed, and are written anew here. Optimizers that torch has not are given inputs made of what they declare.
"""

import copy
import itertools
import re
import warnings
from dataclasses import dataclass
from types import ModuleType
from unittest import mock

import pytest
import torch
from stepping import (
    CLASSES,
    OF_TORCH,
    batch_noise,
    bits,
    decaying,
    each_with_decay,
    fill_gradients,
    has,
    small_model,
    state_bits,
    steps,
    weights,
)
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import muonlab
from muonlab.optim.rule import declarations

NAMES = tuple(cls.__name__ for cls, _ in CLASSES.values())
OF_TORCHS = tuple(cls.__name__ for cls, _ in OF_TORCH.values())
each_class = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def suite():
    """OptimizerInfo by name. Importing it must not forbid other tests to set torch.backends flags."""
    with mock.patch("torch.backends.disable_global_flags"):
        module = pytest.importorskip(
            "torch.testing._internal.common_optimizers", reason="needs expecttest", exc_type=ImportError
        )
    found = {info.optim_cls.__name__: info for info in module.optim_db}
    return {name: found[name] if name in OF_TORCHS else Declared(getattr(muonlab, name), module) for name in NAMES}


@dataclass
class Declared:
    """What the suite would say of an optimizer that it does not know."""

    cls: type
    module: ModuleType
    supported_impls = ()

    def optim_inputs_func(self, device: str) -> list:
        decay = decaying(self.cls, 0.01)
        found = [{}, {"lr": 0.01}, {"lr": torch.tensor(0.001)}, decay, {**decay, "decay": "coupled"}]
        for name, declared in declarations(self.cls.rule).items():
            grids = declared.grid if declared.parts else (declared.grid,)
            if name not in ("lr", "weight_decay") and all(grids):
                lowest = tuple(grid[0] for grid in grids)
                found.append({name: lowest if declared.parts else lowest[0]})
        return [self.module.OptimizerInput(params=None, kwargs=kwargs) for kwargs in found]

    def optim_error_inputs_func(self, device: str, dtype: torch.dtype) -> list:
        bad = [
            self.module.ErrorOptimizerInput(
                self.module.OptimizerInput(params=None, kwargs={name: declared.low - 1}),
                error_type=ValueError,
                error_regex="Invalid",
            )
            for name, declared in declarations(self.cls.rule).items()
            if declared.low is not None and not declared.parts
        ]
        return [*self.module.get_error_inputs_for_all_optims(device, dtype), *bad]


def inputs_of(suite, name: str) -> list[dict]:
    """Every configuration of the suite, also with the implementation flags on; ours has no `differentiable`."""
    info = suite[name]
    refused = ("amsgrad", "capturable", "differentiable")
    plain = [dict(item.kwargs) for item in info.optim_inputs_func(device="cpu")]
    found = [
        {**kwargs, flag: value}
        for kwargs in plain
        for flag in info.supported_impls or ("maximize",)
        if flag not in refused
        for value in (False, True)
    ]
    found = [kwargs for kwargs in found if not any(kwargs.get(key) for key in refused)]
    return [kwargs for kwargs in found if "betas" not in kwargs or not isinstance(kwargs["betas"][0], torch.Tensor)]


def make(name: str, params, kwargs: dict) -> torch.optim.Optimizer:
    return getattr(muonlab, name)(params, **copy.deepcopy(kwargs))


# construction -----------------------------------------------------------------------------------------------------


@each_class
def test_error_inputs_raise_what_torch_raises(suite, name: str) -> None:
    cases = suite[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
    assert len(cases) > 5
    for case in cases:
        given, cls = case.optimizer_error_input, getattr(muonlab, name)
        params = given.params if given.params is not None else weights(1)
        if case.error_on.name == "STEP_ERROR":
            optimizer = cls(params, **given.kwargs)
            with pytest.raises(case.error_type, match=case.error_regex):
                optimizer.step()
        elif issubclass(case.error_type, Warning):
            with pytest.warns(case.error_type, match=case.error_regex):
                cls(params, **given.kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                cls(params, **given.kwargs)


@each_class
def test_repr_names_the_class_and_every_group(suite, name: str) -> None:
    for kwargs in inputs_of(suite, name):
        optimizer = make(name, [{"params": weights(1)}, {"params": weights(1, seed=1)}], kwargs)
        text = repr(optimizer)
        assert text.startswith(f"{name} (") and "Parameter Group 1" in text
        for key in optimizer.param_groups[0]:
            assert key == "params" or f"    {key}: " in text


# steps ------------------------------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize(
    "layout,schedule",
    [("contiguous", None), ("strided", lambda o: StepLR(o, 10, 0.9)), ("contiguous", ReduceLROnPlateau)],
    ids=["contiguous", "strided-StepLR", "contiguous-ReduceLROnPlateau"],
)
def test_goes_the_right_direction_on_every_input(suite, name: str, layout: str, schedule) -> None:
    """Upwards without decay, which may outweigh a first small step."""
    for kwargs in inputs_of(suite, name):
        kwargs |= decaying(getattr(muonlab, name), 0.0) if kwargs.get("maximize") else {}
        generator = torch.Generator().manual_seed(0)
        full = torch.randn(10, 5, 2, generator=generator)
        weight = nn.Parameter(full[..., 0] if layout == "strided" else full[..., 0].clone())
        optimizer = make(name, [weight], kwargs)
        scheduler = schedule(optimizer) if schedule else None
        x, losses = torch.randn(5, generator=generator), []

        def closure(weight=weight, optimizer=optimizer, x=x):
            optimizer.zero_grad()
            loss = weight.mv(x).square().sum()
            loss.backward()
            return loss

        for _ in range(12):
            losses.append(optimizer.step(closure).item())
            if scheduler is not None:
                scheduler.step(*([losses[-1]] if isinstance(scheduler, ReduceLROnPlateau) else []))
        assert (closure().item() < losses[0]) is not kwargs.get("maximize", False), kwargs


@each_class
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_lr_may_be_a_tensor_of_any_dimension(suite, name: str, dims: int) -> None:
    for kwargs in inputs_of(suite, name):
        if kwargs.pop("foreach", None) and name == "AdamW":  # which torch refuses, see above
            continue
        lr = float(kwargs.pop("lr", 1e-3))
        params, twins = weights(2), weights(2)
        tensor = torch.tensor(lr).reshape((1,) * dims)
        optimizer, other = getattr(muonlab, name)(params, lr=tensor, **kwargs), make(name, twins, {**kwargs, "lr": lr})
        steps(optimizer, params, range(3))
        other.param_groups[0]["lr"] = tensor.item()  # the float32 that the tensor holds
        steps(other, twins, range(3))
        assert bits(params) == bits(twins), kwargs
        assert optimizer.param_groups[0]["lr"] is tensor


@each_class
def test_foreach_and_fused_are_hints_that_change_no_bit(suite, name: str) -> None:
    """A gradient is missing at step 2, a layer frozen at steps 3 and 4, the last parameter empty."""
    for kwargs in [dict(item.kwargs) for item in suite[name].optim_inputs_func(device="cpu")]:
        if any(kwargs.get(key) for key in ("amsgrad", "capturable", "differentiable", "fused", "foreach")):
            continue
        if isinstance(kwargs.get("betas", (0,))[0], torch.Tensor):
            continue
        if isinstance(kwargs.get("lr"), torch.Tensor) and has(getattr(muonlab, name), "betas"):
            continue  # as torch's Adam, which refuses it together with foreach
        flags = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
        results = []
        for flag in flags:
            params = [*weights(3), *weights(1, (0, 3))]
            optimizer = make(name, params, {**kwargs, **flag})
            for step in range(6):
                fill_gradients(params, step)
                if step == 2:
                    params[0].grad = None
                params[1].requires_grad_(step not in (3, 4))
                if step in (3, 4):
                    params[1].grad = None
                optimizer.step()
            results.append((bits(params), state_bits(optimizer)))
        assert all(result == results[0] for result in results), kwargs


@each_class
def test_outer_lr_does_not_reach_a_group_with_its_own(name: str) -> None:
    inner, outer = weights(1), weights(1, seed=1)
    cls = getattr(muonlab, name)
    optimizer = cls([{"params": inner, "lr": 0.1}, {"params": outer}], lr=1e-28, **decaying(cls, 0.0))
    before = bits(inner), bits(outer)
    steps(optimizer, [*inner, *outer], range(3))
    assert bits(inner) != before[0] and bits(outer) == before[1]


@each_with_decay
def test_weight_decay_of_a_group_is_its_own(cls, arguments) -> None:
    decayed, free, twin = weights(1), weights(1), weights(1)
    groups = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    optimizer, alone = cls(groups, lr=0.1, weight_decay=0.5), cls(twin, lr=0.1, weight_decay=0.0)
    for these in (decayed, free, twin):
        fill_gradients(these, 0)
    optimizer.step()
    alone.step()
    torch.testing.assert_close(free[0], twin[0], atol=5 * batch_noise(cls), rtol=0)
    assert (decayed[0] - free[0]).abs().max() > 1e-3


@each_class
def test_steps_without_or_with_zero_gradients_are_no_op_on_every_input(suite, name: str) -> None:
    for kwargs in inputs_of(suite, name):
        params = weights(3)
        optimizer = make(name, params, {**kwargs, **decaying(getattr(muonlab, name), 0.0)})
        before = bits(params)
        optimizer.step()
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        params[1].grad = None
        optimizer.step()
        assert bits(params) == before, kwargs


@each_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_default_dtype_may_be_anything(name: str, dtype: torch.dtype) -> None:
    def run() -> list[bytes]:
        params = weights(2)
        optimizer = getattr(muonlab, name)(params, lr=0.1)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float32)
            optimizer.step()
        assert all(value.dtype == torch.float32 for state in optimizer.state.values() for value in state.values())
        return bits(params)

    before, expected = torch.get_default_dtype(), run()
    torch.set_default_dtype(dtype)
    try:
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float32)) for _ in range(2)]
        with mock.patch(f"{__name__}.weights", lambda count: params):
            assert run() == expected
    finally:
        torch.set_default_dtype(before)


# state ------------------------------------------------------------------------------------------------------------


@each_class
@pytest.mark.parametrize("named", [False, True])
def test_state_dict_is_deterministic_and_loading_leaves_it_alone(suite, name: str, named: bool) -> None:
    for kwargs in inputs_of(suite, name):
        params = weights(2)
        wrap = (lambda ps: [(f"w{i}", p) for i, p in enumerate(ps)]) if named else list
        optimizer = make(name, wrap(params), kwargs)
        steps(optimizer, params, range(2))
        saved = copy.deepcopy(optimizer.state_dict())
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        other = make(name, wrap(twins), kwargs)
        given = copy.deepcopy(saved)
        other.load_state_dict(given)
        for _ in range(3):
            steps(optimizer, params, [7])
            steps(other, twins, [7])
            assert bits(params) == bits(twins)
        torch.testing.assert_close(given["state"], saved["state"])
        assert repr(given["param_groups"]) == repr(saved["param_groups"])
        ours, theirs = optimizer.state_dict(), other.state_dict()
        torch.testing.assert_close(ours["state"], theirs["state"], atol=0, rtol=0)
        assert repr(ours["param_groups"]) == repr(theirs["param_groups"])
        assert ("param_names" in ours["param_groups"][0]) is named
        other.param_groups.extend(other.param_groups)  # a parameter twice has one entry
        assert ours["param_groups"][-1]["params"] == other.state_dict()["param_groups"][-1]["params"]


@each_class
def test_state_dicts_from_before_a_flag_existed_load(name: str) -> None:
    flags = ("maximize", "foreach", "fused", "differentiable", "capturable", "amsgrad", "rounding", "decay", "role")
    for flag in (*flags, "momentum_form", "num_skipped", "algorithm", "split_sizes", "polar", "nesterov"):
        params, twins = weights(2), weights(2)
        optimizer = getattr(muonlab, name)(params, lr=0.1)
        steps(optimizer, params, range(2))
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            group.pop(flag, None)
        other = getattr(muonlab, name)(twins, lr=0.7)
        with torch.no_grad():
            for p, q in zip(params, twins, strict=True):
                q.copy_(p)
        other.load_state_dict(saved)
        steps(optimizer, params, [3])
        steps(other, twins, [3])
        assert bits(params) == bits(twins) and other.param_groups[0]["lr"] == 0.1


@each_class
@pytest.mark.parametrize("saved_named,loads_named", [*itertools.product([False, True], repeat=2)])
def test_named_and_unnamed_state_dicts_load_into_each_other(name: str, saved_named: bool, loads_named: bool) -> None:
    def wrapped(ps, named, prefix):
        return [(f"{prefix}{i}", p) for i, p in enumerate(ps)] if named else ps

    params, twins = weights(2), weights(2)
    optimizer = getattr(muonlab, name)(wrapped(params, saved_named, "a"), lr=0.1)
    steps(optimizer, params, range(2))
    other = getattr(muonlab, name)(wrapped(twins, loads_named, "b"), lr=0.1)
    with torch.no_grad():
        for p, q in zip(params, twins, strict=True):
            q.copy_(p)
    other.load_state_dict(optimizer.state_dict())
    expected = ["a0", "a1"] if saved_named else ["b0", "b1"] if loads_named else None  # as torch: what was saved wins
    assert other.param_groups[0].get("param_names") == expected
    steps(optimizer, params, [3])
    steps(other, twins, [3])
    assert bits(params) == bits(twins)


@each_class
def test_deepcopy_has_every_public_attribute(name: str) -> None:
    optimizer = getattr(muonlab, name)(small_model())
    steps(optimizer, [p for group in optimizer.param_groups for p in group["params"]], [0])
    twin = copy.deepcopy(optimizer)
    assert {key for key in vars(optimizer) if key[0] != "_"} == {key for key in vars(twin) if key[0] != "_"}
    assert set(vars(twin)) >= {key for key in vars(optimizer) if key.startswith("_optimizer_")}
    assert twin.defaults == optimizer.defaults and twin.explain() == optimizer.explain()


@each_class
def test_a_step_leaves_some_state(suite, name: str) -> None:
    for kwargs in inputs_of(suite, name):
        params = weights(1)
        optimizer = make(name, params, {"momentum": 0.9, **kwargs} if name == "SGD" else kwargs)
        steps(optimizer, params, [0])
        assert optimizer.state[params[0]], kwargs


@each_class
def test_defaults_may_be_changed_after_construction(name: str) -> None:
    params = weights(1)
    optimizer = getattr(muonlab, name)(params, lr=0.1)
    optimizer.defaults["foreach"] = True
    for group in optimizer.param_groups:
        group["foreach"] = True
    steps(optimizer, params, [0])
    added = weights(1, seed=1)
    optimizer.add_param_group({"params": added})
    assert optimizer.param_groups[1]["foreach"] is True
    steps(optimizer, [*params, *added], [1])


# surroundings -------------------------------------------------------------------------------------------------------


@each_class
def test_the_profiler_sees_steps_and_zeroing_under_the_class_name(name: str) -> None:
    params = weights(1)
    optimizer = getattr(muonlab, name)(params)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        steps(optimizer, params, [0])
        optimizer.zero_grad()
    seen = {event.key for event in profiler.key_averages()}
    assert {f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"} <= seen


@each_class
def test_complex_parameters_are_refused_by_name(name: str) -> None:
    p = nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=re.escape(f"{name} does not support complex")):
        getattr(muonlab, name)([p]).step()


@each_class
def test_no_warning_in_ordinary_use(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = getattr(muonlab, name)(small_model())
        scheduler = StepLR(optimizer, 1)
        steps(optimizer, [p for group in optimizer.param_groups for p in group["params"]], [0])
        scheduler.step()
        optimizer.load_state_dict(optimizer.state_dict())
