"""How a parametrization gets from a model to its optimizers: what is left on both, and what param groups make of it."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.optim.parametrization import Parametrization
from muonlab.optim.routing import MATRIX_ROLES, Route, owners_of
from muonlab.optim.rule import Rule

__all__ = [
    "Scaling", "Vigil", "is_marked", "is_parametrized", "mark", "multipliers_of", "parametrization_of", "scaling_of",
]  # fmt: skip

ATTRIBUTE = "_muonlab_parametrization"  # of a model
MARK = "_muonlab_parametrized"  # of its parameters, so that they are not trained without it

Scaling = Callable[[Route, Mapping[str, Any]], Mapping[str, float]]  # route and split -> key -> multiplier


def mark(model: nn.Module, found: Parametrization, params: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
    """Leave it on the model, and a mark on the parameters for which it does something, and on the modules they are of.

    A copy of a parameter loses its mark, and so does one that is spread over ranks; modules keep theirs.
    """
    setattr(model, ATTRIBUTE, found)
    for marked in (*params, *modules):
        setattr(marked, MARK, True)


def is_marked(marked: Tensor | nn.Module) -> bool:
    return getattr(marked, MARK, False)


def is_parametrized(model: nn.Module) -> bool:
    """Whether it, or something in it, has been changed: "standard" changes nothing."""
    found = parametrization_of(model)
    return (found is not None and found.kind != "standard") or any(
        map(is_marked, (*model.modules(), *model.parameters()))
    )


def parametrization_of(model: nn.Module) -> Parametrization | None:
    """What `parametrize` left on a model; None if it was not parametrized."""
    return getattr(getattr(model, "_orig_mod", model), ATTRIBUTE, None)


def scaling_of(source: object, rule: Rule, companion: Rule | None) -> Scaling | None:
    """What a parametrized model has multiplied for each of its parameters; None for any other source."""
    found = parametrization_of(source) if isinstance(source, nn.Module) else None
    if found is None or found.kind == "standard":
        return None
    owners = owners_of(source)

    def scaling(route: Route, split: Mapping[str, Any]) -> Mapping[str, float]:
        its_rule = rule if route.role in MATRIX_ROLES else companion or rule
        factors = found.multipliers(route.name, route.role, its_rule, split)
        growth, modules = found.growths[route.name], [module for _, module in owners.get(id(route.param), ())]
        is_new = not any(map(is_marked, (route.param, *modules)))
        if is_new and (growth.has_grown or tuple(route.param.shape) != growth.shape):
            raise UsageError(
                f"{route.name} was replaced after the model was parametrized: parametrize the finished model"
            )
        return factors

    return scaling


def multipliers_of(group: Mapping[str, Any]) -> Mapping[str, float] | None:
    """What a param group has its defaults multiplied by; nothing where it has its own lr, None of a plain model.

    Raises   UsageError for parameters of a parametrized model that come without either
    """
    params = (item[1] if isinstance(item, tuple) else item for item in group["params"])
    if "multipliers" in group or not any(map(is_marked, params)):
        return group.get("multipliers")
    if "lr" not in group:
        raise UsageError("these parameters are of a parametrized model: give the optimizer that model itself")
    return {}


class Vigil:
    """What an optimizer makes sure of when it steps: that it knows the parametrization, and that factors are there."""

    def __init__(self) -> None:
        self._is_first, self._has_warned = True, False

    def __call__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Look at the param groups of a step.

        Raises   UsageError at the first step if the model was parametrized after the optimizer was made
        """
        if self._is_first:
            if any(is_marked(param) for group in groups if "multipliers" not in group for param in group["params"]):
                raise UsageError("the model was parametrized after its optimizer was made: make the optimizer anew")
            self._is_first = False
        if not self._has_warned and _is_flattened(groups):
            self._has_warned = True
            warnings.warn(
                "param groups whose lr a parametrization multiplies by different factors have one lr: give a scheduler "
                "that takes learning rates a list, one for each group",
                UserWarning,
                stacklevel=7,  # who calls the step that a scheduler has wrapped
            )


def _is_flattened(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether groups of one rule have one lr, not 0, where their factors differ; a tensor is not looked into."""
    factors: dict[tuple[str, float], float] = {}
    for group in groups:
        if "multipliers" in group and not isinstance(group["lr"], Tensor) and group["lr"]:
            own = group["multipliers"].get("lr", 1.0)
            if factors.setdefault((group["algorithm"], group["lr"]), own) != own:
                return True
    return False
