"""Hyperparameters: each declared once on its rule; signature, validation, help and sweep grid derive from it."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

__all__ = [
    "Declaration",
    "Hyperparameter",
    "betas_hp",
    "choice",
    "eps_hp",
    "hp",
    "lr_hp",
    "momentum_hp",
    "optional_number",
    "weight_decay_hp",
]

WEN = "Wen et al. 2025 (2509.02046), phase I"


@dataclass(frozen=True)
class Hyperparameter:
    """A hyperparameter under its lab name, with the grid that a study sweeps.

    `low` and `high` are natural bounds: an optimum that sits on a closed one (weight decay 0) is interior, since
    nothing lies beyond it. `log` means that the grid is geometric.
    """

    name: str  # "opt.lr", "aux.beta1"
    default: Any
    grid: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    low_closed: bool = True
    high_closed: bool = True
    log: bool = True
    unit: str = ""
    source: str = ""  # of the grid

    def is_natural_bound(self, value: float) -> bool:
        """Whether nothing lies beyond `value`, so that an optimum there needs no wider grid.

        >>> Hyperparameter("opt.weight_decay", 0.1, (0.0, 0.1, 0.2), low=0.0).is_natural_bound(0.0)
        True
        """
        return (self.low_closed and value == self.low) or (self.high_closed and value == self.high)

    def extend(self, side: Literal["low", "high"]) -> float | None:
        """The next value beyond an end of the grid, or None where a natural bound is in the way.

        Math     log: the ratio of the two values at that end goes on; else 1 - value is halved (up) or doubled (down)

        >>> Hyperparameter("opt.lr", 1e-3, (0.004, 0.008, 0.016), low=0.0).extend("high")
        0.032
        >>> Hyperparameter("opt.beta1", 0.9, (0.9, 0.95, 0.98), low=0.0, high=1.0, log=False).extend("high")
        0.99
        >>> Hyperparameter("opt.weight_decay", 0.1, (0.0, 0.1, 0.2), low=0.0).extend("low") is None
        True
        """
        if side not in ("low", "high"):
            raise ValueError(f"side must be 'low' or 'high', got {side!r}")
        if not self.grid:
            return None
        grid = sorted(self.grid, reverse=side == "low")
        end, before = grid[-1], grid[-2] if len(grid) > 1 else 0.0
        if self.is_natural_bound(end):
            return None
        if self.log:
            value = end * (end / before if before else (2.0 if side == "high" else 0.5))
        else:
            value = 1 - (1 - end) * (0.5 if side == "high" else 2.0)
        value = float(f"{value:.12g}")
        return value if value != end and self._allows(value) else None

    def _allows(self, value: float) -> bool:
        above = self.low is None or value > self.low or (self.low_closed and value == self.low)
        below = self.high is None or value < self.high or (self.high_closed and value == self.high)
        return above and below and math.isfinite(value)


@dataclass(frozen=True)
class Declaration:
    """What `hp` attaches to a field: enough to validate it, to sweep it and to print it."""

    kind: type
    grid: tuple
    low: float | None
    high: float | None
    low_closed: bool
    high_closed: bool
    log: bool
    unit: str
    source: str
    parts: tuple[str, ...]
    check: Callable[[Any], Any] | None
    keyword: bool
    fixed: bool

    @property
    def scheduled(self) -> bool:
        """Whether it may change from step to step without a compiled step being compiled again."""
        return self.kind is float and self.check is None and not self.fixed

    def clean(self, name: str, value: Any) -> Any:
        """The value as the mathematics wants it; ValueError or TypeError if it cannot be."""
        if self.check is not None:
            return self.check(value)
        if self.parts:
            return self._clean_parts(name, value)
        if self.kind is bool:
            if not isinstance(value, bool | int) or value not in (0, 1):
                raise TypeError(f"{name} must be True or False, got {value!r}")
            return bool(value)
        label = "learning rate" if name == "lr" else f"{name} value"
        return self._clean_number(name, label, value)

    def _clean_parts(self, name: str, value: Any) -> tuple[float, ...]:
        if isinstance(value, str) or not isinstance(value, tuple | list):
            raise TypeError(f"{name} must be a tuple of {len(self.parts)} numbers, got {value!r}")
        if len(value) != len(self.parts):
            raise ValueError(f"{name} must have {len(self.parts)} values, got {len(value)}")
        if len({isinstance(item, Tensor) for item in value}) > 1:
            raise ValueError(f"{name} must be either both floats or both Tensors")
        label = f"{name.removesuffix('s')} parameter at index"
        return tuple(self._clean_number(f"{name}[{i}]", f"{label} {i}", item) for i, item in enumerate(value))

    def _clean_number(self, name: str, label: str, value: Any) -> float | int:
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element")
            value = value.item()
        wanted = numbers.Integral if self.kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise TypeError(f"{name} must be {'an integer' if self.kind is int else 'a number'}, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"Invalid {label}: {value}: must be finite")
        if self.low is not None and (value < self.low or (value == self.low and not self.low_closed)):
            raise ValueError(f"Invalid {label}: {value}: must be {'>=' if self.low_closed else '>'} {self.low:g}")
        if self.high is not None and (value > self.high or (value == self.high and not self.high_closed)):
            raise ValueError(f"Invalid {label}: {value}: must be {'<=' if self.high_closed else '<'} {self.high:g}")
        return self.kind(value)


def hp(
    default: Any,
    *,
    kind: type = float,
    grid: tuple = (),
    low: float | None = None,
    high: float | None = None,
    low_closed: bool = True,
    high_closed: bool = True,
    log: bool = True,
    unit: str = "",
    source: str = "",
    parts: tuple[str, ...] = (),
    check: Callable[[Any], Any] | None = None,
    keyword: bool = False,
    fixed: bool = False,
) -> Any:
    """Declare a hyperparameter once; signature, group defaults, validation and sweep grid derive from it.

    A tuple field names its `parts` (betas: "beta1", "beta2") and gives one grid per part. `check` replaces the numeric
    validation by a function that returns the clean value. `keyword` keeps it out of the positional arguments; `fixed`
    says that nobody schedules it.
    """
    options = {name: value for name, value in locals().items() if name != "default"}
    if parts and grid and (len(grid) != len(parts) or not all(isinstance(one, tuple) for one in grid)):
        raise TypeError(f"the parts {', '.join(parts)} want a grid each, a tuple of {len(parts)} tuples, got {grid!r}")
    return field(default=default, metadata={"hp": Declaration(**options)})


def choice(name: str, valid: tuple[str, ...]) -> Callable[[Any], Any]:
    """A `check` for a hyperparameter that is one of a few words."""

    def check(value: Any) -> Any:
        if value not in valid:
            raise ValueError(f"unknown {name} {value!r}: use one of {', '.join(valid)}")
        return value

    return check


def optional_number(name: str) -> Callable[[Any], float | None]:
    """A `check` for a number of at least 0 that may be left out."""

    def check(value: Any) -> float | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be None or a number of at least 0, got {value!r}")
        return float(value)

    return check


# The declarations that most rules share, with the grids of Wen et al. where these have some.


def lr_hp(default: float, grid: tuple[float, ...], unit: str, source: str = "") -> Any:
    return hp(
        default, grid=grid, low=0.0, unit=unit, source=source or f"{WEN}, extended downwards by their optima at scale"
    )


def weight_decay_hp(default: float, grid: tuple[float, ...] = (0.0, 0.1, 0.2), source: str = WEN) -> Any:
    return hp(default, grid=grid, low=0.0, unit="1/lr per step", source=source)


def momentum_hp(default: float, grid: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98), source: str = WEN) -> Any:
    return hp(default, grid=grid, low=0.0, high=1.0, high_closed=False, log=False, source=source)


def betas_hp(
    default: tuple[float, ...],
    *grids: tuple[float, ...],
    source: str = WEN,
) -> Any:
    """beta1, beta2, ...: the grids of those that have one."""
    parts = tuple(f"beta{i}" for i in range(1, len(default) + 1))
    grids = (*grids, *((0.9, 0.95, 0.98),) * (len(default) - len(grids)))
    return hp(default, parts=parts, grid=grids, low=0.0, high=1.0, high_closed=False, log=False, source=source)


def eps_hp(default: float, grid: tuple[float, ...] = (1e-25, 1e-20, 1e-15, 1e-10), source: str = WEN) -> Any:
    return hp(default, grid=grid, low=0.0, unit="gradient", source=source)
