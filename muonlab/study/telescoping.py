"""Telescoping: the mesh of each width, smaller and finer than that of the width before. Pure numbers, nothing is run.

Coordinates of a mesh are logarithms, of a hyperparameter or of 1 - its value (momenta), so that steps are factors.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from muonlab.analyze import optima
from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records.spec import Value

__all__ = ["Axis", "allowed", "first_axis", "log_place", "mesh", "next_axis", "num_points", "value_at", "within_bounds"]

DIGITS = 6  # of the values of a mesh


@dataclass(frozen=True)
class Axis:
    """The window [low, low + count step] of one hyperparameter, cut into cells with a point in the middle of each."""

    low: float
    step: float
    count: int

    @property
    def high(self) -> float:
        return self.low + self.count * self.step

    @property
    def points(self) -> tuple[float, ...]:
        return tuple(self.low + (i + 0.5) * self.step for i in range(self.count))

    def extended(self, side: str) -> "Axis":
        """With one cell more, at the "low" or the "high" end."""
        return replace(self, count=self.count + 1, low=self.low - (self.step if side == "low" else 0.0))


def num_points(points: int, width: float, wider: float, num_axes: int) -> int:
    """Points per axis at a wider model, so that a mesh costs as much as at the narrower one: at least 1, rounded up.

    Math     points (wider / width)^(-2 / k): a run at fixed tokens costs as the square of the width, a mesh of k axes
             has points^k of them
    Source   Essential AI 2025 (2505.02222), algorithm 1: a factor of 4^(-1 / k) a doubling; any ratio of widths is ours

    >>> [num_points(8, 256, n, 2) for n in (256, 512, 1024, 2048)], [num_points(7, 32, n, 1) for n in (64, 128)]
    ([8, 4, 2, 1], [2, 1])
    """
    return max(1, math.ceil(points * (wider / width) ** (-2 / num_axes) - 1e-9))


def within_bounds(axis: Axis, coordinate: Hyperparameter) -> Axis:
    """Without the cells at its ends whose value is beyond a natural bound of the hyperparameter."""
    inside = [allowed(coordinate, place) for place in axis.points]
    if not any(inside):
        return axis
    return Axis(axis.low + inside.index(True) * axis.step, axis.step, sum(inside))


def first_axis(centre: float, ratio: float, points: int) -> Axis:
    """Around where tuning would start, neighbours a factor of `ratio` apart."""
    step = math.log(ratio)
    return Axis(centre - points * step / 2, step, points)


def next_axis(centre: float, step: float, slack: float, points: int) -> Axis:
    """The window at the next width: the cell of the optimum here, and what its drift may differ from the expected one.

    Math     centre +- (step / 2 + slack), in `points` cells; `centre` is the optimum with the expected drift added
    Differs  from Essential AI 2025, which halves points and spacing alike: a window of half as many points at half the
             spacing is smaller than the cell that it came from once four points or fewer are left

    >>> axis = next_axis(0.0, 1.0, 0.5, 4)
    >>> axis.low, axis.high, axis.step
    (-1.0, 1.0, 0.5)
    """
    width = step + 2 * slack
    return Axis(centre - width / 2, width / points, points)


def mesh(axes: Mapping[str, Axis], coordinates: Sequence[Hyperparameter]) -> list[dict[str, Value]]:
    """The settings of every point."""
    values = [[value_at(h, place) for place in axes[h.name].points] for h in coordinates]
    return [dict(zip((h.name for h in coordinates), point, strict=True)) for point in product(*values)]


def log_place(coordinate: Hyperparameter, value: Value) -> float:
    """Where a value lies on the axis of its hyperparameter.

    Raises   UsageError for a value without a logarithm: what is 0 or no number has no place on a log mesh
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and (value if coordinate.log else 1 - value) > 0:
        return optima.place(value, coordinate.log)
    example = f"--set {coordinate.name}={'0.1' if coordinate.log else '0.9'}"
    raise UsageError(
        f"{coordinate.name} is {value!r}, around which no log mesh lies: start it elsewhere, such as {example}, "
        "or leave it out of --hyperparameters"
    )


def value_at(coordinate: Hyperparameter, place: float) -> float:
    """The value at a place, to six digits of itself or of its distance from 1.

    >>> value_at(Hyperparameter("opt.lr", 0.01), math.log(0.02)), value_at(
    ...     Hyperparameter("opt.momentum", 0.9, log=False), math.log(0.05))
    (0.02, 0.95)
    """
    left = float(f"{math.exp(place):.{DIGITS}g}")
    return left if coordinate.log else float(f"{1 - left:.12g}")


def allowed(coordinate: Hyperparameter, place: float) -> bool:
    """Whether a value at that place is within the natural bounds of its hyperparameter."""
    value = value_at(coordinate, place)
    above = coordinate.low is None or value > coordinate.low
    return above and (coordinate.high is None or value < coordinate.high)
