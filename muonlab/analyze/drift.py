"""How the place of an optimum moves with the width of the model. Places are logarithms of hyperparameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muonlab.analyze.significance import LEVEL

__all__ = ["Drift", "fit_drift", "fit_slope"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """How one coordinate of the optimum moves with the width: limit - rate / width."""

    limit: float
    rate: float
    covariance: Array  # (2, 2) of limit and rate
    quantile: float  # of 95 % intervals, in standard errors
    num_widths: int
    lawful: bool = True  # False: the errors do not explain what limit - rate / width leaves

    def at(self, width: float) -> tuple[float, float]:
        """The optimum at a width, and half of its interval; infinite with fewer than two widths."""
        row = np.array([1.0, -1.0 / width])
        half = self.quantile * math.sqrt(max(0.0, float(row @ self.covariance @ row)))
        return self.limit - self.rate / width, half if self.num_widths > 1 else math.inf

    def between(self, width: float, wider: float) -> tuple[float, float]:
        """How far it moves from one width to another, and half of its interval."""
        apart = 1.0 / width - 1.0 / wider
        return self.rate * apart, self.rate_half * apart

    @property
    def rate_half(self) -> float:
        """Half of the interval of the rate."""
        return self.quantile * math.sqrt(self.covariance[1, 1]) if self.num_widths > 1 else math.inf


def fit_drift(
    widths: Sequence[float],
    places: Sequence[float],
    variances: Sequence[float],
    degrees: int,
    spread: float = math.inf,
) -> Drift:
    """Weighted least squares of x(n) = limit - rate / n; of one width, no drift.

    With a `spread`, as if the rate had also been measured elsewhere, as 0 with that standard error.

    Errors are those given or, where these do not explain what the fit leaves (chi-square at 5 %), so many times as
    large that they do.

    Source   Essential AI 2025 (2505.02222), eq. 4: x*(n) = x* - a / n + O(1 / n^2)

    >>> found = fit_drift([32, 64, 128], [1.0, 1.5, 1.75], [0.01] * 3, 10)
    >>> round(found.limit, 6), round(found.rate, 6), round(found.at(256)[0], 6)
    (2.0, 32.0, 1.875)
    """
    if len(widths) < 2:
        return Drift(places[0], 0.0, np.zeros((2, 2)), math.inf, 1)
    line = _line([-1.0 / n for n in widths], places, variances, degrees, spread)
    return Drift(line[0], line[1], line[2], line[3], len(widths), line[4])


def fit_slope(
    widths: Sequence[float], places: Sequence[float], variances: Sequence[float], degrees: int
) -> tuple[float, float]:
    """Slope of places (logarithms) over the logarithm of the width, and half of its 95 % interval.

    >>> slope, half = fit_slope([32, 64, 128, 256], [math.log(1 / n) for n in (32, 64, 128, 256)], [1e-4] * 4, 20)
    >>> round(slope, 6), 0 < half < 0.1
    (-1.0, True)
    """
    _, slope, covariance, quantile, _ = _line(np.log(widths).tolist(), places, variances, degrees)
    return slope, quantile * math.sqrt(covariance[1, 1])


def _line(
    x: Sequence[float], y: Sequence[float], variances: Sequence[float], degrees: int, slope_spread: float = math.inf
) -> tuple[float, float, Array, float, bool]:
    """Intercept, slope, covariance of both, quantile of 95 % intervals, whether the errors explain what is left."""
    variance = np.array(variances, dtype=float)
    variance = np.maximum(variance, max(1e-18, 1e-9 * float(variance.max())))
    design = np.column_stack([np.ones(len(x)), x]) / np.sqrt(variance)[:, None]
    target = np.array(y) / np.sqrt(variance)
    theta, covariance = _solve(design, target, slope_spread)
    squares, spare = float(np.square(target - design @ theta).sum()), len(x) - 2
    explained = not spare or squares <= float(stats.chi2.ppf(LEVEL, spare))
    if not explained:
        root = math.sqrt(squares / spare)
        theta, covariance = _solve(design / root, target / root, slope_spread)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    return float(theta[0]), float(theta[1]), covariance, quantile, explained


def _solve(design: Array, target: Array, slope_spread: float) -> tuple[Array, Array]:
    precision = design.T @ design + np.diag([0.0, slope_spread**-2])
    return np.linalg.solve(precision, design.T @ target), np.linalg.inv(precision)
