"""Critical batch sizes: where more devices stop buying time. Estimators that answer different questions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muonlab.analyze.significance import LEVEL, Noise

__all__ = [
    "OVERHEAD",
    "Estimate",
    "OverheadFit",
    "TokenCurve",
    "fit_overhead",
    "noise_scale",
    "overhead_batches",
    "sfo_minimum",
    "token_optimal",
]  # fmt: skip

Array = NDArray[np.float64]
OVERHEAD = 0.2  # of tokens above those of the best batch: what is called critical (Zhang et al. 2024)
TOLERANCE = 0.05  # of tokens, within which a larger batch counts as no dearer; ours
REPLICATES = 400
MIN_BATCHES = 3  # with a target reached, for any fit
FREE_FROM = 5  # batches from which the exponent of the fit is free; with fewer it is 1
POWER_SD = 0.5  # of the logarithm of the power before any data; ours
GAUSS_NEWTON_STEPS = 12
MOST_APART = 100.0  # from a noise scale, a factor from which on its interval says nothing; ours
MOST_BEYOND = 8.0  # a fit says nothing beyond the measured batches by more than this factor; ours


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A batch size in tokens with its 95 % interval; None is undefined, an end that is None is open."""

    value: float | None
    low: float | None
    high: float | None
    flag: str = ""  # "above" or "below": outside the batches measured, the value is their edge; "undefined"


UNDEFINED = Estimate(value=None, low=None, high=None, flag="undefined")


@dataclass(frozen=True)
class TokenCurve:
    """Tokens to a target by batch size, over seeds, of the batches at which all seeds reached it.

    Shapes   batches (k,), tokens: k sequences
    """

    batches: Array
    tokens: Sequence[Sequence[float]]
    noise: Noise  # of the logarithm of one run's tokens

    @property
    def logs(self) -> Array:
        """Mean logarithm of tokens: (k,)."""
        return np.array([np.mean(np.log(own)) for own in self.tokens])

    @property
    def errors(self) -> Array:
        """Standard errors of `logs`: (k,)."""
        counts = np.array([len(own) for own in self.tokens])
        return np.sqrt(self.noise.variance / counts)


@dataclass(frozen=True)
class OverheadFit:
    """tokens = least (1 + OVERHEAD (batch / critical)^power)."""

    least: float
    critical: float
    power: float

    def batch(self, overhead: float) -> float:
        """The batch that takes so much more than the least tokens: 1.0 is twice as many."""
        return self.critical * (overhead / OVERHEAD) ** (1.0 / self.power)

    def tokens(self, batches: Array) -> Array:
        return self.least * (1.0 + OVERHEAD * (batches / self.critical) ** self.power)


def fit_overhead(batches: Array, logs: Array, errors: Array) -> OverheadFit:
    """The least squares of log tokens.

    Source   power 1 is steps = S_min + E_min / batch of McCandlish et al. 2018 (1812.06162), whose B_crit is
             critical / OVERHEAD. Another power, between 0.5 and 2 and pulled towards 1, is ours: optimizers that keep
             what they have seen leave linear scaling more or less sharply

    >>> batches = np.array([1e3, 2e3, 4e3, 8e3, 1.6e4])
    >>> fit = fit_overhead(batches, np.log(1e6 * (1 + batches / 2e4)), np.full(5, 0.01))
    >>> round(fit.critical), round(fit.power, 2)
    (4000, 1.0)
    """
    return _fits(batches, logs[None], errors)[0]


def _fits(batches: Array, logs: Array, errors: Array) -> list[OverheadFit]:
    """Of several sets of means, logs (n, k): the best of a grid, then Gauss-Newton steps, for all of them at once."""
    weights = 1.0 / np.maximum(errors, 1e-6) ** 2
    share, free = weights / weights.sum(), len(batches) >= FREE_FROM
    spread = math.log(batches[-1] / batches[0])
    low, high = math.log(batches[0]) - spread, math.log(batches[-1]) + 2 * spread
    powers = np.linspace(math.log(0.5), math.log(2.0), 7) if free else np.zeros(1)
    grid = np.stack([x.ravel() for x in np.meshgrid(np.linspace(low, high, 120), powers, indexing="ij")], axis=1)
    wanted = logs - (logs @ share)[:, None]

    def shapes(theta: Array) -> tuple[Array, Array]:
        """log(1 + OVERHEAD (batch / critical)^power) of theta (n, 2), and what of it is beyond linear: (n, k) each."""
        more = OVERHEAD * np.exp(np.exp(theta[:, 1:]) * (np.log(batches) - theta[:, :1]))
        return np.log1p(more), more / (1.0 + more)

    found = shapes(grid)[0]
    centred = found - (found @ share)[:, None]
    squares = (centred**2 @ weights + (grid[:, 1] / POWER_SD) ** 2)[None] - 2 * (wanted * weights) @ centred.T
    theta = grid[np.argmin(squares, axis=1)]
    for _ in range(GAUSS_NEWTON_STEPS):
        found, beyond = shapes(theta)
        power = np.exp(theta[:, 1:])
        slopes = np.stack([-power * beyond, power * (np.log(batches) - theta[:, :1]) * beyond], axis=2)
        slopes = slopes - np.einsum("nkp,k->np", slopes, share)[:, None]
        left = wanted - found + (found @ share)[:, None]
        normal = np.einsum("nkp,k,nkq->npq", slopes, weights, slopes) + np.diag([1e-9, POWER_SD**-2 if free else 1e12])
        towards = np.einsum("nkp,k,nk->np", slopes, weights, left) - theta * [0.0, POWER_SD**-2]
        step = np.linalg.solve(normal, towards[..., None])[..., 0]
        theta = np.clip(theta + np.clip(step, -0.3, 0.3), [low, powers[0]], [high, powers[-1]])
    least = np.exp((logs - shapes(theta)[0]) @ share)
    return [OverheadFit(float(x), float(c), float(p)) for x, (c, p) in zip(least, np.exp(theta), strict=True)]


def overhead_batches(curve: TokenCurve) -> tuple[Estimate, Estimate, OverheadFit | None]:
    """The batches that take 20 % and 100 % more tokens than the fewest, that is steps than linear scaling.

    Intervals are by parametric bootstrap of the means, whose noise is that of the seeds or, if larger, what the fit
    leaves unexplained. Undefined with fewer than three batches.

    Source   20 %: Zhang et al. 2024 (2410.21676); 100 %: B_crit of McCandlish et al. 2018, which the noise scale
             estimates
    Differs  from theirs in the fit, `fit_overhead`, and in having an interval
    """
    if len(curve.batches) < MIN_BATCHES or curve.noise.degrees < 1:
        return UNDEFINED, UNDEFINED, None
    errors = np.maximum(curve.errors, 1e-4)
    fit = fit_overhead(curve.batches, curve.logs, errors)
    left = (np.log(fit.tokens(curve.batches)) - curve.logs) / errors
    degrees = max(1, len(left) - (3 if len(left) >= FREE_FROM else 2))
    errors = errors * max(1.0, math.sqrt(float(left @ left) / degrees))
    smooth = np.log(fit.tokens(curve.batches))

    replicates = _fits(curve.batches, smooth + _drawn(curve.noise, errors), errors)
    found = [
        _within(curve.batches, fit.batch(more), [one.batch(more) for one in replicates]) for more in (OVERHEAD, 1.0)
    ]
    return found[0], found[1], fit


def sfo_minimum(curve: TokenCurve) -> Estimate:
    """The batch that takes the fewest tokens: the minimum of the stochastic first-order complexity steps x batch.

    By the parabola of log tokens over log batch through the least mean and its neighbours; where the least is at an
    end, so is the value, and no minimum was seen.

    Source   the quantity: Sato et al. 2025 (2507.01598); how it is read off is ours
    """
    if len(curve.batches) < MIN_BATCHES or curve.noise.degrees < 1:
        return UNDEFINED
    logs = curve.logs
    value, at = _lowest(curve.batches, logs), int(np.argmin(logs))
    replicates = [_lowest(curve.batches, drawn) for drawn in logs + _drawn(curve.noise, curve.errors)]
    found = _within(curve.batches, value, replicates)
    if at in (0, len(logs) - 1):
        return Estimate(value=value, low=found.low, high=found.high, flag="below" if at == 0 else "above")
    return found


def _lowest(batches: Array, logs: Array) -> float:
    at = int(np.argmin(logs))
    if at in (0, len(logs) - 1):
        return float(batches[at])
    x, y = np.log(batches[at - 1 : at + 2]), logs[at - 1 : at + 2]
    a, b, _ = np.polyfit(x - x[1], y, 2)
    return (
        float(batches[at] * math.exp(min(max(-b / (2 * a), x[0] - x[1]), x[2] - x[1]))) if a > 0 else float(batches[at])
    )


def token_optimal(curve: TokenCurve) -> float | None:
    """The largest batch that takes no more tokens than the best one does, within TOLERANCE; None if there is none.

    Source   Essential AI 2025 (2505.02222); the tolerance is ours
    """
    if not len(curve.batches):
        return None
    logs = curve.logs
    return float(curve.batches[logs <= logs.min() + math.log1p(TOLERANCE)].max())


def noise_scale(
    noise: Sequence[float], signal: Sequence[float], power: float = 1.0, weights: Sequence[float] | None = None
) -> Estimate:
    """(mean noise / mean signal)^power over runs, with a jackknife interval: a ratio of means, not a mean of ratios.

    Undefined where the signal cannot be told from nothing, or the interval leaves it open by a factor of 100.

    Shapes   noise, signal (num_runs,): the sum over the probes of one run; weights alike, one each where None
    Source   McCandlish et al. 2018: B_simple = tr(covariance) / |G|^2, of SGD's geometry. In the nuclear norm, of
             Muon's, power is 2 (muonlab.train.noise)

    >>> found = noise_scale([1.30, 1.31, 1.29], [2.5e-4, 2.6e-4, 2.5e-4])
    >>> round(found.value), found.low < found.value < found.high
    (5132, True)
    """
    share = np.ones(len(noise)) if weights is None else np.asarray(weights, dtype=float)
    n, s = np.asarray(noise, dtype=float) * share, np.asarray(signal, dtype=float) * share
    if len(n) < 2 or n.sum() <= 0 or s.sum() <= 0:
        return UNDEFINED
    value = power * math.log(n.sum() / s.sum())
    without = [(n.sum() - a, s.sum() - b) for a, b in zip(n, s, strict=True)]
    if min(min(pair) for pair in without) <= 0:
        return UNDEFINED
    logs = np.array([power * math.log(a / b) for a, b in without])
    error = math.sqrt((len(n) - 1) / len(n) * float(((logs - logs.mean()) ** 2).sum()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(n) - 1)) * error
    if half > math.log(MOST_APART):
        return UNDEFINED
    return Estimate(value=math.exp(value), low=math.exp(value - half), high=math.exp(value + half))


def _drawn(noise: Noise, errors: Array) -> Array:
    """Errors of means as another study would have them, with a variance that is known from so many degrees only."""
    generator = np.random.default_rng(0)
    scale = np.sqrt(noise.degrees / generator.chisquare(noise.degrees, REPLICATES))
    return generator.standard_normal((REPLICATES, len(errors))) * errors * scale[:, None]


def _within(batches: Array, value: float, replicates: Sequence[float]) -> Estimate:
    """Ends far beyond the measured batches are open; a value beyond them says only that it is."""
    ends = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    least, most = float(batches[0]) / MOST_BEYOND, float(batches[-1]) * MOST_BEYOND
    low, high = (None if ends[0] < least else float(ends[0])), (None if ends[1] > most else float(ends[1]))
    if value > batches[-1]:
        return Estimate(value=float(batches[-1]), low=low, high=high, flag="above")
    if value < batches[0]:
        return Estimate(value=float(batches[0]), low=low, high=high, flag="below")
    return Estimate(value=value, low=low, high=high)
