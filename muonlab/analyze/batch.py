"""From the evidence of a batch study and its records to the finding. Pure: neither store nor torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from muonlab.analyze.critical_batch import (
    Estimate,
    TokenCurve,
    noise_scale,
    overhead_batches,
    sfo_minimum,
    token_optimal,
)
from muonlab.analyze.findings import Check, Judgement
from muonlab.analyze.frontier import DeviceModel, Dominance, FrontierPoint, StepTime, dominances, frontier, step_times
from muonlab.analyze.reaching import TimeToTarget, reached, step_seconds, times_to_targets, tokens_noise
from muonlab.analyze.significance import LEVEL, contrast, judge
from muonlab.records import Record
from muonlab.records.evidence import BatchEvidence
from muonlab.records.spec import Value
from muonlab.records.watch import NOISE

__all__ = ["BatchFinding", "BatchSettings", "CriticalBatch", "NoiseAt", "TokenRatio", "Trend", "analyze", "noise_sums"]

Records = Mapping[str, Record]
WHY = {"unreached": "did not reach it", "early": "was below it at its first evaluation"}  # flag of a time -> in words


@dataclass(frozen=True, kw_only=True)
class TokenRatio:
    """How many times the challenger's tokens the baseline takes to the same loss at the same batch size."""

    optimizer: str
    batch_tokens: int
    target: float
    ratio: float | None  # None: one of them did not reach it, or was below it at its first evaluation
    low: float | None  # 95 % interval, of the noise between seeds
    high: float | None
    judgement: Judgement | None
    detail: str  # why there is no ratio


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How the token ratio runs with the batch: log ratio = a + slope log2 batch."""

    optimizer: str
    target: float
    slope: float | None  # per doubling of the batch
    low: float | None  # 95 % interval
    high: float | None
    verdict: str  # "grows", "falls", "unresolved" or "undefined"


@dataclass(frozen=True, kw_only=True)
class NoiseAt:
    """Gradient noise of one optimizer's runs at one batch, while they came from twice the tokens to a target."""

    optimizer: str
    batch_tokens: int
    target: float
    simple: Estimate  # tr(covariance) / |G|^2, in tokens
    nuclear: Estimate  # its counterpart in the nuclear norm


@dataclass(frozen=True, kw_only=True)
class CriticalBatch:
    """Five estimators of where larger batches stop to pay, in tokens, for one optimizer and one target."""

    optimizer: str
    target: float
    overhead: Estimate  # 20 % more tokens than the fewest
    doubling: Estimate  # twice as many: what the noise scale estimates
    sfo: Estimate  # fewest tokens
    noise_scale: Estimate
    nuclear_noise_scale: Estimate
    token_optimal: float | None  # largest batch within 5 % of the fewest tokens
    least_tokens: float | None  # of the fit behind `overhead`: least (1 + 0.2 (batch / fitted)^power)
    fitted: float | None  # `overhead` itself, also where that lies outside of the batches that were measured
    power: float | None
    batches: tuple[int, ...]  # at which every seed reached the target


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """With what one optimizer was run at one batch size."""

    optimizer: str
    batch_tokens: int
    horizon_tokens: int
    predicted: Mapping[str, Value]  # by the rules, from the batch beside it
    chosen: Mapping[str, Value]
    num_runs: int  # of the search
    converged: bool
    edges: tuple[str, ...]
    step_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class BatchFinding:
    """The finding of a batch study."""

    verdict: str
    task: str
    baseline: str
    optimizers: tuple[str, ...]
    batches: tuple[int, ...]
    reference: int
    targets: tuple[float, ...]
    targets_given: bool  # False: taken from the baseline's curve at the reference batch
    times: tuple[TimeToTarget, ...]
    token_ratio: tuple[TokenRatio, ...]
    trends: tuple[Trend, ...]
    critical: tuple[CriticalBatch, ...]
    noise: tuple[NoiseAt, ...]
    settings: tuple[BatchSettings, ...]
    step_times: tuple[StepTime, ...]
    frontier: tuple[FrontierPoint, ...]
    dominance: tuple[Dominance, ...]
    device_model: DeviceModel
    checks: tuple[Check, ...]
    num_runs: int
    num_failed: int
    total_tokens: int
    environment: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def hardest(self) -> float:
        """The lowest target that every optimizer reached at three batches or more; the easiest if there is none."""
        done = [t for t in self.targets if all(len(c.batches) >= 3 for c in self.critical if c.target == t)]
        return min(done, default=self.targets[0])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def analyze(evidence: BatchEvidence, records: Records) -> BatchFinding:
    """Tokens to targets, their ratios, critical batches and the frontier. Verdict and checks are added later.

    Raises   KeyError if a record that the evidence names is missing
    """
    used = [records[key] for key in evidence.record_keys()]
    times, steps = times_to_targets(evidence, records), step_times(evidence, records)
    ratios = _ratios(evidence, times, records)
    model = DeviceModel(**evidence.config["device_model"])
    params = {point.name: records[point.cell.keys[0]].num_params for point in evidence.points}
    points = frontier(evidence, times, steps, model, params)
    pairs = [(name, target) for name in evidence.optimizers for target in evidence.targets]
    return BatchFinding(
        verdict="",
        task=evidence.task,
        baseline=evidence.baseline,
        optimizers=tuple(evidence.optimizers),
        batches=evidence.batches,
        reference=evidence.reference,
        targets=evidence.targets,
        targets_given=evidence.targets_given,
        times=times,
        token_ratio=tuple(ratios),
        trends=tuple(_trend(evidence, name, target, ratios, records) for name, target in pairs
                     if name != evidence.baseline),
        critical=tuple(_critical(evidence, name, target, times, records) for name, target in pairs),
        noise=tuple(_noise(evidence, name, batch, target, records) for name, target in pairs
                    for batch in evidence.batches),
        settings=tuple(_settings(evidence, name, batch, records) for name in evidence.optimizers
                       for batch in evidence.batches),
        step_times=steps,
        frontier=points,
        dominance=dominances(evidence, times, points),
        device_model=model,
        checks=(),
        num_runs=len(used),
        num_failed=sum(record.outcome == "failed" for record in used),
        total_tokens=sum(record.tokens for record in used),
        environment=used[0].environment if used else {},
        config=evidence.config,
    )  # fmt: skip


def _ratios(evidence: BatchEvidence, times: Sequence[TimeToTarget], records: Records) -> list[TokenRatio]:
    """Of every challenger, judged with Holm's correction over all its batches and targets."""
    at = {(one.optimizer, one.batch_tokens, one.target): one for one in times}
    found = []
    for name in (n for n in evidence.optimizers if n != evidence.baseline):
        places = [(batch, target) for target in evidence.targets for batch in evidence.batches]
        tests = {}
        for batch, target in places:
            pair = [at[n, batch, target] for n in (name, evidence.baseline)]
            noises = [tokens_noise(evidence, one.optimizer, target, records) for one in pair]
            if not any(one.flag for one in pair):
                logs = [[math.log(t) for t in one.by_seed if t is not None] for one in pair]
                tests[f"{batch} {target}"] = contrast(logs[0], logs[1], (noises[0], noises[1]))
        judged = judge(tests, {})
        for batch, target in places:
            test = judged.get(f"{batch} {target}")
            flags = {n: at[n, batch, target].flag for n in (evidence.baseline, name)}
            why = [f"{n} {WHY[flag]}" for n, flag in flags.items() if flag]
            found.append(
                TokenRatio(
                    optimizer=name,
                    batch_tokens=batch,
                    target=target,
                    ratio=_less(None if test is None else test.difference_nats),
                    low=_less(None if test is None else test.high),
                    high=_less(None if test is None else test.low),
                    judgement=None if test is None else test.judgement,
                    detail=", ".join(why),
                )
            )
    return found


def _less(log: float | None) -> float | None:
    return None if log is None else math.exp(-log)


def _trend(evidence: BatchEvidence, name: str, target: float, ratios: Sequence[TokenRatio], records: Records) -> Trend:
    """Least squares; errors are those of the seeds or, if larger, what the line leaves unexplained."""
    own = [r for r in ratios if (r.optimizer, r.target) == (name, target) and r.ratio is not None]
    noises = [tokens_noise(evidence, n, target, records) for n in (name, evidence.baseline)]
    degrees = sum(noise.degrees for noise in noises)
    if len(own) < 3 or min(noise.degrees for noise in noises) < 1:
        return Trend(optimizer=name, target=target, slope=None, low=None, high=None, verdict="undefined")
    x = np.log2([r.batch_tokens for r in own])
    y = np.log([r.ratio for r in own if r.ratio is not None])
    num_seeds = len(evidence.point(name, own[0].batch_tokens).cell.keys)
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    left = y - y.mean() - slope * x
    variance = max(sum(noise.variance for noise in noises) / num_seeds, float(left @ left) / (len(own) - 2))
    half = float(stats.t.ppf((1 + LEVEL) / 2, degrees)) * math.sqrt(variance / float(x @ x))
    low, high = slope - half, slope + half
    verdict = "grows" if low > 0 else "falls" if high < 0 else "unresolved"
    return Trend(optimizer=name, target=target, slope=slope, low=low, high=high, verdict=verdict)


def _critical(
    evidence: BatchEvidence, name: str, target: float, times: Sequence[TimeToTarget], records: Records
) -> CriticalBatch:
    own = [one for one in times if (one.optimizer, one.target) == (name, target) and not one.flag]
    curve = TokenCurve(
        np.array([one.batch_tokens for one in own], dtype=float),
        [[t for t in one.by_seed if t is not None] for one in own],
        tokens_noise(evidence, name, target, records),
    )
    overhead, doubling, fit = overhead_batches(curve)
    runs = [records[key] for batch in evidence.batches for key in evidence.point(name, batch).cell.keys]
    simple, nuclear = _scales(runs, target)
    return CriticalBatch(
        optimizer=name,
        target=target,
        overhead=overhead,
        doubling=doubling,
        sfo=sfo_minimum(curve),
        noise_scale=simple,
        nuclear_noise_scale=nuclear,
        token_optimal=token_optimal(curve),
        least_tokens=None if fit is None else fit.least,
        fitted=None if fit is None else fit.critical,
        power=None if fit is None else fit.power,
        batches=tuple(one.batch_tokens for one in own),
    )


def _noise(evidence: BatchEvidence, name: str, batch: int, target: float, records: Records) -> NoiseAt:
    simple, nuclear = _scales([records[key] for key in evidence.point(name, batch).cell.keys], target)
    return NoiseAt(optimizer=name, batch_tokens=batch, target=target, simple=simple, nuclear=nuclear)


def _scales(runs: Sequence[Record], target: float) -> tuple[Estimate, Estimate]:
    """Runs of larger batches tell the gradient better: the variance of |G|^2 falls as 1 / batch^2, that of the nuclear
    signal as 1 / batch, and runs are weighed by that.
    """
    sums, batches = [], []
    for run in runs:
        at = reached(run, target)
        if at.tokens is not None and (found := noise_sums(run, at.tokens / 2, at.tokens)):
            sums.append(found)
            batches.append(float(run.spec.batch_tokens))
    square, trace, signal, noise = (np.array([one[name] for one in sums]) for name in NOISE)
    simple = noise_scale(trace, square, weights=np.square(batches).tolist())
    return simple, noise_scale(noise, signal, power=2.0, weights=batches)


def noise_sums(run: Record, first: float, last: float) -> dict[str, float]:
    """What was measured of gradient noise from `first` to `last` tokens, summed; nothing where nothing was."""
    found = {}
    for name in NOISE:
        series = run.probes.get(name)
        points = zip(series.steps, series.values, strict=True) if series else ()
        own = [value for step, value in points if first <= step * run.spec.batch_tokens <= last]
        if not own:
            return {}
        found[name] = math.fsum(own)
    return found


def _settings(evidence: BatchEvidence, name: str, batch: int, records: Records) -> BatchSettings:
    point = evidence.point(name, batch)
    return BatchSettings(
        optimizer=name,
        batch_tokens=batch,
        horizon_tokens=point.cell.horizon_tokens,
        predicted=point.predicted,
        chosen=point.cell.settings,
        num_runs=point.cell.tuning.num_runs,
        converged=point.cell.tuning.converged,
        edges=point.cell.tuning.edges,
        step_seconds=step_seconds([records[key] for key in point.cell.keys]),
    )
