"""What was measured of runs where they are compared: after the same tokens, or at the same held-out loss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from muonlab.analyze.significance import judge_effects
from muonlab.records import Record
from muonlab.records.features import FeaturesEvidence
from muonlab.records.watch import CLEAN

__all__ = [
    "CONDITIONS", "BySeed", "Condition", "Look", "Pairs", "Records", "judged", "look_of", "mean_of", "names_of",
    "pairs_of", "values_of",
]  # fmt: skip

Condition = Literal["budget", "loss", "budget, no decay", "loss, no decay"]
CONDITIONS: tuple[Condition, ...] = ("budget", "loss", "budget, no decay", "loss, no decay")
Records = Mapping[str, Record]
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Look:
    """Everything that was measured of a run, at a step between two looks if need be."""

    fraction: float  # of the run
    values: Mapping[str, float]


def look_of(run: Record, loss: float | None = None) -> Look | None:
    """At the end of a run, or where its held-out loss first is `loss`: between looks linear in the loss.

    None where the run did not end well, or does not come down to that loss within its looks.
    """
    steps, losses = np.array(run.eval_steps), np.array(run.eval_loss)
    if run.outcome != "ok" or not len(steps) or CLEAN not in run.probes:
        return None
    hit = len(steps) - 1 if loss is None else int((losses <= loss).argmax())
    if loss is None:
        low, share = hit, 0.0
    elif losses[hit] > loss or hit == 0:
        return None
    else:
        low, share = hit - 1, float((losses[hit - 1] - loss) / (losses[hit - 1] - losses[hit]))
    values = {}
    for name, series in run.probes.items():
        at = dict(zip(series.steps, series.values, strict=True))
        ends = at.get(int(steps[low])), at.get(int(steps[hit]))
        if ends[0] is not None and ends[1] is not None:
            values[name] = ends[0] + share * (ends[1] - ends[0])
    step = float(steps[low] + share * (steps[hit] - steps[low]))
    return Look(step / run.spec.num_steps, values)


Pairs = dict[int, tuple[Look, Look]]  # seed -> the challenger's and the baseline's


def pairs_of(evidence: FeaturesEvidence, records: Records, name: str, at: Condition) -> Pairs:
    """At one loss both are looked at where they have the final loss of the one that ends higher."""
    arms = evidence.controls if at.endswith("no decay") else evidence.arms
    runs = [{records[k].spec.seed: records[k] for k in arms[who].cells[0].keys} for who in (name, evidence.baseline)]
    found: Pairs = {}
    for seed in sorted(runs[0].keys() & runs[1].keys()):
        pair = [by_seed[seed] for by_seed in runs]
        loss = None
        if at.startswith("loss"):
            if any(run.outcome != "ok" or not run.eval_loss for run in pair):
                continue
            loss = max(run.eval_loss[-1] for run in pair)
        looks = [look_of(run, loss) for run in pair]
        if looks[0] is not None and looks[1] is not None:
            found[seed] = looks[0], looks[1]
    return found


def values_of(pairs: Pairs, name: str) -> tuple[BySeed, BySeed]:
    """A quantity by seed of those that have it on both sides."""
    both = {s: pair for s, pair in pairs.items() if all(name in look.values for look in pair)}
    return {s: a.values[name] for s, (a, _) in both.items()}, {s: b.values[name] for s, (_, b) in both.items()}


def names_of(pairs: Pairs) -> list[str]:
    return list(dict.fromkeys(name for pair in pairs.values() for look in pair for name in look.values))


def judged(rows: Sequence[Any], name: str = "effect") -> list[Any]:
    """The rows with the effect of that name judged, all together; a row without one stays."""
    own = [row for row in rows if getattr(row, name) is not None]
    effects = iter(judge_effects([getattr(row, name) for row in own]))
    return [row if getattr(row, name) is None else replace(row, **{name: next(effects)}) for row in rows]


def mean_of(values: Iterable[float]) -> float | None:
    """None of nothing."""
    known = list(values)
    return float(np.mean(known)) if known else None
