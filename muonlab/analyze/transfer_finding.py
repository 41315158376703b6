"""What a transfer study found, as plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from muonlab.analyze.coordinates import CoordinateFinding
from muonlab.analyze.findings import Check, Contrast
from muonlab.analyze.survey import Slope, SurveyPoint
from muonlab.records.spec import Value

__all__ = ["ArmFinding", "DriftFinding", "MeshPoint", "Place", "StageFinding", "TransferFinding"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A value of a hyperparameter with its 95 % interval; an end that is None is open."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class MeshPoint:
    """One point of a mesh."""

    values: Mapping[str, Value]
    mean: float | None  # nats, over the seeds; None where a run diverged or failed
    num_lost: int


@dataclass(frozen=True, kw_only=True)
class StageFinding:
    """The mesh of one arm at one width."""

    arm: str
    width: int
    points: Mapping[str, int]  # per axis
    ratios: Mapping[str, float]  # per axis, a factor between neighbours
    complements: tuple[str, ...]  # axes of 1 - value, whose factors are between those
    window: Mapping[str, tuple[float, float]]
    optimum: Mapping[str, Place]  # {} where no run came through
    fitted: bool  # by a parabola; False: the best point of the mesh
    loss: float | None  # least mean of the mesh
    extended: Mapping[str, int]
    edges: tuple[str, ...]
    num_runs: int
    num_lost: int
    tokens: int
    flops: float
    mesh: tuple[MeshPoint, ...]


@dataclass(frozen=True, kw_only=True)
class DriftFinding:
    """log x*(n) = limit - rate / n of one hyperparameter (of 1 - x for what nears 1), and what it says of the end."""

    arm: str
    hyperparameter: str
    rate: float  # times width; positive: the value grows with the width
    low: float | None  # 95 % interval
    high: float | None
    lawful: bool  # False: more is left over than noise explains, so the optimum moves otherwise
    complement: bool  # of log (1 - x); the sign of the rate is still that of x
    predicted: Place  # at the final width
    used: Value  # in the final runs: what leans to no drift as far as the drift is not resolved


@dataclass(frozen=True, kw_only=True)
class ArmFinding:
    """One optimizer under one parametrization, from its base to its final runs."""

    name: str
    optimizer: str
    parametrization: str
    axes: tuple[str, ...]
    best: Mapping[str, Value]  # of the final runs
    base: Mapping[str, float]  # optimum at the first width
    losses: tuple[float | None, ...]  # final, a run per seed
    loss_mean: float | None
    loss_low: float | None
    loss_high: float | None
    keys: tuple[str, ...]
    noise_nats: float | None  # standard deviation of one run around its configuration and seed
    regret_nats: float | None  # that noise leaves in the choice of `best`, on average, if the drift is as fitted
    regret_high: float | None  # less than this 95 times out of 100
    direct_nats: float | None  # what `base` would cost at the final width, by the fit
    tokens: int  # of all runs, the final ones included
    flops: float
    final_flops: float  # of the final runs
    grid_flops: float | None  # of the first mesh made at the final width, and the final runs
    direct_flops: float | None  # of the first mesh alone, and the final runs
    cost_ratio: float | None  # flops / grid_flops


@dataclass(frozen=True, kw_only=True)
class TransferFinding:
    """The finding of a transfer study."""

    verdict: str
    task: str
    baseline: str
    widths: tuple[int, ...]
    final_width: int | None
    arms: tuple[ArmFinding, ...]
    stages: tuple[StageFinding, ...]
    drifts: tuple[DriftFinding, ...]
    contrasts: Mapping[str, Contrast]  # arm -> its final losses against those of the baseline
    cost_ratio: float | None  # of all arms together
    survey: tuple[SurveyPoint, ...]
    slopes: tuple[Slope, ...]
    coordinates: CoordinateFinding | None  # None: the check was left out
    checks: tuple[Check, ...]
    num_runs: int
    num_failed: int
    total_tokens: int
    total_flops: float
    environment: Mapping[str, Any]
    config: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
