"""What torch expects of an optimizer, and what peers get wrong: inputs, state, schedulers, faults."""

import copy
import inspect
import io
import math
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import muonlab
from muonlab.optim import update as update_module

CLASSES = {
    "muon": (muonlab.Muon, {"lr": 0.02}),
    "adamw": (muonlab.AdamW, {"lr": 0.02}),
    "sgd": (muonlab.SGD, {"lr": 0.02, "momentum": 0.9}),
}
each = pytest.mark.parametrize("cls,arguments", CLASSES.values(), ids=CLASSES.keys())


def weights(count: int = 3, shape=(6, 4), dtype=torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for _ in range(count)]


def fill_gradients(params, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def steps(optimizer, params, seeds) -> None:
    for seed in seeds:
        fill_gradients(params, seed)
        optimizer.step()


def bits(tensors) -> list[bytes]:
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]


# construction -----------------------------------------------------------------------------------------------------


def test_signatures_are_torchs() -> None:
    for name in ("Muon", "AdamW", "SGD"):
        ours = inspect.signature(getattr(muonlab, name)).parameters
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        positional = [p for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert list(ours)[: len(positional)] == [p.name for p in positional]
        for p in theirs.values():
            assert ours[p.name].default == p.default and ours[p.name].kind is p.kind


@each
@pytest.mark.parametrize("lr", [-1, -1e-9, math.nan, math.inf, "0.1", None, True, torch.tensor([0.1, 0.1])])
def test_bad_lr(cls, arguments, lr) -> None:
    (w,) = weights(1)
    for make in (
        lambda: cls([w], lr=lr),
        lambda: cls([{"params": [w], "lr": lr}]),
        lambda: cls(weights(1, seed=1)).add_param_group({"params": [w], "lr": lr}),
    ):
        with pytest.raises((ValueError, TypeError)):
            make()


@pytest.mark.parametrize(
    "name,arguments",
    [
        *[(name, {"weight_decay": value}) for name in ("Muon", "AdamW", "SGD") for value in (-1, math.nan, "0", None)],
        *[("Muon", {"momentum": value}) for value in (-0.5, 1.0, math.nan, "x")],
        *[("SGD", {"momentum": value}) for value in (-0.5, 1.0, math.nan)],
        ("SGD", {"nesterov": True}),
        ("SGD", {"momentum": 0.9, "dampening": 0.1, "nesterov": True}),
        *[
            ("AdamW", {"betas": value})
            for value in ((1.0, 0.0), (0.9,), (0.9, 0.9, 0.9), 0.9, (0.9, math.nan), (-0.1, 0.9))
        ],
        ("AdamW", {"betas": (0.9, torch.tensor(0.99))}),
        *[("AdamW", {"eps": value}) for value in (-1e-8, math.nan)],
        *[("AdamW", {key: True}) for key in ("amsgrad", "capturable", "differentiable")],
        *[("Muon", {"ns_steps": value}) for value in (-1, 0, 1000, 2.5, True)],
        *[("Muon", {"ns_coefficients": value}) for value in ((1.0, 2.0), (), None, "jordon", (1.0, 2.0, math.nan))],
        *[("Muon", {"adjust_lr_fn": "arbitrary"}), ("Muon", {"polar": "svd"}), ("Muon", {"polar_dtype": "float16"})],
        *[("Muon", {"aux_lr": -1.0}), ("Muon", {"aux_betas": (0.9,)}), ("Muon", {"aux_betas": None})],
        *[("Muon", {"nesterov": "yes"}), ("Muon", {"differentiable": True})],
    ],
)
def test_bad_hyperparameters(name: str, arguments: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        getattr(muonlab, name)(weights(1), **arguments)


@each
def test_unknown_keyword_and_misspelt_group_key(cls, arguments) -> None:
    with pytest.raises(TypeError):
        cls(weights(1), weight_decy=0.1)
    with pytest.raises(ValueError, match="weight_decay"):
        cls([{"params": weights(1), "weight_decy": 0.1}])


@each
@pytest.mark.parametrize(
    "params,error",
    [
        (None, TypeError),
        ([], ValueError),
        ("weights", TypeError),
        (torch.ones(2, 2), TypeError),
        ([1, 2], TypeError),
        ({"a": torch.ones(2, 2)}, TypeError),
        ({torch.ones(2, 2)}, TypeError),
        ([nn.Parameter(torch.ones(2, 2)) * 2], ValueError),
        ([{"lr": 0.1}], ValueError),
        ([{"params": {torch.ones(2, 2)}}], TypeError),
        ([("w", nn.Parameter(torch.ones(2, 2))), nn.Parameter(torch.ones(2, 2))], ValueError),
    ],
)
def test_bad_params(cls, arguments, params, error) -> None:
    with pytest.raises(error):
        cls(params)


@each
def test_params_that_are_fine(cls, arguments) -> None:
    assert len(cls(p for p in weights(2)).param_groups[0]["params"]) == 2
    (w,) = weights(1)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = cls([w, w], lr=0.5)
    steps(optimizer, [w], [0])
    (once,) = weights(1)
    steps(cls([once], lr=0.5), [once], [0])
    assert torch.equal(w, once)  # counted once
    with pytest.raises(ValueError, match="more than one parameter group"):
        cls([{"params": [w]}, {"params": [w]}])


def test_shapes_a_matrix_rule_cannot_take() -> None:
    (w,) = weights(1)
    for bad in (torch.ones(2, 3, 4), torch.ones(2, 3, 4, 5)):
        with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
            muonlab.Muon([bad])
        optimizer = muonlab.Muon([w])
        with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
            optimizer.add_param_group({"params": [bad]})
        assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="2D"):
        muonlab.Muon([{"params": [torch.ones(3)], "use_muon": True}])
    assert muonlab.Muon([torch.ones(3)]).param_groups[0]["algorithm"] == "adamw"


def test_group_flags_of_other_libraries() -> None:
    a, b, c, d = weights(4)
    optimizer = muonlab.Muon(
        [
            {"params": [a], "use_muon": True, "lr": 0.1, "momentum": 0.9},
            {"params": [b], "use_muon": False, "lr": 0.2, "betas": (0.8, 0.9), "eps": 1e-10},
            {"params": [c], "use_fallback": True},
            {"params": [d], "algorithm": "adamw"},
        ],
        aux_lr=0.3,
    )
    assert [group["algorithm"] for group in optimizer.param_groups] == ["muon", "adamw", "adamw", "adamw"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3, 0.3]
    assert "momentum" not in optimizer.param_groups[1] and "betas" not in optimizer.param_groups[0]
    with pytest.raises(ValueError, match="algorithm"):
        muonlab.Muon([{"params": [nn.Parameter(torch.ones(2, 2))], "algorithm": "lion"}])


@each
def test_class_can_be_rebuilt_from_its_defaults(cls, arguments) -> None:
    optimizer = cls(weights(1), **arguments)
    again = type(optimizer)(weights(1), **optimizer.defaults)
    assert repr(again) == repr(optimizer)


# steps ------------------------------------------------------------------------------------------------------------


@each
def test_missing_gradients_leave_everything_alone(cls, arguments) -> None:
    params = weights(3)
    optimizer = cls(params, **arguments, weight_decay=0.5)
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
def test_lr_zero_leaves_weights_bit_identical_but_moves_the_state(cls, arguments) -> None:
    params = weights(2)
    with torch.no_grad():
        params[0][0, 0] = -0.0
    optimizer = cls(params, **{**arguments, "lr": 0.0}, weight_decay=0.5)
    before = bits(params)
    steps(optimizer, params, range(3))
    assert bits(params) == before
    state = optimizer.state[params[0]]
    assert all(value.any() for value in state.values())
    assert "step" not in state if cls is muonlab.Muon else state["step"] == 3


@each
def test_zero_gradients_without_decay_move_nothing(cls, arguments) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments, weight_decay=0.0)
    before = bits(params)
    for p in params:
        p.grad = torch.zeros_like(p)
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
    optimizer.step()
    assert all(p.isfinite().all() for p in params)


@each
def test_gradients_are_never_written(cls, arguments) -> None:
    params = weights(3)
    optimizer = cls(params, **arguments, weight_decay=0.5, maximize=True)
    for seed in range(3):
        fill_gradients(params, seed)
        before, owners = bits(p.grad for p in params), [p.grad for p in params]
        optimizer.step()
        assert bits(p.grad for p in params) == before
        assert all(p.grad is owner for p, owner in zip(params, owners, strict=True))


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_gradient_skips_the_whole_step(cls, arguments, bad) -> None:
    params, twins = weights(3), weights(3)
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    steps(optimizer, params, [0])
    steps(other, twins, [0])
    before = bits(params)
    fill_gradients(params, 1)
    params[1].grad[0, 0] = bad
    optimizer.step()
    assert bits(params) == before and optimizer.num_skipped == 1
    assert copy.deepcopy(optimizer).num_skipped == pickle.loads(pickle.dumps(optimizer)).num_skipped == 1
    fresh = cls(weights(3), **arguments)
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.num_skipped == 1
    steps(optimizer, params, [2])
    steps(other, twins, [2])
    assert bits(params) == bits(twins)
    free = cls(params, **arguments, skip_nonfinite=False)
    params[1].grad[0, 0] = bad
    free.step()
    assert not params[1].isfinite().all() and free.num_skipped == 0


@each
def test_large_finite_gradients_are_not_mistaken_for_infinite(cls, arguments) -> None:
    params = weights(2, (64, 64))
    optimizer = cls(params, **arguments)
    for p in params:
        p.grad = torch.full_like(p, 3e38)
    optimizer.step()
    assert optimizer.num_skipped == 0


@each
@pytest.mark.parametrize("kind", ["sparse", "complex", "meta"])
def test_unsupported_gradients_raise_before_anything_changes(cls, arguments, kind) -> None:
    good = weights(1)[0]
    bad = nn.Parameter(torch.ones(3, 3, dtype=torch.complex64 if kind == "complex" else None))
    if kind == "meta":
        bad = nn.Parameter(torch.ones(3, 3, device="meta"))
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
    steps(optimizer, params, range(2))
    for p in params:
        assert p.dtype == dtype and p.isfinite().all()
        tensors = {name: value for name, value in optimizer.state[p].items() if name != "step"}
        assert tensors and all(value.dtype == dtype and value.shape == p.shape for value in tensors.values())
        assert all(value.data_ptr() not in (p.data_ptr(), p.grad.data_ptr()) for value in tensors.values())


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
    for maximize in (False, True):
        params = weights(2)
        optimizer = cls(params, **arguments, weight_decay=0.0, maximize=maximize)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params)
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
        torch.testing.assert_close(a, b, atol=2e-3 if cls is muonlab.Muon else 0, rtol=0)
    assert torch.equal(before, torch.get_rng_state())


# the stack of the matrix stage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_in_workspace", [0, 1, 2, 100])
def test_stacking_does_not_mix_matrices(num_in_workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of very different scales, float64: what leaks from one to another shows."""
    monkeypatch.setattr(update_module, "WORKSPACE_BYTES", num_in_workspace * update_module.COPIES * 6 * 4 * 8)
    params = weights(5, dtype=torch.float64) + weights(3, (4, 6), dtype=torch.float64)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    together = muonlab.Muon(params, lr=0.1, polar_dtype="float64")
    alone = [muonlab.Muon([p], lr=0.1, polar_dtype="float64") for p in twins]
    for seed in range(4):
        for these in (params, twins):
            fill_gradients(these, seed)
            for i, p in enumerate(these):
                p.grad *= 10.0 ** (3 * i - 9)
        together.step()
        for optimizer in alone:
            optimizer.step()
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


def test_convolutions_are_flattened_also_channels_last() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel, g = (torch.randn(8, 3, 2, 2, generator=generator) for _ in range(2))
    flat = nn.Parameter(kernel.flatten(1).clone())
    conv = nn.Parameter(kernel.clone())
    last = nn.Parameter(kernel.clone(memory_format=torch.channels_last))
    flat.grad, conv.grad, last.grad = g.flatten(1), g.clone(), g.clone(memory_format=torch.channels_last)
    for p in (flat, conv, last):
        optimizer = muonlab.Muon(
            [{"params": [p], "algorithm": "muon", "role": "conv" if p.ndim == 4 else "hidden"}], lr=0.1
        )
        optimizer.step()
        optimizer.step()
    assert torch.equal(conv.flatten(1), flat)
    torch.testing.assert_close(last.detach().contiguous(), conv.detach(), atol=1e-3, rtol=0)


def test_experts_are_a_batch() -> None:
    stack = nn.Parameter(torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    parts = [nn.Parameter(part.clone()) for part in stack.detach()]
    stack.grad = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for part, g in zip(parts, stack.grad, strict=True):
        part.grad = g.clone()
    muonlab.Muon([("experts.up", stack)], roles={"experts.*": "expert"}, lr=0.1, polar_dtype="float64").step()
    muonlab.Muon(parts, lr=0.1, polar_dtype="float64").step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in parts]), atol=1e-12, rtol=0)


# state ------------------------------------------------------------------------------------------------------------


def model_and_optimizer(cls, arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))
    return model, cls(model, **arguments)


@each
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict", "weights_only"])
def test_copies_continue_identically(cls, arguments, way) -> None:
    model, optimizer = model_and_optimizer(cls, arguments)
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
        corrupt(lambda s: s["param_groups"][0].update(algorithm="lion")),
    ]
    if cls is muonlab.AdamW:
        bad += [corrupt(lambda s: s["state"][0].pop("exp_avg_sq")), corrupt(lambda s: s["state"][0].pop("step"))]
    for state in bad:
        with pytest.raises(ValueError):
            optimizer.load_state_dict(state)
        after = optimizer.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert all(torch.equal(after["state"][i][name], before["state"][i][name]) for i in (0, 1))


def test_a_loaded_state_is_not_shared_with_its_source() -> None:
    params, twins = weights(1), weights(1)
    a, b = muonlab.AdamW(params), muonlab.AdamW(twins)
    steps(a, params, [0])
    b.load_state_dict(a.state_dict())
    steps(b, twins, [1])
    assert a.state[params[0]]["step"] == 1 and b.state[twins[0]]["step"] == 2


@each
def test_hooks(cls, arguments) -> None:
    params, seen = weights(1), []
    optimizer = cls(params, **arguments)
    handles = [
        optimizer.register_step_pre_hook(lambda o, a, k: seen.append("pre")),
        optimizer.register_step_post_hook(lambda o, a, k: seen.append("post")),
        optimizer.register_state_dict_post_hook(lambda o, s: seen.append("save")),
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("load")),
    ]
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["pre", "post", "save", "load"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(seen) == 4


# schedulers, scaler, environment ----------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.StepLR(o, 2),
        lambda o: lr_scheduler.LambdaLR(o, lambda i: 0.0 if i == 1 else 1.0),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 4)], [2]
        ),
    ],
)
def test_schedulers(cls, arguments, make) -> None:
    model, optimizer = model_and_optimizer(cls, arguments)
    params = list(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = make(optimizer)
        lrs, momenta = [], []
        for seed in range(5):
            lrs.append(float(optimizer.param_groups[0]["lr"]))
            group = optimizer.param_groups[0]
            momenta.append(group["betas"][0] if "betas" in group else group["momentum"])
            before = bits(params)
            steps(optimizer, params, [seed])
            assert (bits(params) == before) is (lrs[-1] == 0.0)
            scheduler.step()
    assert len(set(lrs)) > 1
    assert (len(set(momenta)) > 1) is isinstance(scheduler, lr_scheduler.OneCycleLR)


def test_momentum_is_read_from_the_group_at_each_step() -> None:
    params = weights(1, dtype=torch.float64)
    optimizer = muonlab.Muon(params, momentum=0.5, nesterov=False)
    fill_gradients(params, 0)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.step()
    expected = 0.9 * 0.5 * params[0].grad + 0.1 * params[0].grad
    torch.testing.assert_close(optimizer.state[params[0]]["momentum_buffer"], expected)


def test_plateau_and_a_value_gone_bad() -> None:
    params = weights(1)
    optimizer = muonlab.Muon(params, lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] < 0.1
    optimizer.param_groups[0]["lr"] = math.nan
    fill_gradients(params, 0)
    before = bits(params)
    with pytest.raises(ValueError, match="learning rate"):
        optimizer.step()
    assert bits(params) == before


@each
def test_grad_scaler(cls, arguments) -> None:
    params, twins = weights(2), weights(2)
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(3):
        fill_gradients(params, seed)
        fill_gradients(twins, seed)
        scaler.scale(torch.ones(()))  # initialises the scale
        for p in params:
            p.grad *= 1024.0
        if seed == 1:
            params[0].grad[0, 0] = math.inf
            before = bits(params)
        scaler.step(optimizer)
        if seed == 1:
            assert bits(params) == before and optimizer.num_skipped == 0
        else:
            other.step()
        scaler.update(1024.0)
    assert bits(params) == bits(twins)


def test_import_is_lazy_and_works_without_numpy_and_assertions() -> None:
    code = (
        "import sys, muonlab; heavy = 'torch' in sys.modules\n"
        "sys.modules['numpy'] = sys.modules['triton'] = None\n"
        "import torch\n"
        "w = torch.nn.Parameter(torch.eye(3)); w.grad = torch.eye(3)\n"
        "for cls in (muonlab.Muon, muonlab.AdamW, muonlab.SGD): cls([w]).step()\n"
        "try: muonlab.Muon([w], lr=-1)\n"
        "except ValueError: pass\n"
        "else: sys.exit(3)\n"
        "sys.exit(2 if heavy or not muonlab.__version__ else 0)\n"
    )
    command = [sys.executable, "-O", "-W", "error::UserWarning:muonlab", "-c", code]
    assert subprocess.run(command, check=False).returncode == 0
