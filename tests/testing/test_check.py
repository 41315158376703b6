"""`muonlab.testing.check` on rules as third parties write them: each planted fault is reported under its clause."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import muonlab
from muonlab.kernels.moments import ema_
from muonlab.optim import AdamWRule, Engine, MuonRule, OrthogonalRule, Rule, StateField, hp
from muonlab.testing import Failure, check, optimizers, rules


@dataclass(frozen=True, kw_only=True)
class Average(Rule):
    """What the rules below share: an average of gradients, and what a rule must declare."""

    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "made up"
    state: ClassVar[Mapping[str, StateField]] = {"m": StateField("param")}

    lr: float = hp(0.01, grid=(0.01, 0.02), low=0.0)
    momentum: float = hp(0.9, low=0.0, high=1.0, high_closed=False)
    weight_decay: float = hp(0.0, grid=(0.0, 0.1), low=0.0)

    def average(self, g: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return ema_(state["m"], g, self.momentum)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return self.average(g, state).clone()


def rule(methods: type, name: str = "made_up", **more) -> type[Average]:
    """A rule out of the methods of a class: final, named, with a docstring."""
    own = {key: v for key, v in vars(methods).items() if not key.startswith("__") or key == "__annotations__"}
    return dataclass(frozen=True, kw_only=True)(
        type(methods.__name__, (Average,), {"__doc__": "Made up.", "name": name, **own, **more})
    )


class SignFlipped:
    def local(self, g, w, state, t):
        return -self.average(g, state)


class AverageDiscarded:
    def local(self, g, w, state, t):
        return state["m"].lerp(g, 1 - self.momentum)


class GradientWritten:
    def local(self, g, w, state, t):
        return self.average(g.mul_(0.5), state).clone()


class WeightWritten:
    def local(self, g, w, state, t):
        w.add_(g, alpha=1e-3)
        return self.average(g, state).clone()


class StateReturned:
    def local(self, g, w, state, t):
        return self.average(g, state)


class InputOfFinishWritten:
    def matrix(self, u, state, t):
        return 2 * u

    def finish(self, u, w, state, t):
        return u.mul_(2)


class GlobalGenerator:
    def local(self, g, w, state, t):
        return self.average(g, state) * (1 + 0.1 * torch.rand_like(g))


class LrUsed:
    def local(self, g, w, state, t):
        return self.average(g, state) * (self.lr / 0.01)


class DecayUsed:
    def local(self, g, w, state, t):
        return self.average(g, state) + self.weight_decay * w


class LeakInTheMatrixStage:
    def matrix(self, u, state, t):
        return u / (1 + u.norm())


class NormOverAllInLocal:
    def local(self, g, w, state, t):
        return self.average(g, state) / (1 + g.norm())


class ZeroOverZero:
    sees = "whole"

    def local(self, g, w, state, t):
        m = self.average(g, state)
        return m / m.norm()


class StepOfAConstant:
    def local(self, g, w, state, t):
        return self.average(g, state) + 1e-3


class WrongDtype:
    def local(self, g, w, state, t):
        return self.average(g, state).to(torch.float64, copy=True)


class StepNumberLookedUp:
    def local(self, g, w, state, t):
        return self.average(g, state) * {1: 10.0}.get(t, 1.0)


class StepNumberUncounted:
    step_count = "none"

    def local(self, g, w, state, t):
        return self.average(g, state) * (1 + t)


class FirstOfManyForgotten:
    def local_each(self, gs, ws, states, t):
        found = [self.local(g, w, state, t) for g, w, state in zip(gs, ws, states, strict=True)]
        return [torch.zeros_like(found[0]) if len(found) > 1 else found[0], *found[1:]]


class StateForNothing:
    state: ClassVar = {"m": StateField("param"), "v": StateField("row")}


class Unbounded:
    lr: float = hp(0.01)


class MatricesAlone:
    def local(self, g, w, state, t):
        return self.average(g, state) - 0 * g.mean(1, keepdim=True)


class Mistyped:
    def local(self, g, w, state, t):
        return state["exp_avg"].clone()


ONLY = {  # fault -> the clauses that it breaks
    SignFlipped: {"points_along_the_gradient", "descends"},
    AverageDiscarded: {"every_state_tensor_moves"},
    WeightWritten: {"writes_only_its_state_and_returns_none_of_it", "lr_zero_moves_no_bit"},
    StateReturned: {"writes_only_its_state_and_returns_none_of_it"},
    InputOfFinishWritten: {"writes_only_its_state_and_returns_none_of_it"},
    LrUsed: {"lr_and_decay_never_reach_the_mathematics", "a_step_is_lr_times_what_the_rule_gives"},
    DecayUsed: {"lr_and_decay_never_reach_the_mathematics"},
    LeakInTheMatrixStage: {"a_batch_equals_a_loop"},
    NormOverAllInLocal: {"local_sees_no_more_than_it_says", "a_batch_equals_a_loop"},
    ZeroOverZero: {"is_finite_at_extreme_scales", "gradients_of_zero_move_nothing_without_decay"},
    StepOfAConstant: {"is_finite_at_extreme_scales", "gradients_of_zero_move_nothing_without_decay"},
    WrongDtype: {"keeps_the_dtype", "a_step_is_lr_times_what_the_rule_gives"},
    StepNumberLookedUp: {"hyperparameters_may_be_tensors"},
    StepNumberUncounted: {
        "the_step_number_is_counted_where_it_is_used",
        "a_step_is_lr_times_what_the_rule_gives",
    },
    FirstOfManyForgotten: {"many_equal_one_after_the_other", "the_order_of_parameters_is_irrelevant"},
    StateForNothing: {"every_state_tensor_moves"},
    Unbounded: {"bad_values_are_refused_at_construction"},
    MatricesAlone: {"routes_a_model"},
    GlobalGenerator: {"is_deterministic"},
    Mistyped: {"points_along_the_gradient"},
}
AMONG_OTHERS = {
    GradientWritten: {"writes_only_its_state_and_returns_none_of_it", "gradients_are_never_written"},
}


class Fine:
    pass


class DecaysByItself(Engine):
    rule = rule(Fine)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.99)
        return super().step(closure)


class KeepsItsStateToItself(Engine):
    rule = rule(Fine)

    def step(self, closure=None):
        self.calls = getattr(self, "calls", 0) + 1
        for group in self.param_groups:
            group["lr"] = 0.01 / self.calls
        return super().step(closure)


class LosesTheLoss(Engine):
    rule = rule(Fine)

    def step(self, closure=None):
        super().step(closure)


OF_ENGINES = {
    DecaysByItself: {
        "a_step_is_lr_times_what_the_rule_gives",
        *("lr_zero_moves_no_bit", "a_missing_gradient_leaves_weight_and_state_alone"),
        *("gradients_of_zero_move_nothing_without_decay", "a_step_that_is_not_finite_touches_nothing"),
    },
    KeepsItsStateToItself: {
        "a_step_is_lr_times_what_the_rule_gives",
        *("lr_zero_moves_no_bit", "a_saved_state_continues_bit_for_bit", "a_deep_copy_continues_bit_for_bit"),
        "the_step_number_survives_a_scheduler",
    },
    LosesTheLoss: {"the_step_number_survives_a_scheduler"},
}


def clauses(found: list[Failure]) -> set[str]:
    return {failure.clause for failure in found}


def test_a_rule_without_a_fault_passes() -> None:
    fine = rule(Fine)
    assert check(fine) == [] and check(fine(momentum=0.5)) == [] and check(fine, momentum=0.0) == []


def test_what_is_a_matter_of_taste_is_no_fault() -> None:
    """A missing bias correction, a sign, a sum in place of an average."""

    class Taste:
        state: ClassVar = {"m": StateField("param"), "v": StateField("param")}

        def local(self, g, w, state, t):
            u = self.average(g, state).sign()
            return u / (1 + state["v"].add_(u.square()).sqrt())

    assert check(rule(Taste)) == []


@pytest.mark.parametrize("fault", [*ONLY, *AMONG_OTHERS], ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_reported_under_its_clause(fault: type) -> None:
    found = clauses(check(rule(fault), raises=False))
    assert found == ONLY[fault] if fault in ONLY else found >= AMONG_OTHERS[fault]


@pytest.mark.parametrize("fault", OF_ENGINES, ids=lambda fault: fault.__name__)
def test_a_planted_fault_of_an_optimizer_class_is_reported_under_its_clause(fault: type[Engine]) -> None:
    assert clauses(check(fault, raises=False)) == OF_ENGINES[fault]


def test_every_clause_can_be_broken() -> None:
    planted = set().union(*ONLY.values(), *AMONG_OTHERS.values(), *OF_ENGINES.values(), {"is_declared"})
    assert planted == rules.CLAUSES.keys() | optimizers.CLAUSES.keys()


def test_a_failure_is_one_line_and_all_of_them_are_raised_at_once() -> None:
    found = check(rule(SignFlipped), raises=False)
    with pytest.raises(AssertionError) as error:
        check(rule(SignFlipped))
    head, *lines = str(error.value).splitlines()
    assert head == f"SignFlipped breaks 2 of {len(rules.CLAUSES) + len(optimizers.CLAUSES)} clauses:"
    assert lines == [f"  {clause}: {reason}" for clause, reason in found]
    assert found[0].reason == "the first direction for a gradient of shape (4, 6) points away from it"


def test_what_a_rule_raises_is_reported_once_with_its_line() -> None:
    ((_, reason),) = check(rule(Mistyped), raises=False)
    line = Mistyped.local.__code__.co_firstlineno + 1
    end = "; again in is_finite_at_extreme_scales, so nothing else was asked"
    assert reason == f"{__file__}, line {line}: KeyError: 'exp_avg'{end}"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (NormOverAllInLocal, 'more of a parameter than sees = "elements" says, so say "rows" or "whole": Tensor-likes'),
        (StepNumberUncounted, 'depends on t, which step_count = "none" leaves at 0'),
        (GlobalGenerator, f"two runs differ; the {len(rules.COMPARING)} clauses that compare two runs were skipped"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_likely_cause_is_named(fault: type, cause: str) -> None:
    assert cause in check(rule(fault), raises=False)[0].reason


def test_a_leak_between_matrices_is_not_blamed_on_what_local_sees() -> None:
    ((_, reason),) = check(rule(LeakInTheMatrixStage), raises=False)
    assert "sees" not in reason


def undecorated() -> type[Rule]:
    return type("Undecorated", (Average,), {"name": "undecorated"})


def without_lr() -> type[Rule]:
    own = {"name": "fixed", "__annotations__": {"weight_decay": float}, "weight_decay": hp(0.0)}
    return dataclass(frozen=True, kw_only=True)(type("Fixed", (Rule,), own))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (undecorated(), "write @dataclass(frozen=True, kw_only=True) above the class"),
        (without_lr(), "declares no lr"),
        (rule(Fine, name=""), "has no name"),
        (rule(Fine, name="muon"), "has the name of our 'muon'"),
        (OrthogonalRule, "has no name"),
        (Rule, "has no name"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_rule_that_makes_no_optimizer_is_not_declared(target: type[Rule], reason: str) -> None:
    ((clause, found),) = check(target, raises=False)
    assert clause == "is_declared" and reason in found
    with pytest.raises(AssertionError, match="breaks 1 of"):
        check(target)


@pytest.mark.parametrize("more", [{"__doc__": None}, {"numerics_version": ""}, {"source": ""}], ids=str)
def test_what_is_not_said_is_not_declared(more: dict) -> None:
    assert clauses(check(rule(Fine, **more), raises=False)) == {"is_declared"}


def test_targets() -> None:
    assert check(muonlab.Lion) == [] and check(MuonRule(polar="exact")) == []
    for target in (None, 3, "muon", torch.optim.SGD, Engine, muonlab.Lion([torch.nn.Parameter(torch.ones(2))])):
        with pytest.raises(TypeError, match="check wants a rule, its class, or a subclass of Engine"):
            check(target)
    with pytest.raises(TypeError, match=r"use dataclasses\.replace"):
        check(AdamWRule(), eps=1e-6)
    with pytest.raises(ValueError, match="eps"):
        check(AdamWRule, eps=-1.0)
    with pytest.raises(TypeError, match="epsilon"):
        check(AdamWRule, epsilon=1e-6)
