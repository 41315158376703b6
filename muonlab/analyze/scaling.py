"""Scaling laws of the loss: in tokens alone, or in parameters and tokens; every number with its interval.

Points are (params N, tokens D, loss L). Whatever is not identifiable is refused: no number comes without an interval.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from muonlab.analyze import speedup
from muonlab.analyze.significance import LEVEL, Noise
from muonlab.analyze.speedup import DataLaw, draw_means, fit_data_law
from muonlab.errors import UsageError, unknown

__all__ = ["HUBER_DELTA", "LAWS", "Fit", "JointLaw", "Point", "fit", "fit_joint_law", "redrawn_joint_laws"]

Array = NDArray[np.float64]
HUBER_DELTA = 1e-3  # of log loss [Hoffmann et al. 2022]
NUM_REPLICATES = 400
NUM_STARTS = 6
MAX_EVALUATIONS = 500  # of a search
EXPONENTS = np.geomspace(0.03, 2.0, 16)
LARGEST_LOG = 700.0  # its exponential is still a number
LAWS = ("data", "power", "chinchilla")


@dataclass(frozen=True)
class Point:
    """Final loss of a run, or mean of several; `params` is not needed for laws in tokens alone."""

    tokens: float
    loss: float
    params: float | None = None
    num_seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law. Intervals are 95 %, an end that is not bounded is None."""

    law: str
    formula: str
    parameters: Mapping[str, float]
    intervals: Mapping[str, tuple[float | None, float | None]]
    num_points: int
    residual: float  # root mean square, nats
    ranges: Mapping[str, tuple[float, float]]  # of what it was fitted to: beyond them it extrapolates
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class JointLaw:
    """loss(N, D) = E + A N^-alpha + B D^-beta, kept as logarithms with N and D in units of their geometric means."""

    theta: Array  # (..., 5): log E, log A, log B, alpha, beta
    log_params: float  # of the units
    log_tokens: float
    converged: bool = True

    def loss(self, params: Array | float, tokens: Array | float) -> Array:
        return _exp(_log_loss(self.theta, np.log(params) - self.log_params, np.log(tokens) - self.log_tokens))

    def parameters(self) -> dict[str, Array]:
        """E, A, B, alpha, beta as the formula has them, N and D in ones."""
        e, a, b, alpha, beta = np.moveaxis(self.theta, -1, 0)
        scaled = (_exp(a + alpha * self.log_params), _exp(b + beta * self.log_tokens))
        return {"E": _exp(e), "A": scaled[0], "B": scaled[1], "alpha": alpha, "beta": beta}

    def tokens_for(self, params: float, loss: Array | float) -> Array:
        """Tokens at which a model of that size reaches `loss`; inf where that is at or below its floor."""
        e, a, b, alpha, beta = np.moveaxis(self.theta, -1, 0)
        above = np.asarray(loss) - _exp(e) - _exp(a - alpha * (math.log(params) - self.log_params))
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = (b - np.log(np.maximum(above, 0.0))) / beta + self.log_tokens
        return np.where((above > 0.0) & (logarithm < LARGEST_LOG), _exp(logarithm), np.inf)


def _exp(x: Array) -> Array:
    return np.exp(np.minimum(x, LARGEST_LOG))


def _log_loss(theta: Array, n: Array | float, d: Array | float) -> Array:
    """Logarithm of the law; theta (..., 5), n and d logarithms that are broadcast to (...)."""
    e, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    return np.logaddexp(np.logaddexp(e, a - alpha * n), b - beta * d)


def fit(law: str, points: Sequence[Point], *, noise: Noise | None = None, huber_delta: float = HUBER_DELTA) -> Fit:
    """Fit one of LAWS.

    Math     data: L = a D^-exponent + b;  power: L = a D^-exponent;  chinchilla: L = E + A N^-alpha + B D^-beta
    Raises   UsageError for points from which the law cannot be told
    Source   data: Wen et al. 2025; chinchilla: Hoffmann et al. 2022, approach 3, with the grid of starting points of
             Besiroglu et al. 2024 replaced by least squares in E, A, B for each pair of exponents, which is ours.
             Intervals: data: `noise` (else the residuals) redrawn, power: t, chinchilla: points drawn with replacement
    Differs  from the laws that speedups are read off: no prior on the exponent, so that the noise moves no estimate
    """
    if law not in LAWS:
        raise unknown("law", law, LAWS)
    for point in points:
        if not 0 < point.tokens < math.inf or not 0 < point.loss < math.inf:
            raise UsageError(f"a law needs tokens and losses above 0, got {point.tokens:g} tokens, loss {point.loss:g}")
    distinct = sorted(set(points), key=lambda point: (point.params or 0.0, point.tokens, point.loss, point.num_seeds))
    notes = [f"{len(points) - len(distinct)} exact duplicates left out"] if len(distinct) < len(points) else []
    fitters: dict[str, Callable[[list[Point]], Fit]] = {
        "data": lambda chosen: _fit_data(chosen, noise),
        "power": _fit_power,
        "chinchilla": lambda chosen: _fit_chinchilla(chosen, huber_delta),
    }
    found = fitters[law](distinct)
    return Fit(**{**vars(found), "notes": (*notes, *found.notes)})


def _fit_data(points: Sequence[Point], noise: Noise | None) -> Fit:
    tokens, losses, counts = _columns(points)
    num_lengths = len(set(tokens))
    _require(num_lengths >= 3, f"a law a D^-exponent + b needs three lengths, there are {num_lengths}")
    law = fit_data_law(tokens, losses, 1.0 / counts, math.inf)
    residuals = losses - law.loss(tokens)
    if noise is None:
        degrees = len(points) - 3
        _require(degrees >= 1, "with three points the law leaves no residuals: name the noise, such as --noise 0.003")
        noise = Noise(float((residuals**2 * counts).sum()) / degrees, degrees)
        notes = [f"noise of {math.sqrt(noise.variance):.2g} nats from the residuals, {degrees} degrees of freedom"]
    else:
        notes = [f"noise of {math.sqrt(noise.variance):.2g} nats between seeds"]
    _require(bool(law.a > 0.0), "the loss does not fall with tokens: there is no law to fit")
    drawn = draw_means(losses, counts, [noise] * len(points), NUM_REPLICATES, np.random.default_rng(0))
    parameters = _in_ones(law)
    spread = _in_ones(fit_data_law(tokens, drawn, 1.0 / counts, math.inf))
    intervals = {name: _interval(values) for name, values in spread.items()}
    least, most = speedup.EXPONENTS[0], speedup.EXPONENTS[-1]
    if intervals["exponent"][0] == least or intervals["exponent"][1] == most:
        notes.append(f"exponents are sought from {least:g} to {most:g}, where the interval ends: too few lengths")
    return Fit(
        law="data",
        formula="loss = a tokens^-exponent + b",
        parameters={name: float(value) for name, value in parameters.items()},
        intervals=intervals,
        num_points=len(points),
        residual=_rms(residuals),
        ranges={"tokens": (float(tokens.min()), float(tokens.max()))},
        notes=tuple(notes),
    )


def _in_ones(law: DataLaw) -> dict[str, Array]:
    return {"a": law.a * law.scale**law.exponent, "b": law.b, "exponent": law.exponent}


def _fit_power(points: Sequence[Point]) -> Fit:
    tokens, losses, counts = _columns(points)
    num_lengths = len(set(tokens))
    _require(num_lengths >= 2 and len(points) >= 3, "a power law needs three runs, of two lengths or more")
    x, y = np.log(tokens), np.log(losses)
    design = np.stack([np.ones_like(x), -x], axis=1)
    weighted = design * np.sqrt(counts)[:, None]
    (log_a, exponent), *_ = np.linalg.lstsq(weighted, y * np.sqrt(counts), rcond=None)
    residuals = y - design @ [log_a, exponent]
    degrees = len(points) - 2
    covariance = np.linalg.inv(weighted.T @ weighted) * float((counts * residuals**2).sum()) / degrees
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * np.sqrt(np.diag(covariance))
    return Fit(
        law="power",
        formula="loss = a tokens^-exponent",
        parameters={"a": math.exp(log_a), "exponent": float(exponent)},
        intervals={
            "a": (math.exp(log_a - half[0]), math.exp(log_a + half[0])),
            "exponent": (float(exponent - half[1]), float(exponent + half[1])),
        },
        num_points=len(points),
        residual=_rms(losses - np.exp(design @ [log_a, exponent])),
        ranges={"tokens": (float(tokens.min()), float(tokens.max()))},
    )


def _fit_chinchilla(points: Sequence[Point], huber_delta: float) -> Fit:
    params, tokens, losses = _joint_columns(points)
    law = fit_joint_law(params, tokens, losses, huber_delta=huber_delta)
    rng = np.random.default_rng(0)
    replicates = []
    while len(replicates) < NUM_REPLICATES:
        chosen = rng.integers(0, len(points), len(points))
        if len(set(params[chosen])) >= 3 and len(set(tokens[chosen])) >= 3:
            replicates.append(_polish(law, params[chosen], tokens[chosen], losses[chosen], huber_delta)[0])
    spread = JointLaw(np.array(replicates), law.log_params, law.log_tokens).parameters()
    return Fit(
        law="chinchilla",
        formula="loss = E + A params^-alpha + B tokens^-beta",
        parameters={name: float(value) for name, value in law.parameters().items()},
        intervals={name: _interval(values) for name, values in spread.items()},
        num_points=len(points),
        residual=_rms(losses - law.loss(params, tokens)),
        ranges={
            "params": (float(params.min()), float(params.max())),
            "tokens": (float(tokens.min()), float(tokens.max())),
        },
        notes=() if law.converged else ("the search for the best fit did not converge: do not rely on it",),
    )


def fit_joint_law(params: Array, tokens: Array, losses: Array, *, huber_delta: float = HUBER_DELTA) -> JointLaw:
    """The law in N and D whose Huber loss on log loss is least.

    For each pair of exponents E, A, B are a linear problem; the best pairs are where the search starts.

    Raises   UsageError where fewer than six runs, three sizes or three lengths leave it open

    >>> N, D = np.meshgrid([1e6, 4e6, 16e6], [1e8, 4e8, 16e8])
    >>> law = fit_joint_law(N.ravel(), D.ravel(), (1.7 + 400 * N**-0.34 + 410 * D**-0.28).ravel())
    >>> {name: round(float(value), 2) for name, value in law.parameters().items() if name in ("E", "alpha", "beta")}
    {'E': 1.7, 'alpha': 0.34, 'beta': 0.28}
    """
    for what, values in (("sizes", params), ("lengths", tokens)):
        found = len(set(values))
        _require(found >= 3, f"E + A N^-alpha + B D^-beta needs three {what}, there are {found}")
    _require(bool(np.all(losses > 0)), "E + A N^-alpha + B D^-beta needs losses above 0")
    _require(len(losses) >= 6, f"E + A N^-alpha + B D^-beta needs six runs, there are {len(losses)}")
    units = (float(np.mean(np.log(params))), float(np.mean(np.log(tokens))))
    n, d = np.log(params) - units[0], np.log(tokens) - units[1]
    starts = sorted((_linear(n, d, losses, alpha, beta) for alpha in EXPONENTS for beta in EXPONENTS), key=_first)
    law = JointLaw(np.zeros(5), *units)
    found = [_polish(JointLaw(theta, *units), params, tokens, losses, huber_delta) for _, theta in starts[:NUM_STARTS]]
    theta, _, converged = min(found, key=lambda one: one[1])
    return JointLaw(theta, law.log_params, law.log_tokens, converged)


def redrawn_joint_laws(law: JointLaw, params: Array, tokens: Array, deviation: Array) -> JointLaw:
    """The laws of losses drawn anew around `law`, each as far from it as its `deviation` (nats) makes it."""
    rng = np.random.default_rng(0)
    expected = law.loss(params, tokens)
    drawn = expected + deviation * rng.standard_normal((NUM_REPLICATES, len(expected)))
    thetas = [_polish(law, params, tokens, np.maximum(losses, 1e-9), HUBER_DELTA)[0] for losses in drawn]
    return JointLaw(np.array(thetas), law.log_params, law.log_tokens)


def _first(pair: tuple[float, Array]) -> float:
    return pair[0]


def _linear(n: Array, d: Array, losses: Array, alpha: float, beta: float) -> tuple[float, Array]:
    """Cost and parameters of the best E, A, B >= 0 at these exponents, relative errors counting alike."""
    design = np.stack([np.ones_like(n), np.exp(-alpha * n), np.exp(-beta * d)], axis=1) / losses[:, None]
    values, cost = optimize.nnls(design, np.ones_like(losses))
    return float(cost), np.array([*np.log(np.maximum(values, 1e-6)), alpha, beta])


def _polish(
    start: JointLaw, params: Array, tokens: Array, losses: Array, huber_delta: float
) -> tuple[Array, float, bool]:
    """The minimum near a start: parameters, cost, and whether the search converged."""
    n, d, y = np.log(params) - start.log_params, np.log(tokens) - start.log_tokens, np.log(losses)

    def shares(theta: Array) -> tuple[Array, Array]:
        e, a, b, alpha, beta = theta
        terms = np.stack([np.full_like(n, e), a - alpha * n, b - beta * d])
        total = np.logaddexp(np.logaddexp(terms[0], terms[1]), terms[2])
        return np.exp(terms - total), total

    def slopes(theta: Array) -> Array:
        part, _ = shares(theta)
        return np.stack([*part, -part[1] * n, -part[2] * d], axis=1)

    found = optimize.least_squares(
        lambda theta: shares(theta)[1] - y, start.theta, jac=slopes, loss="huber", f_scale=huber_delta,
        x_scale="jac", ftol=1e-12, xtol=1e-10, gtol=1e-12, max_nfev=MAX_EVALUATIONS,
    )  # fmt: skip
    return found.x, float(found.cost), bool(found.status > 0)


def _columns(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    return (
        np.array([point.tokens for point in points], dtype=float),
        np.array([point.loss for point in points], dtype=float),
        np.array([point.num_seeds for point in points], dtype=float),
    )


def _joint_columns(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    if any(point.params is None or not 0 < point.params < math.inf for point in points):
        raise UsageError("a law in parameters and tokens needs params above 0 in every row")
    tokens, losses, _ = _columns(points)
    return np.array([point.params for point in points], dtype=float), tokens, losses


def _interval(values: Array) -> tuple[float | None, float | None]:
    tail = (1 - LEVEL) / 2
    low, high = (float(np.quantile(values, q, method="nearest")) for q in (tail, 1 - tail))
    return low if math.isfinite(low) else None, high if math.isfinite(high) else None


def _rms(residuals: Array) -> float:
    return float(np.sqrt(np.mean(residuals**2)))


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise UsageError(f"not identifiable: {otherwise}")
