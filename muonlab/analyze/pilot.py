"""From a short pilot to the batch size of a long run: how gradient noise grows, and what a batch will cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from muonlab.analyze.batch import noise_sums
from muonlab.analyze.critical_batch import OVERHEAD, UNDEFINED, Estimate, noise_scale
from muonlab.analyze.significance import LEVEL
from muonlab.records import Record
from muonlab.records.spec import Value
from muonlab.records.watch import NOISE

__all__ = ["Candidate", "Recommendation", "extrapolated", "recommend"]

WINDOWS = ((1 / 8, 1 / 4), (1 / 4, 1 / 2), (1 / 2, 1.0))  # of the pilot, in which the noise scale is taken
GROWTH, GROWTH_SD = 0.4, 0.3  # of the noise scale with tokens, as a power, before any data; ours
LEAST_SD = 0.1  # of the logarithm of a noise scale; ours


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What a batch size is predicted to take to where the budget would lead at small batches."""

    batch_tokens: int
    tokens: float | None  # None: the pilot does not tell
    low: float | None  # 95 % interval of the tokens, of the noise scale
    high: float | None
    steps: float | None
    seconds: float | None  # on one device, by the time of a few steps


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The largest batch that is predicted to take at most 20 % more tokens than small ones, for one optimizer."""

    optimizer: str
    settings: Mapping[str, Value]  # of the pilot, tuned in lr
    pilot_batch: int
    pilot_tokens: int
    budget_tokens: int
    batch: Estimate  # 0.2 of the noise scale at the budget
    noise_scale: Estimate  # extrapolated to the budget
    nuclear_noise_scale: Estimate
    growth: float | None  # of the noise scale with tokens, as a power
    candidates: tuple[Candidate, ...]


def recommend(
    name: str, runs: Sequence[Record], budget: int, step_seconds: Mapping[int, float], settings: Mapping[str, Value]
) -> Recommendation:
    """From the pilot's runs on several seeds, with gradient noise measured; a candidate for each timed batch.

    Math     tokens(batch) = budget (1 + batch / noise scale), so 20 % more at 0.2 of the noise scale
    Source   McCandlish et al. 2018 (1812.06162) for the law; that their noise scale serves other optimizers than SGD is
             an assumption, which `muonlab batch` without --predict tests
    """
    first = runs[0].spec
    simple, growth = extrapolated(runs, budget)
    nuclear, _ = extrapolated(runs, budget, nuclear=True)
    shares = [None if end is None else OVERHEAD * end for end in (simple.value, simple.low, simple.high)]
    return Recommendation(
        optimizer=name,
        settings=settings,
        pilot_batch=first.batch_tokens,
        pilot_tokens=first.horizon_tokens,
        budget_tokens=budget,
        batch=Estimate(value=shares[0], low=shares[1], high=shares[2], flag=simple.flag),
        noise_scale=simple,
        nuclear_noise_scale=nuclear,
        growth=growth,
        candidates=tuple(_candidate(batch, budget, simple, seconds) for batch, seconds in step_seconds.items()),
    )


def _candidate(batch: int, budget: int, scale: Estimate, step_seconds: float) -> Candidate:
    ends = (scale.value, scale.high, scale.low)
    tokens, low, high = (None if at is None else budget * (1.0 + batch / at) for at in ends)
    steps = None if tokens is None else tokens / batch
    seconds = None if steps is None else steps * step_seconds
    return Candidate(batch_tokens=batch, tokens=tokens, low=low, high=high, steps=steps, seconds=seconds)


def extrapolated(runs: Sequence[Record], budget: float, *, nuclear: bool = False) -> tuple[Estimate, float | None]:
    """The noise scale at so many tokens, by a power law through three windows of the pilot; and its power.

    Math     log scale = a + g log tokens, g ~ N(0.4, 0.3) before any data; a window's error is its jackknife over seeds
    """
    signal, noise = NOISE[2:] if nuclear else NOISE[:2]
    x, y, sd = [], [], []
    for first, last in WINDOWS:
        sums = [noise_sums(run, first * run.spec.horizon_tokens, last * run.spec.horizon_tokens) for run in runs]
        sums = [one for one in sums if one]
        found = noise_scale([s[noise] for s in sums], [s[signal] for s in sums], power=2.0 if nuclear else 1.0)
        if found.value is None or found.low is None or found.high is None:
            continue
        x.append(math.log(math.sqrt(first * last) * runs[0].spec.horizon_tokens / budget))
        y.append(math.log(found.value))
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(sums) - 1))
        sd.append(max(LEAST_SD, math.log(found.high / found.low) / 2 / quantile))
    if not x:
        return UNDEFINED, None
    design = np.stack([np.ones(len(x)), x], axis=1)
    weights = 1.0 / np.square(sd)
    covariance = np.linalg.inv(design.T @ (design * weights[:, None]) + np.diag([0.0, GROWTH_SD**-2]))
    theta = covariance @ (design.T @ (weights * y) + np.array([0.0, GROWTH / GROWTH_SD**2]))
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(float(covariance[0, 0]))
    at = float(theta[0])
    return Estimate(value=math.exp(at), low=math.exp(at - half), high=math.exp(at + half)), float(theta[1])
