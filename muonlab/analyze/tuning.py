"""What a tuning saw: slices through the chosen settings, what it chose from, and how much luck was in it."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from muonlab.analyze.findings import Slice, SlicePoint
from muonlab.analyze.sensitivity import Tried
from muonlab.analyze.significance import Noise, pooled_noise
from muonlab.analyze.speedup import Selection
from muonlab.records import Record
from muonlab.records.evidence import Trial, Tuning
from muonlab.records.spec import Value

__all__ = ["run_loss", "selection", "slices", "trial_losses", "tried", "tuning_spread"]

Records = Mapping[str, Record]


def run_loss(record: Record) -> float | None:
    """The final loss; None for a run that diverged or failed."""
    return record.final_loss if record.outcome == "ok" else None


def trial_losses(trial: Trial, records: Records) -> dict[int, float | None]:
    """Seed -> final loss."""
    return {records[key].spec.seed: run_loss(records[key]) for key in trial.keys}


def slices(name: str, tuning: Tuning, records: Records, seeds: Collection[int] | None = None) -> list[Slice]:
    """Per tuned coordinate, the trials that differ from the chosen settings in that coordinate at most.

    All their runs count, or those on `seeds` only, so that trials with more seeds than others compare with them.
    """
    found = []
    for coordinate in tuning.coordinates:
        others = [other for other in tuning.coordinates if other != coordinate]
        points = [
            _point(trial.settings[coordinate], _on(seeds, trial_losses(trial, records)))
            for trial in tuning.trials
            if all(trial.settings[other] == tuning.best[other] for other in others)
        ]
        points.sort(key=lambda point: (isinstance(point.value, str), point.value))
        found.append(
            Slice(
                optimizer=name,
                coordinate=coordinate,
                horizon_tokens=tuning.horizon_tokens,
                chosen=tuning.best[coordinate],
                points=tuple(points),
            )
        )
    return found


def _on(seeds: Collection[int] | None, losses: Mapping[int, float | None]) -> list[float | None]:
    return [loss for seed, loss in losses.items() if seeds is None or seed in seeds]


def _point(value: Value, losses: Sequence[float | None]) -> SlicePoint:
    fine = [loss for loss in losses if loss is not None]
    bad = len(losses) - len(fine)
    return SlicePoint(
        value=value,
        mean=float(np.mean(fine)) if fine and not bad else None,
        standard_error=float(np.std(fine, ddof=1) / np.sqrt(len(fine))) if len(fine) > 1 and not bad else None,
        num_seeds=len(losses),
        num_diverged=bad,
    )


def selection(tuning: Tuning, records: Records, seeds: Collection[int] | None = None) -> Selection:
    """What the tuning chose from; means and slices over all seeds, or over `seeds` only."""
    finished = _finished(tuning, records)
    return Selection(
        means=[float(np.mean(_on(seeds, losses))) for losses in finished],
        num_seeds=[len(losses) for losses in finished],
        curvatures=[_curvature(line) for line in slices(tuning.optimizer, tuning, records, seeds)],
    )


def _finished(tuning: Tuning, records: Records) -> list[dict[int, float]]:
    """Losses by seed of every trial without a lost run, the chosen one first."""
    tried = [(trial, trial_losses(trial, records)) for trial in tuning.trials]
    tried = [(trial, losses) for trial, losses in tried if losses and None not in losses.values()]
    tried.sort(key=lambda item: any(item[0].settings[name] != tuning.best[name] for name in item[0].settings))
    return [losses for _, losses in tried]


def _curvature(line: Slice) -> float:
    """Mean rise of the loss one grid step to either side of the chosen value; 0 where a side is missing."""
    at = next((i for i, point in enumerate(line.points) if point.value == line.chosen), 0)
    around = [point.mean for point in line.points[max(0, at - 1) : at + 2]]
    if len(around) < 3 or None in around:
        return 0.0
    return max(0.0, (around[0] + around[2]) / 2 - around[1])


def tried(tuning: Tuning, records: Records) -> list[Tried]:
    """The configurations of a tuning, with the noise of one run pooled over all of them."""
    groups = [list(trial_losses(trial, records).values()) for trial in tuning.trials]
    noise = pooled_noise([[loss for loss in group if loss is not None] for group in groups])
    error = float(np.sqrt(noise.variance)) if noise.degrees else 0.0
    means = [math.inf if None in group else float(np.mean(group)) for group in groups]
    return [
        Tried(trial.settings, mean, error / math.sqrt(len(group)))
        for trial, mean, group in zip(tuning.trials, means, groups, strict=True)
    ]


def tuning_spread(tuning: Tuning, records: Records, noise: Noise) -> float:
    """Standard deviation of what tuning gives up: another choice by noise, an optimum between the grid's values.

    A tuning compares settings on the seeds that they share, and so does this: what a seed brings to all of them alike
    moves no choice. `noise`, that of single runs, is taken where too little is shared to tell.
    """
    finished = _finished(tuning, records)
    shared = sorted(set.intersection(*map(set, finished))) if finished else []
    if len(finished) > 1 and len(shared) > 1:
        noise = _residual_noise(np.array([[losses[seed] for seed in shared] for losses in finished]))
    return selection(tuning, records, shared or None).spread(noise)


def _residual_noise(losses: np.ndarray) -> Noise:
    """Variance around setting and seed in the better half of the settings, since bad ones are noisier.

    Shapes   losses (num_settings, num_seeds)
    """
    kept = losses[np.argsort(losses.mean(axis=1))[: max(2, (len(losses) + 1) // 2)]]
    residuals = kept - kept.mean(axis=1, keepdims=True) - kept.mean(axis=0) + kept.mean()
    degrees = (kept.shape[0] - 1) * (kept.shape[1] - 1)
    return Noise(float((residuals**2).sum()) / degrees, degrees)
