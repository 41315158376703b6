"""A comparison of runs that somebody else made: the same tests, speedups and verdict from a table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from muonlab.analyze.audit import Audit, audit, from_runs
from muonlab.analyze.cells import Cell, best_cells, choose_baseline, early_notes, seed_noise
from muonlab.analyze.findings import Check, Comparison, Contrast, LossesAt, OptimizerFinding, Paired, Speedup
from muonlab.analyze.runs import Run, ends
from muonlab.analyze.significance import (
    Noise,
    contrast,
    judge,
    judge_no_worse,
    mean_interval,
    paired,
    pooled_noise,
    withheld,
)
from muonlab.analyze.speedups import speedup_row
from muonlab.analyze.verdicts import verdict
from muonlab.errors import UsageError

__all__ = ["compare_runs"]

WITHHOLD = {"grid_edge": "interior", "conditions_differ": "same_conditions"}  # our names of rules that forbid a verdict
Cells = Mapping[float, Cell]  # tokens -> the best configuration


def compare_runs(
    runs: Sequence[Run],
    baseline: str,
    *,
    noise_nats: float | None = None,
    margin_nats: float | None = None,
) -> Comparison:
    """Final losses of every optimizer against the baseline's at the longest length that all were run at.

    What an audit of these runs calls an error is a broken check, and some of them forbid a verdict.

    Raises   UsageError where there are several sizes, no common length, or neither seeds nor an assumed noise
    """
    kept = ends(runs)
    choose_baseline(baseline, kept)
    cells = best_cells(kept)
    arms = {
        name: {c.tokens: c for c in cells.values() if c.optimizer == name}
        for name in dict.fromkeys(cell.optimizer for cell in cells.values())
    }
    if len(arms) < 2:
        raise UsageError(f"there is nothing to compare {baseline} with: the table has no other optimizer")
    sizes = sorted({cell.size for cell in cells.values()})
    if len(sizes) > 1:
        raise UsageError(f"there are several sizes ({', '.join(sizes[:8])}): choose one with --where size={sizes[0]}")
    common = set.intersection(*(set(own) for own in arms.values()))
    if not common:
        lost = " and finished" if any(run.loss is None for run in kept) else ""
        raise UsageError(f"there is no length (tokens) that all optimizers were run at{lost}")
    horizon = max(common)
    pooled = seed_noise(cells.values(), noise_nats)
    noises = {name: _noise(own, pooled, noise_nats) for name, own in arms.items()}
    others = [name for name in arms if name != baseline]
    contrasts = {name: _contrast(arms[name][horizon], arms[baseline][horizon], noises) for name in others}
    speedups = {name: _speedup(arms[name], arms[baseline], horizon, noises) for name in others}
    tests = {name: _paired(arms[name][horizon], arms[baseline][horizon], margin_nats) for name in others}
    objections = audit(from_runs(kept, baseline=baseline, noise_nats=noise_nats))
    checks = (_complete(kept, arms, early_notes(runs, kept)), *_checks(objections))
    contrasts, tests = judge(contrasts, {n: s for n, s in speedups.items() if _is_read(s)}), judge_no_worse(tests)
    tuned = "tuned " if arms[baseline][horizon].num_configurations > 1 else ""
    return Comparison(
        verdict=verdict(baseline, contrasts, speedups, tests, checks, tuned=tuned),
        task=sizes[0],
        baseline=baseline,
        horizon_tokens=int(horizon),
        optimizers={name: _optimizer(name, own, horizon, noises[name]) for name, own in arms.items()},
        speedup=speedups,
        contrasts=contrasts if not withheld(checks) else {n: _withheld(test) for n, test in contrasts.items()},
        paired=tests,
        checks=checks,
        slices=(),
        curves=(),
        law=None,
        num_runs=len(kept),
        num_failed=0,
        total_tokens=int(sum(run.tokens for run in kept)),
        environment={},
        config={},
    )


def _noise(own: Cells, pooled: Noise, noise_nats: float | None) -> Noise:
    """Of one optimizer, pooled over its lengths; where it has no seeds, that of all."""
    found = pooled_noise([cell.losses for cell in own.values()])
    return found if noise_nats is None and found.degrees >= 1 else pooled


def _contrast(challenger: Cell, baseline: Cell, noises: Mapping[str, Noise]) -> Contrast:
    return contrast(challenger.losses, baseline.losses, (noises[challenger.optimizer], noises[baseline.optimizer]))


def _paired(challenger: Cell, baseline: Cell, margin_nats: float | None) -> Paired:
    """Seed by seed; what the choice of the settings adds is not known of a table."""
    ours, theirs = (
        {seed: loss for seed, loss in zip(cell.seeds, cell.losses, strict=True) if seed is not None}
        for cell in (challenger, baseline)
    )
    return paired(ours, theirs, margin_nats=margin_nats, tuning_nats=None)


def _speedup(own: Cells, baseline: Cells, horizon: float, noises: Mapping[str, Noise]) -> Speedup:
    """At the longest of its lengths whose loss lies between those of the baseline; else at `horizon`, flagged."""
    law = [baseline[tokens] for tokens in sorted(baseline)]
    rows = {tokens: speedup_row(cell, law, noises[cell.optimizer]) for tokens, cell in own.items() if tokens <= horizon}
    row = rows[max((tokens for tokens, row in rows.items() if not row.flag), default=horizon)]
    return Speedup(
        tokens=row.speedup, low=row.low, high=row.high, wall=None, wall_low=None, wall_high=None, flag=row.flag,
        horizon_tokens=int(row.tokens),
    )  # fmt: skip


def _is_read(speedup: Speedup) -> bool:
    """Not where there is no law of the baseline to read it off."""
    return speedup.low is not None or speedup.high is not None


def _optimizer(name: str, own: Cells, horizon: float, noise: Noise) -> OptimizerFinding:
    cell = own[horizon]
    return OptimizerFinding(
        name=name,
        optimizer=name,
        fixed={},
        loss_mean=cell.mean,
        loss_std=float(np.sqrt(noise.variance)),
        num_seeds=len(cell.losses),
        num_diverged=0,
        wall_seconds=None,
        step_seconds=None,
        num_params=int(cell.params or 0),
        hyperparameters=cell.settings,
        polar="",
        horizons=tuple(_losses(own[tokens], noise) for tokens in sorted(own)),
        tuning_runs=sum(c.num_configurations for c in own.values()),
        tuning_tokens=0,
        converged=None,
    )


def _losses(cell: Cell, noise: Noise) -> LossesAt:
    low, high = mean_interval(cell.losses, noise)
    return LossesAt(
        horizon_tokens=int(cell.tokens),
        seeds=tuple(-1 if seed is None else seed for seed in cell.seeds),
        losses=cell.losses,
        keys=(),
        mean=cell.mean,
        low=low,
        high=high,
        hyperparameters=cell.settings,
    )


def _complete(runs: Sequence[Run], arms: Mapping[str, Cells], notes: Sequence[str]) -> Check:
    """Broken where an optimizer has nothing left to compare: every configuration lost a run."""
    lost = {name: sum(run.loss is None for run in runs if run.optimizer == name) for name in _optimizers(runs)}
    counts = {name: sum(run.optimizer == name for run in runs) for name in lost}
    gone = [name for name in lost if name not in arms]
    detail = ", ".join(f"{name} {lost[name]} of {counts[name]} runs diverged" for name in lost if lost[name])
    return Check(name="complete", ok=not gone, detail="; ".join([detail or "no run diverged", *notes]))


def _optimizers(runs: Sequence[Run]) -> dict[str, None]:
    return dict.fromkeys(run.optimizer for run in runs)


def _checks(found: Audit) -> tuple[Check, ...]:
    """One for each rule of the audit: broken by an error, or as far as its worst finding goes, or not checked."""
    checks = []
    for rule in found.checked:
        findings = [finding for finding in found.findings if finding.rule == rule]  # worst first
        worst = findings[0].severity if findings else ""
        detail = "; ".join(finding.detail for finding in findings if finding.severity == worst)
        checks.append(
            Check(
                name=WITHHOLD.get(rule, rule), ok=worst != "error", detail=detail or "nothing to object to",
                severity="" if worst == "error" else worst,
            )
        )  # fmt: skip
    skipped = [Check(name=WITHHOLD.get(rule, rule), ok=None, detail=why) for rule, why in found.skipped.items()]
    return (*checks, *skipped)


def _withheld(test: Contrast) -> Contrast:
    return replace(test, judgement="withheld")
