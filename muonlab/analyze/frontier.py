"""The compute-time frontier: which times to a target can be bought with how many devices, at which batch size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from muonlab.analyze.reaching import TimeToTarget, step_seconds
from muonlab.analyze.significance import dominance
from muonlab.records import Record
from muonlab.records.evidence import BatchEvidence

__all__ = ["DeviceModel", "Dominance", "FrontierPoint", "StepTime", "dominances", "frontier", "step_times"]

GRADIENT_BYTES = 4  # of a parameter
Records = Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class DeviceModel:
    """What is assumed of devices that the runs did not have: data-parallel, one after the other compute and exchange.

    Math     seconds of a step on d devices = fixed + per_token batch / d + 2 (d - 1) / d bytes / bandwidth + latency,
             the ring all-reduce of gradients of `bytes`, without overlap; the last two for d > 1 only
    """

    devices: tuple[int, ...]
    bandwidth: float  # bytes per second, of the slowest link
    latency_seconds: float  # of an all-reduce


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step on one device, from the step times at the batch sizes that were run."""

    optimizer: str
    fixed_seconds: float  # the optimizer, and whatever else does not grow with the batch
    seconds_per_token: float
    worst: float  # largest relative error of the fit


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One way to reach a target."""

    optimizer: str
    target: float
    batch_tokens: int
    devices: int
    seconds: float
    tokens: float
    modelled: bool  # by the device model; else on one device, by the line through its measured step times
    on_frontier: bool  # no other point of this optimizer takes fewer devices and no more time


@dataclass(frozen=True, kw_only=True)
class Dominance:
    """A challenger's frontier beside the baseline's: the shortest time at each number of devices that both have."""

    optimizer: str
    target: float
    devices: tuple[int, ...]
    seconds: tuple[float, ...]  # of the challenger
    baseline_seconds: tuple[float, ...]
    verdict: str  # "dominates", "is dominated", "neither", "unresolved" or "undefined"


def step_times(evidence: BatchEvidence, records: Records) -> tuple[StepTime, ...]:
    """Per optimizer a line through the step times, each weighed by its inverse; none from fewer than two batches."""
    found = []
    for name in evidence.optimizers:
        points = []
        for batch in evidence.batches:
            seconds = step_seconds([records[key] for key in evidence.point(name, batch).cell.keys])
            if seconds is not None:
                points.append((batch, seconds))
        if len(points) > 1:
            found.append(_line(name, points))
    return tuple(found)


def _line(name: str, points: Sequence[tuple[int, float]]) -> StepTime:
    batches, seconds = (np.array(x, dtype=float) for x in zip(*points, strict=True))
    (fixed, slope), _ = nnls(np.stack([1.0 / seconds, batches / seconds], axis=1), np.ones(len(seconds)))
    worst = float(np.max(np.abs((fixed + slope * batches) / seconds - 1.0)))
    return StepTime(optimizer=name, fixed_seconds=float(fixed), seconds_per_token=float(slope), worst=worst)


def frontier(
    evidence: BatchEvidence, times: Sequence[TimeToTarget], steps: Sequence[StepTime], model: DeviceModel,
    num_params: Mapping[str, int],
) -> tuple[FrontierPoint, ...]:  # fmt: skip
    """Every optimizer, target, batch and number of devices that leaves each device a batch which was timed."""
    fits, points = {one.optimizer: one for one in steps}, []
    for one in times:
        if one.tokens is None or one.flag or one.optimizer not in fits:
            continue
        for d in model.devices:
            if one.batch_tokens / d >= evidence.batches[0]:
                points.append(_point(one, d, fits[one.optimizer], model, num_params[one.optimizer]))
    return tuple(_marked(points))


def _point(one: TimeToTarget, devices: int, fit: StepTime, model: DeviceModel, num_params: int) -> FrontierPoint:
    exchange = 2 * (devices - 1) / devices * GRADIENT_BYTES * num_params / model.bandwidth
    step = fit.fixed_seconds + fit.seconds_per_token * one.batch_tokens / devices
    step += exchange + (model.latency_seconds if devices > 1 else 0.0)
    seconds = (one.tokens or 0.0) / one.batch_tokens * step
    return FrontierPoint(
        optimizer=one.optimizer, target=one.target, batch_tokens=one.batch_tokens, devices=devices, seconds=seconds,
        tokens=one.tokens or 0.0, modelled=devices > 1, on_frontier=False,
    )  # fmt: skip


def _marked(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """With the non-dominated ones of each optimizer and target marked."""

    def is_beaten(a: FrontierPoint) -> bool:
        same = (b for b in points if (b.optimizer, b.target) == (a.optimizer, a.target) and b is not a)
        return any(
            b.devices <= a.devices and b.seconds <= a.seconds and (b.devices, b.seconds) != (a.devices, a.seconds)
            for b in same
        )

    return [replace(point, on_frontier=not is_beaten(point)) for point in points]


def dominances(
    evidence: BatchEvidence, times: Sequence[TimeToTarget], points: Sequence[FrontierPoint]
) -> tuple[Dominance, ...]:
    """Every challenger against the baseline at every target.

    Source   Essential AI 2025 (2505.02222): A dominates B if it is faster at each number of devices that both have
    Differs  from it: where the intervals of the tokens leave one of these open, the verdict is "unresolved"
    """
    found = []
    for name in (n for n in evidence.optimizers if n != evidence.baseline):
        for target in evidence.targets:
            ours, theirs = (_fastest(points, n, target) for n in (name, evidence.baseline))
            shared = sorted(set(ours) & set(theirs))
            gaps = [_gap(times, ours[d], theirs[d]) for d in shared]
            found.append(
                Dominance(
                    optimizer=name, target=target, devices=tuple(shared),
                    seconds=tuple(ours[d].seconds for d in shared),
                    baseline_seconds=tuple(theirs[d].seconds for d in shared), verdict=dominance(gaps),
                )
            )  # fmt: skip
    return tuple(found)


def _fastest(points: Sequence[FrontierPoint], name: str, target: float) -> dict[int, FrontierPoint]:
    own = [point for point in points if (point.optimizer, point.target) == (name, target)]
    return {d: min((p for p in own if p.devices == d), key=lambda p: p.seconds) for d in {p.devices for p in own}}


def _gap(times: Sequence[TimeToTarget], ours: FrontierPoint, theirs: FrontierPoint) -> tuple[float, float]:
    """Logarithm of the ratio of two times, and half of its 95 % interval, which is that of the tokens."""
    half = math.hypot(*(_half(times, point) for point in (ours, theirs)))
    return math.log(ours.seconds / theirs.seconds), half


def _half(times: Sequence[TimeToTarget], point: FrontierPoint) -> float:
    for one in times:
        if (one.optimizer, one.target, one.batch_tokens) == (point.optimizer, point.target, point.batch_tokens):
            return math.inf if one.low is None or one.high is None else math.log(one.high / one.low) / 2
    return math.inf
