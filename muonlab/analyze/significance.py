"""Is a difference real? The only place in muonlab that may say "better"."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from muonlab.analyze.findings import Check, Contrast, Judgement, Speedup

__all__ = [
    "LEVEL",
    "Noise",
    "contrast",
    "judge",
    "mean_interval",
    "pooled_noise",
    "student_errors",
    "verdict",
    "withheld",
]

LEVEL = 0.95
POWER = 0.8
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
    the speedup's interval excludes 1, both the same way.

    Source   Holm 1979
    """
    ordered = sorted(contrasts, key=lambda name: math.inf if (p := contrasts[name].p_value) is None else p)
    judged, open_ = dict(contrasts), True
    for rank, name in enumerate(ordered):
        test, speedup = contrasts[name], speedups[name]
        open_ = open_ and test.p_value is not None and test.p_value * (len(ordered) - rank) < 1 - LEVEL
        better = test.judgement == "better" and speedup.low is not None and speedup.low > 1.0
        worse = test.judgement == "worse" and speedup.high is not None and speedup.high < 1.0
        judged[name] = replace(test, judgement=test.judgement if open_ and (better or worse) else "unresolved")
    return judged


def withheld(checks: Sequence[Check]) -> list[Check]:
    """The broken rules without which nothing may be said."""
    return [check for check in checks if not check.ok and check.name in WITHHOLDING]


def verdict(
    baseline: str, contrasts: Mapping[str, Contrast], speedups: Mapping[str, Speedup], checks: Sequence[Check]
) -> str:
    """One sentence per challenger, or why there is none."""
    broken = withheld(checks)
    if broken:
        return f"Verdict withheld: {'; '.join(f'{check.name}: {check.detail}' for check in broken)}"
    timed = all(check.ok for check in checks if check.name == "wall_clock")
    return " ".join(_sentence(name, baseline, contrasts[name], speedups[name], timed) for name in contrasts)


def _sentence(name: str, baseline: str, test: Contrast, speedup: Speedup, timed: bool) -> str:
    if test.judgement == "unresolved":
        found = "no final losses to compare" if test.difference_nats is None else f"{test.difference_nats:+.3f} nats"
        able = "" if test.resolvable_nats is None else f"; {test.resolvable_nats:.3f} could have been resolved"
        return f"No difference between {name} and {baseline} was resolved ({found}{able})."
    side = "lower" if test.judgement == "better" else "higher"
    wall = f" and {_factor(speedup.bound, speedup.wall, speedup.wall_low, speedup.wall_high)} in wall-clock"
    if speedup.wall is None or not timed:
        wall = " (wall-clock could not be measured)"
    return (
        f"{name} is {test.judgement} than tuned {baseline}: {speedup_text(speedup)} in tokens{wall}, "
        f"final loss {side} by {abs(test.difference_nats or 0.0):.3f} nats at the same tokens."
    )


def speedup_text(speedup: Speedup) -> str:
    """The figure with its interval as people write it.

    >>> speedup_text(Speedup(tokens=1.4, low=1.2, high=None, wall=None, wall_low=None, wall_high=None, flag="",
    ...                      horizon_tokens=1))
    '1.40x [1.20, unbounded]'
    """
    if speedup.tokens is None:
        return "speedup undefined"
    outside = " (outside the baseline's horizons)" if speedup.flag == "censored" else ""
    return _factor(speedup.bound, speedup.tokens, speedup.low, speedup.high) + outside


def _factor(bound: str, value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "an undefined factor"
    if bound:
        return f"{bound} {value:.2f}x"
    ends = ("0" if low is None else f"{low:.2f}", "unbounded" if high is None else f"{high:.2f}")
    return f"{value:.2f}x [{', '.join(ends)}]"
