"""Schedulers, loss scaling and averaging: what surrounds an optimizer in a training loop."""

import copy
import math
import warnings

import pytest
import torch
from stepping import (
    backward,
    batch_noise,
    bits,
    copy_of,
    each,
    fill_gradients,
    small_model,
    steps,
    weights,
)
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import muonlab

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda i: 0.0 if i == 1 else 1.0),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda i: 0.5),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.25, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 4)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.5, anneal_epochs=3),
}
each_scheduler = pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS.keys())


def backward_onto(model: nn.Module, *seeds: int) -> None:
    """Adds the gradients of batches to what is there."""
    loss = sum(
        (model(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))) - 1).square().mean() for seed in seeds
    )
    loss.backward()


def advance(scheduler) -> None:
    scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))


def test_no_scheduler_of_torch_is_left_out() -> None:
    assert set(lr_scheduler.__all__) - {"LRScheduler"} <= set(SCHEDULERS)


@each
@each_scheduler
def test_a_scheduler_moves_what_each_step_uses(cls, arguments, make) -> None:
    model = small_model()
    optimizer, params = cls(model, **arguments), list(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = make(optimizer)
        lrs, momenta = [], []
        for seed in range(5):
            group = optimizer.param_groups[0]
            lrs.append(float(group["lr"]))
            momenta.append(group["betas"][0] if "betas" in group else group["momentum"])
            before = bits(params)
            steps(optimizer, params, [seed])
            assert (bits(params) == before) is (lrs[-1] == 0.0)
            advance(scheduler)
    assert len(set(lrs)) > 1
    assert (len(set(momenta)) > 1) is isinstance(scheduler, lr_scheduler.OneCycleLR)


@each
@each_scheduler
def test_a_run_that_is_resumed_under_a_scheduler_is_the_same_run(cls, arguments, make) -> None:
    def run(resume_at: int | None) -> list[bytes]:
        model = small_model()
        optimizer = cls(model, **arguments)
        scheduler = make(optimizer)
        for seed in range(5):
            if seed == resume_at:
                saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
                optimizer = cls(model, **arguments)
                scheduler = make(optimizer)
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            steps(optimizer, list(model.parameters()), [seed])
            advance(scheduler)
        return bits(model.parameters())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ChainedScheduler's own children, when loaded
        assert run(None) == run(2)


@pytest.mark.parametrize("make", [SCHEDULERS["StepLR"], SCHEDULERS["CosineAnnealingLR"], SCHEDULERS["LinearLR"]])
def test_one_scheduler_reaches_both_halves_in_proportion(make) -> None:
    optimizer = muonlab.Muon(small_model(), lr=0.08, aux_lr=0.02)
    scheduler = make(optimizer)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert {group["algorithm"] for group in optimizer.param_groups} == {"muon", "adamw"}
    for seed in range(4):
        steps(optimizer, params, [seed])
        scheduler.step()
        main, *aux = [group["lr"] for group in optimizer.param_groups]
        assert all(lr == pytest.approx(main / 4) for lr in aux)


def test_one_cycle_may_give_each_group_its_own_peak() -> None:
    optimizer = muonlab.Muon(small_model(), lr=0.08, aux_lr=0.02)
    peaks = [group["lr"] for group in optimizer.param_groups]
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=10, cycle_momentum=False)
    ratios = {round(group["lr"] / peak, 9) for group, peak in zip(optimizer.param_groups, peaks, strict=True)}
    assert len(ratios) == 1 and scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


@each
def test_averaged_models_follow_an_optimizer(cls, arguments) -> None:
    model = small_model()
    optimizer, averaged = cls(model, **arguments), swa_utils.AveragedModel(model)
    seen = []
    for seed in range(3):
        backward(model, seed)
        optimizer.step()
        averaged.update_parameters(model)
        seen.append(model[0].weight.detach().clone())
    torch.testing.assert_close(averaged.module[0].weight.detach(), torch.stack(seen).mean(0))


@each
def test_gradient_clipping_and_accumulation_see_the_gradients_as_they_are(cls, arguments) -> None:
    model = small_model()
    optimizer, twin = cls(model, **arguments), copy_of(model)
    other = cls(twin, **arguments)
    for part in (0, 1):
        backward_onto(model, part)
    backward_onto(twin, 0, 1)
    norms = [nn.utils.clip_grad_norm_(m.parameters(), 0.1).item() for m in (model, twin)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    before = bits(p.grad for p in model.parameters())
    optimizer.step()
    other.step()
    assert bits(p.grad for p in model.parameters()) == before
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=max(1e-3, batch_noise(cls)), rtol=0)


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
