"""A compiled step: one graph, traced once, equal to the plain one, whatever a schedule does."""

import copy
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
from reference import Reference
from stepping import (
    NAMES,
    backward,
    bits,
    copy_of,
    decaying,
    each,
    each_decay,
    each_of_torch,
    fill_gradients,
    has,
    in_float64,
    small_model,
    steps,
    twins_of,
    weights,
)
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._dynamo.utils import counters

import muonlab

LRS = [0.0, 0.1, 0.05, 0.0, 0.2]


@pytest.fixture(autouse=True)
def _nothing_traced_yet():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@each_of_torch
@each_decay
def test_a_compiled_step_equals_the_formula_and_is_traced_once(cls, arguments, decay) -> None:
    """Float64; lr goes through 0, where not a sign bit of a weight may change."""
    settings = {"lr": 0.1, "weight_decay": 0.7, "decay": decay}
    params = [*weights(2, (6, 4), torch.float64), *weights(1, (4, 6), torch.float64)]
    with torch.no_grad():
        params[0][:3] = -0.0
    optimizer = cls(params, **settings, **in_float64(cls, {}), compile="eager")
    references = [Reference(NAMES[cls], p, **settings) for p in params]
    with dynamo_config.patch(error_on_recompile=True):
        for seed, lr in enumerate(LRS):
            optimizer.param_groups[0]["lr"] = lr
            fill_gradients(params, seed)
            before = bits(params)
            optimizer.step()
            assert (bits(params) == before) is (lr == 0.0)
            for p, reference in zip(params, references, strict=True):
                torch.testing.assert_close(p.detach(), reference.step(p.grad, lr), atol=1e-11, rtol=0)
    assert num_graphs() == 1 and optimizer.num_skipped == 0


@each
def test_every_rule_is_one_graph_for_each_phase_whatever_a_schedule_does(cls, arguments) -> None:
    """Refreshes, a skipped step and lr = 0 among the steps; equal to the plain step in float64."""
    params = weights(2, (5, 5), torch.float64)
    twins = twins_of(params)
    settings = {**in_float64(cls, arguments), **decaying(cls, 0.1)}
    compiled, plain = cls(params, **settings, compile="eager"), cls(twins, **settings)
    phases = {cls.rule(**settings).phase_at(t) for t in range(1, 8)}
    for t, lr in enumerate((0.02, 0.01, 0.0, 0.03, 0.01, 0.02, 0.01, 0.02)):
        for optimizer, these in ((compiled, params), (plain, twins)):
            group = optimizer.param_groups[0]
            group["lr"] = lr
            group |= {"betas": (0.9 - 0.05 * t, *group["betas"][1:])} if has(cls, "betas") else {}
            group |= {"momentum": 0.9 - 0.05 * t} if has(cls, "momentum") else {}
            before = bits(these)
            if t == 4:
                fill_gradients(these, t)
                these[1].grad[0, 0] = math.nan
                optimizer.step()
            else:
                steps(optimizer, these, [t])
            assert bits(these) == before or t not in (2, 4)
        assert compiled.num_skipped == plain.num_skipped == (t >= 4)
        for p, q in zip(params, twins, strict=True):
            torch.testing.assert_close(p.detach(), q.detach(), atol=1e-12, rtol=0)
            torch.testing.assert_close(dict(compiled.state[p]), dict(plain.state[q]), atol=1e-9, rtol=1e-9)
    assert num_graphs() == len(phases)


@pytest.mark.parametrize(
    "cls,arguments,schedule",
    [
        (muonlab.Muon, {"momentum_form": "heavy_ball"}, {"momentum": [0.9, 0.8, 0.0]}),
        (muonlab.Muon, {"nesterov": False}, {"weight_decay": [0.1, 0.0, 0.3]}),
        (muonlab.AdamW, {}, {"betas": [(0.9, 0.99), (0.8, 0.9), (0.0, 0.5)], "eps": [1e-3, 1e-8, 0.1]}),
        (muonlab.SGD, {"momentum": 0.9, "nesterov": True}, {"momentum": [0.9, 0.5, 0.1], "weight_decay": [0.0, 1, 2]}),
        (muonlab.SGD, {"momentum": 0.9}, {"dampening": [0.0, 0.5, 1.0]}),
    ],
    ids=["heavy-ball", "weight-decay", "adamw", "sgd", "dampening"],
)
def test_whatever_a_schedule_changes_is_not_traced_again(cls, arguments, schedule) -> None:
    params, twins = weights(2, dtype=torch.float64), weights(2, dtype=torch.float64)
    arguments = in_float64(cls, {**arguments, "lr": 0.1})
    compiled, plain = cls(params, **arguments, compile="eager"), cls(twins, **arguments)
    with dynamo_config.patch(error_on_recompile=True):
        for i in range(3):
            for optimizer, these in ((compiled, params), (plain, twins)):
                optimizer.param_groups[0].update({key: values[i] for key, values in schedule.items()})
                fill_gradients(these, i)
                optimizer.step()
            for p, q in zip(params, twins, strict=True):
                torch.testing.assert_close(p, q, atol=1e-12, rtol=0)
    assert num_graphs() == 1


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
def test_a_whole_model_with_guard_splits_and_companion_is_one_graph(rounding: str) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16
    model = nn.Sequential(nn.Embedding(9, 4), nn.MultiheadAttention(4, 2), nn.Conv2d(2, 3, 2), nn.Linear(4, 9))
    model = model.to(dtype)
    twin = copy.deepcopy(model)
    settings = {"lr": 0.02, "polar_dtype": "float64", "rounding": rounding}
    compiled, plain = muonlab.Muon(model, **settings, compile="eager"), muonlab.Muon(twin, **settings)
    for seed in range(5):
        for optimizer, source in ((compiled, model), (plain, twin)):
            params = list(source.parameters())
            fill_gradients(params, seed)
            if seed in (1, 3):
                params[seed].grad.view(-1)[0] = math.nan
            optimizer.step()
    assert compiled.num_skipped == plain.num_skipped == 2
    assert num_graphs() == 1
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-6 if rounding == "nearest" else 2e-2, rtol=0)


@each_of_torch
def test_a_compiled_step_that_is_skipped_changes_no_bit(cls, arguments) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments, compile="eager")
    fill_gradients(params, 0)
    optimizer.step()
    before, saved = bits(params), copy.deepcopy(optimizer.state_dict()["state"])
    params[1].grad[0, 0] = math.inf
    optimizer.step()
    assert bits(params) == before and optimizer.num_skipped == 1
    for i, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, saved[i][name]) for name, value in state.items())


@each_of_torch
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_a_compiled_optimizer_can_be_copied(cls, arguments, way) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments, compile="eager")
    fill_gradients(params, 0)
    optimizer.step()
    if way == "state_dict":
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        twin = cls(twins, **arguments, compile="eager")
        twin.load_state_dict(optimizer.state_dict())
    else:
        twin = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        twins = twin.param_groups[0]["params"]
    for these, one in ((params, optimizer), (twins, twin)):
        fill_gradients(these, 1)
        one.step()
    assert bits(params) == bits(twins)


def test_many_optimizers_compile_in_one_process() -> None:
    """Each has a cache of its own: torch gives up on one function after eight graphs."""
    for shape in range(1, 11):
        (w,) = weights(1, (shape, 3))
        optimizer = muonlab.SGD([w], compile="eager")
        fill_gradients([w], 0)
        optimizer.step()


@pytest.mark.filterwarnings("ignore:the parameters with a gradient change")
def test_many_patterns_of_missing_gradients_do_not_end_a_run() -> None:
    params, twins = ([weights(1, (3, i + 2))[0] for i in range(4)] for _ in range(2))
    compiled, plain = muonlab.SGD(params, momentum=0.9, compile="eager"), muonlab.SGD(twins, momentum=0.9)
    for pattern in range(10):
        for optimizer, these in ((compiled, params), (plain, twins)):
            fill_gradients(these, pattern)
            for i, p in enumerate(these):
                if pattern >> i & 1:
                    p.grad = None
            optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in twins], atol=1e-6, rtol=0)


def test_a_compiled_model_trains_with_a_compiled_optimizer() -> None:
    model = small_model()
    twin = copy_of(model)
    traced = torch.compile(model, backend="eager")
    compiled, plain = (muonlab.Muon(m, lr=0.02, compile=way) for m, way in ((model, "eager"), (twin, False)))
    for seed in range(3):
        assert backward(traced, seed) == pytest.approx(backward(twin, seed), rel=1e-2)
        compiled.step()
        plain.step()


@pytest.mark.parametrize("value", [None, 1, 0.5, {"backend": "eager"}])
def test_a_compile_setting_that_cannot_be_is_refused(value) -> None:
    with pytest.raises(TypeError, match="compile"):
        muonlab.SGD(weights(1), compile=value)


def test_a_backend_that_is_not_there_is_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"backend 'inducter': did you mean 'inductor'") as error:
        muonlab.SGD(weights(1), compile="inducter")
    assert "\n" not in str(error.value)


def test_where_compilation_is_disabled_the_step_is_taken_all_the_same() -> None:
    code = (
        "import torch, warnings\n"
        "from muonlab.optim import catalog\n"
        "warnings.simplefilter('ignore')\n"
        "for name in catalog.names():\n"
        "    ws = [torch.nn.Parameter(torch.eye(3) + 0.5) for _ in range(2)]\n"
        "    optimizer = catalog.get(name)(ws, lr=0.1, compile=True)\n"
        "    for _ in range(2):\n"
        "        for w in ws: w.grad = torch.eye(3)\n"
        "        optimizer.step()\n"
        "    assert not any(torch.equal(w, torch.eye(3) + 0.5) for w in ws), name\n"
    )
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0


@pytest.mark.slow
@each
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_inductor_agrees_with_the_plain_step(cls, arguments, rounding) -> None:
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16
    params, twins = weights(3, (5, 5), dtype=dtype), weights(3, (5, 5), dtype=dtype)
    precise = {"polar_dtype": "float32"} if has(cls, "polar_dtype") else {}
    settings = {**arguments, **precise, **decaying(cls, 0.1), "rounding": rounding}
    compiled, plain = cls(params, **settings, compile=True), cls(twins, **settings)
    for seed in range(4):
        for optimizer, these in ((compiled, params), (plain, twins)):
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + seed)
            fill_gradients(these, seed)
            if seed == 2:
                these[0].grad[0, 0] = math.nan
            optimizer.step()
    assert compiled.num_skipped == plain.num_skipped == 1
    assert num_graphs() == len({cls.rule(**arguments).phase_at(t) for t in range(1, 5)})
    for p, q in zip(params, twins, strict=True):
        if rounding == "nearest":
            torch.testing.assert_close(p, q, atol=1e-5, rtol=0)
            continue
        last_bit = torch.exp2(q.float().abs().log2().floor() - 7)  # which sums in another order let fall the other way
        assert ((p.float() - q.float()).abs() <= (2 * last_bit).clamp(min=2e-2)).all()
