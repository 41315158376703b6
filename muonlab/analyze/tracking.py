"""Following an optimum over widths: what a telescoping study decides by, and what is said of it afterwards."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from muonlab.analyze.drift import Drift, fit_drift
from muonlab.analyze.optima import Bowl, Surface, fit_bowl, place, residual_noise
from muonlab.analyze.significance import LEVEL, Noise
from muonlab.records import Record
from muonlab.records.transfer_evidence import TransferStage

__all__ = ["Track", "losses_of", "surface", "track"]

Records = Mapping[str, Record]


@dataclass(frozen=True)
class Track:
    """The optimum at the widths measured so far, and how it drifts."""

    widths: tuple[int, ...]
    surfaces: tuple[Surface, ...]
    noise: Noise  # of one run
    bowl: Bowl
    drifts: tuple[Drift, ...]  # an axis each
    leaning: tuple[Drift, ...]  # towards no drift, as far as the widths measured do not tell

    @property
    def quantile(self) -> float:
        """Of 95 % intervals of the optima, in standard errors."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.bowl.degrees))

    def at(self, width: float) -> NDArray[np.float64]:
        """Where the optimum is expected."""
        return np.array([drift.at(width)[0] for drift in self.leaning])

    def slack(self, width: float, wider: float) -> NDArray[np.float64]:
        """How much further or less far the optimum may drift between two widths than is expected.

        The interval of the drift, and never more than half a step of the first mesh at the first doubling, which falls
        as 1 / width like the drift itself. An optimum that moves further is followed by extending the mesh.
        """
        allowed = (1 / width - 1 / wider) * _allowance(self.surfaces[0], self.widths[0])
        return np.minimum([drift.between(width, wider)[1] for drift in self.leaning], allowed)


def track(stages: Sequence[TransferStage], axes: Mapping[str, bool], records: Records) -> Track | None:
    """Of the stages of one arm; None while every run of one of them diverged."""
    surfaces = tuple(surface(stage, axes, records) for stage in stages)
    if not surfaces or not all(np.isfinite(one.losses[one.best]) for one in surfaces):
        return None
    noise = residual_noise([losses_of(stage, records) for stage in stages])
    bowl = fit_bowl(surfaces, noise)
    widths = tuple(stage.width for stage in stages)
    places = np.array([one.place for one in bowl.optima])
    variances = np.array([one.variance for one in bowl.optima])
    known = [(widths, places[:, i].tolist(), variances[:, i].tolist(), bowl.degrees) for i in range(len(axes))]
    spreads = _allowance(surfaces[0], widths[0])
    drifts = tuple(fit_drift(*one) for one in known)
    leaning = tuple(fit_drift(*one, spread=float(spread)) for one, spread in zip(known, spreads, strict=True))
    return Track(widths, surfaces, noise, bowl, drifts, leaning)


def _allowance(first: Surface, width: float) -> NDArray[np.float64]:
    """The rate of a drift of half a step at the first doubling; ours."""
    return first.steps / 2 / (1 / width - 1 / (2 * width))


def surface(stage: TransferStage, axes: Mapping[str, bool], records: Records) -> Surface:
    """Means over the seeds of every point of a mesh."""
    losses = losses_of(stage, records)
    points = [[place(float(trial.settings[name]), log) for name, log in axes.items()] for trial in stage.trials]  # type: ignore[arg-type]
    steps = np.array([stage.steps[name] for name in axes])
    return Surface(np.array(points), losses.mean(axis=1), steps, losses.shape[1])


def losses_of(stage: TransferStage, records: Records) -> NDArray[np.float64]:
    """(points, seeds); inf where a run diverged or failed."""
    return np.array([[_loss(records[key]) for key in trial.keys] for trial in stage.trials])


def _loss(record: Record) -> float:
    return record.final_loss if record.outcome == "ok" and record.final_loss is not None else math.inf
