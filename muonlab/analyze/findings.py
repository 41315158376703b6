"""Findings: what an analysis concluded, as plain values. Reports render them and compute nothing.

Losses are nats per token or image, times are seconds, lengths are tokens. None is "undefined", never zero.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from muonlab.records.spec import Value

__all__ = [
    "Check",
    "Comparison",
    "Contrast",
    "Curve",
    "Effect",
    "Judgement",
    "LossesAt",
    "OptimizerFinding",
    "Paired",
    "Slice",
    "SlicePoint",
    "Speedup",
    "SpeedupRow",
]

Judgement = Literal["better", "worse", "unresolved", "withheld"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One fairness rule, held or broken, with the figures that show it."""

    name: str
    ok: bool | None  # None: not checked, since the records do not say what it would take
    detail: str
    severity: str = ""  # of what was found where the rule is not broken: "warning" or "note"


@dataclass(frozen=True, kw_only=True)
class LossesAt:
    """Final held-out losses of one optimizer at one horizon, a run per seed; None where a run diverged or failed."""

    horizon_tokens: int
    seeds: tuple[int, ...]
    losses: tuple[float | None, ...]
    keys: tuple[str, ...]  # of the records, in the order of `seeds`
    mean: float | None
    low: float | None  # 95 % t interval of the mean
    high: float | None
    hyperparameters: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class OptimizerFinding:
    """One optimizer at the horizon of the comparison, and all its horizons in `horizons`."""

    name: str
    optimizer: str  # in the catalogue; the name too, unless that is a variant's
    fixed: Mapping[str, Value]  # what the variant sets and no tuning changed
    loss_mean: float | None
    loss_std: float | None  # between seeds
    num_seeds: int
    num_diverged: int  # final runs, all horizons
    wall_seconds: float | None  # of one run at that horizon: median step time x steps
    step_seconds: float | None
    num_params: int
    hyperparameters: Mapping[str, Value]
    polar: str
    horizons: tuple[LossesAt, ...]
    tuning_runs: int  # of a table: configurations tried
    tuning_tokens: int
    converged: bool | None  # None: not known, as of a table


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Final loss of a challenger minus that of the baseline at the same horizon; negative is lower loss."""

    difference_nats: float | None
    low: float | None
    high: float | None
    p_value: float | None  # two-sided Welch t-test
    resolvable_nats: float | None  # the difference that this many seeds find four times out of five
    judgement: Judgement


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Final loss of a challenger minus that of the baseline seed by seed: same initialisation, same data in order."""

    difference_nats: float | None  # mean over the pairs; negative is lower loss
    low: float | None  # 95 % t interval, at the settings that were chosen
    high: float | None
    num_pairs: int
    num_lost: int  # seeds of which a run did not finish: with any, nothing is claimed
    correlation: float | None  # over seeds; of losses equally noisy, pairing takes that share off the variance
    tuning_nats: float | None  # standard error that tuning adds: another choice, an optimum between the grid's values
    bound_nats: float | None  # one-sided 97.5 % bound on the difference, with what tuning adds
    margin_nats: float | None  # a loss higher by no more than this counts as no worse; None: not asked
    p_value: float | None  # one-sided, of a difference of the margin or more
    no_worse: bool | None  # shown: higher by less than the margin; None without a margin or where withheld


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Any quantity of a challenger minus that of the baseline seed by seed."""

    difference: float | None  # mean over the pairs
    low: float | None  # 95 % t interval
    high: float | None
    size: float | None  # Cohen's d of pairs: the mean over the standard deviation of the differences
    p_value: float | None  # two-sided paired t-test
    num_pairs: int
    judgement: Literal["higher", "lower", "unresolved", "withheld"] = "unresolved"


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """How many times the tokens (the seconds) the baseline needs for the challenger's final loss."""

    tokens: float | None
    low: float | None  # 95 % interval
    high: float | None
    wall: float | None
    wall_low: float | None
    wall_high: float | None
    flag: str  # "", "censored" (tokens is a bound), "extrapolated" or "undefined"
    horizon_tokens: int  # of the challenger
    bound: str = ""  # ">" or "<" where censored


@dataclass(frozen=True, kw_only=True)
class SpeedupRow:
    """How many times its tokens the baseline would need for the loss of one optimizer at one size and length."""

    optimizer: str
    size: str
    params: float | None
    tokens: float
    loss: float | None
    num_seeds: int
    num_configurations: int  # tried, of which the best is shown
    speedup: float | None  # None: the loss lies at or below the floor of the baseline's law, or there is no law
    low: float | None  # 95 % interval
    high: float | None
    flag: str  # "", "extrapolated" (beyond the baseline's lengths), "undefined"
    judgement: Judgement | None = None  # None: not asked, as no final losses are tested


@dataclass(frozen=True, kw_only=True)
class SlicePoint:
    """One value of a coordinate, all others at the chosen settings."""

    value: Value
    mean: float | None  # None where every run diverged
    standard_error: float | None
    num_seeds: int
    num_diverged: int


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Loss along one coordinate through the chosen point."""

    optimizer: str
    coordinate: str
    horizon_tokens: int
    chosen: Value
    points: tuple[SlicePoint, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Training loss of one final run."""

    optimizer: str
    horizon_tokens: int
    seed: int
    tokens: tuple[int, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The finding of a comparison: verdict first."""

    verdict: str
    task: str
    baseline: str
    horizon_tokens: int
    optimizers: Mapping[str, OptimizerFinding]
    speedup: Mapping[str, Speedup]
    contrasts: Mapping[str, Contrast]
    paired: Mapping[str, Paired]
    checks: tuple[Check, ...]
    slices: tuple[Slice, ...]
    curves: tuple[Curve, ...]
    law: Mapping[str, float] | None  # of the baseline: loss = a * tokens^-exponent + b
    num_runs: int
    num_failed: int
    total_tokens: int
    environment: Mapping[str, Any]
    config: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
