"""What of a growing model is multiplied in its forward pass: outputs of residual branches, inputs of tied heads."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from muonlab.errors import UsageError

__all__ = ["ScaledInput", "ScaledOutput", "branch_factors"]

LISTS = (nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class ScaledOutput:
    """A forward hook: the output, or the first of several, times a factor."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] * self.factor, *output[1:])
        return output * self.factor


@dataclass(frozen=True)
class ScaledInput:
    """A forward pre-hook: the first input times a factor, so that a bias is not touched."""

    factor: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] * self.factor, *args[1:]), kwargs
        name, first = next(iter(kwargs.items()))
        return args, {**kwargs, name: first * self.factor}


def branch_factors(
    model: nn.Module, base: nn.Module, branches: Sequence[str], pattern_of: Callable[[str], str]
) -> dict[str, float]:
    """Each branch with base depth / depth, where it is not 1. A `*` stands for one part of a name, not for several.

    Raises   UsageError for a pattern that matches nothing, a branch within another, or a module that is never called
    """
    names = [name for name, _ in model.named_modules() if name]
    counts, found = Counter(map(pattern_of, names)), {}
    before = Counter(pattern_of(name) for name, _ in base.named_modules())
    for pattern in branches:
        chosen = [name for name in names if _matches(name, pattern)]
        if not chosen or not all(before[pattern_of(name)] for name in chosen):
            lacks = "base" if chosen else "model"
            first = ", ".join(names[:5])
            raise UsageError(
                f"branches: no module of the {lacks} is called {pattern!r}, where * is one part of a name "
                f"(the first are {first})"
            )
        found |= {name: before[pattern_of(name)] / counts[pattern_of(name)] for name in chosen}
    _check(model, found, pattern_of)
    return {name: factor for name, factor in found.items() if factor != 1.0}


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _check(model: nn.Module, chosen: Collection[str], pattern_of: Callable[[str], str]) -> None:
    for name in chosen:
        parts = name.split(".")
        if isinstance(module := model.get_submodule(name), LISTS):
            raise UsageError(f"branches: {name} is a {type(module).__name__}, which is never called: name what it has")
        for outer in (".".join(parts[:i]) for i in range(1, len(parts))):
            if isinstance(model.get_submodule(outer), nn.MultiheadAttention):
                instead = pattern_of(outer).replace("#", "*")
                raise UsageError(
                    f"branches: {name} is never called, {outer} only takes its weights: name the attention, {instead!r}"
                )
            if outer in chosen:
                raise UsageError(f"branches: {name} lies within {outer}, which is one too: name one of the two")
