"""From the evidence of a comparison and its records to the finding. Pure: neither store nor torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from muonlab.analyze.findings import (
    Comparison,
    Contrast,
    Curve,
    LossesAt,
    OptimizerFinding,
    Paired,
    Slice,
    Speedup,
)
from muonlab.analyze.significance import (
    Noise,
    contrast,
    judge,
    judge_no_worse,
    mean_interval,
    paired,
    pooled_noise,
)
from muonlab.analyze.speedup import ArmLosses, Selection, bootstrap, finite, fit_data_law, read_off, shared_fraction
from muonlab.analyze.tuning import run_loss, selection, slices, trial_losses, tuning_spread
from muonlab.analyze.wallclock import Rate, cost_rate
from muonlab.records import Record
from muonlab.records.evidence import Arm, Cell, Evidence

__all__ = ["arm_losses", "cell_contrast", "cell_noise", "compare", "final_losses", "losses_at"]

Records = Mapping[str, Record]


def compare(evidence: Evidence, records: Records) -> Comparison:
    """Losses, tests and speedups of every challenger against the baseline. Verdict and checks are added later.

    Raises   KeyError if a record that the evidence names is missing
    """
    arms, horizon = evidence.arms, evidence.horizon_tokens
    baseline = arms[evidence.baseline]
    challengers = {name: arm for name, arm in arms.items() if arm is not baseline}
    speedups = {name: _speedup(arm, baseline, horizon, records) for name, arm in challengers.items()}
    contrasts = {
        name: cell_contrast(arm.cell(horizon), baseline.cell(horizon), records) for name, arm in challengers.items()
    }
    paired_tests = {
        name: _paired(arm.cell(horizon), baseline.cell(horizon), evidence.margin_nats, records)
        for name, arm in challengers.items()
    }
    used = [records[key] for key in evidence.record_keys()]
    return Comparison(
        verdict="",
        task=evidence.task,
        baseline=evidence.baseline,
        horizon_tokens=horizon,
        optimizers={name: _optimizer(arm, horizon, records) for name, arm in arms.items()},
        speedup=speedups,
        contrasts=judge(contrasts, speedups),
        paired=judge_no_worse(paired_tests),
        checks=(),
        slices=tuple(s for arm in arms.values() for cell in arm.cells for s in _slices(arm.name, cell, records)),
        curves=tuple(c for arm in arms.values() for cell in arm.cells for c in _curves(arm.name, cell, records)),
        law=_law(baseline, records),
        num_runs=len(used),
        num_failed=sum(record.outcome == "failed" for record in used),
        total_tokens=sum(record.tokens for record in used),
        environment=used[0].environment if used else {},
        config=evidence.config,
    )


def final_losses(cell: Cell, records: Records) -> list[float]:
    """Final losses of the runs of a cell that ended well."""
    losses = (run_loss(records[key]) for key in cell.keys)
    return [loss for loss in losses if loss is not None]


def cell_noise(cell: Cell, records: Records) -> Noise:
    """Between seeds at one horizon: final runs and the tuning runs of the chosen settings, which had other seeds.

    Settings are chosen for tuning runs without a bad seed among them: where the final runs vary more, they alone count.
    """
    tuning = cell.tuning
    tried = [
        [loss for loss in trial_losses(trial, records).values() if loss is not None]
        for trial in tuning.trials
        if tuning.horizon_tokens == cell.horizon_tokens and dict(trial.settings) == dict(tuning.best)
    ]
    finals = pooled_noise([final_losses(cell, records)])
    pooled = pooled_noise([final_losses(cell, records), *tried])
    return finals if finals.degrees and finals.variance > pooled.variance else pooled


def _optimizer(arm: Arm, horizon_tokens: int, records: Records) -> OptimizerFinding:
    cell = arm.cell(horizon_tokens)
    noise = cell_noise(cell, records)
    losses = final_losses(cell, records)
    runs = [records[key] for key in cell.keys]
    steps = [run.step_seconds for run in runs if run.step_seconds is not None]
    tunings = [c.tuning for c in arm.cells]
    return OptimizerFinding(
        name=arm.name,
        optimizer=arm.optimizer or arm.name,
        fixed=arm.fixed,
        loss_mean=float(np.mean(losses)) if losses else None,
        loss_std=finite(float(np.sqrt(noise.variance))),
        num_seeds=len(losses),
        num_diverged=sum(records[key].outcome == "diverged" for c in arm.cells for key in c.keys),
        wall_seconds=median(steps) * runs[0].spec.num_steps if steps else None,
        step_seconds=median(steps) if steps else None,
        num_params=max(run.num_params for run in runs),
        hyperparameters=cell.settings,
        polar=runs[0].spec.polar,
        horizons=tuple(losses_at(c, records) for c in arm.cells),
        tuning_runs=sum(t.num_runs for t in tunings),
        tuning_tokens=sum(t.tokens for t in tunings),
        converged=all(t.converged for t in tunings),
    )


def losses_at(cell: Cell, records: Records) -> LossesAt:
    """The final losses of one cell, with the interval of their mean."""
    losses = final_losses(cell, records)
    low, high = mean_interval(losses, cell_noise(cell, records))
    return LossesAt(
        horizon_tokens=cell.horizon_tokens,
        seeds=tuple(records[key].spec.seed for key in cell.keys),
        losses=tuple(run_loss(records[key]) for key in cell.keys),
        keys=cell.keys,
        mean=float(np.mean(losses)) if losses else None,
        low=low,
        high=high,
        hyperparameters=cell.settings,
    )


def cell_contrast(challenger: Cell, baseline: Cell, records: Records) -> Contrast:
    """The final losses of one cell against those of another."""
    ours, theirs = (final_losses(cell, records) for cell in (challenger, baseline))
    return contrast(ours, theirs, (cell_noise(challenger, records), cell_noise(baseline, records)))


def _paired(challenger: Cell, baseline: Cell, margin_nats: float | None, records: Records) -> Paired:
    cells = (challenger, baseline)
    ours, theirs = ({records[key].spec.seed: run_loss(records[key]) for key in cell.keys} for cell in cells)
    tuning = math.hypot(*(tuning_spread(cell.tuning, records, cell_noise(cell, records)) for cell in cells))
    return paired(ours, theirs, margin_nats=margin_nats, tuning_nats=finite(tuning))


def _fittable(arm: Arm, records: Records) -> list[Cell]:
    """The cells whose mean has a known error."""
    return [c for c in arm.cells if final_losses(c, records) and cell_noise(c, records).degrees >= 1]


def _law(baseline: Arm, records: Records) -> dict[str, float] | None:
    cells = _fittable(baseline, records)
    if len(cells) < 3:
        return None
    losses = arm_losses(cells, records)
    law = fit_data_law(losses.tokens, np.asarray(losses.means), losses.variances)
    return {"a": float(law.a), "b": float(law.b), "exponent": float(law.exponent), "scale_tokens": law.scale}


def _speedup(arm: Arm, baseline: Arm, horizon_tokens: int, records: Records) -> Speedup:
    """At the challenger's longest horizon whose loss the baseline's horizons bracket; a bound if there is none.

    A baseline that hardly learns from tokens brackets losses that its law, which smooths the noise, does not reach
    within its horizons: that is flagged.
    """
    cells, challenger = _fittable(baseline, records), _fittable(arm, records)
    if len(cells) < 3 or not challenger:
        horizon = arm.cells[-1].horizon_tokens
        return Speedup(
            tokens=None, low=None, high=None, wall=None, wall_low=None, wall_high=None,
            flag="undefined", horizon_tokens=horizon,
        )  # fmt: skip
    means = [float(np.mean(final_losses(cell, records))) for cell in cells]
    inside = [c for c in challenger if min(means) <= np.mean(final_losses(c, records)) <= max(means)]
    rate = cost_rate(baseline.cell(horizon_tokens), arm.cell(horizon_tokens), records)
    if not inside:
        return _bound(cells, challenger, means, rate, records)
    cell = inside[-1]
    found = bootstrap(arm_losses(cells, records), arm_losses([cell], records))
    point, low, high, flag = read_off(found, cell.horizon_tokens, [c.horizon_tokens for c in cells])
    return _with_wall(point, low, high, rate, flag, cell.horizon_tokens)


def _bound(
    cells: Sequence[Cell], challenger: Sequence[Cell], means: Sequence[float], rate: Rate | None, records: Records
) -> Speedup:
    """Each of the challenger's horizons ends below (above) all of the baseline's: only a bound can be given."""
    below = [cell.horizon_tokens for cell in challenger if np.mean(final_losses(cell, records)) < min(means)]
    if below:
        ratio = max(cell.horizon_tokens for cell in cells) / min(below)
        return replace(_with_wall(ratio, ratio, None, rate, "censored", min(below)), bound=">")
    longest = challenger[-1].horizon_tokens
    ratio = min(cell.horizon_tokens for cell in cells) / longest
    return replace(_with_wall(ratio, None, ratio, rate, "censored", longest), bound="<")


def _with_wall(
    tokens: float | None, low: float | None, high: float | None, rate: Rate | None, flag: str, horizon_tokens: int
) -> Speedup:
    wall = wall_low = wall_high = None
    if rate is not None:
        wall = None if tokens is None else tokens * rate.median
        wall_low = None if low is None else low * rate.low
        wall_high = None if high is None else high * rate.high
    return Speedup(
        tokens=tokens, low=low, high=high, wall=wall, wall_low=wall_low, wall_high=wall_high,
        flag=flag, horizon_tokens=horizon_tokens,
    )  # fmt: skip


def arm_losses(cells: Sequence[Cell], records: Records, known: Selection | None = None) -> ArmLosses:
    """What the bootstrap needs of the cells of one optimizer, from the shortest.

    `known` says how well their settings are known; without it, what that tuning of theirs says that has most trials.
    """
    losses = [final_losses(cell, records) for cell in cells]
    main = max(range(len(cells)), key=lambda i: len(cells[i].tuning.trials))
    return ArmLosses(
        tokens=[cell.horizon_tokens for cell in cells],
        means=[float(np.mean(group)) for group in losses],
        num_seeds=[len(group) for group in losses],
        noises=[cell_noise(cell, records) for cell in cells],
        selection=known or selection(cells[main].tuning, records),
        main=main,
        shared=shared_fraction(np.array(losses)) if len({len(group) for group in losses}) == 1 else 0.0,
    )


def _slices(name: str, cell: Cell, records: Records) -> list[Slice]:
    """Those of its own tuning, not those of a tuning at another horizon."""
    return slices(name, cell.tuning, records) if cell.tuning.horizon_tokens == cell.horizon_tokens else []


def _curves(optimizer: str, cell: Cell, records: Records) -> list[Curve]:
    runs = [records[key] for key in cell.keys]
    return [
        Curve(
            optimizer=optimizer,
            horizon_tokens=cell.horizon_tokens,
            seed=run.spec.seed,
            tokens=tuple(step * run.spec.batch_tokens for step in run.train_steps),
            loss=run.train_loss,
        )
        for run in runs
    ]
