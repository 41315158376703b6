"""Run every clause of the contracts on a rule, or on an optimizer class, of anybody's."""

from typing import Any, NamedTuple

from muonlab import user_code
from muonlab.errors import UsageError
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
    seconds. With `raises=False` the broken clauses are returned instead. Nothing else is asked of a rule that makes no
    optimizer (it breaks `is_declared`), nor once a second clause ends in the same exception; of one that is not
    deterministic, no clause that compares two runs.

    Raises   AssertionError that lists the broken clauses, one per line; TypeError for a target of another kind

    >>> from muonlab.optim import LionRule
    >>> check(LionRule, betas=(0.8, 0.9))
    []
    """
    kind, wanted = (target, Rule | Engine) if isinstance(target, type) else (type(target), Rule)
    if not issubclass(kind, wanted) or kind is Engine:
        raise TypeError(f"check wants a rule, its class, or a subclass of Engine, got {target!r}")
    if kind is not target and hyperparameters:
        raise TypeError("hyperparameters go with a class, this is a value: use dataclasses.replace")
    failures = _failures(kind, target, hyperparameters)
    if failures and raises:
        lines = "\n".join(f"  {failure.clause}: {failure.reason}" for failure in failures)
        count = len(rules.CLAUSES) + len(optimizers.CLAUSES)
        raise AssertionError(f"{kind.__name__} breaks {len(failures)} of {count} clauses:\n{lines}")
    return failures


def _failures(kind: type[Rule] | type[Engine], target: Any, hyperparameters: dict[str, Any]) -> list[Failure]:
    try:
        cls = optimizer_class(kind)
    except UsageError as error:
        return [Failure("is_declared", str(error))]
    rule = cls.rule(**hyperparameters) if kind is target else target
    asked = [(name, clause, rule) for name, clause in rules.CLAUSES.items()]
    asked += [(name, clause, optimizers.Subject(cls, rule)) for name, clause in optimizers.CLAUSES.items()]
    found: dict[str, str] = {}
    for name, clause, subject in asked:
        if "is_deterministic" in found and name in rules.COMPARING:
            continue
        try:
            clause(subject)
        except Exception as error:
            said = isinstance(error, AssertionError) and " ".join(str(error).split())
            reason = (said or user_code.where(error, user_code.home(kind)))[:300]
            first = None if said else next((one for one, known in found.items() if known == reason), None)
            if first:
                found[first] += f"; again in {name}, so nothing else was asked"
                break
            found[name] = reason
    if "is_deterministic" in found:
        found["is_deterministic"] += f"; the {len(rules.COMPARING)} clauses that compare two runs were skipped"
    return [Failure(*one) for one in found.items()]
