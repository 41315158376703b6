"""From the evidence of a transfer study and its records to the finding. Pure: neither store nor torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from muonlab.analyze import coordinates
from muonlab.analyze.findings import Contrast
from muonlab.analyze.optima import regret_nats, value_at
from muonlab.analyze.significance import contrast, judge, mean_interval, pooled_noise
from muonlab.analyze.survey import survey
from muonlab.analyze.tracking import Track, losses_of, track
from muonlab.analyze.transfer_finding import (
    ArmFinding,
    DriftFinding,
    MeshPoint,
    Place,
    StageFinding,
    TransferFinding,
)
from muonlab.records import Record
from muonlab.records.transfer_evidence import TransferArm, TransferEvidence, TransferStage

__all__ = ["analyze"]

Records = Mapping[str, Record]
MOST = 20.0  # of half an interval, as a logarithm, beyond which it is open


def analyze(evidence: TransferEvidence, records: Records) -> TransferFinding:
    """Stages, drifts, costs, final losses and the survey. Verdict and checks are added later.

    Raises   KeyError if a record that the evidence names is missing
    """
    used = [records[key] for key in evidence.record_keys()]
    tracks = {arm.name: track(arm.stages, arm.axes, records) for arm in evidence.arms}
    arms = tuple(_arm(evidence, arm, tracks[arm.name], records) for arm in evidence.arms)
    grids = [arm.grid_flops for arm in arms]
    surveyed = [survey(arm, records) for arm in evidence.arms if arm.survey]
    return TransferFinding(
        verdict="",
        task=evidence.task,
        baseline=evidence.baseline,
        widths=evidence.widths,
        final_width=evidence.final_width,
        arms=arms,
        stages=tuple(
            _stage(arm, i, tracks[arm.name], records) for arm in evidence.arms for i in range(len(arm.stages))
        ),
        drifts=tuple(one for arm in evidence.arms for one in _drifts(evidence, arm, tracks[arm.name])),
        contrasts=_contrasts(evidence, arms),
        cost_ratio=None if None in grids else sum(arm.flops for arm in arms) / sum(grid or 0.0 for grid in grids),
        survey=tuple(point for points, _ in surveyed for point in points),
        slopes=tuple(slope for _, slope in surveyed),
        coordinates=None if evidence.coordinates is None else coordinates.analyze(evidence.coordinates, records),
        checks=(),
        num_runs=len(used),
        num_failed=sum(record.outcome == "failed" for record in used),
        total_tokens=sum(record.tokens for record in used),
        total_flops=sum(record.flops for record in used),
        environment=used[0].environment if used else {},
        config=evidence.config,
    )


def _arm(evidence: TransferEvidence, arm: TransferArm, found: Track | None, records: Records) -> ArmFinding:
    finals = [records[key] for key in arm.final]
    losses = [run.final_loss if run.outcome == "ok" else None for run in finals]
    known = [loss for loss in losses if loss is not None]
    low, high = mean_interval(known, pooled_noise([known]))
    meshes = [[records[key] for trial in stage.trials for key in trial.keys] for stage in arm.stages]
    runs = [*(run for one in meshes for run in one), *finals]
    flops, final_flops = (sum(run.flops for run in some) for some in (runs, finals))
    counted = bool(finals) and final_flops > 0
    num_grid = math.prod([evidence.points] * len(arm.axes)) * len(evidence.tuning_seeds)
    grid = max(run.flops for run in finals) * num_grid + final_flops if counted else None
    final, regret, direct = evidence.final_width, (None, None), None
    if found is not None and final is not None and found.bowl.curvature is not None:
        variances = np.array([(drift.at(final)[1] / drift.quantile) ** 2 for drift in found.drifts])
        regret = regret_nats(found.bowl.curvature, variances) if np.isfinite(variances).all() else regret
        away = found.at(final) - found.bowl.optima[0].place
        direct = float(away @ found.bowl.curvature @ away) / 2
    noise = math.sqrt(found.noise.variance) if found is not None and found.noise.degrees else None
    return ArmFinding(
        name=arm.name,
        optimizer=arm.optimizer,
        parametrization=arm.parametrization,
        axes=tuple(arm.axes),
        best=arm.settings,
        base={} if found is None else _values(arm, found.bowl.optima[0].place),
        losses=tuple(losses),
        loss_mean=float(np.mean(known)) if known else None,
        loss_low=low,
        loss_high=high,
        keys=arm.final,
        noise_nats=noise,
        regret_nats=regret[0],
        regret_high=regret[1],
        direct_nats=direct,
        tokens=sum(run.tokens for run in runs),
        flops=flops,
        final_flops=final_flops,
        grid_flops=grid,
        direct_flops=sum(run.flops for run in meshes[0]) + final_flops if counted else None,
        cost_ratio=None if grid is None else flops / grid,
    )


def _stage(arm: TransferArm, i: int, found: Track | None, records: Records) -> StageFinding:
    stage = arm.stages[i]
    runs = [records[key] for trial in stage.trials for key in trial.keys]
    points = mesh_points(stage, records)
    means = [point.mean for point in points if point.mean is not None]
    optimum = None if found is None else found.bowl.optima[i]
    places = {}
    if found is not None and optimum is not None:
        halves = np.sqrt(optimum.variance) * found.quantile
        places = {
            name: _place(log, float(optimum.place[k]), float(halves[k]))
            for k, (name, log) in enumerate(arm.axes.items())
        }
    window = {}
    for name, log in arm.axes.items():
        values = [float(trial.settings[name]) for trial in stage.trials]  # type: ignore[arg-type]
        half = stage.steps[name] / 2
        ends = [_shifted(value, sign * half, log) for value in (min(values), max(values)) for sign in (-1, 1)]
        window[name] = (min(ends), max(ends))
    return StageFinding(
        arm=arm.name,
        width=stage.width,
        points=stage.points,
        ratios={name: math.exp(step) for name, step in stage.steps.items()},
        complements=tuple(name for name, log in arm.axes.items() if not log),
        window=window,
        optimum=places,
        fitted=optimum is not None and optimum.fitted,
        loss=min(means, default=None),
        extended=stage.extended,
        edges=stage.edges,
        num_runs=len(runs),
        num_lost=sum(run.outcome != "ok" for run in runs),
        tokens=sum(run.tokens for run in runs),
        flops=sum(run.flops for run in runs),
        mesh=points,
    )


def mesh_points(stage: TransferStage, records: Records) -> tuple[MeshPoint, ...]:
    """Every point of a mesh with its mean loss."""
    found = []
    for trial, losses in zip(stage.trials, losses_of(stage, records), strict=True):
        lost = int(np.isinf(losses).sum())
        found.append(MeshPoint(values=trial.settings, mean=None if lost else float(losses.mean()), num_lost=lost))
    return tuple(found)


def _drifts(evidence: TransferEvidence, arm: TransferArm, found: Track | None) -> list[DriftFinding]:
    """Nothing for an arm without final runs; an interval that is open where one width is all there is."""
    if found is None or evidence.final_width is None or not arm.settings:
        return []
    rows = []
    for (name, log), drift in zip(arm.axes.items(), found.drifts, strict=True):
        half, (place, around) = drift.rate_half, drift.at(evidence.final_width)
        sign = 1 if log else -1
        rows.append(
            DriftFinding(
                arm=arm.name,
                hyperparameter=name,
                rate=sign * drift.rate,
                low=sign * drift.rate - half if math.isfinite(half) else None,
                high=sign * drift.rate + half if math.isfinite(half) else None,
                lawful=drift.lawful,
                complement=not log,
                predicted=_place(log, place, around),
                used=arm.settings[name],
            )
        )
    return rows


def _contrasts(evidence: TransferEvidence, arms: Sequence[ArmFinding]) -> dict[str, Contrast]:
    """Final losses of every arm against those of the baseline; nothing where some have none."""
    losses = {arm.name: [loss for loss in arm.losses if loss is not None] for arm in arms}
    if len(arms) < 2 or not all(losses.values()):
        return {}
    noise = {name: pooled_noise([own]) for name, own in losses.items()}
    base = evidence.baseline
    tests = {n: contrast(losses[n], losses[base], (noise[n], noise[base])) for n in losses if n != base}
    return judge(tests, {})


def _values(arm: TransferArm, places: np.ndarray) -> dict[str, float]:
    return {name: value_at(float(place), log) for (name, log), place in zip(arm.axes.items(), places, strict=True)}


def _place(log: bool, middle: float, half: float) -> Place:
    ends = [value_at(middle + sign * half, log) if half < MOST else None for sign in ((-1, 1) if log else (1, -1))]
    return Place(value=value_at(middle, log), low=ends[0], high=ends[1])


def _shifted(value: float, by: float, log: bool) -> float:
    return value * math.exp(by) if log else 1 - (1 - value) * math.exp(by)
