"""Scores of training algorithms by their times to targets on many workloads: AlgoPerf's performance profiles."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muonlab.analyze.significance import LEVEL
from muonlab.analyze.trials import Trial, base_workloads, best_of_studies, listed, unequal_numbers
from muonlab.errors import UsageError

__all__ = ["R_MAX", "Scores", "Standing", "WorkloadRow", "score"]

R_MAX = 4.0
ROUNDING = 1 + 1e-9  # a ratio of exactly r_max is one in seconds and in minutes
MIN_WORKLOADS = 5  # for an interval; ours
NUM_REPLICATES = 10_000

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One submission: its score, with 95 % intervals, and the profile that the score is the area under."""

    submission: str
    score: float
    low: float | None
    high: float | None
    behind: float  # the best score minus this one
    behind_low: float | None  # paired: both scores from the same workloads and studies
    behind_high: float | None
    num_reached: int  # workloads on which the target was reached
    num_credited: int  # of these within r_max of the fastest, and not cancelled by a held-out variant
    profile: tuple[tuple[float, float], ...]  # (tau, rho) where rho rises; it stays until the next tau


@dataclass(frozen=True, kw_only=True)
class WorkloadRow:
    """One workload, base or held out; times by submission, None where the target was missed."""

    workload: str
    base: str  # "" for those that the profiles are made of
    times: Mapping[str, float | None]
    ratios: Mapping[str, float | None]  # to the fastest that counts; None: missed, above r_max or cancelled


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `score` found; standings best first."""

    standings: tuple[Standing, ...]
    workloads: tuple[WorkloadRow, ...]
    num_workloads: int  # without the held-out variants
    r_max: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `muonlab score --json`."""
        named = {standing.submission: standing for standing in self.standings}
        return {
            "scores": {name: s.score for name, s in named.items()},
            "intervals": {name: _pair(s.low, s.high) for name, s in named.items()},
            "behind": {
                name: {"difference": s.behind, "interval": _pair(s.behind_low, s.behind_high)}
                for name, s in named.items()
            },
            "reached": {name: s.num_reached for name, s in named.items()},
            "credited": {name: s.num_credited for name, s in named.items()},
            "profiles": {name: [{"tau": tau, "rho": rho} for tau, rho in s.profile] for name, s in named.items()},
            "workloads": [vars(row) for row in self.workloads],
            "num_workloads": self.num_workloads,
            "r_max": self.r_max,
            "warnings": list(self.warnings),
        }


def score(trials: Sequence[Trial], *, r_max: float = R_MAX) -> Scores:
    """Performance profiles and scores of all submissions, by the written rules of AlgoPerf.

    Math     t = median over studies of the lowest time of a study's trials; r = t / (lowest t of the workload), missed
             where above r_max; rho(tau) = share of workloads with r <= tau; score = 1/(r_max - 1) of the integral of
             rho from 1 to r_max, which is the mean over workloads of (r_max - r) / (r_max - 1), 0 where missed.
             The median of an even number is the mean of the middle two, so that one missed target among them is a miss.
             Held-out variants: a submission that misses one, or is r_max slower there than the fastest of those that
             reached the base workload, missed the base workload; the fastest on the base workload is sought afterwards
    Units    times in any, the same for a workload everywhere
    Raises   UsageError for the same trial twice, and for held-out variants of what is no base workload
    Source   Dahl et al. 2023, "Benchmarking neural network training algorithms"; AlgoPerf's documentation, "Scoring".
             Ours: the intervals, a bootstrap of the workloads (a variant goes with its base) and of the studies in them
    Differs  from AlgoPerf's scoring code, which sums 100 points of the profile by trapezoids (within 0.0051): the
             integral is exact here. Numbers of workloads, studies and trials are free; where they differ between
             submissions, a warning says so

    >>> from muonlab.analyze.trials import Trial
    >>> times = {"adamw": (100.0, 300.0), "muon": (50.0, math.inf)}
    >>> found = score([Trial(submission=name, workload=f"w{i}", time=time)
    ...                for name, row in times.items() for i, time in enumerate(row)])
    >>> [(one.submission, round(one.score, 4), one.num_credited) for one in found.standings]
    [('adamw', 0.8333, 2), ('muon', 0.5, 1)]
    """
    if not r_max > 1:
        raise UsageError(f"r_max must be above 1, got {r_max:g}")
    bases, studies = base_workloads(trials), best_of_studies(trials)
    names = sorted({trial.submission for trial in trials})
    families = {base: [base, *(held for held, of in bases.items() if of == base)] for base in bases if not bases[base]}
    times = {w: np.array([_median(studies.get((name, w), ())) for name in names]) for w in bases}
    ratios = {base: _ratios([times[w] for w in family], r_max) for base, family in families.items()}
    rows = [
        WorkloadRow(workload=w, base=bases[w], times=_named(names, times[w]), ratios=_named(names, ratio))
        for base, family in families.items()
        for w, ratio in zip(family, ratios[base], strict=True)
    ]
    drawn = _replicates(names, families, studies, r_max) if len(families) >= MIN_WORKLOADS and len(names) > 1 else None
    own = np.stack([ratios[base][0] for base in families], axis=-1)
    reached = np.stack([np.isfinite(times[base]) for base in families], axis=-1).sum(axis=-1)
    standings = _standings(names, own, reached, drawn, r_max)
    warnings = _warnings(trials, studies, names, rows, standings)
    return Scores(
        standings=standings, workloads=tuple(rows), num_workloads=len(families), r_max=r_max, warnings=tuple(warnings)
    )


def _standings(
    names: Sequence[str], ratios: Matrix, reached: NDArray[np.int64], drawn: Matrix | None, r_max: float
) -> tuple[Standing, ...]:
    """Shapes   ratios (num_submissions, num_workloads), drawn (num_replicates, num_submissions)"""
    scores = [math.fsum(row) / len(row) for row in _credit(ratios, r_max).tolist()]
    best, tail = int(np.argmax(scores)), _expanded_tail(ratios.shape[1])
    found = []
    for i, name in enumerate(names):
        behind = scores[best] - scores[i]
        low, high = _interval(None if drawn is None else drawn[:, i], scores[i], tail)
        behind_low, behind_high = _interval(None if drawn is None else drawn[:, best] - drawn[:, i], behind, tail)
        found.append(
            Standing(
                submission=name, score=scores[i], low=low, high=high, behind=behind, behind_low=behind_low,
                behind_high=behind_high, num_reached=int(reached[i]),
                num_credited=int(np.isfinite(ratios[i]).sum()), profile=_profile(ratios[i], r_max),
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda one: (-one.score, one.submission)))


def _median(times: Sequence[float]) -> float:
    return float(np.median(times)) if len(times) else math.inf


def _ratios(times: Sequence[Matrix], r_max: float) -> list[Matrix]:
    """Ratios to the fastest of a base workload and of its held-out variants, inf where missed or cancelled.

    Shapes   times (..., num_submissions) of the base workload, then of each variant; the same come back
    """
    own, *held = times
    held = [_within(np.where(np.isfinite(own), t, np.inf), r_max) for t in held]
    own = _within(own, r_max)
    for t in held:
        own = np.where(np.isfinite(t), own, np.inf)
    return [_over_fastest(t) for t in (own, *held)]


def _within(times: Matrix, r_max: float) -> Matrix:
    return np.where(_over_fastest(times) <= r_max * ROUNDING, times, np.inf)


def _over_fastest(times: Matrix) -> Matrix:
    fastest = times.min(axis=-1, keepdims=True)
    return np.divide(times, fastest, out=np.full_like(times, np.inf), where=np.isfinite(times))


def _credit(ratios: Matrix, r_max: float) -> Matrix:
    """The share of [1, r_max] on which a workload counts."""
    return np.clip(np.where(np.isfinite(ratios), r_max - ratios, 0.0), 0.0, None) / (r_max - 1)


def _profile(ratios: Matrix, r_max: float) -> tuple[tuple[float, float], ...]:
    within = np.where(np.isfinite(ratios), np.minimum(ratios, r_max), np.inf)
    taus = sorted({1.0, *within[np.isfinite(within)].tolist()})
    return tuple((tau, float(np.mean(within <= tau))) for tau in taus)


def _replicates(
    names: Sequence[str], families: Mapping[str, Sequence[str]], studies: Mapping[tuple[str, str], Sequence[float]],
    r_max: float,
) -> Matrix:  # fmt: skip
    """Scores (NUM_REPLICATES, num_submissions) on workloads drawn anew, a variant with its base, and studies anew."""
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(families), np.full(len(families), 1 / len(families)), NUM_REPLICATES)
    total = np.zeros((NUM_REPLICATES, len(names)))
    for weight, family in zip(weights.T, families.values(), strict=True):
        times = [np.stack([_redrawn(studies.get((name, w), ()), rng) for name in names], axis=-1) for w in family]
        total += weight[:, None] * _credit(_ratios(times, r_max)[0], r_max)
    return total / len(families)


def _redrawn(times: Sequence[float], rng: np.random.Generator) -> Matrix:
    if len(set(times)) < 2:
        return np.full(NUM_REPLICATES, _median(times))
    return np.median(rng.choice(np.asarray(times), (NUM_REPLICATES, len(times))), axis=1)


def _expanded_tail(num_workloads: int) -> float:
    """The tail that makes a percentile interval of a small sample as wide as Student's.

    Source   Hesterberg 2015, "What teachers should know about the bootstrap"

    >>> round(_expanded_tail(8), 4), round(_expanded_tail(1000), 4)
    (0.0057, 0.0248)
    """
    if num_workloads < 2:
        return math.nan
    quantile = stats.t.ppf((1 + LEVEL) / 2, num_workloads - 1) * math.sqrt(num_workloads / (num_workloads - 1))
    return float(stats.norm.sf(quantile))


def _interval(drawn: Matrix | None, point: float, tail: float) -> tuple[float | None, float | None]:
    """Percentiles, stretched to hold the point itself; none where the replicates don't differ."""
    if drawn is None or np.ptp(drawn) < 1e-12:
        return None, None
    low, high = (float(np.quantile(drawn, q, method="nearest")) for q in (tail, 1 - tail))
    return min(low, point), max(high, point)


def _warnings(
    trials: Sequence[Trial], studies: Mapping[tuple[str, str], Sequence[float]], names: Sequence[str],
    rows: Sequence[WorkloadRow], standings: Sequence[Standing],
) -> list[str]:  # fmt: skip
    """What stands between these numbers and a fair comparison, a line each."""
    lines, num_workloads = [], sum(not row.base for row in rows)
    if len(names) == 1:
        lines.append("one submission: it is compared with itself, its score is the share of workloads that it reached")
    lines += [
        f"{row.workload}: nobody reached the target, so that it counts 0 for all"
        for row in rows if not row.base and not any(row.times.values())
    ]  # fmt: skip
    for name in names:
        lacking = [row.workload for row in rows if (name, row.workload) not in studies]
        if lacking:
            lines.append(f"{name} has no rows, which counts as missed, on {listed(lacking)}")
    for row in (row for row in rows if row.base):
        base = next(other for other in rows if other.workload == row.base)
        hit = [n for n in names if base.times[n] is not None and row.ratios[n] is None]
        if hit:
            lines.append(f"{row.base} is cancelled by a miss on its held-out variant {row.workload}: {listed(hit)}")
    lines += unequal_numbers(trials, names)
    if len(names) > 1 and num_workloads < MIN_WORKLOADS:
        lines.append(f"no intervals: {num_workloads} workloads are fewer than the {MIN_WORKLOADS} they need")
    elif len(names) > 1:
        flat = [s.submission for s in standings if s.low is None]
        if flat:
            lines.append(f"no interval, since all workloads give the same credit: {listed(flat)}")
    return lines


def _named(names: Sequence[str], values: Matrix) -> dict[str, float | None]:
    return {name: float(v) if math.isfinite(v) else None for name, v in zip(names, values, strict=True)}


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
