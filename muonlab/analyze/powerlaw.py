"""Least squares of a power law in two variables, with or without a floor, on a logarithmic scale."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from muonlab.analyze.significance import LEVEL

__all__ = ["ASSUMED_STEP", "EXPONENT_SD", "PowerFit", "fit_power", "fit_power_with_floor"]

Array = NDArray[np.float64]
EXPONENT_SD = 0.5  # of an exponent before any data, around 0; ours: the published ones lie within 0.6
ASSUMED_STEP = math.log(2.0)  # of a grid that is not known, as most published ones; ours
MIN_DEVIATION = 1e-4  # of logarithms; below it the arithmetic fails first
FLOOR_VALUES, FLOOR_POINTS = 5, 8  # distinct values and points below which `b` is not sought; ours
FLOOR_GAIN = 2.0  # of AICc, for `b` to be kept; ours


@dataclass(frozen=True)
class PowerFit:
    """log h = log(a N^-A D^-B + b), where n and d are log N and log D, centred.

    Shapes   theta (3,): log a, A, B; with a floor (4,): and log b. covariance alike
    """

    theta: Array
    covariance: Array
    deviation: float  # of a point around the law, as a logarithm
    quantile: float  # of the distribution that intervals are taken from

    def at(self, n: float, d: float) -> tuple[float, float]:
        """Logarithm of the law, and half of the 95 % interval for a point there."""
        centre, slope = _at(self.theta, n, d)
        return float(centre), self.quantile * math.sqrt(float(slope @ self.covariance @ slope) + self.deviation**2)

    def interval(self, index: int) -> tuple[float, float]:
        """Of a parameter."""
        half = self.quantile * math.sqrt(float(self.covariance[index, index]))
        return float(self.theta[index] - half), float(self.theta[index] + half)


def fit_power(n: Array, d: Array, u: Array, least: float) -> PowerFit:
    """The law without a floor; points lie around it by `least` at least.

    Math     A, B ~ N(0, EXPONENT_SD) before any data, so that no design is too poor: what it leaves open stays as wide
             as that. Where there are no degrees of freedom, half of ASSUMED_STEP is taken for the deviation
    """
    x = np.stack([np.ones_like(n), -n, -d], axis=1)
    degrees = len(u) - int(np.linalg.matrix_rank(x))
    deviation = max(least, ASSUMED_STEP / 2) if degrees < 1 else max(least, MIN_DEVIATION)
    prior = np.diag([0.0, EXPONENT_SD**-2, EXPONENT_SD**-2])
    for _ in range(20 if degrees >= 1 else 1):
        covariance = np.linalg.inv(x.T @ x / deviation**2 + prior)
        theta = covariance @ (x.T @ u) / deviation**2
        found = math.sqrt(float(((u - x @ theta) ** 2).sum()) / degrees) if degrees >= 1 else 0.0
        deviation = max(found, deviation if degrees < 1 else least, MIN_DEVIATION)
    return PowerFit(theta, covariance, deviation, _quantile(degrees if found > least else 0))


def fit_power_with_floor(n: Array, d: Array, u: Array, without: PowerFit, least: float) -> PowerFit | None:
    """The law with a floor; None where the points are too few for it, or it is no better than the one `without`."""
    if len(set(u)) < FLOOR_VALUES or len(u) < FLOOR_POINTS:
        return None
    start = without.theta

    def residuals(theta: Array) -> Array:
        return _at(theta, n, d)[0] - u

    def penalties(theta: Array, deviation: float) -> Array:
        return np.concatenate([residuals(theta), deviation * theta[1:3] / EXPONENT_SD])

    def slopes(theta: Array, deviation: float) -> Array:
        return np.concatenate([_at(theta, n, d)[1], deviation / EXPONENT_SD * np.eye(4)[1:3]])

    def search(begin: Array, deviation: float) -> optimize.OptimizeResult:
        """The best fit near `begin`, the prior of the exponents weighing as much as the deviation makes it."""
        bounds = ([-np.inf] * 3 + [lowest - 20.0], [np.inf] * 3 + [lowest + 1.0])
        return optimize.least_squares(penalties, begin, jac=slopes, bounds=bounds, args=(deviation,), max_nfev=300)

    power, degrees = float(((start[0] - start[1] * n - start[2] * d - u) ** 2).sum()), len(u) - 4
    lowest, deviation = float(u.min()), max(least, MIN_DEVIATION)
    begins = [np.array([start[0], *(2 * start[1:]), lowest - below]) for below in (0.1, 0.7, 2.0)]
    best = min((search(begin, deviation) for begin in begins), key=lambda found: found.cost).x
    for _ in range(3):
        deviation = max(math.sqrt(float((residuals(best) ** 2).sum()) / degrees), least, MIN_DEVIATION)
        best = search(best, deviation).x
    squares = float((residuals(best) ** 2).sum())
    if _aicc(squares, len(u), 4, least) > _aicc(power, len(u), 3, least) - FLOOR_GAIN:
        return None
    deviation = max(math.sqrt(squares / degrees), least, MIN_DEVIATION)
    jacobian = _at(best, n, d)[1]
    prior = np.diag([0.0, EXPONENT_SD**-2, EXPONENT_SD**-2, 0.0])
    covariance = np.linalg.pinv(jacobian.T @ jacobian / deviation**2 + prior)
    return PowerFit(best, covariance, deviation, _quantile(degrees if deviation > least else 0))


def _aicc(squares: float, count: int, num_parameters: int, least: float) -> float:
    """Squares that are below what the grid leaves open are not worth a parameter."""
    k = num_parameters + 1
    return (
        count * math.log(max(squares / count, least**2, MIN_DEVIATION**2))
        + 2 * k
        + 2 * k * (k + 1) / max(1, count - k - 1)
    )


def _at(theta: Array, n: Array | float, d: Array | float) -> tuple[Array, Array]:
    """Logarithm of the law, and its slopes in theta along the last dimension."""
    power = theta[0] - theta[1] * n - theta[2] * d
    slope = np.stack(np.broadcast_arrays(1.0, np.negative(n), np.negative(d)), axis=-1)
    if len(theta) == 3:
        return power, slope
    value = np.logaddexp(power, theta[3])
    share = np.exp(power - value)[..., None]
    return value, np.concatenate([share * slope, 1.0 - share], axis=-1)


def _quantile(degrees: int) -> float:
    """Of t, or of the normal distribution where the grid's step says how far tuned values stray."""
    upper = (1 + LEVEL) / 2
    return float(stats.t.ppf(upper, degrees) if degrees >= 1 else stats.norm.ppf(upper))
