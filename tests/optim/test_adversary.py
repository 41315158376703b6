"""What people do to optimizers that nobody planned for."""

import copy
import os
import random
import signal

import pytest
import torch
from stepping import (
    backward,
    batch_noise,
    bits,
    copy_of,
    each,
    each_of_torch,
    fill_gradients,
    has,
    in_float64,
    small_model,
    state_bits,
    steps,
    weights,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import muonlab


@each
def test_gradients_of_any_strides_are_read_right(cls, arguments) -> None:
    """Expanded, transposed, sliced and offset gradients: fused kernels walk memory in order."""
    generator = torch.Generator().manual_seed(0)
    kinds = [
        torch.randn(1, 1, generator=generator).expand(6, 4),
        torch.randn(4, 6, generator=generator).T,
        torch.randn(6, 8, generator=generator)[:, ::2],
        torch.randn(30, generator=generator)[5:29].view(6, 4),
    ]
    params, twins = weights(4), weights(4)
    arguments = {**arguments, "polar": "exact"} if has(cls, "polar") else arguments
    optimizer, other = cls(params, **arguments), cls(twins, **arguments)
    for _ in range(2):
        for p, q, g in zip(params, twins, kinds, strict=True):
            p.grad, q.grad = g, g.clone(memory_format=torch.contiguous_format)
        optimizer.step()
        other.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


@each
def test_parameters_that_are_views_of_one_buffer(cls, arguments) -> None:
    flat = torch.randn(48, generator=torch.Generator().manual_seed(0))
    views = [nn.Parameter(flat[:24].view(6, 4)), nn.Parameter(flat[24:].view(4, 6))]
    twins = [nn.Parameter(p.detach().clone()) for p in views]
    optimizer, other = cls(views, **arguments), cls(twins, **arguments)
    steps(optimizer, views, range(2))
    steps(other, twins, range(2))
    assert bits(views) == bits(twins) and views[0].data_ptr() == flat.data_ptr()


@each
def test_snapshots_of_model_and_optimizer_together_stay_together(cls, arguments) -> None:
    model = small_model()
    optimizer = cls(model, **arguments)
    backward(model, 0)
    optimizer.step()
    copied, twin = copy.deepcopy((model, optimizer))
    held = {id(p) for p in copied.parameters()}
    assert all(id(p) in held for group in twin.param_groups for p in group["params"])
    for these, one in ((model, optimizer), (copied, twin)):
        assert backward(these, 1) > 0
        one.step()
    assert bits(model.parameters()) == bits(copied.parameters())


@each
def test_an_optimizer_per_parameter_stepping_inside_backward(cls, arguments) -> None:
    model, twin = small_model(), small_model()
    together = cls(twin, **arguments)
    routed = {id(p): group for group in together.param_groups for p in group["params"]}
    owners = {}
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        group = {key: value for key, value in routed[id(q)].items() if key not in ("params", "param_names")}
        owners[p] = cls([{**group, "params": [p]}])
        p.register_post_accumulate_grad_hook(lambda p: owners[p].step())
    for seed in range(2):
        backward(model, seed)
        backward(twin, seed)
        together.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=max(1e-6, 2.5 * batch_noise(cls)), rtol=0)


@each_of_torch  # the engine leaves the graph before any rule is asked
def test_a_training_step_that_is_compiled_with_the_optimizer_inside(cls, arguments) -> None:
    torch._dynamo.reset()
    model, twin = small_model(), small_model()
    optimizer, other = cls(model, **arguments), cls(twin, **arguments)

    @torch.compile(backend="eager")
    def train_step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    for seed in range(2):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
        train_step(x)
        other.zero_grad()
        twin(x).square().mean().backward()
        other.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=max(1e-6, 2.5 * batch_noise(cls)), rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_autocast_does_not_lower_the_precision_that_was_asked_for(dtype: str) -> None:
    params, twins = weights(2, (16, 8)), weights(2, (16, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps(muonlab.Muon(params, polar_dtype=dtype), params, [0, 1])
    steps(muonlab.Muon(twins, polar_dtype=dtype), twins, [0, 1])
    assert bits(params) == bits(twins)


@each
def test_a_closure_that_raises_changes_nothing(cls, arguments) -> None:
    params = weights(2)
    optimizer = cls(params, **arguments)
    steps(optimizer, params, [0])
    before = bits(params), state_bits(optimizer)

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert (bits(params), state_bits(optimizer)) == before
    assert torch.is_grad_enabled()


@each
def test_a_bad_value_in_one_group_stops_the_step_before_any_parameter_moves(cls, arguments) -> None:
    a, b = weights(2)
    optimizer = cls([{"params": [a]}, {"params": [b]}], **arguments)
    steps(optimizer, [a, b], [0])
    before = bits([a, b]), state_bits(optimizer)
    for key, value in (("lr", -1.0), ("weight_decay", float("nan")), ("lr", "0.1"), ("lr", torch.tensor([1.0, 2.0]))):
        kept, optimizer.param_groups[1][key] = optimizer.param_groups[1][key], value
        with pytest.raises((ValueError, TypeError)):
            optimizer.step()
        assert (bits([a, b]), state_bits(optimizer)) == before
        optimizer.param_groups[1][key] = kept
    optimizer.step()
    assert bits([a, b]) != before[0]


@pytest.mark.parametrize("kind", ["list", "tensors"])
def test_values_that_change_in_place_are_read_at_each_step(kind: str) -> None:
    params, twins = weights(2), weights(2)
    betas = [0.9, 0.99] if kind == "list" else (torch.tensor(0.9), torch.tensor(0.99))
    optimizer = muonlab.AdamW([{"params": params, "betas": betas}], lr=0.1)
    other = muonlab.AdamW(twins, lr=0.1, betas=tuple(float(beta) for beta in betas))
    for seed, beta1 in enumerate((0.9, 0.5, 0.25)):
        if kind == "list":
            betas[0] = beta1
        else:
            betas[0].fill_(beta1)
        other.param_groups[0]["betas"] = (float(betas[0]), float(betas[1]))
        steps(optimizer, params, [seed])
        steps(other, twins, [seed])
        assert bits(params) == bits(twins)


@each
def test_empty_groups_and_parameters_appended_by_hand(cls, arguments) -> None:
    a, b = weights(2)
    optimizer = cls([{"params": []}, {"params": [a]}], **arguments)
    steps(optimizer, [a], [0])
    optimizer.param_groups[0]["params"].append(b)
    before = bits([b])
    steps(optimizer, [a, b], [1])
    assert bits([b]) != before and optimizer.explain() and repr(optimizer) and optimizer.num_skipped == 0


@each
def test_a_user_subclass_keeps_its_own_constructor(cls, arguments) -> None:
    class Mine(cls):
        def __init__(self, params, lr: float = 0.5, note: str = "") -> None:
            super().__init__(params, lr=lr)
            self.note = note

    params, twins = weights(1), weights(1)
    optimizer, other = Mine(params, 0.25, note="x"), cls(twins, lr=0.25)
    steps(optimizer, params, [0])
    steps(other, twins, [0])
    assert bits(params) == bits(twins) and optimizer.note == "x"


@each
@pytest.mark.parametrize("shape", [(8, 8), (8, 3), (3, 8)])
def test_gradients_of_every_rank_are_finite(cls, arguments, shape) -> None:
    generator = torch.Generator().manual_seed(0)
    column, row = (torch.randn(n, 1, generator=generator) for n in shape)
    special = [column @ row.T, torch.linalg.qr(torch.randn(shape, generator=generator))[0], torch.eye(*shape)]
    special = [g if g.shape == shape else torch.eye(*shape) for g in special]
    for g in (*special, torch.zeros(shape), torch.full(shape, 1e-45), torch.full(shape, 1e38)):
        (w,) = weights(1, shape)
        optimizer = cls([w], **{**arguments, "lr": 1e-3})
        for _ in range(3):
            w.grad = g.clone()
            optimizer.step()
        assert w.isfinite().all() and optimizer.num_skipped == 0


@each
def test_numbers_of_other_libraries_are_numbers(cls, arguments) -> None:
    np = pytest.importorskip("numpy")
    for lr in (np.float32(0.25), np.float64(0.25), 1, torch.tensor(0.25, dtype=torch.float64)):
        params, twins = weights(1), weights(1)
        steps(cls(params, lr=lr), params, [0])
        steps(cls(twins, lr=float(lr)), twins, [0])
        assert bits(params) == bits(twins)


@each
@pytest.mark.parametrize("flat", [False, True])
def test_checkpoint_tools_of_torch_restore_a_fresh_optimizer(cls, arguments, flat: bool) -> None:
    """They create the state by a step at lr = 0 with zero gradients."""
    model = small_model()
    optimizer = cls(model, **arguments, decay="independent")
    for seed in range(3):
        backward(model, seed)
        optimizer.step()
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    twin = copy_of(model)
    other = cls(twin, **{**arguments, "lr": 0.5}, decay="independent")
    before = bits(twin.parameters())
    set_optimizer_state_dict(twin, other, saved, options=options)
    assert bits(twin.parameters()) == before
    assert state_bits(other) == state_bits(optimizer)
    assert [group["lr"] for group in other.param_groups] == [group["lr"] for group in optimizer.param_groups]
    for these, one in ((model, optimizer), (twin, other)):
        backward(these, 5)
        one.step()
    assert bits(model.parameters()) == bits(twin.parameters())


@each
def test_a_random_walk_of_everything_equals_a_run_that_saves_and_loads_at_each_step(cls, arguments) -> None:
    """Missing and bad gradients, changing rates, groups added: with and without a checkpoint in between."""

    def run(reload: bool) -> tuple:
        rng, params = random.Random(0), weights(4, dtype=torch.float64)
        settings = in_float64(cls, arguments)
        optimizer = cls(params[:2], **settings)
        for step in range(12):
            if step in (3, 6):
                optimizer.add_param_group({"params": [params[step // 3 + 1]], "lr": 0.1})
            if reload:
                saved = copy.deepcopy(optimizer.state_dict())
                groups = [group["params"] for group in optimizer.param_groups]
                optimizer = cls([{"params": group} for group in groups], **settings)
                optimizer.load_state_dict(saved)
            fill_gradients(params, step)
            for p in params:
                if rng.random() < 0.3:
                    p.grad = None
                elif rng.random() < 0.1:
                    p.grad[0, 0] = float("nan")
            for group in optimizer.param_groups:
                group["lr"] = rng.random() * rng.choice([0, 0.1])
            optimizer.step()
        return bits(params), state_bits(optimizer), optimizer.num_skipped

    found = run(False)
    assert found == run(True) and found[2] > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_step() -> None:
    params = weights(2)
    optimizer = muonlab.Muon(params)
    steps(optimizer, params, [0])
    child = os.fork()
    if not child:
        signal.alarm(20)
        torch.set_num_threads(1)
        steps(optimizer, params, [1])
        os._exit(0 if all(p.isfinite().all() for p in params) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_checkpoint_of_the_same_parameters_in_another_order_is_refused() -> None:
    def optimizer(names: str) -> muonlab.Muon:
        return muonlab.Muon(nn.ModuleDict({name: nn.Linear(4, 4) for name in names}), roles={"*weight": "hidden"})

    with pytest.raises(ValueError, match=r"another order: its number 0 is a\.weight, here it is b\.weight"):
        optimizer("bac").load_state_dict(optimizer("abc").state_dict())
    optimizer("abc").load_state_dict(optimizer("abc").state_dict())


def test_a_checkpoint_of_sgd_is_none_of_muon() -> None:
    w = nn.Parameter(torch.ones(4, 4))
    w.grad = torch.ones(4, 4)
    sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    sgd.step()
    with pytest.raises(ValueError, match="dampening"):
        muonlab.Muon([w]).load_state_dict(sgd.state_dict())


@pytest.mark.parametrize("state", [{}, None, "x", {"state": {}}, nn.Linear(2, 2).state_dict()])
def test_what_is_no_state_dict_is_said_in_one_line(state: object) -> None:
    with pytest.raises(ValueError, match="not the state dict of an optimizer"):
        muonlab.Muon([nn.Parameter(torch.ones(2, 2))]).load_state_dict(state)


def test_names_are_those_without_wrappers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    compiled = torch.compile(model, backend="eager")
    assert (
        muonlab.Muon(compiled, roles={"1.weight": "hidden"}).explain()
        == muonlab.Muon(model, roles={"1.weight": "hidden"}).explain()
    )


def test_unnamed_parameters_are_numbered_through_all_groups() -> None:
    a, b = (nn.Parameter(torch.eye(4)) for _ in range(2))
    optimizer = muonlab.Muon([{"params": [a]}, {"params": [b], "lr": 0.5}])
    a.grad, b.grad = torch.eye(4), torch.eye(4)
    optimizer.step()
    assert {tag.partition("/")[0] for tag in optimizer.diagnostics()} == {"parameter 0", "parameter 1"}


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"weight_deacy": 0.1}, "did you mean 'weight_decay'"),
        ({"skip_nonfinite": "yes"}, "must be True or False"),
        ({"ns_coefficients": ("a", "b", "c")}, "must hold numbers"),
        ({"damping": 1.0}, "damping"),
        ({"polar": "auto", "damping": 0.5}, "brings its own"),
    ],
)
def test_nonsense_is_refused_with_what_to_write(arguments: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        muonlab.Muon([nn.Parameter(torch.ones(2, 2))], **arguments)


def test_flags_of_a_group_must_be_flags_and_agree() -> None:
    w = nn.Parameter(torch.ones(2, 2))
    for group in ({"use_muon": "no"}, {"use_muon": True, "algorithm": "adamw"}):
        with pytest.raises((TypeError, ValueError), match="use_muon"):
            muonlab.Muon([{"params": [w], **group}])


def test_a_dtype_of_torch_is_understood() -> None:
    assert muonlab.Muon([nn.Parameter(torch.ones(2, 2))], polar_dtype=torch.float32).defaults["polar_dtype"]
