"""The arguments of an optimizer class: torch's names in torch's order, then what is ours, by keyword only."""

import inspect
from collections.abc import Mapping
from typing import Any

from muonlab.errors import unknown
from muonlab.optim.groups import FLAGS, SPLITS, rule_defaults
from muonlab.optim.rule import Rule, declarations

__all__ = ["bound_to", "signature_of"]


def signature_of(rule: type[Rule], companion_defaults: Mapping[str, Any]) -> inspect.Signature:
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("params", positional)]
    late: dict[str, Any] = {}
    for name, declaration in declarations(rule).items():
        if declaration.keyword:
            late[name] = rule_defaults(rule)[name]
        else:
            parameters.append(inspect.Parameter(name, positional, default=rule_defaults(rule)[name]))
    if "amsgrad" in rule.unsupported:
        parameters.append(inspect.Parameter("amsgrad", positional, default=False))
    late |= FLAGS
    late |= {name: False for name in rule.unsupported if name != "amsgrad"}
    late |= {"roles": None} | (SPLITS if rule.takes_splits() else {}) | dict(companion_defaults)
    late |= {"skip_nonfinite": True, "compile": False}
    parameters += [inspect.Parameter(name, keyword, default=value) for name, value in late.items()]
    return inspect.Signature(parameters)


def bound_to(signature: inspect.Signature, name: str, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument by its name.

    Raises   TypeError for what the class called `name` does not take; it says what was probably meant
    """
    for given in kwargs:
        if given not in signature.parameters:
            raise TypeError(str(unknown(f"argument of {name}", given, list(signature.parameters))))
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
