"""Rules and optimizer classes of a user's own: what is wrong with one, in one line, and the class that a rule makes."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import nn

from muonlab import user_code
from muonlab.errors import UsageError
from muonlab.optim.adam import BETAS, AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.rule import Rule

__all__ = ["check_rule", "made_class", "rehearse"]

DECLARED = "hp(default, grid=(...), low=0.0)"
REHEARSED = {"matrix": (4, 6), "vector": (4,)}  # names and shapes


def check_rule(rule: type[Rule], taken: Mapping[str, type[Rule]]) -> None:
    """Whether an optimizer can be made of a rule; `taken` are names that mean a rule already.

    Raises   UsageError that says what to write
    """
    name, declared = rule.__name__, {field.name for field in fields(rule)}
    if "__dataclass_fields__" not in vars(rule):
        raise UsageError(f"{name} is no dataclass: write @dataclass(frozen=True, kw_only=True) above the class")
    if not rule.name:
        raise UsageError(f'{name} has no name, so it is only a base: write name: ClassVar[str] = "my_rule" in its body')
    for field in fields(rule):
        if "hp" not in field.metadata:
            raise UsageError(f"{name}.{field.name} is not declared: write {DECLARED}, or ClassVar if nobody may set it")
    for wanted in ("lr", "weight_decay"):
        if wanted not in declared:
            raise UsageError(
                f"{name} declares no {wanted}, for the engine to apply: write {wanted}: float = {DECLARED}"
            )
    if rule.local is Rule.local and rule.local_each is Rule.local_each:
        raise UsageError(f"{name} has no method local(self, g, w, state, t), which gives the direction of a step")
    for stage in ("matrix_each", "finish"):
        if getattr(rule, stage) is not getattr(Rule, stage) and not rule.is_matrix_rule():
            raise UsageError(
                f"{name} has {stage} and no `matrix`, without which it is never called: put it into `local`"
            )
    if taken.get(rule.name, rule) is not rule:
        raise UsageError(f"{name} has the name of our '{rule.name}', by which param groups go: give it another `name`")


@cache
def made_class(rule: type[Rule]) -> type[Engine]:
    """The optimizer class of a rule, always the same one, with AdamW as the companion of a rule for matrices.

    Its optimizers are pickled by way of the rule, so they load wherever the rule can be imported.
    """
    companion = AdamWRule if rule.is_matrix_rule() else None
    body = {
        "rule": rule,
        "companion": companion,
        "companion_defaults": BETAS if companion else {},
        "__doc__": rule.__doc__,
        "__module__": rule.__module__,
    }
    return type(rule.label(), (_Made, Engine), body)


class _Made:
    """An optimizer whose class stands in no module."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if type(self) is made_class(self.rule):
            return _unfilled, (self.rule,), self.__getstate__()
        return super().__reduce_ex__(protocol)


def _unfilled(rule: type[Rule]) -> Engine:
    cls = made_class(rule)
    return cls.__new__(cls)


def rehearse(cls: type[Engine], found: user_code.UserClass) -> None:
    """One step on a small matrix and a vector, with every hyperparameter at its default.

    Raises   UsageError that names file and line
    """
    generator = torch.Generator().manual_seed(0)
    params = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in REHEARSED.items()}
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=generator)
    with user_code.blamed(f"{found.name} fails in its first step, on a matrix and a vector", found.path):
        cls(params.items(), roles={"matrix": "hidden", "vector": "vector"}).step()
