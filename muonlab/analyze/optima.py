"""Where the loss is least, and how well runs tell.

Places are logarithms of hyperparameters. Pure: numpy and scipy, no records.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muonlab.analyze.significance import LEVEL, Noise

__all__ = [
    "NEAR",
    "Bowl",
    "Optimum",
    "Surface",
    "fit_bowl",
    "place",
    "regret_nats",
    "residual_noise",
    "value_at",
    "vertex_interval",
]

Array = NDArray[np.float64]

NEAR = 1.5  # steps around the best point of a mesh within which its losses are taken for a parabola; ours
STIFFEST = 1e12  # condition number of a curvature beyond which it is none


def place(value: float, log: bool = True) -> float:
    """Of a value on its axis: its logarithm, or that of 1 - value for what nears 1, as momenta do."""
    return math.log(value if log else 1 - value)


def value_at(place: float, log: bool = True) -> float:
    """Inverse of `place`."""
    return math.exp(place) if log else 1 - math.exp(place)


@dataclass(frozen=True)
class Surface:
    """Mean losses over a mesh at one width."""

    points: Array  # (num_points, k), logarithms
    losses: Array  # (num_points,), nats; inf where a run diverged
    steps: Array  # (k,) spacing of the mesh
    num_seeds: int

    @property
    def best(self) -> int:
        return int(np.argmin(self.losses))

    def near(self) -> NDArray[np.bool_]:
        """The points around the best one, itself among them, whose loss is finite."""
        away = np.abs(self.points - self.points[self.best]) <= NEAR * self.steps
        return np.asarray(away.all(axis=1) & np.isfinite(self.losses))


@dataclass(frozen=True)
class Optimum:
    """The best place of one surface."""

    place: Array  # (k,)
    variance: Array  # (k,) of the place
    vertex: Array | None  # (k,) of the parabola, wherever it lies; None without one
    fitted: bool  # False: the vertex is none or too far away, and `place` is the best point of the mesh


@dataclass(frozen=True)
class Bowl:
    """Parabolas with one curvature through the losses around the best point of each surface."""

    optima: tuple[Optimum, ...]
    curvature: Array | None  # (k, k) nats; None: no minimum was resolved
    degrees: int  # of freedom of the errors


def residual_noise(tables: Sequence[Array]) -> Noise:
    """Of one run, around its configuration and its seed: what is left of tables (configurations, seeds) of losses.

    Seeds that are lucky everywhere choose nothing, so that part is taken out. The better half of each table counts,
    since bad configurations are noisier.

    >>> residual_noise([np.array([[1.0, 2.0], [1.5, 2.5], [9.0, 1.0], [8.0, 9.0]])]).variance
    0.0
    """
    squares, degrees = 0.0, 0
    for table in tables:
        rows = table[np.isfinite(table).all(axis=1)]
        rows = rows[np.argsort(rows.mean(axis=1))][: max(2, (len(rows) + 1) // 2)]
        if len(rows) < 2 or rows.shape[1] < 2:
            continue
        left = rows - rows.mean(axis=1, keepdims=True) - rows.mean(axis=0) + rows.mean()
        squares += float(np.square(left).sum())
        degrees += (rows.shape[0] - 1) * (rows.shape[1] - 1)
    return Noise(squares / degrees if degrees else math.nan, degrees)


def fit_bowl(surfaces: Sequence[Surface], noise: Noise) -> Bowl:
    """The optimum of each surface, all of them with one curvature, so that two points an axis are enough.

    Math     loss = e_j + g_j z + z' H z / 2 by least squares, z from the best point of surface j; z* = -H^-1 g_j, its
             covariance by the delta method. The variance is that of the seeds or, if larger, what the fit leaves
    Source   Essential AI 2025 (2505.02222), eq. 4: with the loss l0(x) + l1(x) / width the curvature is that of l0 to
             first order. That it is fitted, and fitted for all widths at once, is ours

    Without a minimum, or with one more than 1.5 steps from the best point, the place is that point, as uncertain as the
    mesh is wide: losses then do not say where in it the optimum is.
    """
    k = surfaces[0].points.shape[1]
    solved = _least_squares(surfaces, noise)
    if solved is None:
        return Bowl(tuple(_unfitted(surface, None) for surface in surfaces), None, max(1, noise.degrees))
    theta, covariance, degrees = solved
    pairs = _pairs(k)
    H = np.zeros((k, k))
    for value, (a, b) in zip(theta[-len(pairs) :], pairs, strict=True):
        H[a, b] = H[b, a] = value
    values = np.linalg.eigvalsh(H)
    if values[0] <= 0 or values[-1] / values[0] > STIFFEST:
        return Bowl(tuple(_unfitted(surface, None) for surface in surfaces), None, degrees)
    inverse = np.linalg.inv(H)
    optima = []
    for j, surface in enumerate(surfaces):
        columns = [*range(j * (k + 1) + 1, (j + 1) * (k + 1)), *range(len(theta) - len(pairs), len(theta))]
        z = -inverse @ theta[columns[:k]]
        slopes = np.column_stack([np.eye(k), *(_unit(a, b, k) @ z for a, b in pairs)])
        jacobian = -inverse @ slopes
        variance = np.diag(jacobian @ covariance[np.ix_(columns, columns)] @ jacobian.T).clip(0.0)
        vertex = surface.points[surface.best] + z
        if (np.abs(z) <= NEAR * surface.steps).all():
            optima.append(Optimum(vertex, variance, vertex, True))
        else:
            optima.append(_unfitted(surface, vertex))
    return Bowl(tuple(optima), H, degrees)


def vertex_interval(surface: Surface, noise: Noise) -> tuple[float | None, float | None]:
    """95 % interval of the vertex of a parabola through the points around the best one, of a mesh of one axis.

    Open where the curvature is not resolved. Fieller's: all x at which the slope may be 0.

    Source   Fieller 1954
    """
    solved = _least_squares([surface], noise)
    if solved is None:
        return None, None
    (_, slope, curvature), covariance, degrees = solved
    square = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) ** 2
    a = curvature**2 - square * covariance[2, 2]
    b = slope * curvature - square * covariance[1, 2]
    c = slope**2 - square * covariance[1, 1]
    if a <= 0 or curvature <= 0:
        return None, None
    root = math.sqrt(max(0.0, b * b - a * c))
    middle = float(surface.points[surface.best, 0])
    return middle + (-b - root) / a, middle + (-b + root) / a


def _unfitted(surface: Surface, vertex: Array | None) -> Optimum:
    span = np.ptp(surface.points, axis=0) + surface.steps
    return Optimum(surface.points[surface.best], np.square(span) / 12, vertex, False)


def _least_squares(surfaces: Sequence[Surface], noise: Noise) -> tuple[Array, Array, int] | None:
    """Parameters (e_j and g_j of each surface, then H), covariance, degrees of freedom; None if they can't be told."""
    k = surfaces[0].points.shape[1]
    pairs = _pairs(k)
    width = len(surfaces) * (k + 1) + len(pairs)
    blocks, losses, weights = [], [], []
    for j, surface in enumerate(surfaces):
        if not np.isfinite(surface.losses[surface.best]):
            return None
        near = surface.near()
        z = (surface.points - surface.points[surface.best])[near]
        block = np.zeros((len(z), width))
        block[:, j * (k + 1)] = 1.0
        block[:, j * (k + 1) + 1 : (j + 1) * (k + 1)] = z
        for i, (a, b) in enumerate(pairs):
            block[:, width - len(pairs) + i] = z[:, a] * z[:, b] * (0.5 if a == b else 1.0)
        blocks.append(block)
        losses.append(surface.losses[near])
        weights += [math.sqrt(surface.num_seeds)] * len(z)
    design, y, root = np.concatenate(blocks), np.concatenate(losses), np.array(weights)
    theta, _, rank, _ = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)
    if rank < width:
        return None
    left = (y - design @ theta) * root
    degrees = len(y) - width
    of_fit = float(left @ left) / degrees if degrees else 0.0
    of_seeds = noise.variance if noise.degrees else 0.0
    covariance = np.linalg.inv((design * root[:, None]).T @ (design * root[:, None])) * max(of_fit, of_seeds)
    return theta, covariance, max(1, noise.degrees if of_seeds >= of_fit else degrees)


def _pairs(k: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(k) for b in range(a, k)]


def _unit(a: int, b: int, k: int) -> Array:
    found = np.zeros((k, k))
    found[a, b] = found[b, a] = 1.0
    return found


def regret_nats(curvature: Array, variances: Array) -> tuple[float, float]:
    """What an uncertain place costs above the least loss: on average, and less than that 95 times out of 100.

    Math     z' H z / 2 of z with these variances; its 95 % quantile is that of a scaled chi-square of equal moments

    >>> [round(x, 4) for x in regret_nats(np.array([[2.0]]), np.array([0.01]))]
    [0.01, 0.0384]
    """
    product = curvature * variances
    mean, square = float(np.trace(product)), float(np.trace(product @ product))
    if mean <= 0 or square <= 0:
        return 0.0, 0.0
    freedom = mean**2 / square
    return mean / 2, float(stats.chi2.ppf(LEVEL, freedom)) * mean / freedom / 2
