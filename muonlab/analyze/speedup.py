"""Speedup in tokens: fit the tuned baseline's loss against its horizon, invert at the challenger's final loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from muonlab.analyze.significance import LEVEL, Noise

__all__ = [
    "EXPONENTS", "ArmLosses", "Bootstrap", "DataLaw", "Selection", "bootstrap", "draw_means", "fit_data_law",
    "read_off", "shared_fraction",
]  # fmt: skip

NUM_REPLICATES = 2000
EXPONENTS = np.geomspace(0.05, 2.0, 33)
STEPS = np.linspace(-1.0, 1.0, 17) * np.log(EXPONENTS[1] / EXPONENTS[0])  # around the best of them, in logarithms
PRIOR_EXPONENT, PRIOR_LOG_SD = 0.5, 0.7  # published data laws have 0.45-0.5 [Wen et al. 2025]; the width is ours
REACH = 1.1  # a fitted law that smooths noise may be read this far beyond the baseline's horizons; ours


@dataclass(frozen=True)
class DataLaw:
    """loss(tokens) = a * (tokens / scale)^-exponent + b; arrays hold one law per bootstrap replicate."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    exponent: NDArray[np.float64]
    scale: float

    def loss(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """The law's loss at these lengths."""
        return self.a * (np.asarray(tokens) / self.scale) ** -self.exponent + self.b

    def per(self, unit_tokens: float) -> dict[str, float]:
        """One law as people read it: loss = a (tokens / scale_tokens)^-exponent + b, in a unit of their choice."""
        a = float(self.a * (unit_tokens / self.scale) ** -self.exponent)
        return {"a": a, "b": float(self.b), "exponent": float(self.exponent), "scale_tokens": unit_tokens}

    def invert(self, loss: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Tokens at which the law reaches `loss`; inf where that lies at or below the floor b."""
        above = np.asarray(loss) - self.b
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens = self.scale * np.power(np.maximum(above, 0.0) / self.a, -1.0 / self.exponent)
        flat = self.a <= 0.0  # no measurable gain from tokens: the two sides of a horizontal line
        return np.where(flat, np.where(above < 0.0, np.inf, 0.0), tokens)


def fit_data_law(
    tokens: Sequence[float], losses: NDArray[np.float64], variances: NDArray[np.float64] | Sequence[float],
    prior_log_sd: float = PRIOR_LOG_SD,
) -> DataLaw:  # fmt: skip
    """Least squares in a >= 0 and b for each exponent of a grid; the exponent by least squares plus a weak prior.

    With an infinite `prior_log_sd` there is no prior, and only the ratios of the variances matter.

    Shapes   tokens (num_horizons,), losses (..., num_horizons), variances of those means (num_horizons,)
    Source   the law and its inversion: Wen et al. 2025; the prior ln(exponent) ~ N(ln 0.5, 0.7) is ours, and matters
             only where the noise leaves the exponent open

    >>> law = fit_data_law([1000, 2000, 4000], 2.0 + 3.0 * np.array([1.0, 2.0, 4.0]) ** -0.5, [1e-8] * 3)
    >>> round(float(law.exponent), 2), round(float(law.invert(2.0 + 3.0 * 3.0**-0.5)))
    (0.5, 3000)
    """
    scale = float(np.exp(np.mean(np.log(tokens))))
    weights = 1.0 / np.maximum(np.asarray(variances, dtype=float), 1e-12)
    y = np.asarray(losses, dtype=float)[..., None, :]
    exponents = np.broadcast_to(EXPONENTS, (*y.shape[:-2], len(EXPONENTS)))
    for finer in (STEPS, STEPS / 16, None):
        a, b, cost = _given_exponents(np.asarray(tokens, dtype=float) / scale, y, weights, exponents, prior_log_sd)
        best = np.argmin(cost, axis=-1)[..., None]
        exponent = np.take_along_axis(exponents, best, -1)
        if finer is not None:
            exponents = np.clip(exponent * np.exp(finer), EXPONENTS[0], EXPONENTS[-1])
    return DataLaw(
        a=np.take_along_axis(a, best, -1)[..., 0],
        b=np.take_along_axis(b, best, -1)[..., 0],
        exponent=exponent[..., 0],
        scale=scale,
    )


def _given_exponents(
    tokens: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64], exponents: NDArray[np.float64],
    prior_log_sd: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """The best a >= 0, its b, and what both cost, by exponent (..., num_exponents); y (..., 1, num_horizons)."""
    share = weights / weights.sum()
    x = tokens ** -exponents[..., None]
    x_mean, y_mean = x @ share, y @ share
    centred = x - x_mean[..., None]
    slope = ((centred * (y - y_mean[..., None])) @ share) / ((centred**2) @ share)
    a = np.maximum(slope, 0.0)
    b = y_mean - a * x_mean
    residual = y - (a[..., None] * x + b[..., None])
    prior = (np.log(exponents / PRIOR_EXPONENT) / prior_log_sd) ** 2
    return a, b, (residual**2) @ weights + prior


@dataclass(frozen=True)
class Selection:
    """What a tuning chose from: mean loss and number of runs of each configuration; index 0 is the chosen one.

    `curvatures` has, for each coordinate, how much the loss rises one grid step away from the chosen value: the
    optimum itself lies somewhere between the grid's values. `distances` has, for the same coordinates, the standard
    deviation of how far from the optimum a value lies that was predicted, in grid steps; None for one that was tuned.
    """

    means: Sequence[float]
    num_seeds: Sequence[int]
    curvatures: Sequence[float] = ()
    distances: Sequence[float | None] = ()

    def draw(self, deviation: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Loss given up by choosing on noisy means from a coarse grid, centred; one value per entry of `deviation`.

        Math     differences of means lose the share that noise has in them: d^2 - noise^2 (1/n + 1/n_chosen), not
                 below 0. A coordinate whose optimum lies u ~ U(-1/2, 1/2) grid steps away costs curvature u^2; u is
                 normal with its `distance` for one that was predicted
        Source   ours
        """
        means, counts = np.asarray(self.means), np.asarray(self.num_seeds)
        cost = np.zeros_like(deviation)
        for curvature, distance in zip_longest(self.curvatures, self.distances):
            steps = rng.uniform(-0.5, 0.5, len(deviation))
            cost += curvature * (steps if distance is None else distance * rng.standard_normal(len(deviation))) ** 2
        if len(means) > 1:
            noise = float(np.median(deviation)) ** 2 * (1.0 / counts + 1.0 / counts[0])
            gaps = means - means[0]
            gaps = np.sign(gaps) * np.sqrt(np.maximum(gaps**2 - noise, 0.0))
            drawn = gaps + rng.standard_normal((len(deviation), len(means))) * deviation[:, None] / np.sqrt(counts)
            cost += gaps[np.argmin(drawn, axis=1)]
        return cost - cost.mean()

    def spread(self, noise: Noise) -> float:
        """Standard deviation of the loss given up; `noise` is that of one run."""
        deviation = np.full(NUM_REPLICATES, math.sqrt(noise.variance))
        return float(np.std(self.draw(deviation, np.random.default_rng(0))))


def shared_fraction(losses: NDArray[np.float64]) -> float:
    """Intraclass correlation: how much of the noise a seed brings to all horizons alike, between 0 and 1.

    Shapes   losses (num_horizons, num_seeds), the same seeds in every row; each row is standardised first
    Source   the one-way random-effects estimator, Shrout & Fleiss 1979

    >>> shared_fraction(np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]))
    1.0
    """
    horizons, seeds = losses.shape
    if horizons < 2 or seeds < 2:
        return 0.0
    centred = losses - losses.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, ddof=1, keepdims=True)
    if not spread.all():
        return 0.0
    centred = centred / spread
    between = horizons * float(np.var(centred.mean(axis=0), ddof=1))
    within = float(((centred - centred.mean(axis=0)) ** 2).sum()) / ((seeds - 1) * (horizons - 1))
    total = between + (horizons - 1) * within
    return min(1.0, max(0.0, (between - within) / total)) if total > 0.0 else 0.0


@dataclass(frozen=True)
class ArmLosses:
    """What the bootstrap needs of one optimizer."""

    tokens: Sequence[float]
    means: Sequence[float]
    num_seeds: Sequence[int]
    noises: Sequence[Noise]  # of each horizon: a longer run can be much quieter than a short one
    selection: Selection
    main: int = 0  # the horizon at which the tuning made that selection
    shared: float = 0.0  # of the noise variance: the part that a seed brings to every horizon alike

    @property
    def variances(self) -> list[float]:
        """Of the mean losses."""
        return [noise.variance / n for noise, n in zip(self.noises, self.num_seeds, strict=True)]

    def draw(self, rng: np.random.Generator, num: int) -> NDArray[np.float64]:
        """Replicates of the mean losses (num, num_horizons): the variances are redrawn from their chi-square."""
        deviation = draw_deviations(self.noises, num, rng)
        shift = self.selection.draw(deviation[:, self.main], rng)
        seed, run = rng.standard_normal((num, 1)), rng.standard_normal((num, len(self.means)))
        noise = math.sqrt(self.shared) * seed + math.sqrt(1.0 - self.shared) * run
        return np.asarray(self.means) + deviation / np.sqrt(np.asarray(self.num_seeds)) * noise + shift[:, None]


def draw_deviations(noises: Sequence[Noise], num: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Standard deviations of a run (num, num_horizons) that may lie behind estimated ones, from their chi-square."""
    degrees = np.array([max(noise.degrees, 1) for noise in noises])
    variances = np.array([noise.variance for noise in noises])
    return np.sqrt(variances * degrees / rng.chisquare(degrees, (num, len(degrees))))


def draw_means(
    means: NDArray[np.float64], num_seeds: NDArray[np.float64], noises: Sequence[Noise], num: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:  # fmt: skip
    """Replicates (num, num_horizons) of mean losses, each of so many runs."""
    deviation = draw_deviations(noises, num, rng)
    return means + deviation / np.sqrt(num_seeds) * rng.standard_normal(deviation.shape)


@dataclass(frozen=True)
class Bootstrap:
    """A tokens speedup with its replicates; inf where a loss lies below the floor, or tokens do nothing."""

    point: float
    replicates: NDArray[np.float64]

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        tail = (1 - LEVEL) / 2
        low, high = (float(np.quantile(self.replicates, q, method="nearest")) for q in (tail, 1 - tail))
        return low, high

    @property
    def p_value(self) -> float:
        """Two-sided, of a speedup of 1."""
        num = len(self.replicates)
        rarer = min((self.replicates <= 1.0).sum(), (self.replicates >= 1.0).sum())
        return min(1.0, 2.0 * (float(rarer) + 1.0) / (num + 1.0))


def bootstrap(baseline: ArmLosses, challenger: ArmLosses) -> Bootstrap:
    """The tokens speedup, and what else it may be; `challenger` has one horizon.

    A parametric bootstrap of the pipeline: which configuration the tuning selects, the final means, the fit, the
    inversion. Selection enters by its spread: what it costs on average is part of being tuned, for every optimizer.
    """
    rng = np.random.default_rng(0)
    horizon = challenger.tokens[0]
    law = fit_data_law(baseline.tokens, np.asarray(baseline.means), baseline.variances)
    point = float(law.invert(challenger.means[0])) / horizon if law.a > 0.0 else math.inf
    laws = fit_data_law(baseline.tokens, baseline.draw(rng, NUM_REPLICATES), baseline.variances)
    return Bootstrap(point, laws.invert(challenger.draw(rng, NUM_REPLICATES)[:, 0]) / horizon)


def read_off(
    found: Bootstrap | None, tokens: float, lengths: Sequence[float]
) -> tuple[float | None, float | None, float | None, str]:
    """Speedup, its interval and flag, of a run of so many tokens by a law through the baseline's `lengths`.

    "undefined": there is no law, or no number of tokens reaches the loss; "extrapolated": beyond those lengths.

    >>> read_off(Bootstrap(2.0, np.array([1.9, 2.0, 2.1])), 1e6, [1e6, 2e6, 4e6])
    (2.0, 1.9, 2.1, '')
    >>> read_off(Bootstrap(math.inf, np.array([5.0, math.inf, math.inf])), 1e6, [1e6, 2e6, 4e6])
    (None, 5.0, None, 'undefined')
    """
    if found is None:
        return None, None, None, "undefined"
    point, low, high = map(finite, (found.point, *found.interval))
    if point is None:
        return None, low, high, "undefined"
    inside = min(lengths) / REACH <= point * tokens <= max(lengths) * REACH
    return point, low, high, "" if inside else "extrapolated"


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
