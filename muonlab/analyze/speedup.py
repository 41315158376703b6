"""Speedup in tokens: fit the tuned baseline's loss against its horizon, invert at the challenger's final loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muonlab.analyze.significance import LEVEL, Noise

__all__ = ["DataLaw", "Selection", "bootstrap_speedup", "fit_data_law"]

NUM_REPLICATES = 2000
EXPONENTS = np.geomspace(0.05, 2.0, 33)
PRIOR_EXPONENT, PRIOR_LOG_SD = 0.5, 0.7  # published data laws have 0.45-0.5 [Wen et al. 2025]; the width is ours


@dataclass(frozen=True)
class DataLaw:
    """loss(tokens) = a * (tokens / scale)^-exponent + b; arrays hold one law per bootstrap replicate."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    exponent: NDArray[np.float64]
    scale: float

    def invert(self, loss: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Tokens at which the law reaches `loss`; inf where that lies at or below the floor b."""
        above = np.asarray(loss) - self.b
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens = self.scale * np.power(np.maximum(above, 0.0) / self.a, -1.0 / self.exponent)
        flat = self.a <= 0.0  # no measurable gain from tokens: the two sides of a horizontal line
        return np.where(flat, np.where(above < 0.0, np.inf, 0.0), tokens)


def fit_data_law(
    tokens: Sequence[int], losses: NDArray[np.float64], variances: NDArray[np.float64] | Sequence[float]
) -> DataLaw:
    """Least squares in a >= 0 and b for each exponent of a grid; the exponent by least squares plus a weak prior.

    Shapes   tokens (num_horizons,), losses (..., num_horizons), variances of those means (num_horizons,)
    Source   the law and its inversion: Wen et al. 2025; the prior ln(exponent) ~ N(ln 0.5, 0.7) is ours, and matters
             only where the noise leaves the exponent open

    >>> law = fit_data_law([1000, 2000, 4000], 2.0 + 3.0 * np.array([1.0, 2.0, 4.0]) ** -0.5, [1e-8] * 3)
    >>> round(float(law.exponent), 2), round(float(law.invert(2.0 + 3.0 * 3.0**-0.5)))
    (0.5, 3000)
    """
    scale = float(np.exp(np.mean(np.log(tokens))))
    weights = 1.0 / np.maximum(np.asarray(variances, dtype=float), 1e-12)
    share = weights / weights.sum()
    x = (np.asarray(tokens, dtype=float) / scale)[None, :] ** -EXPONENTS[:, None]  # (num_exponents, num_horizons)
    x_mean = x @ share
    centred = x - x_mean[:, None]
    y = np.asarray(losses, dtype=float)
    y_mean = y @ share
    slope = np.einsum("eh,...h,h->...e", centred, y - y_mean[..., None], share) / ((centred**2) @ share)
    a = np.maximum(slope, 0.0)
    b = y_mean[..., None] - a * x_mean
    residual = y[..., None, :] - (a[..., None] * x + b[..., None])
    prior = (np.log(EXPONENTS / PRIOR_EXPONENT) / PRIOR_LOG_SD) ** 2
    best = np.argmin((residual**2) @ weights + prior, axis=-1)[..., None]
    return DataLaw(
        a=np.take_along_axis(a, best, -1)[..., 0],
        b=np.take_along_axis(b, best, -1)[..., 0],
        exponent=EXPONENTS[best[..., 0]],
        scale=scale,
    )


@dataclass(frozen=True)
class Selection:
    """What a tuning chose from: mean loss and number of runs of each configuration; index 0 is the chosen one."""

    means: Sequence[float]
    num_seeds: Sequence[int]

    def draw(self, deviation: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Loss given up by choosing on noisy means, centred; one value for each entry of `deviation`."""
        means, counts = np.asarray(self.means), np.asarray(self.num_seeds)
        if len(means) < 2:
            return np.zeros_like(deviation)
        noise = rng.standard_normal((len(deviation), len(means))) * deviation[:, None] / np.sqrt(counts)
        regret = means[np.argmin(means + noise, axis=1)] - means[0]
        return regret - regret.mean()


@dataclass(frozen=True)
class ArmLosses:
    """What the bootstrap needs of one optimizer."""

    tokens: Sequence[int]
    means: Sequence[float]
    num_seeds: Sequence[int]
    noise: Noise
    selection: Selection

    def draw(self, rng: np.random.Generator, num: int) -> NDArray[np.float64]:
        """Replicates of the mean losses (num, num_horizons): the variance itself is redrawn from its chi-square."""
        degrees = max(self.noise.degrees, 1)
        deviation = np.sqrt(self.noise.variance * degrees / rng.chisquare(degrees, num))
        error = deviation[:, None] / np.sqrt(np.asarray(self.num_seeds))
        shift = self.selection.draw(deviation, rng)
        return np.asarray(self.means) + error * rng.standard_normal((num, len(self.means))) + shift[:, None]


def bootstrap_speedup(baseline: ArmLosses, challenger: ArmLosses) -> tuple[float, float, float]:
    """Tokens speedup with its 95 % interval; `challenger` has one horizon. inf where the loss is below the floor.

    A parametric bootstrap of the pipeline: which configuration the tuning selects, the final means, the fit, the
    inversion. Selection enters by its spread: what it costs on average is part of being tuned, for every optimizer.
    """
    rng = np.random.default_rng(0)
    variances = [baseline.noise.variance / n for n in baseline.num_seeds]
    horizon = challenger.tokens[0]
    point = float(
        fit_data_law(baseline.tokens, np.asarray(baseline.means), variances).invert(challenger.means[0]) / horizon
    )
    laws = fit_data_law(baseline.tokens, baseline.draw(rng, NUM_REPLICATES), variances)
    replicates = laws.invert(challenger.draw(rng, NUM_REPLICATES)[:, 0]) / horizon
    tail = (1 - LEVEL) / 2
    low, high = (float(np.quantile(replicates, q, method="nearest")) for q in (tail, 1 - tail))
    return point, low, high


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
