"""Is a difference real? The only place in muonlab that may say "better"."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    """Within-group variance pooled over groups, e.g. over an optimizer's horizons.

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
    """Two-sided Welch t-test of the challenger's losses against the baseline's; variances pooled over horizons.

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


def judge(test: Contrast, speedup: Speedup) -> Judgement:
    """Better or worse only if the final losses differ *and* the speedup's interval excludes 1, both the same way."""
    if test.judgement == "better" and speedup.low is not None and speedup.low > 1.0:
        return "better"
    if test.judgement == "worse" and speedup.high is not None and speedup.high < 1.0:
        return "worse"
    return "unresolved"


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
    return " ".join(_sentence(name, baseline, contrasts[name], speedups[name]) for name in contrasts)


def _sentence(name: str, baseline: str, test: Contrast, speedup: Speedup) -> str:
    if test.judgement == "unresolved":
        found = "no final losses to compare" if test.difference_nats is None else f"{test.difference_nats:+.3f} nats"
        able = "" if test.resolvable_nats is None else f"; {test.resolvable_nats:.3f} could have been resolved"
        return f"No difference between {name} and {baseline} was resolved ({found}{able})."
    side = "lower" if test.judgement == "better" else "higher"
    wall = "" if speedup.wall is None else f" and {speedup.bound}{speedup.wall:.2f}x in wall-clock"
    return (
        f"{name} is {test.judgement} than tuned {baseline}: {speedup_text(speedup)} in tokens{wall}, "
        f"final loss {side} by {abs(test.difference_nats or 0.0):.3f} nats."
    )


def speedup_text(speedup: Speedup) -> str:
    """The figure with its interval as people write it.

    >>> speedup_text(Speedup(tokens=1.4, low=1.2, high=None, wall=None, wall_low=None, wall_high=None, flag="",
    ...                      horizon_tokens=1))
    '1.40x [1.20, unbounded]'
    """
    if speedup.tokens is None:
        return "speedup undefined"
    if speedup.flag == "censored":
        return f"{speedup.bound} {speedup.tokens:.2f}x (outside the baseline's horizons)"
    low = "0" if speedup.low is None else f"{speedup.low:.2f}"
    high = "unbounded" if speedup.high is None else f"{speedup.high:.2f}"
    return f"{speedup.tokens:.2f}x [{low}, {high}]"
