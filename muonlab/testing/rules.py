"""The contract of a rule, clause by clause. Each clause takes a rule and raises AssertionError where it is broken."""

from collections.abc import Callable, Mapping
from dataclasses import fields

import torch
from torch import Tensor

from muonlab.optim.rule import Rule

__all__ = ["CLAUSES", "COMPARING", "compares_runs", "first_state", "run", "sees_batches"]

SHAPES = ((4, 6), (6, 4), (5, 5), (1, 3), (3, 1))
SQUARE = ((5, 5), (6, 6))
COMPARING: set[str] = set()  # clauses, see `compares_runs`
State = dict[str, Tensor]


def compares_runs(clause: Callable[..., None]) -> Callable[..., None]:
    """Marks a clause that says nothing of what is not deterministic."""
    COMPARING.add(clause.__name__)
    return clause


def first_state(rule: Rule, w: Tensor) -> State:
    """The state of one parameter that is its own matrix, or stack of matrices, before the first step."""
    shape, found = tuple(w.shape), {}
    for name, field in rule.active_state().items():
        wanted = field.shape_for(shape, shape)
        found[name] = w.new_zeros(wanted) if field.start is None else field.start(w, wanted)
    return found


def run(rule: Rule, g: Tensor, w: Tensor, state: State, t: int, phase_of: int | None = None) -> Tensor:
    """The direction of a step, all stages after each other, as the engine calls them."""
    rule = rule.at(t if phase_of is None else phase_of)
    u = rule.local(g, w, state, t)
    return rule.finish(rule.matrix(u, state, t), w, state, t)


def sees_batches(rule: Rule) -> bool:
    """Whether `local` may be given a stack of parameters: not if it takes norms over the whole of one."""
    return rule.sees != "whole"


def gradients(shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator, dtype=dtype) * 10.0**i for i in range(count)]


def _rounding(rule: Rule) -> float:
    """How far the same mathematics may differ in another order: iterations in bfloat16 are the exception."""
    exact = getattr(rule, "polar", "exact") == "exact"
    return {"float64": 1e-10, "float32": 1e-4}.get("float64" if exact else rule.polar_dtype or "", 0.05)


def _shapes(rule: Rule) -> tuple[tuple[int, ...], ...]:
    """Where a rule keeps eigenvectors, the null space of a matrix that is not square is rounding noise."""
    return SQUARE if any("basis" in name for name in rule.state) else SHAPES


def _same(found: object, expected: object, rule: Rule, tolerance: float | None = None, *, told: str = "") -> None:
    """`told`: the likely cause of a difference."""
    atol = _rounding(rule) if tolerance is None else tolerance
    message = (lambda text: f"{told}: {text}") if told else None
    torch.testing.assert_close(found, expected, atol=atol, rtol=max(1e-9, 0.1 * atol), msg=message)


def _unseen(rule: Rule) -> str:
    wider = '"rows" or "whole"' if rule.sees == "elements" else '"whole"'
    return f'`local` seems to use more of a parameter than sees = "{rule.sees}" says, so say {wider}'


@compares_runs
def a_batch_equals_a_loop(rule: Rule) -> None:
    """Nothing of one matrix of a stack reaches another."""
    told = "" if rule.is_matrix_rule() or not sees_batches(rule) else _unseen(rule)
    for shape in _shapes(rule):
        w = gradients((3, *shape), 1)[0]
        batched, single = first_state(rule, w), [first_state(rule, w[i]) for i in range(3)]
        for t, g in enumerate(gradients((3, *shape), 4), start=1):
            g = g * torch.tensor([1.0, 1e-3, 1e3], dtype=g.dtype).reshape(3, 1, 1)
            r = rule.at(t)
            us = [r.local(g[i], w[i], single[i], t) for i in range(3)]
            u = r.local(g, w, batched, t) if sees_batches(rule) else torch.stack(us)
            together = r.finish(r.matrix(u, batched, t), w, batched, t)
            alone = [r.finish(r.matrix(us[i], single[i], t), w[i], single[i], t) for i in range(3)]
            _same(together, torch.stack(alone), rule, told=told)


@compares_runs
def many_equal_one_after_the_other(rule: Rule) -> None:
    """`local_each` and `matrix_each` of parameters of several shapes."""
    shapes = _shapes(rule)
    ws = [gradients(shape, 1)[0] for shape in shapes]
    together, alone = ([first_state(rule, w) for w in ws] for _ in range(2))
    for t in (1, 2, 3):
        r, gs = rule.at(t), [gradients(shape, 3)[t - 1] for shape in shapes]
        us = r.local_each(gs, ws, together, t)
        expected = [r.local(g, w, state, t) for g, w, state in zip(gs, ws, alone, strict=True)]
        _same(us, expected, rule, 1e-13)
        found = r.matrix_each(us, together, t)
        expected = [r.matrix(u, state, t) for u, state in zip(expected, alone, strict=True)]
        _same(found, expected, rule)
        _same(together, alone, rule)


def writes_only_its_state_and_returns_none_of_it(rule: Rule) -> None:
    w = gradients((4, 6), 1)[0]
    state = first_state(rule, w)
    for t, g in enumerate(gradients((4, 6), 3), start=1):
        r, kept = rule.at(t), (g.clone(), w.clone())
        u = r.local(g, w, state, t)
        inner = u.clone()
        d = r.matrix(u, state, t)
        assert torch.equal(u, inner), "matrix wrote its input"
        inner = d.clone()
        f = r.finish(d, w, state, t)
        assert torch.equal(d, inner), "finish wrote its input"
        assert torch.equal(g, kept[0]) and torch.equal(w, kept[1]), "the gradient or the weight was written"
        storages = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
        returned = {x.untyped_storage().data_ptr() for x in (u, d, f)}
        assert not storages & returned, "a state tensor was returned: the engine would move the weights by it in place"


def every_state_tensor_moves(rule: Rule) -> None:
    """A tensor that never moves is an average that was discarded, or memory for nothing."""
    w = gradients((4, 6), 1)[0]
    state = first_state(rule, w)
    start = {name: value.clone() for name, value in state.items()}
    for t, g in enumerate(gradients((4, 6), 3), start=1):
        run(rule, g, w, state, t)
        if rule.observes:
            rule.observe(g, state, 2.0)
    for name, field in rule.active_state().items():
        assert field.stage == "apply" or not torch.equal(start[name], state[name]), f"state {name!r} never moved"


def is_deterministic(rule: Rule) -> None:
    """Twice the same bits, and the global generator where it was."""
    before = torch.get_rng_state()
    results = []
    for _ in range(2):
        w = gradients((4, 6), 1)[0]
        state = first_state(rule, w)
        results.append([run(rule, g, w, state, t) for t, g in enumerate(gradients((4, 6), 3), start=1)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), "two runs differ"
    assert torch.equal(before, torch.get_rng_state()), "the global generator was used"


@compares_runs
def the_step_number_is_counted_where_it_is_used(rule: Rule) -> None:
    """With `step_count = "none"` every step of a parameter is number 0."""
    if rule.step_count == "none":
        g, w = gradients((5, 5), 2)
        one, other = (run(rule, g, w, first_state(rule, w), t) for t in (1, 7))
        assert torch.equal(one, other), 'it depends on t, which step_count = "none" leaves at 0: say "required"'


@compares_runs
def hyperparameters_may_be_tensors(rule: Rule) -> None:
    """As they are in a compiled step, where the step number is one, too."""
    w = gradients((5, 5), 1)[0]
    plain, tensors = first_state(rule, w), first_state(rule, w)
    for t, g in enumerate(gradients((5, 5), 3), start=1):
        expected = run(rule, g, w, plain, t)
        found = run(rule.traced(), g, w, tensors, torch.tensor(t, dtype=torch.float64), phase_of=t)
        _same(found, expected, rule)
        _same(tensors, plain, rule)


def points_along_the_gradient(rule: Rule) -> None:
    """The first direction that is not zero is an ascent direction: the engine subtracts it."""
    for shape in SHAPES:
        g = gradients(shape, 1)[0]
        w = gradients((1, *shape), 1)[0][0]
        state = first_state(rule, w)
        found = next((d for t in (1, 2) if (d := run(rule, g, w, state, t)).any()), None)
        assert found is not None, "two steps along one gradient gave no direction"
        assert (found * g).sum() > 0, f"the first direction for a gradient of shape {shape} points away from it"


def is_finite_at_extreme_scales(rule: Rule) -> None:
    for magnitude in (0.0, 1e-20, 1.0, 1e18):
        g = gradients((4, 6), 1, torch.float32)[0] * magnitude
        w = torch.ones_like(g)
        state = first_state(rule, w)
        for t in (1, 2, 3):
            d = run(rule, g, w, state, t)
            assert d.isfinite().all(), f"gradients of size {magnitude:g} gave a direction that is not finite"
            assert magnitude > 0 or not d.any(), "gradients of zero gave a direction"


def keeps_the_dtype(rule: Rule) -> None:
    """The direction of a parameter in half precision is in half precision; state of other layouts is float32."""
    g = gradients((4, 6), 1, torch.float32)[0].to(torch.bfloat16)
    shape = tuple(g.shape)
    state = {}
    for name, field in rule.active_state().items():
        dtype = g.dtype if field.layout == "param" else torch.float32
        wanted = field.shape_for(shape, shape)
        start = field.start or (lambda w, s: w.new_zeros(s))
        state[name] = start(g.to(dtype), wanted)
    for t in (1, 2):
        d = run(rule, g, g, state, t)
        assert d.dtype == g.dtype and d.isfinite().all(), f"a bfloat16 gradient gave a direction in {d.dtype}"


@compares_runs
def lr_and_decay_never_reach_the_mathematics(rule: Rule) -> None:
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}
    other = {"lr": 0.7} | ({} if rule.application == "sphere" else {"weight_decay": 0.9})
    other = type(rule)(**{**values, **other})
    g, w = gradients((5, 5), 2)
    for t in (1, 2):
        one, two = (run(r, g, w, first_state(r, w), t) for r in (rule, other))
        assert torch.equal(one, two), "the direction depends on lr or weight_decay, which are the engine's"


@compares_runs
def local_sees_no_more_than_it_says(rule: Rule) -> None:
    """An element-wise rule on half of the rows, or of the columns, gives half of what it gives on all."""
    if rule.sees == "whole":
        return
    cuts = [lambda x: x[:2]] + ([lambda x: x[:, :3]] if rule.sees == "elements" else [])
    for cut in cuts:
        w = gradients((4, 6), 1)[0]
        names = [name for name, field in rule.active_state().items() if field.stage == "local"]
        whole, part = first_state(rule, w), first_state(rule, cut(w))
        for t, g in enumerate(gradients((4, 6), 3), start=1):
            r = rule.at(t)
            expected = cut(r.local(g, w, whole, t))
            found = r.local(cut(g).contiguous(), cut(w).contiguous(), part, t)
            _same(found, expected, rule, 1e-12, told=_unseen(rule))
        for name in names:
            if rule.state[name].layout == "param":
                _same(part[name], cut(whole[name]), rule, 1e-12, told=_unseen(rule))


def is_declared(rule: Rule) -> None:
    """Name, version, source, a docstring, and a hyperparameter for every field, lr and weight_decay among them."""
    for what in ("name", "numerics_version", "source"):
        assert getattr(rule, what), f"the class attribute {what!r} is empty"
    assert type(rule).__doc__ and not type(rule).__doc__.startswith(f"{type(rule).__name__}("), "no docstring"
    assert all(field.metadata.get("hp") for field in fields(rule)), "a field is not declared with hp(...)"
    names = {field.name for field in fields(rule)}
    assert {"lr", "weight_decay"} <= names, "a rule declares lr and weight_decay, though it never uses them"
    assert rule == type(rule)(**{field.name: getattr(rule, field.name) for field in fields(rule)}), "not a value"
    if rule.observes:
        assert type(rule).observe is not Rule.observe, "it observes something, and has no method observe"


CLAUSES: Mapping[str, Callable[[Rule], None]] = {
    clause.__name__: clause
    for clause in (
        is_declared,
        points_along_the_gradient,
        is_finite_at_extreme_scales,
        keeps_the_dtype,
        is_deterministic,
        writes_only_its_state_and_returns_none_of_it,
        every_state_tensor_moves,
        lr_and_decay_never_reach_the_mathematics,
        local_sees_no_more_than_it_says,
        the_step_number_is_counted_where_it_is_used,
        hyperparameters_may_be_tensors,
        many_equal_one_after_the_other,
        a_batch_equals_a_loop,
    )
}
