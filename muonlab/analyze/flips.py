"""Rankings that flip while the learning rate decays: why nothing but final losses may be compared."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from muonlab.records import Record

__all__ = ["Flip", "flips"]

FRACTIONS = (0.25, 0.5, 0.75)  # of a run
WINDOW = 0.05  # of a run, over which a training loss is averaged
NUM_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True)
class Flip:
    """`early` was ahead at that fraction of the runs, `final` at their end; both beyond two standard errors."""

    where: str
    early: str
    final: str
    fraction: float  # the last one looked at
    early_nats: float  # by how much `early` was ahead
    final_nats: float  # by how much `final` is


def flips(where: str, runs: Mapping[str, Sequence[Record]]) -> list[Flip]:
    """Pairs whose order by training loss at a fraction of the runs is not that of their final held-out losses.

    Runs with the same seed see the same data in the same order, so training losses are compared seed by seed.
    """
    found = []
    for a, b in combinations(runs, 2):
        final = _gap([_final(record) for record in runs[a]], [_final(record) for record in runs[b]])
        for fraction in reversed(FRACTIONS):
            early = _gap([_loss_at(record, fraction) for record in runs[a]], [_loss_at(r, fraction) for r in runs[b]])
            if early is not None and final is not None and early * final < 0:
                first, last = (a, b) if early < 0 else (b, a)
                found.append(
                    Flip(
                        where=where, early=first, final=last, fraction=fraction, early_nats=abs(early),
                        final_nats=abs(final),
                    )
                )  # fmt: skip
                break
    return found


def _gap(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Mean difference of pairs; None where it is not resolved or a run was lost."""
    if len(ours) != len(theirs) or len(ours) < 2 or not all(map(math.isfinite, (*ours, *theirs))):
        return None
    differences = np.asarray(ours) - np.asarray(theirs)
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    mean = float(np.mean(differences))
    return mean if abs(mean) > NUM_ERRORS * error else None


def _final(record: Record) -> float:
    return math.nan if record.final_loss is None else record.final_loss


def _loss_at(record: Record, fraction: float) -> float:
    """Training loss around a fraction of a run."""
    steps, half = np.asarray(record.train_steps), WINDOW * record.spec.num_steps / 2
    near = np.abs(steps - fraction * record.spec.num_steps) <= max(half, 1.0)
    return float(np.mean(np.asarray(record.train_loss)[near])) if near.any() else math.nan
