"""The contract of an optimizer, clause by clause: what torch's own suite asks of a class, and what is asked here."""

import copy
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.optim.engine import Engine
from muonlab.optim.rule import Rule
from muonlab.testing.rules import compares_runs, first_state, run

__all__ = ["CLAUSES", "Subject"]

UNDECAYED = {"weight_decay": 0.0}


@dataclass(frozen=True)
class Subject:
    """An optimizer class with the hyperparameters of a rule."""

    cls: type[Engine]
    rule: Rule

    def make(self, params: Iterable[Any], **changes: Any) -> Engine:
        values = {field.name: getattr(self.rule, field.name) for field in fields(self.rule)}
        return self.cls(params, **{**values, **changes})


def weights(count: int = 3, shape: tuple[int, ...] = (5, 5), seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(count)]


def fill_gradients(params: Iterable[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def step(optimizer: Engine) -> None:
    """A step, after the observation that a rule may want."""
    if optimizer.wants_observation():
        optimizer.observe(num_samples=4.0)
    optimizer.step()


def steps(optimizer: Engine, params: list[nn.Parameter], seeds: Iterable[int]) -> None:
    for seed in seeds:
        fill_gradients(params, seed)
        step(optimizer)


def bits(tensors: Iterable[Tensor]) -> list[bytes]:
    return [t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors]


def _states(optimizer: Engine, params: Iterable[Tensor]) -> list[bytes]:
    return [one for p in params for one in bits(value for _, value in sorted(optimizer.state.get(p, {}).items()))]


def _continues(subject: Subject, copied: Callable[[Engine, list[nn.Parameter]], tuple[Engine, list]]) -> None:
    """Two steps, a copy, two more on both: the same bits."""
    params = weights()
    optimizer = subject.make(params)
    steps(optimizer, params, (1, 2))
    twin, twins = copied(optimizer, params)
    for o, ps in ((optimizer, params), (twin, twins)):
        steps(o, ps, (3, 4))
    assert bits(params) == bits(twins), "the copy went another way"
    assert _states(optimizer, params) == _states(twin, twins), "the state of the copy went another way"


def descends(subject: Subject) -> None:
    """A convex problem gets better within 60 steps, at the lr that is the rule's own."""
    params = weights(1)
    goal = weights(1, seed=7)[0].detach()
    optimizer = subject.make(params, **UNDECAYED)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (params[0] - goal).square().sum()
        loss.backward()
        step(optimizer)
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"


@compares_runs
def a_step_is_lr_times_what_the_rule_gives(subject: Subject) -> None:
    """The engine calls every stage, and applies the direction with the scale of its shape, as declared."""
    params = weights(1)
    optimizer, w = subject.make(params, lr=0.1, **UNDECAYED), params[0].detach().clone()
    rule, state = subject.rule, first_state(subject.rule, w)
    for t in (1, 2, 3):
        fill_gradients(params, t)
        u = run(rule, params[0].grad, w, state, t) * rule.scale(tuple(w.shape))
        if rule.application == "sphere":
            moved = w - 0.1 * state["radius"] * u / u.norm()
            w = state["radius"] * moved / moved.norm()
        else:
            w = w - 0.1 * u
        step(optimizer)
        torch.testing.assert_close(params[0].detach(), w, atol=1e-4, rtol=1e-3)


def lr_zero_moves_no_bit(subject: Subject) -> None:
    params = weights()
    before = bits(params)
    steps(subject.make(params, lr=0.0), params, (1, 2, 3))
    assert bits(params) == before, "weights moved at lr = 0"


def a_missing_gradient_leaves_weight_and_state_alone(subject: Subject) -> None:
    params = weights()
    optimizer = subject.make(params)
    steps(optimizer, params, (1, 2))
    before = bits(params[:1]) + _states(optimizer, params[:1])
    fill_gradients(params, 3)
    params[0].grad = None
    step(optimizer)
    assert bits(params[:1]) + _states(optimizer, params[:1]) == before, "a weight without a gradient was touched"


def gradients_of_zero_move_nothing_without_decay(subject: Subject) -> None:
    params = weights()
    before = [p.detach().clone() for p in params]
    optimizer = subject.make(params, **UNDECAYED)
    for p in params:
        p.grad = torch.zeros_like(p)
    for _ in range(3):
        step(optimizer)
    torch.testing.assert_close([p.detach() for p in params], before)


def gradients_are_never_written(subject: Subject) -> None:
    params = weights()
    optimizer = subject.make(params)
    for seed in (1, 2, 3):
        fill_gradients(params, seed)
        before = bits(p.grad for p in params)
        step(optimizer)
        assert bits(p.grad for p in params) == before, "a gradient was written"


def a_step_that_is_not_finite_touches_nothing(subject: Subject) -> None:
    params = weights()
    optimizer = subject.make(params)
    steps(optimizer, params, (1, 2))
    before = bits(params) + _states(optimizer, params)
    for bad in (float("nan"), float("inf")):
        fill_gradients(params, 3)
        params[1].grad[0, 0] = bad
        step(optimizer)
    assert bits(params) + _states(optimizer, params) == before, "weights or state were touched"
    assert optimizer.num_skipped == 2, f"two steps were skipped, {optimizer.num_skipped} were counted"


@compares_runs
def the_order_of_parameters_is_irrelevant(subject: Subject) -> None:
    params = weights()
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    forward, backward = subject.make(params), subject.make(twins[::-1])
    for seed in (1, 2, 3):
        fill_gradients(params, seed)
        for p, twin in zip(params, twins, strict=True):
            twin.grad = p.grad.clone()
        step(forward)
        step(backward)
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in twins], atol=1e-4, rtol=1e-3)


@compares_runs
def a_saved_state_continues_bit_for_bit(subject: Subject) -> None:
    """Through torch.save and torch.load(weights_only=True)."""

    def copied(optimizer: Engine, params: list[nn.Parameter]) -> tuple[Engine, list]:
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        twin = subject.make(twins, lr=0.5)
        twin.load_state_dict(torch.load(file, weights_only=True))
        return twin, twins

    _continues(subject, copied)


@compares_runs
def a_deep_copy_continues_bit_for_bit(subject: Subject) -> None:
    _continues(subject, lambda optimizer, params: copy.deepcopy((optimizer, params)))


def the_step_number_survives_a_scheduler(subject: Subject) -> None:
    """A scheduled lr reaches every group, and the closure's loss is handed back."""
    params = weights()
    optimizer = subject.make(params, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    fill_gradients(params, 1)
    assert optimizer.step(lambda: torch.tensor(3.0)).item() == 3.0, "step(closure) lost the loss"
    scheduler.step()
    assert all(abs(group["lr"] - 0.05) < 1e-12 for group in optimizer.param_groups), "the scheduler did not reach lr"


def bad_values_are_refused_at_construction(subject: Subject) -> None:
    for name, value in (("lr", -1.0), ("lr", float("nan")), ("weight_decay", -1.0)):
        try:
            subject.make(weights(), **{name: value})
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"{name}={value} was taken")


def routes_a_model(subject: Subject) -> None:
    """Every parameter of a module is owned once, and one step leaves all of them finite."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 9))
    optimizer = subject.make(model)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(owned) == len({*owned}) == len(list(model.parameters())), "a parameter is owned twice, or not at all"
    tokens = torch.arange(9)
    for _ in range(2):
        nn.functional.cross_entropy(model(tokens), tokens).backward()
        step(optimizer)
    assert all(p.isfinite().all() for p in owned), "a step on a small model gave weights that are not finite"
    assert all(name in optimizer.explain() for name, _ in model.named_parameters()), "explain() left one out"


CLAUSES: Mapping[str, Callable[[Subject], None]] = {
    clause.__name__: clause
    for clause in (
        descends,
        a_step_is_lr_times_what_the_rule_gives,
        lr_zero_moves_no_bit,
        a_missing_gradient_leaves_weight_and_state_alone,
        gradients_of_zero_move_nothing_without_decay,
        gradients_are_never_written,
        a_step_that_is_not_finite_touches_nothing,
        the_order_of_parameters_is_irrelevant,
        a_saved_state_continues_bit_for_bit,
        a_deep_copy_continues_bit_for_bit,
        the_step_number_survives_a_scheduler,
        bad_values_are_refused_at_construction,
        routes_a_model,
    )
}
