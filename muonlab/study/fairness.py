"""The fairness rules: what a comparison must hold before its verdict means anything. Needs records only, no torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from muonlab.analyze import comparison as analysis
from muonlab.analyze import ladder
from muonlab.analyze.findings import Check, Comparison
from muonlab.analyze.ladder import LadderFinding
from muonlab.analyze.significance import ladder_verdict, verdict, withheld
from muonlab.records import Record
from muonlab.records.evidence import Arm, Cell, Evidence, LadderEvidence

__all__ = ["check", "conclude", "conclude_ladder"]

Records = Mapping[str, Record]
SAME = ("task", "task_options", "data_fingerprint", "precision", "compile", "device", "torch", "parametrization")
MIN_SEEDS = 3
MAX_SPREAD = 1.5  # of the step times of equal runs
MIN_EFFORT = 0.5  # of the tuning runs of the best-tuned challenger, for the baseline


def conclude(evidence: Evidence, records: Records) -> Comparison:
    """The whole finding: analysis, checks, verdict."""
    finding = analysis.compare(evidence, records)
    checks = check(evidence, records, finding)
    contrasts, paired = finding.contrasts, finding.paired
    if withheld(checks):
        contrasts = {name: replace(contrast, judgement="withheld") for name, contrast in contrasts.items()}
        paired = {name: replace(test, no_worse=None) for name, test in paired.items()}
    sentence = verdict(evidence.baseline, contrasts, finding.speedup, paired, checks)
    return replace(finding, contrasts=contrasts, paired=paired, checks=checks, verdict=sentence)


def conclude_ladder(evidence: LadderEvidence, records: Records) -> LadderFinding:
    """The whole finding of a ladder: analysis, the same checks at every size, verdict."""
    finding = ladder.analyze(evidence, records)
    by_size = {size: _at_size(evidence, size, records) for size in evidence.sizes}
    rules = (_complete, _same_conditions, _fresh_seeds, _same_tuning, _converged, _interior, _own_schedule)
    checks = tuple(_over_sizes({size: rule(*one) for size, one in by_size.items()}) for rule in rules)
    rows = finding.rows
    if withheld(checks):
        rows = tuple(replace(row, judgement="withheld") for row in rows)
    return replace(finding, rows=rows, checks=checks, verdict=ladder_verdict(evidence.baseline, rows, checks))


def _at_size(evidence: LadderEvidence, size: str, records: Records) -> tuple[Evidence, Records, Comparison]:
    """The runs at one size as a comparison at its shortest length."""
    cells = {
        name: tuple(evidence.rung(name, size, ratio).cell for ratio in evidence.ratios) for name in evidence.optimizers
    }
    arms = {name: Arm(name=name, optimizer=evidence.optimizers[name], cells=own) for name, own in cells.items()}
    single = Evidence(
        task=evidence.task, baseline=evidence.baseline, horizon_tokens=cells[evidence.baseline][0].horizon_tokens,
        arms=arms, tuning_seeds=evidence.tuning_seeds, final_seeds=evidence.final_seeds, max_runs=evidence.max_runs,
    )  # fmt: skip
    return single, records, analysis.compare(single, records)


def _over_sizes(checks: Mapping[str, Check]) -> Check:
    """One rule at every size: where it is broken, or what holds everywhere."""
    broken = {size: check.detail for size, check in checks.items() if not check.ok}
    details = [f"{size}: {detail}" for size, detail in broken.items()] or [next(iter(checks.values())).detail]
    return Check(name=next(iter(checks.values())).name, ok=not broken, detail="; ".join(details))


def check(evidence: Evidence, records: Records, finding: Comparison) -> tuple[Check, ...]:
    """Every rule, held or broken, in the order of the argument."""
    rules: tuple[Callable[[Evidence, Records, Comparison], Check], ...] = (
        _complete, _same_conditions, _fresh_seeds, _same_tuning, _effort, _converged, _interior,
        _own_schedule, _enough_seeds, _interpolated, _wall_clock,
    )  # fmt: skip
    return tuple(rule(evidence, records, finding) for rule in rules)


def _cells(evidence: Evidence) -> Iterator[tuple[str, Cell]]:
    return ((arm.name, cell) for arm in evidence.arms.values() for cell in arm.cells)


def _complete(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    outcomes = [records[key].outcome for _, cell in _cells(evidence) for key in cell.keys]
    diverged, failed = outcomes.count("diverged"), finding.num_failed
    detail = f"{len(outcomes)} final runs, {diverged} diverged; {failed} of all {finding.num_runs} runs failed"
    return Check(name="complete", ok=not diverged and not failed, detail=detail)


def _same_conditions(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    specs = [records[key].spec for _, cell in _cells(evidence) for key in cell.keys]
    differ = [name for name in SAME if len({str(getattr(spec, name)) for spec in specs}) > 1]
    seeds = {frozenset(records[k].spec.seed for k in cell.keys) for _, cell in _cells(evidence)}
    if len(seeds) > 1:
        differ.append("seed")
    detail = f"differ in {', '.join(differ)}" if differ else "same model, data, data order per seed, precision, device"
    return Check(name="same_conditions", ok=not differ, detail=detail)


def _fresh_seeds(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    tuned = {records[k].spec.seed for _, cell in _cells(evidence) for t in cell.tuning.trials for k in t.keys}
    final = {records[k].spec.seed for _, cell in _cells(evidence) for k in cell.keys}
    shared = sorted(tuned & final)
    detail = (
        f"seeds {shared} served both" if shared else f"{len(final)} final seeds, {len(tuned)} tuning seeds, disjoint"
    )
    return Check(name="fresh_seeds", ok=not shared, detail=detail)


def _same_tuning(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    cells = {name: cell for name, cell in _cells(evidence) if _is_main(cell, evidence)}
    tuned = {name: cell.tuning.coordinates for name, cell in cells.items()}
    shared = sorted({key for keys in tuned.values() for key in keys if _shared(key)})
    odd = [
        key
        for key in shared
        if any(key not in tuned[name] and _has(cell, records, key) for name, cell in cells.items())
    ]
    detail = "; ".join(f"{name}: {', '.join(coordinates)}" for name, coordinates in tuned.items())
    return Check(name="same_tuning", ok=not odd, detail=detail)


def _shared(coordinate: str) -> bool:
    """Coordinates that every optimizer has; a rule's own (momentum, betas) can't be tuned for all."""
    return coordinate in ("opt.lr", "opt.weight_decay") or not coordinate.startswith(("opt.", "aux."))


def _has(cell: Cell, records: Records, coordinate: str) -> bool:
    """Whether it could have been tuned: a rule whose weights keep their norm has no weight decay."""
    specs = [records[key].spec for key in cell.keys]
    return not coordinate.startswith("opt.") or any(coordinate in spec.hyperparameters for spec in specs)


def _is_main(cell: Cell, evidence: Evidence) -> bool:
    return cell.horizon_tokens == evidence.horizon_tokens


def _effort(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    runs = {name: cell.tuning.num_runs for name, cell in _cells(evidence) if _is_main(cell, evidence)}
    most = max(runs.values())
    detail = ", ".join(
        f"{f.name} {f.tuning_runs} runs ({f.tuning_tokens / 1e6:.3g}M tokens)" for f in finding.optimizers.values()
    )
    detail += f"; cap {evidence.max_runs} runs a horizon for each"
    return Check(name="tuning_effort", ok=runs[evidence.baseline] >= MIN_EFFORT * most, detail=detail)


def _converged(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    capped = [
        f"{name} at {cell.horizon_tokens:,} tokens" for name, cell in _cells(evidence) if not cell.tuning.converged
    ]
    detail = f"stopped by the cap: {', '.join(capped)}" if capped else "each tuning ended with a round without a move"
    return Check(name="converged", ok=not capped, detail=detail)


def _interior(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    edges = [
        f"{name} {edge} = {cell.settings[edge]} at {cell.horizon_tokens:,} tokens"
        + ("" if cell.tuning.converged else " (the cap on runs came before its neighbours: raise --max-runs)")
        for name, cell in _cells(evidence)
        for edge in cell.tuning.edges
    ]
    tried = "each optimum has tried neighbours on both sides"
    detail = f"on an edge of what was tried: {'; '.join(edges)}" if edges else tried
    return Check(name="interior", ok=not edges, detail=detail)


def _own_schedule(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    runs = [(records[key], cell) for _, cell in _cells(evidence) for key in cell.keys]
    wrong = [run.key[:12] for run, cell in runs if run.spec.horizon_tokens != cell.horizon_tokens]
    constant = any(run.spec.schedule.kind == "constant" for run, _ in runs)
    kinds = sorted({run.spec.schedule.kind for run, _ in runs})
    detail = f"final losses only, each horizon with its own {'/'.join(kinds)} schedule"
    if wrong:
        detail = f"not trained for their own horizon: {', '.join(wrong)}"
    elif constant:
        detail = "lr is not decayed (constant schedule): rankings can flip during decay"
    return Check(name="own_schedule", ok=not wrong and not constant, detail=detail)


def _enough_seeds(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    fewest = min(sum(x is not None for x in at.losses) for f in finding.optimizers.values() for at in f.horizons)
    able = ", ".join(
        f"{name} {contrast.resolvable_nats:.3f} nats"
        for name, contrast in finding.contrasts.items()
        if contrast.resolvable_nats is not None
    )
    detail = f"{fewest} seeds a horizon; smallest difference found 4 times out of 5: {able or 'none'}"
    return Check(name="enough_seeds", ok=fewest >= MIN_SEEDS, detail=detail)


def _interpolated(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    flagged = [f"{name} {speedup.flag}" for name, speedup in finding.speedup.items() if speedup.flag]
    at = ", ".join(f"{name} at {s.horizon_tokens:,} tokens" for name, s in finding.speedup.items() if not s.flag)
    detail = f"not between the baseline's horizons: {', '.join(flagged)}" if flagged else f"read between horizons: {at}"
    return Check(name="interpolated", ok=not flagged, detail=detail)


def _wall_clock(evidence: Evidence, records: Records, finding: Comparison) -> Check:
    runs = {name: [records[key] for key in cell.keys] for name, cell in _cells(evidence) if _is_main(cell, evidence)}
    machines = {str(run.environment.get("machine")) for group in runs.values() for run in group}
    if len(machines) > 1:
        return Check(name="wall_clock", ok=False, detail=f"records of {len(machines)} machines: null")
    times = {name: [run.step_seconds for run in group if run.step_seconds] for name, group in runs.items()}
    spread = max((max(group) / min(group) for group in times.values() if group), default=1.0)
    detail = f"median step times of one machine; equal runs differ by up to {spread - 1:.0%}"
    busy = spread > MAX_SPREAD
    return Check(name="wall_clock", ok=not busy, detail=detail + (": the machine was busy" if busy else ""))
