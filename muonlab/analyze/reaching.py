"""Tokens and seconds to first reach a loss, from the curves of runs whose lr is never decayed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from muonlab.analyze.significance import Noise, mean_interval, pooled_noise
from muonlab.records import Record
from muonlab.records.evidence import BatchEvidence

__all__ = ["Reached", "TimeToTarget", "reached", "step_seconds", "times_to_targets", "tokens_noise"]

Records = Mapping[str, Record]


@dataclass(frozen=True)
class Reached:
    """When one run first had a loss: None if it never had, `early` if the first evaluation already was below it."""

    tokens: float | None
    early: bool = False


@dataclass(frozen=True, kw_only=True)
class TimeToTarget:
    """What one optimizer takes at one batch size to first reach a held-out loss."""

    optimizer: str
    batch_tokens: int
    target: float
    tokens: float | None  # geometric mean over seeds; None unless all reached it
    low: float | None  # 95 % interval
    high: float | None
    by_seed: tuple[float | None, ...]  # None: not reached
    keys: tuple[str, ...]  # of the records, in the order of `by_seed`
    horizon_tokens: int  # how long the runs went on
    steps: float | None
    seconds: float | None  # on one device: steps x median step time; None where there is none, or of several machines
    flag: str  # "", "unreached" (by one seed or more), "early" (below it at the first evaluation: `tokens` is a bound)


def reached(record: Record, target: float) -> Reached:
    """Between the two evaluations around the first crossing, linear in log tokens.

    A run that diverged has reached what it had reached before.
    """
    tokens = [step * record.spec.batch_tokens for step in record.eval_steps]
    for i, loss in enumerate(record.eval_loss):
        if math.isfinite(loss) and loss <= target:
            if not i:
                return Reached(float(tokens[0]), early=True)
            before, share = record.eval_loss[i - 1], 1.0
            if math.isfinite(before):
                share = (before - target) / (before - loss)
            return Reached(tokens[i - 1] * (tokens[i] / tokens[i - 1]) ** share)
    return Reached(None)


def times_to_targets(evidence: BatchEvidence, records: Records) -> tuple[TimeToTarget, ...]:
    """Every optimizer, target and batch size, in that order."""
    found = []
    for name in evidence.optimizers:
        for target in evidence.targets:
            noise = tokens_noise(evidence, name, target, records)
            found += [_time(evidence, name, batch, target, noise, records) for batch in evidence.batches]
    return tuple(found)


def tokens_noise(evidence: BatchEvidence, name: str, target: float, records: Records) -> Noise:
    """Of the logarithm of the tokens of one run, pooled over the batch sizes at which every seed reached the target."""
    groups = []
    for batch in evidence.batches:
        runs = [reached(records[key], target) for key in evidence.point(name, batch).cell.keys]
        if all(run.tokens is not None and not run.early for run in runs):
            groups.append([math.log(run.tokens) for run in runs if run.tokens is not None])
    return pooled_noise(groups)


def _time(
    evidence: BatchEvidence, name: str, batch: int, target: float, noise: Noise, records: Records
) -> TimeToTarget:
    cell = evidence.point(name, batch).cell
    runs = [records[key] for key in cell.keys]
    seen = [reached(run, target) for run in runs]
    tokens = [one.tokens for one in seen]
    complete = [t for t in tokens if t is not None]
    flag = "unreached" if len(complete) < len(tokens) else "early" if any(one.early for one in seen) else ""
    mean = math.exp(float(np.mean(np.log(complete)))) if complete and flag != "unreached" else None
    ends = mean_interval(np.log(complete).tolist(), noise) if mean is not None and not flag else (None, None)
    step = step_seconds(runs)
    return TimeToTarget(
        optimizer=name,
        batch_tokens=batch,
        target=target,
        tokens=mean,
        low=None if ends[0] is None else math.exp(ends[0]),
        high=None if ends[1] is None else math.exp(ends[1]),
        by_seed=tuple(tokens),
        keys=cell.keys,
        horizon_tokens=cell.horizon_tokens,
        steps=None if mean is None else mean / batch,
        seconds=None if mean is None or step is None else mean / batch * step,
        flag=flag,
    )


def step_seconds(runs: Sequence[Record]) -> float | None:
    """The median; None where it was not measured, or on several machines."""
    times = [run.step_seconds for run in runs if run.step_seconds]
    machines = {str(run.environment.get("machine")) for run in runs}
    return median(times) if times and len(machines) == 1 else None
