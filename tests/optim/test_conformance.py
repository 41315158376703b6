"""The contract of a rule, clause by clause, on every rule. A new rule is one more row."""

from dataclasses import fields

import pytest
import torch

from muonlab.optim import AdamWRule, MuonRule, Rule, SGDRule, StateField, hp

RULES = {
    "sgd": SGDRule(),
    "sgd-momentum": SGDRule(momentum=0.9, dampening=0.3),
    "sgd-nesterov": SGDRule(momentum=0.9, nesterov=True),
    "adamw": AdamWRule(betas=(0.8, 0.9)),
    "muon": MuonRule(polar_dtype="float64"),
    "muon-plain": MuonRule(polar_dtype="float64", nesterov=False, momentum=0.5),
    "muon-spectral": MuonRule(polar_dtype="float64", adjust_lr_fn="spectral", ns_coefficients="polar_express"),
    "muon-heavy-ball": MuonRule(polar_dtype="float64", momentum_form="heavy_ball", momentum=0.8),
    "muon-heavy-ball-plain": MuonRule(polar_dtype="float64", momentum_form="heavy_ball", nesterov=False),
    "muon-exact": MuonRule(polar="exact", adjust_lr_fn="match_rms_adamw"),
    "muon-bf16": MuonRule(),
}
SHAPES = [(4, 6), (6, 4), (5, 5), (1, 3), (3, 1)]

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def fresh_state(rule: Rule, w: torch.Tensor) -> dict[str, torch.Tensor]:
    shape = tuple(w.shape)
    return {name: w.new_zeros(field.shape_for(shape, shape)) for name, field in rule.active_state().items()}


def run(rule: Rule, g: torch.Tensor, w: torch.Tensor, state: dict, t: int) -> torch.Tensor:
    return rule.finish(rule.matrix(rule.local(g, w, state, t), state, t), w, state, t)


def gradients(shape: tuple, count: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=dtype) * 10.0**i for i in range(count)]


@each_rule
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_equals_loop(rule: Rule, shape: tuple) -> None:
    atol = 0.02 if getattr(rule, "polar_dtype", "") == "bfloat16" and getattr(rule, "polar", "") != "exact" else 1e-10
    w = gradients((3, *shape), 1)[0]
    batched, single = fresh_state(rule, w), [fresh_state(rule, w[i]) for i in range(3)]
    for t, g in enumerate(gradients((3, *shape), 4), start=1):
        g = g * torch.tensor([1.0, 1e-3, 1e3], dtype=g.dtype).reshape(3, 1, 1)
        together = run(rule, g, w, batched, t)
        alone = torch.stack([run(rule, g[i], w[i], single[i], t) for i in range(3)])
        torch.testing.assert_close(together, alone, atol=atol, rtol=1e-9)


@each_rule
def test_writes_only_its_state_and_returns_none_of_it(rule: Rule) -> None:
    w = gradients((4, 6), 1)[0]
    state = fresh_state(rule, w)
    for t, g in enumerate(gradients((4, 6), 3), start=1):
        kept = g.clone(), w.clone()
        u = rule.local(g, w, state, t)
        inner = u.clone()
        d = rule.matrix(u, state, t)
        assert torch.equal(u, inner)
        inner = d.clone()
        f = rule.finish(d, w, state, t)
        assert torch.equal(d, inner) and torch.equal(g, kept[0]) and torch.equal(w, kept[1])
        storages = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
        assert not storages & {x.untyped_storage().data_ptr() for x in (u, d, f)}


@each_rule
def test_every_declared_state_tensor_moves(rule: Rule) -> None:
    w = gradients((4, 6), 1)[0]
    state = fresh_state(rule, w)
    for t, g in enumerate(gradients((4, 6), 3), start=1):
        before = {name: value.clone() for name, value in state.items()}
        run(rule, g, w, state, t)
        assert all(not torch.equal(before[name], state[name]) for name in state)


@each_rule
def test_deterministic_and_leaves_the_global_generator_alone(rule: Rule) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    results = []
    for _ in range(2):
        w = gradients((4, 6), 1)[0]
        state = fresh_state(rule, w)
        results.append([run(rule, g, w, state, t) for t, g in enumerate(gradients((4, 6), 3), start=1)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(before, torch.get_rng_state())


@each_rule
def test_many_at_once_equal_one_after_the_other(rule: Rule) -> None:
    """`local_each` and `matrix_each` of parameters of several shapes, two steps."""
    atol = 0.02 if rule == RULES["muon-bf16"] else 1e-12
    ws = [gradients(shape, 1)[0] for shape in SHAPES]
    together, alone = ([fresh_state(rule, w) for w in ws] for _ in range(2))
    for t in (1, 2):
        gs = [gradients(shape, 2)[t - 1] for shape in SHAPES]
        us = rule.local_each(gs, ws, together, t)
        expected = [rule.local(g, w, state, t) for g, w, state in zip(gs, ws, alone, strict=True)]
        torch.testing.assert_close(us, expected, atol=1e-14, rtol=1e-14)
        found = rule.matrix_each(us, together, t)
        expected = [rule.matrix(u, state, t) for u, state in zip(expected, alone, strict=True)]
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-12)
        torch.testing.assert_close(together, alone, atol=1e-14, rtol=1e-14)


@each_rule
def test_hyperparameters_may_be_tensors_as_in_a_compiled_step(rule: Rule) -> None:
    atol, traced = 0.02 if rule == RULES["muon-bf16"] else 1e-12, rule.traced()
    w = gradients((4, 6), 1)[0]
    plain, tensors = fresh_state(rule, w), fresh_state(rule, w)
    for t, g in enumerate(gradients((4, 6), 3), start=1):
        expected = run(rule, g, w, plain, t)
        found = run(traced, g, w, tensors, torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-12)
        torch.testing.assert_close(tensors, plain, atol=1e-12, rtol=1e-12)


@each_rule
def test_points_along_the_gradient(rule: Rule) -> None:
    """The first direction is an ascent direction: the engine subtracts it."""
    for shape in SHAPES:
        g = gradients(shape, 1)[0]
        assert (run(rule, g, torch.zeros_like(g), fresh_state(rule, g), 1) * g).sum() > 0


@each_rule
@pytest.mark.parametrize("magnitude", [0.0, 1e-20, 1.0, 1e18])
def test_finite_at_extreme_scales(rule: Rule, magnitude: float) -> None:
    g = gradients((4, 6), 1, torch.float32)[0] * magnitude
    state = fresh_state(rule, g)
    for t in (1, 2):
        d = run(rule, g, torch.ones_like(g), state, t)
        assert d.isfinite().all() and (magnitude > 0 or not d.any())


@each_rule
def test_lr_and_weight_decay_never_reach_the_mathematics(rule: Rule) -> None:
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}
    other = type(rule)(**{**values, "lr": 0.7, "weight_decay": 0.9})
    g, w = gradients((4, 6), 2)
    assert torch.equal(run(rule, g, w, fresh_state(rule, w), 1), run(other, g, w, fresh_state(other, w), 1))


@each_rule
def test_declared(rule: Rule) -> None:
    assert rule.name and rule.numerics_version and rule.source and type(rule).__doc__
    assert all(field.metadata.get("hp") for field in fields(rule))


def test_muon_at_momentum_zero_is_the_polar_factor() -> None:
    g = gradients((6, 6), 1)[0]
    u, _, vh = torch.linalg.svd(g)
    for nesterov in (False, True):
        rule = MuonRule(momentum=0.0, nesterov=nesterov, polar="exact")
        torch.testing.assert_close(run(rule, g, g, fresh_state(rule, g), 1), u @ vh)


def test_muon_momentum_is_an_average_with_a_nesterov_look_ahead() -> None:
    first, second = gradients((4, 6), 2)
    m = 0.1 * 0.9 * first + 0.1 * second
    for nesterov, expected in ((False, m), (True, 0.1 * second + 0.9 * m)):
        rule = MuonRule(momentum=0.9, nesterov=nesterov)
        state = fresh_state(rule, first)
        rule.local(first, first, state, 1)
        torch.testing.assert_close(rule.local(second, first, state, 2), expected)
        torch.testing.assert_close(state["momentum_buffer"], m)


def test_a_rule_is_final_and_frozen() -> None:
    with pytest.raises(TypeError, match="final"):
        type("Variant", (MuonRule,), {})
    with pytest.raises(AttributeError):
        MuonRule().momentum = 0.5


def test_state_layouts() -> None:
    assert StateField("row").shape_for((4, 3, 3), (4, 9)) == (4, 1)
    assert StateField("scalar").shape_for((4, 9), (4, 9)) == ()
    assert StateField("matrix", "matrix", lambda s: (s[-2], s[-2])).shape_for((4, 9), (4, 9)) == (4, 4)
    for layout, shape in (("matrix", None), ("row", lambda s: s)):
        with pytest.raises(TypeError):
            StateField(layout, shape=shape)
    assert hp(1.0).metadata["hp"].kind is float
