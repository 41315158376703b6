"""Is a difference real, or surely small? The only place in muonlab that may judge "better", or "no worse"."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from muonlab.analyze.findings import Check, Contrast, Effect, Judgement, Paired, Speedup

__all__ = [
    "KNOWN",
    "LEVEL",
    "Noise",
    "contrast",
    "dominance",
    "effect",
    "judge",
    "judge_effects",
    "judge_no_worse",
    "mean_interval",
    "paired",
    "pooled_noise",
    "student_errors",
    "withheld",
]

LEVEL = 0.95
ONE_SIDED = (1 - LEVEL) / 2  # how often "no worse" may be said in error: one end of the interval, as in ICH E9 (1998)
POWER = 0.8
KNOWN = 10**6  # degrees of freedom of a variance that is given, not estimated
WITHHOLDING = ("interior", "fresh_seeds", "same_conditions", "complete")  # checks without which nothing may be said


@dataclass(frozen=True)
class Noise:
    """Variance of one run's final loss between seeds, and the degrees of freedom of that estimate."""

    variance: float
    degrees: int


def pooled_noise(groups: Sequence[Sequence[float]]) -> Noise:
    """Within-group variance pooled over groups of runs that have the same noise.

    >>> pooled_noise([[1.0, 2.0, 3.0], [5.0, 7.0]])
    Noise(variance=1.3333333333333333, degrees=3)
    """
    degrees = sum(len(group) - 1 for group in groups if len(group) > 1)
    squares = sum(float(np.var(group)) * len(group) for group in groups if len(group) > 1)
    return Noise(squares / degrees if degrees else math.nan, degrees)


def student_errors(num_errors: float, degrees: int) -> float:
    """How many estimated standard errors are as rare a gain as `num_errors` known ones, one-sided.

    >>> [round(student_errors(3.0, degrees), 2) for degrees in (4, 12, 1000)]
    [6.62, 3.76, 3.01]
    """
    return float(stats.t.isf(stats.norm.sf(num_errors), degrees)) if degrees > 0 else math.inf


def mean_interval(losses: Sequence[float], noise: Noise) -> tuple[float | None, float | None]:
    """t interval of a mean with pooled variance; (None, None) where one run is all there is."""
    if not losses or noise.degrees < 1:
        return None, None
    half = float(stats.t.ppf((1 + LEVEL) / 2, noise.degrees)) * math.sqrt(noise.variance / len(losses))
    return float(np.mean(losses)) - half, float(np.mean(losses)) + half


def contrast(challenger: Sequence[float], baseline: Sequence[float], noises: tuple[Noise, Noise]) -> Contrast:
    """Two-sided Welch t-test of the challenger's losses against the baseline's; each with its own variance.

    Source   Welch 1947, with the degrees of freedom of Satterthwaite 1946
    """
    if not challenger or not baseline or min(n.degrees for n in noises) < 1:
        return Contrast(
            difference_nats=float(np.mean(challenger) - np.mean(baseline)) if challenger and baseline else None,
            low=None,
            high=None,
            p_value=None,
            resolvable_nats=None,
            judgement="unresolved",
        )
    parts = [noise.variance / len(x) for noise, x in zip(noises, (challenger, baseline), strict=True)]
    error = math.sqrt(sum(parts))
    difference = float(np.mean(challenger) - np.mean(baseline))
    degrees = sum(parts) ** 2 / sum(p**2 / n.degrees for p, n in zip(parts, noises, strict=True)) if error else 1.0
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, degrees))
    p_value = float(2 * stats.t.sf(abs(difference) / error, degrees)) if error else float(difference == 0.0)
    judgement: Judgement = "unresolved"
    if p_value < 1 - LEVEL:
        judgement = "better" if difference < 0 else "worse"
    return Contrast(
        difference_nats=difference,
        low=difference - quantile * error,
        high=difference + quantile * error,
        p_value=p_value,
        resolvable_nats=(quantile + float(stats.t.ppf(POWER, degrees))) * error,
        judgement=judgement,
    )


def judge(contrasts: Mapping[str, Contrast], speedups: Mapping[str, Speedup]) -> dict[str, Contrast]:
    """The contrasts with their final judgement, challenger by challenger.

    Better or worse only if the final losses differ, also after Holm's correction for the number of challengers, *and*
    the speedup's interval excludes 1, both the same way. Where `speedups` has none the final losses decide alone.

    Source   Holm 1979
    """
    p_values, judged = _holm({name: test.p_value for name, test in contrasts.items()}), {}
    for name, test in contrasts.items():
        resolved = p_values[name] < 1 - LEVEL and _agrees(test, speedups.get(name))
        judged[name] = replace(test, judgement=test.judgement if resolved else "unresolved")
    return judged


def _agrees(test: Contrast, speedup: Speedup | None) -> bool:
    if speedup is None:
        return True
    better = test.judgement == "better" and speedup.low is not None and speedup.low > 1.0
    return better or (test.judgement == "worse" and speedup.high is not None and speedup.high < 1.0)


def _holm(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """p values that hold for all of them together; inf where there is none.

    >>> _holm({"a": 0.03, "b": 0.01, "c": None})
    {'b': 0.03, 'a': 0.06, 'c': inf}
    """
    ordered = sorted((math.inf if p is None else p, name) for name, p in p_values.items())
    adjusted = np.maximum.accumulate([p * (len(ordered) - rank) for rank, (p, _) in enumerate(ordered)])
    return {name: float(p) for (_, name), p in zip(ordered, adjusted, strict=True)}


def paired(
    challenger: Mapping[int, float | None],
    baseline: Mapping[int, float | None],
    *,
    margin_nats: float | None = None,
    tuning_nats: float | None = 0.0,
) -> Paired:
    """Final losses by seed, None where a run was lost: the mean difference of the pairs, and how large it may be.

    Math     bound and p value: error^2 = var(differences) / num_pairs + tuning_nats^2, with num_pairs - 1 degrees of
             freedom, which errs on the safe side: Satterthwaite's are more, and a larger error would lower the bound
    Source   the paired t-test of "not worse by a margin": Westlake 1972, Schuirmann 1987; `tuning_nats` is ours

    >>> found = paired({0: 2.31, 1: 2.40, 2: 2.25}, {0: 2.30, 1: 2.41, 2: 2.25}, margin_nats=0.05)
    >>> round(found.low, 3), round(found.high, 3), round(found.p_value, 3)
    (-0.025, 0.025, 0.007)
    """
    seeds = [seed for seed, loss in challenger.items() if loss is not None and baseline.get(seed) is not None]
    ours, theirs = (np.array([losses[seed] for seed in seeds], dtype=float) for losses in (challenger, baseline))
    lost = len({*challenger, *baseline}) - len(seeds)
    return Paired(
        difference_nats=float(np.mean(ours - theirs)) if seeds else None,
        num_pairs=len(seeds),
        num_lost=lost,
        correlation=_correlation(ours, theirs),
        tuning_nats=tuning_nats,
        margin_nats=margin_nats,
        no_worse=None if margin_nats is None else False,
        **_paired_test(ours - theirs, tuning_nats, None if lost else margin_nats),
    )


def _paired_test(
    differences: np.ndarray, tuning_nats: float | None, margin_nats: float | None
) -> dict[Literal["low", "high", "bound_nats", "p_value"], float | None]:
    """Interval, bound and p value; None for all of them from fewer than two pairs."""
    num = len(differences)
    if num < 2:
        return dict.fromkeys(("low", "high", "bound_nats", "p_value"))
    mean, noise = float(differences.mean()), float(differences.var(ddof=1)) / num
    half = float(stats.t.ppf((1 + LEVEL) / 2, num - 1)) * math.sqrt(noise)
    error = math.hypot(math.sqrt(noise), tuning_nats or 0.0)
    p_value = None
    if margin_nats is not None:
        p_value = float(stats.t.sf((margin_nats - mean) / error, num - 1)) if error else float(mean >= margin_nats)
    bound = mean + float(stats.t.isf(ONE_SIDED, num - 1)) * error
    return {"low": mean - half, "high": mean + half, "bound_nats": bound, "p_value": p_value}


def effect(ours: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Effect:
    """A quantity by seed, None where it is not known: how much higher ours is; nothing is judged yet.

    >>> found = effect({0: 1.2, 1: 1.4, 2: 1.3}, {0: 1.0, 1: 1.1, 2: 1.1})
    >>> round(found.difference, 3), round(found.low, 3), round(found.size, 2)
    (0.233, 0.09, 4.04)
    """
    pairs = [(value, theirs.get(seed)) for seed, value in ours.items()]
    differences = np.array([a - b for a, b in pairs if a is not None and b is not None])
    num, mean = len(differences), float(differences.mean()) if len(differences) else None
    if num < 2 or mean is None:
        return Effect(difference=mean, low=None, high=None, size=None, p_value=None, num_pairs=num)
    deviation = float(differences.std(ddof=1))
    error = deviation / math.sqrt(num)
    half = float(stats.t.ppf((1 + LEVEL) / 2, num - 1)) * error
    return Effect(
        difference=mean,
        low=mean - half,
        high=mean + half,
        size=mean / deviation if deviation else None,
        p_value=float(2 * stats.t.sf(abs(mean) / error, num - 1)) if error else float(mean == 0.0),
        num_pairs=num,
    )


def judge_effects(effects: Sequence[Effect]) -> list[Effect]:
    """Higher, lower or unresolved, by Holm's correction for their number: what one claim is about is one family."""
    p_values = _holm({str(i): one.p_value for i, one in enumerate(effects)})
    judged = []
    for i, one in enumerate(effects):
        resolved = p_values[str(i)] < 1 - LEVEL and one.difference is not None
        side = "higher" if (one.difference or 0.0) > 0 else "lower"
        judged.append(replace(one, judgement=side if resolved else "unresolved"))
    return judged


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """None for fewer than three pairs, where it says nothing, and for losses that do not vary."""
    if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.corrcoef(x, y)[0, 1])


def judge_no_worse(tests: Mapping[str, Paired]) -> dict[str, Paired]:
    """The paired tests with what is shown: a loss higher by less than the margin, at 2.5 % one-sided.

    With several challengers after Holm's correction. A challenger of which a run was lost is shown nothing of.
    """
    p_values = _holm({name: test.p_value for name, test in tests.items()})
    return {
        name: test if test.no_worse is None else replace(test, no_worse=p_values[name] < ONE_SIDED)
        for name, test in tests.items()
    }


def withheld(checks: Sequence[Check]) -> list[Check]:
    """The broken rules without which nothing may be said."""
    return [check for check in checks if check.ok is False and check.name in WITHHOLDING]


def dominance(gaps: Sequence[tuple[float, float]]) -> str:
    """Of a challenger, from the logarithms of its times over the baseline's and half of their 95 % intervals.

    Better at one number of devices is little: it dominates if it is at all of them.

    >>> dominance([(-0.3, 0.1), (-0.2, 0.1)]), dominance([(-0.3, 0.1), (0.2, 0.1)]), dominance([(-0.3, 0.4)])
    ('dominates', 'neither', 'unresolved')
    """
    if not gaps:
        return "undefined"
    ours, theirs = ([gap < -half for gap, half in gaps], [gap > half for gap, half in gaps])
    if all(ours) or all(theirs):
        return "dominates" if all(ours) else "is dominated"
    return "neither" if any(ours) and any(theirs) else "unresolved"
