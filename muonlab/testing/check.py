"""Run every clause of the contracts on a rule, or on an optimizer class, of anybody's."""

import traceback
from typing import Any, NamedTuple

from muonlab.optim.catalog import optimizer_class
from muonlab.optim.engine import Engine
from muonlab.optim.rule import Rule
from muonlab.testing import optimizers, rules

__all__ = ["Failure", "check"]


class Failure(NamedTuple):
    """A clause that is broken, and how, in one line."""

    clause: str
    reason: str


def check(target: type[Rule] | Rule | type[Engine], *, raises: bool = True, **hyperparameters: Any) -> list[Failure]:
    """Hold a rule, and the optimizer that it makes, to the contract of all optimizers here.

    `target` is a rule class, one of its values, or a subclass of Engine; `hyperparameters` go to the rule. Takes some
    seconds. With `raises=False` the broken clauses are returned instead.

    Raises   AssertionError that lists the broken clauses, one per line

    >>> from muonlab.optim import LionRule
    >>> check(LionRule, betas=(0.8, 0.9))
    []
    """
    rule, cls = _parts(target, hyperparameters)
    named = [(name, clause, rule) for name, clause in rules.CLAUSES.items()]
    named += [(name, clause, optimizers.Subject(cls, rule)) for name, clause in optimizers.CLAUSES.items()]
    failures = []
    for name, clause, subject in named:
        try:
            clause(subject)
        except Exception as error:
            failures.append(Failure(name, _reason(error)))
    if failures and raises:
        lines = "\n".join(f"  {failure.clause}: {failure.reason}" for failure in failures)
        raise AssertionError(f"{type(rule).__name__} breaks {len(failures)} of {len(named)} clauses:\n{lines}")
    return failures


def _parts(target: Any, hyperparameters: dict[str, Any]) -> tuple[Rule, type[Engine]]:
    if isinstance(target, Rule):
        if hyperparameters:
            raise TypeError("hyperparameters go with a class, this is a value: use dataclasses.replace")
        return target, optimizer_class(type(target))
    if isinstance(target, type) and issubclass(target, Engine):
        return target.rule(**hyperparameters), target
    if isinstance(target, type) and issubclass(target, Rule):
        return target(**hyperparameters), optimizer_class(target)
    raise TypeError(f"check wants a rule, its class, or a subclass of Engine, got {target!r}")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, AssertionError):
        return text[:300]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text[:240]} ({frame.filename.rpartition('/')[2]}, line {frame.lineno})"
