"""What is kept of losses and step times."""

from collections.abc import Sequence
from statistics import mean, median

from muonlab.records.record import Series

__all__ = ["thinned", "thinned_series", "typical"]

CURVE_POINTS = 256  # a longer training curve is averaged down to this many points
WINDOW_STEPS = 10  # over which step times are averaged: preconditioners are refreshed every tenth step, or more often


def typical(seconds: list[float]) -> float | None:
    """The median over windows of the mean time of a step: what recurs counts, what disturbs one window does not."""
    if len(seconds) < 2 * WINDOW_STEPS:
        return median(seconds) if seconds else None
    starts = range(0, len(seconds) - WINDOW_STEPS + 1, WINDOW_STEPS)
    return median(mean(seconds[start : start + WINDOW_STEPS]) for start in starts)


def thinned(losses: list[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps and losses of a curve with at most CURVE_POINTS points, each the mean of the steps up to it."""
    width = -(-len(losses) // CURVE_POINTS) or 1
    groups = [losses[start : start + width] for start in range(0, len(losses), width)]
    ends = [min(start + width, len(losses)) for start in range(0, len(losses), width)]
    return tuple(ends), tuple(sum(group) / len(group) for group in groups)


def thinned_series(points: Sequence[tuple[int, float]]) -> Series:
    """What was measured after some steps, with at most CURVE_POINTS points, each the mean of those up to it."""
    ends, values = thinned([value for _, value in points])
    return Series(tuple(points[end - 1][0] for end in ends), values)
