"""Which hyperparameters must be tuned anew when model and budget grow: phase II of a ladder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muonlab.records.spec import Value

__all__ = ["INSENSITIVE_NATS", "Sensitivity", "Tried", "near_optimal", "sensitivity"]

INSENSITIVE_NATS = 6.4e-3  # Wen et al. 2025
NUM_ERRORS = 2.0  # a configuration so close to the best is not known to be worse; ours


@dataclass(frozen=True)
class Tried:
    """One configuration in one regime: its mean final loss, inf if it diverged, and the standard error of that."""

    settings: Mapping[str, Value]
    loss: float
    standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Whether one value of a coordinate is near-optimal in every regime."""

    coordinate: str
    near_optimal: Mapping[str, tuple[Value, ...]]  # regime -> values that some configuration near the best has
    shared: tuple[Value, ...]  # near-optimal in all of them, the best on average first; empty: scaling-sensitive

    @property
    def is_sensitive(self) -> bool:
        return not self.shared


def near_optimal(tried: Sequence[Tried], coordinate: str, nats: float = INSENSITIVE_NATS) -> dict[Value, float]:
    """Values of a coordinate in configurations within `nats` of the best, with the least excess of each.

    >>> near_optimal([Tried({"lr": 1}, 3.0), Tried({"lr": 2}, 3.005), Tried({"lr": 4}, 3.1)], "lr")
    {1: 0.0, 2: 0.004999999999999893}
    """
    found: dict[Value, float] = {}
    best = min(tried, key=lambda one: one.loss)
    for one in tried:
        excess, error = one.loss - best.loss, math.hypot(one.standard_error, best.standard_error)
        value = one.settings.get(coordinate)
        if coordinate in one.settings and excess <= max(nats, NUM_ERRORS * error):
            found[value] = min(excess, found.get(value, math.inf))
    return found


def sensitivity(
    regimes: Mapping[str, Sequence[Tried]], coordinates: Sequence[str], nats: float = INSENSITIVE_NATS
) -> tuple[Sensitivity, ...]:
    """Each coordinate is insensitive if some value of it is near-optimal in every regime, else sensitive.

    A regime in which a coordinate was never set says nothing about it.

    Source   Wen et al. 2025, phase II
    Differs  from it where losses are noisier than `nats`: what is within two standard errors counts as near, too

    >>> small, large = [Tried({"lr": 1}, 3.0), Tried({"lr": 2}, 3.1)], [Tried({"lr": 1}, 2.8), Tried({"lr": 2}, 2.7)]
    >>> sensitivity({"small": small, "large": large}, ["lr"])[0].is_sensitive
    True
    """
    return tuple(_of(regimes, coordinate, nats) for coordinate in coordinates)


def _of(regimes: Mapping[str, Sequence[Tried]], coordinate: str, nats: float) -> Sensitivity:
    near = {name: near_optimal(tried, coordinate, nats) for name, tried in regimes.items() if tried}
    near = {name: values for name, values in near.items() if values}
    shared = set.intersection(*(set(values) for values in near.values())) if near else set()
    ranked = sorted(shared, key=lambda value: (float(np.mean([values[value] for values in near.values()])), str(value)))
    return Sensitivity(
        coordinate=coordinate,
        near_optimal={name: tuple(values) for name, values in near.items()},
        shared=tuple(ranked),
    )
