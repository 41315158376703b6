"""Forms of weight decay and of momentum against their formulas in float64, and the identities between them."""

import pytest
import torch
from reference import Reference
from stepping import (
    NAMES,
    bits,
    decaying,
    each,
    each_decay,
    each_with_decay,
    fill_gradients,
    in_float64,
    steps,
    weights,
)
from torch import nn
from torch.optim import lr_scheduler

import muonlab

SHAPES = [(6, 4), (4, 6), (5, 5)]
FACTORS = [1.0, 0.5, 0.0, 1.25, 0.1, 2.0]
VARIANTS = {
    "sgd": (muonlab.SGD, {}),
    "sgd-dampened": (muonlab.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "sgd-nesterov": (muonlab.SGD, {"momentum": 0.9, "nesterov": True}),
    "adamw": (muonlab.AdamW, {"betas": (0.8, 0.95), "eps": 1e-3}),
    "muon": (muonlab.Muon, {}),
    "muon-plain": (muonlab.Muon, {"nesterov": False, "momentum": 0.8}),
    "muon-heavy-ball": (muonlab.Muon, {"momentum_form": "heavy_ball", "momentum": 0.8}),
    "muon-heavy-ball-plain": (muonlab.Muon, {"momentum_form": "heavy_ball", "nesterov": False}),
}


def parameters() -> list[nn.Parameter]:
    return [weights(1, shape, torch.float64, seed)[0] for seed, shape in enumerate(SHAPES)]


@each_decay
@pytest.mark.parametrize("cls,hyper", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_rule_in_every_form_equals_its_formula_under_a_schedule(cls, hyper: dict, decay: str, path) -> None:
    """lr goes through 0 and above its start; nothing but float64 rounding is allowed."""
    settings = {"lr": 0.1, "weight_decay": 0.7, "decay": decay}
    params = parameters()
    optimizer = cls(params, **settings, **in_float64(cls, hyper))
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda i: FACTORS[i % len(FACTORS)])
    references = [Reference(NAMES[cls], p, **settings, **hyper) for p in params]
    for seed, factor in enumerate(FACTORS):
        fill_gradients(params, seed)
        optimizer.step()
        scheduler.step()
        for p, reference in zip(params, references, strict=True):
            expected = reference.step(p.grad, 0.1 * factor)
            torch.testing.assert_close(p.detach(), expected, atol=1e-11, rtol=0)


@each
@each_decay
def test_maximize_turns_the_gradient_and_not_the_decay(cls, arguments, decay, path) -> None:
    params, mirrored = (weights(2, dtype=torch.float64) for _ in range(2))
    settings = {**in_float64(cls, arguments), **decaying(cls, 0.5), "decay": decay}
    up, down = cls(params, maximize=True, **settings), cls(mirrored, **settings)
    for seed in range(3):
        fill_gradients(params, seed)
        fill_gradients(mirrored, seed)
        for p in mirrored:
            p.grad.neg_()
        up.step()
        down.step()
    for a, b in zip(params, mirrored, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)


@each
@each_decay
def test_at_lr_zero_not_a_sign_bit_changes_but_the_state_moves(cls, arguments, decay, path) -> None:
    params = [*weights(2), *weights(1, dtype=torch.bfloat16)]
    with torch.no_grad():
        for p in params:
            p[0, :2] = torch.tensor([-0.0, 0.0])
    optimizer = cls(params, **{**arguments, "lr": 0.0}, **decaying(cls, 0.5), decay=decay)
    before = bits(params)
    steps(optimizer, params, range(3))
    assert bits(params) == before and optimizer.num_skipped == 0
    for p in params:
        assert all(value.any() for value in optimizer.state[p].values())
        assert optimizer.state[p].get("step", 3) == 3
    assert ("step" in optimizer.state[params[0]]) is (cls.rule.step_count != "none")


@each_with_decay
def test_independent_decay_follows_the_schedule_and_not_the_size_of_lr(cls, arguments, path) -> None:
    """With zero gradients w <- w prod(1 - weight_decay lr / lr_0), whatever lr_0 is."""
    for lr in (1e-4, 10.0):
        params = weights(2, dtype=torch.float64)
        start = params[0].detach().clone()
        optimizer = cls(params, **{**arguments, "lr": lr}, weight_decay=0.1, decay="independent")
        scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for _ in range(3):
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
            scheduler.step()
        torch.testing.assert_close(params[0].detach(), start * 0.9 * 0.95 * 0.975, atol=1e-14, rtol=0)


@each_with_decay
@pytest.mark.parametrize(
    "make,peak",
    [
        (lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.4, total_steps=9, div_factor=8), 0.4),
        (lambda o: lr_scheduler.LinearLR(o, start_factor=0.25, total_iters=2), 0.02),
    ],
    ids=["one-cycle", "warm-up"],
)
def test_independent_decay_counts_warm_up_schedules_from_their_peak(cls, arguments, make, peak: float) -> None:
    (w,) = weights(1, dtype=torch.float64)
    optimizer = cls([w], **{**arguments, "lr": 0.02}, weight_decay=0.1, decay="independent")
    scheduler = make(optimizer)
    for _ in range(4):
        before, fraction = w.detach().clone(), optimizer.param_groups[0]["lr"] / peak
        w.grad = torch.zeros_like(w)
        optimizer.step()
        scheduler.step()
        assert 0 < fraction < 1 + 1e-9
        torch.testing.assert_close(w.detach(), before * (1 - 0.1 * fraction), atol=1e-14, rtol=0)


@each_with_decay
def test_independent_decay_does_not_fix_the_start_of_a_later_schedule(cls, arguments) -> None:
    (w,) = weights(1, dtype=torch.float64)
    optimizer = cls([w], **arguments, weight_decay=0.1, decay="independent")
    optimizer.param_groups[0]["lr"] = 0.5
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1)
    assert scheduler.get_last_lr() == [0.5] and optimizer.param_groups[0]["lr"] == 0.5
    before = w.detach().clone()
    w.grad = torch.zeros_like(w)
    optimizer.step()
    torch.testing.assert_close(w.detach(), before * 0.9, atol=1e-14, rtol=0)


def test_independent_decay_survives_a_checkpoint_in_mid_schedule() -> None:
    def run(resume_at: int | None) -> list[bytes]:
        params = weights(2)
        optimizer = muonlab.Muon(params, lr=0.1, weight_decay=0.2, decay="independent")
        scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for seed in range(4):
            if seed == resume_at:
                saved = optimizer.state_dict(), scheduler.state_dict()
                optimizer = muonlab.Muon(params, lr=0.7, weight_decay=0.9, decay="independent")
                scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
                optimizer.load_state_dict(saved[0])
                scheduler.load_state_dict(saved[1])
            steps(optimizer, params, [seed])
            scheduler.step()
        return bits(params)

    assert run(None) == run(2)


@each_with_decay
def test_forms_agree_where_they_must(cls, arguments) -> None:
    """Without decay all forms are one; independent is decoupled with weight_decay / lr_0."""

    def run(**settings) -> list[torch.Tensor]:
        params = weights(2, dtype=torch.float64)
        steps(cls(params, **in_float64(cls, arguments), **settings), params, range(3))
        return [p.detach() for p in params]

    for decay in ("decoupled", "independent", "coupled", "cautious"):
        torch.testing.assert_close(run(weight_decay=0.0, decay=decay), run(weight_decay=0.0), atol=1e-14, rtol=0)
    independent = run(weight_decay=0.01, decay="independent")
    torch.testing.assert_close(independent, run(weight_decay=0.5, decay="decoupled"), atol=1e-14, rtol=0)
    assert (run(weight_decay=0.5, decay="cautious")[0] - run(weight_decay=0.5, decay="decoupled")[0]).abs().max() > 1e-3


@pytest.mark.parametrize("cls,theirs", [(muonlab.SGD, torch.optim.SGD), (muonlab.AdamW, torch.optim.Adam)])
def test_coupled_decay_is_torchs_l2_term(cls, theirs) -> None:
    params, others = weights(2, dtype=torch.float64), weights(2, dtype=torch.float64)
    ours, reference = cls(params, lr=0.1, weight_decay=0.3, decay="coupled"), theirs(others, lr=0.1, weight_decay=0.3)
    steps(ours, params, range(4))
    steps(reference, others, range(4))
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in others], atol=1e-12, rtol=0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball_and_average_have_one_direction_at_constant_momentum(nesterov: bool) -> None:
    params, twins = (weights(2, dtype=torch.float64) for _ in range(2))
    settings = {"lr": 0.1, "momentum": 0.8, "nesterov": nesterov, "polar_dtype": "float64"}
    ema, ball = muonlab.Muon(params, **settings), muonlab.Muon(twins, momentum_form="heavy_ball", **settings)
    for seed in range(5):
        steps(ema, params, [seed])
        steps(ball, twins, [seed])
        for p, q in zip(params, twins, strict=True):
            torch.testing.assert_close(p, q, atol=1e-12, rtol=0)
            a, b = ema.state[p]["momentum_buffer"], ball.state[q]["momentum_buffer"]
            torch.testing.assert_close(b, a / (1 - 0.8), atol=1e-12, rtol=0)
    ema.param_groups[0]["momentum"] = ball.param_groups[0]["momentum"] = 0.2
    for seed in (6, 7):
        steps(ema, params, [seed])
        steps(ball, twins, [seed])
    assert (params[0] - twins[0]).abs().max() > 1e-3  # a momentum that moves tells them apart


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_four_variants_stay_within_the_bound_of_decay(nesterov: bool, weight_decay: float) -> None:
    """|W|_2 <= (1 - lr decay)^t |W_0|_2 + (1 - (1 - lr decay)^t) / decay with exact polar factors; + lr t without."""
    (w,) = weights(1, (6, 6), torch.float64)
    start = torch.linalg.matrix_norm(w.detach(), 2)
    optimizer = muonlab.Muon([w], lr=0.3, weight_decay=weight_decay, nesterov=nesterov, polar="exact")
    for t in range(1, 20):
        fill_gradients([w], 0)  # the same gradient: the weight runs as far as it can
        optimizer.step()
        left = (1 - 0.3 * weight_decay) ** t
        bound = left * start + ((1 - left) / weight_decay if weight_decay else 0.3 * t)
        assert torch.linalg.matrix_norm(w.detach(), 2) <= bound * (1 + 1e-12)


@pytest.mark.parametrize(
    "cls,setting",
    [(cls, {"decay": value}) for cls in NAMES for value in ("decopled", None)]
    + [(muonlab.Muon, {"momentum_form": "nesterov"})],
)
def test_unknown_forms_are_refused_everywhere(cls, setting) -> None:
    (w,) = weights(1)
    for make in (
        lambda: cls([w], **setting),
        lambda: cls([{"params": [w], **setting}]),
        lambda: cls(weights(1, seed=1)).add_param_group({"params": [w], **setting}),
    ):
        with pytest.raises(ValueError, match="use one of"):
            make()


def test_a_group_has_its_own_form() -> None:
    a, b = weights(2, dtype=torch.float64)
    optimizer = muonlab.SGD([{"params": [a], "decay": "decoupled"}, {"params": [b]}], lr=0.5, weight_decay=0.25)
    assert [group["decay"] for group in optimizer.param_groups] == ["decoupled", "coupled"]
    expected = [
        Reference("sgd", p, lr=0.5, weight_decay=0.25, decay=decay) for p, decay in ((a, "decoupled"), (b, "coupled"))
    ]
    fill_gradients([a, b], 0)
    optimizer.step()
    for p, reference in zip((a, b), expected, strict=True):
        torch.testing.assert_close(p.detach(), reference.step(p.grad))
