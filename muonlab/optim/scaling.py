"""How a parametrization gets from a model to its optimizers: what is left on both, and what param groups make of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.optim.parametrization import Parametrization
from muonlab.optim.routing import MATRIX_ROLES, Route
from muonlab.optim.rule import Rule

__all__ = ["Scaling", "is_marked", "mark", "multipliers_of", "parametrization_of", "scaling_of"]

ATTRIBUTE = "_muonlab_parametrization"  # of a model
MARK = "_muonlab_parametrized"  # of its parameters, so that they are not trained without it

Scaling = Callable[[Route, Mapping[str, Any]], Mapping[str, float]]  # route and split -> key -> multiplier


def mark(model: nn.Module, found: Parametrization, params: Iterable[Tensor]) -> None:
    """Leave it on the model, and a mark on the parameters for which it does something."""
    setattr(model, ATTRIBUTE, found)
    for param in params:
        setattr(param, MARK, True)


def is_marked(param: Tensor) -> bool:
    return getattr(param, MARK, False)


def parametrization_of(model: nn.Module) -> Parametrization | None:
    """What `parametrize` left on a model; None if it was not parametrized."""
    return getattr(getattr(model, "_orig_mod", model), ATTRIBUTE, None)


def scaling_of(source: object, rule: Rule, companion: Rule | None) -> Scaling | None:
    """What a parametrized model has multiplied for each of its parameters; None for any other source."""
    found = parametrization_of(source) if isinstance(source, nn.Module) else None
    if found is None:
        return None
    others = companion or rule
    return lambda route, split: found.multipliers(
        route.name, route.role, rule if route.role in MATRIX_ROLES else others, split
    )


def multipliers_of(group: Mapping[str, Any]) -> Mapping[str, float]:
    """What a param group has its defaults multiplied by.

    Raises   UsageError for parameters of a parametrized model that come without it
    """
    params = (item[1] if isinstance(item, tuple) else item for item in group["params"])
    if "multipliers" not in group and "lr" not in group and any(map(is_marked, params)):
        raise UsageError("these parameters are of a parametrized model: give the optimizer that model itself")
    return group.get("multipliers", {})
