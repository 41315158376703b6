"""Learning-rate schedules as pure functions of progress."""

import math

from muonlab.records import Schedule

__all__ = ["lr_factor", "progress_at"]


def progress_at(step: int, num_steps: int) -> float:
    """Progress in (0, 1) of step 1 ... num_steps, taken at the middle of the step.

    The middle, so that no step has lr 0 and a run cut into more or fewer steps samples the same curve.

    >>> [progress_at(step, 4) for step in (1, 2, 3, 4)]
    [0.125, 0.375, 0.625, 0.875]
    """
    return (step - 0.5) / num_steps


def lr_factor(schedule: Schedule, progress: float) -> float:
    """Learning rate at `progress` in [0, 1] as a fraction of its peak.

    >>> [round(lr_factor(Schedule(kind="linear", warmup_fraction=0.2), p), 3) for p in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    >>> lr_factor(Schedule(kind="wsd", warmup_fraction=0.0, decay_fraction=0.5, final_fraction=0.1), 0.75)
    0.55
    """
    warmup, final = schedule.warmup_fraction, schedule.final_fraction
    if progress < warmup:
        return progress / warmup
    if schedule.kind == "constant":
        return 1.0
    start = 1.0 - schedule.decay_fraction if schedule.kind == "wsd" else warmup
    if progress <= start or start >= 1.0:
        return 1.0
    done = (progress - start) / (1.0 - start)
    remaining = 0.5 * (1.0 + math.cos(math.pi * done)) if schedule.kind == "cosine" else 1.0 - done
    return final + (1.0 - final) * remaining
