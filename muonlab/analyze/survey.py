"""The survey of a transfer study: the best lr at every width, its slope, and what standing still costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from muonlab.analyze.drift import fit_slope
from muonlab.analyze.optima import NEAR, Optimum, Surface, fit_bowl, residual_noise, vertex_interval
from muonlab.analyze.significance import Noise
from muonlab.analyze.tracking import losses_of, surface
from muonlab.records import Record
from muonlab.records.transfer_evidence import TransferArm

__all__ = ["LrPoint", "Slope", "SurveyPoint", "survey"]

LR = "opt.lr"


@dataclass(frozen=True, kw_only=True)
class LrPoint:
    """One lr at one width."""

    lr: float
    mean: float | None  # nats, over the seeds; None where a run diverged or failed
    num_lost: int


@dataclass(frozen=True, kw_only=True)
class SurveyPoint:
    """The best lr of one arm at one width."""

    arm: str
    width: int
    lr: float | None  # by a parabola in log lr around the best; None where every run was lost
    low: float | None  # 95 % interval, of the noise between seeds; None: open
    high: float | None
    flag: str  # "", "edge" (of the mesh), "cliff" (a neighbour of the best diverged), "flat" (no minimum) or "lost"
    loss: float | None  # least mean
    points: tuple[LrPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How the best lr of one arm runs with the width: log lr* = a + slope log width."""

    arm: str
    widths: tuple[int, ...]  # at which an optimum was found
    slope: float | None
    low: float | None  # 95 % interval
    high: float | None
    verdict: str  # "grows", "falls", "unresolved" (0 is in the interval) or "undefined"
    given_up_nats: float | None  # by the best lr of the first width at the last; None: outside of what was run there
    given_up_error: float | None  # standard error of that, of the noise between seeds


def survey(arm: TransferArm, records: Mapping[str, Record]) -> tuple[tuple[SurveyPoint, ...], Slope]:
    """The points at all widths, and how they run."""
    surfaces = [surface(stage, {LR: True}, records) for stage in arm.survey]
    noise = residual_noise([losses_of(stage, records) for stage in arm.survey])
    optima = [_optimum(one, noise) for one in surfaces]
    points = []
    for stage, one, optimum in zip(arm.survey, surfaces, optima, strict=True):
        flag = _flag(one, optimum)
        low, high = vertex_interval(one, noise) if not flag else _open_ends(one, flag)
        losses = losses_of(stage, records)
        points.append(
            SurveyPoint(
                arm=arm.name,
                width=stage.width,
                lr=None if optimum is None else math.exp(float(optimum.place[0])),
                low=None if low is None else math.exp(low),
                high=None if high is None else math.exp(high),
                flag=flag,
                loss=None if optimum is None else float(one.losses[one.best]),
                points=tuple(
                    LrPoint(
                        lr=float(trial.settings[LR]),  # type: ignore[arg-type]
                        mean=None if np.isinf(row).any() else float(row.mean()),
                        num_lost=int(np.isinf(row).sum()),
                    )
                    for trial, row in zip(stage.trials, losses, strict=True)
                ),
            )
        )
    return tuple(points), _slope(points, surfaces, optima, noise)


def _optimum(one: Surface, noise: Noise) -> Optimum | None:
    return fit_bowl([one], noise).optima[0] if np.isfinite(one.losses[one.best]) else None


def _flag(one: Surface, optimum: Optimum | None) -> str:
    if optimum is None:
        return "lost"
    if _end(one):
        return "edge"
    if optimum.fitted:
        return ""
    beside = np.abs(one.points[:, 0] - one.points[one.best, 0]) <= NEAR * one.steps[0]
    return "flat" if np.isfinite(one.losses[beside]).all() else "cliff"


def _end(one: Surface) -> str:
    """The side on which the best point has no neighbour that came through; a neighbour that diverged is one, too."""
    at, places = one.points[one.best, 0], one.points[:, 0]
    return "low" if at <= places.min() else "high" if at >= places.max() else ""


def _open_ends(one: Surface, flag: str) -> tuple[float | None, float | None]:
    """At an edge all that is known is that the optimum lies no further inside than the neighbour."""
    if flag != "edge":
        return None, None
    at, step = float(one.points[one.best, 0]), float(one.steps[0])
    return (None, at + step) if _end(one) == "low" else (at - step, None)


def _slope(
    points: Sequence[SurveyPoint], surfaces: Sequence[Surface], optima: Sequence[Optimum | None], noise: Noise
) -> Slope:
    known = [i for i, one in enumerate(points) if not one.flag]
    widths = [points[i].width for i in known]
    slope = half = None
    if len(known) >= 3 and noise.degrees:
        found = [optima[i] for i in known]
        places = [float(one.place[0]) for one in found if one is not None]
        variances = [float(one.variance[0]) for one in found if one is not None]
        slope, half = fit_slope(widths, places, variances, noise.degrees)
    verdict = "undefined"
    if slope is not None and half is not None:
        verdict = "grows" if slope > half else "falls" if slope < -half else "unresolved"
    return Slope(
        arm=points[0].arm,
        widths=tuple(widths),
        slope=slope,
        low=None if slope is None or half is None else slope - half,
        high=None if slope is None or half is None else slope + half,
        verdict=verdict,
        given_up_nats=_given_up(points, surfaces),
        given_up_error=math.sqrt(2 * noise.variance / surfaces[-1].num_seeds) if noise.degrees else None,
    )


def _given_up(points: Sequence[SurveyPoint], surfaces: Sequence[Surface]) -> float | None:
    """By a curve through the mean losses at the last width that swings no further than they do."""
    first, last, widest = points[0], points[-1], surfaces[-1]
    finite = np.isfinite(widest.losses)
    places = widest.points[finite, 0]
    if first.lr is None or last.lr is None or len(places) < 2:
        return None
    at, best = math.log(first.lr), min(max(math.log(last.lr), places.min()), places.max())
    if not places.min() <= at <= places.max():
        return None
    order = np.argsort(places)
    curve = PchipInterpolator(places[order], widest.losses[finite][order])
    return float(curve(at) - min(curve(best), widest.losses[widest.best]))
