"""The fairness rules: what a comparison must hold before its verdict means anything. Needs records only, no torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from muonlab.analyze import batch, ladder
from muonlab.analyze import comparison as analysis
from muonlab.analyze.batch import BatchFinding
from muonlab.analyze.findings import Check, Comparison
from muonlab.analyze.ladder import LadderFinding
from muonlab.analyze.significance import withheld
from muonlab.analyze.verdicts import batch_verdict, ladder_verdict, verdict
from muonlab.records import Record
from muonlab.records.evidence import Arm, BatchEvidence, Cell, Evidence, LadderEvidence

__all__ = ["OF_CELLS", "OF_EQUAL_RUNS", "SAME", "check", "conclude", "conclude_batch", "conclude_ladder"]

Records = Mapping[str, Record]
Rule = Callable[[Evidence, Records], Check]
SAME = (
    "task", "task_options", "data_fingerprint", "precision", "compile", "device", "torch", "parametrization", "base",
)  # fmt: skip
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
    rules = (_complete, _same_conditions, _fresh_seeds, _same_tuning, _converged, _interior, _own_schedule)
    checks = tuple(_over_sizes(rule, evidence, records) for rule in rules)
    rows = finding.rows
    if withheld(checks):
        rows = tuple(replace(row, judgement="withheld") for row in rows)
    return replace(finding, rows=rows, checks=checks, verdict=ladder_verdict(evidence.baseline, rows, checks))


def conclude_batch(evidence: BatchEvidence, records: Records) -> BatchFinding:
    """The whole finding of a batch study: analysis, checks, verdict."""
    finding = batch.analyze(evidence, records)
    arms = {
        name: Arm(name=name, optimizer=optimizer, cells=tuple(evidence.point(name, b).cell for b in evidence.batches))
        for name, optimizer in evidence.optimizers.items()
    }
    runs = Evidence(
        task=evidence.task, baseline=evidence.baseline, arms=arms, tuning_seeds=evidence.tuning_seeds,
        horizon_tokens=evidence.point(evidence.baseline, evidence.reference).cell.horizon_tokens,
        final_seeds=evidence.final_seeds, max_runs=evidence.max_runs,
    )  # fmt: skip
    apart = {
        f"{name}, batch {cell.batch_tokens:,}": Arm(name=f"{name}, batch {cell.batch_tokens:,}", cells=(cell.cell,))
        for name in evidence.optimizers
        for cell in (evidence.point(name, b) for b in evidence.batches)
    }
    together: tuple[Rule, ...] = (_complete, _same_conditions, _fresh_seeds)
    checks = [rule(runs, records) for rule in together]
    checks += [rule(replace(runs, arms=apart), records) for rule in (_converged, _interior)]
    checks += [_constant_lr(runs, records), _reached(finding), _step_times(finding)]
    if checks[-1].ok is False:
        finding = replace(finding, dominance=tuple(replace(one, verdict="withheld") for one in finding.dominance))
    if withheld(checks):
        finding = replace(
            finding,
            token_ratio=tuple(replace(one, judgement=one.judgement and "withheld") for one in finding.token_ratio),
            trends=tuple(replace(one, verdict="withheld") for one in finding.trends),
            dominance=tuple(replace(one, verdict="withheld") for one in finding.dominance),
        )
    return replace(finding, checks=tuple(checks), verdict=batch_verdict(finding, checks))


def _constant_lr(evidence: Evidence, records: Records) -> Check:
    """Time to a target may be read off a curve only where no schedule decays."""
    specs = [records[key].spec for _, cell in _cells(evidence) for key in cell.keys]
    kinds = sorted({spec.schedule.kind for spec in specs})
    parts = sorted({spec.averaging for spec in specs})
    over = ", ".join(f"{part:.0%}" for part in parts)
    detail = f"{'/'.join(kinds)} lr, losses of the weights averaged over the last {over} of the tokens so far"
    return Check(name="constant_lr", ok=kinds == ["constant"], detail=detail)


def _reached(finding: BatchFinding) -> Check:
    missed = [f"{t.target:g} by {t.optimizer} at {t.batch_tokens:,}" for t in finding.times if t.flag == "unreached"]
    detail = (
        f"not reached: {', '.join(missed)}" if missed else "every target was reached by every seed at every batch size"
    )
    return Check(name="reached", ok=True, detail=detail, severity="warning" if missed else "")


def _step_times(finding: BatchFinding) -> Check:
    """Time on devices is read off a line through the step times, which a busy machine scatters."""
    if len(finding.step_times) < len(finding.optimizers):
        detail = "not checked: no step times of one machine at two batch sizes or more"
        return Check(name="wall_clock", ok=None, detail=detail)
    off = ", ".join(f"{one.optimizer} {one.worst:.0%}" for one in finding.step_times)
    busy = max(one.worst for one in finding.step_times) > MAX_SPREAD - 1
    detail = f"step times differ from a line over the batch by up to: {off}"
    return Check(name="wall_clock", ok=not busy, detail=f"{detail}; the machine was busy" if busy else detail)


def _over_sizes(rule: Rule, evidence: LadderEvidence, records: Records) -> Check:
    """One rule at every size: where it is broken, else where it could not be checked, else what holds everywhere.

    In the detail "; " stands between sizes.
    """
    by_size = {size: rule(_as_comparison(evidence, [size]), records) for size in evidence.sizes}
    first = next(iter(by_size.values()))
    answers = {one.ok for one in by_size.values()}
    if answers == {True}:
        return rule(_as_comparison(evidence, list(evidence.sizes)), records) if rule in COUNTING else first
    ok = False if False in answers else None
    details = {size: one.detail.replace("; ", ", ") for size, one in by_size.items() if one.ok is ok}
    everywhere = len(details) == len(by_size) and len(set(details.values())) == 1
    found = [first.detail] if everywhere else [f"{size}: {detail}" for size, detail in details.items()]
    return replace(first, ok=ok, detail="; ".join(found))


def _as_comparison(evidence: LadderEvidence, sizes: Sequence[str]) -> Evidence:
    """The runs at some sizes as a comparison at the shortest length of the first."""
    cells = {
        name: tuple(evidence.rung(name, size, ratio).cell for size in sizes for ratio in evidence.ratios)
        for name in evidence.optimizers
    }
    return Evidence(
        task=evidence.task, baseline=evidence.baseline, horizon_tokens=cells[evidence.baseline][0].horizon_tokens,
        arms={name: Arm(name=name, optimizer=evidence.optimizers[name], cells=own) for name, own in cells.items()},
        tuning_seeds=evidence.tuning_seeds, final_seeds=evidence.final_seeds, max_runs=evidence.max_runs,
    )  # fmt: skip


def check(evidence: Evidence, records: Records, finding: Comparison) -> tuple[Check, ...]:
    """Every rule, held, broken or not checked, in the order of the argument."""
    rules: tuple[Rule, ...] = (
        _complete, _same_conditions, _fresh_seeds, _same_tuning, _effort, _converged, _interior, _own_schedule,
    )  # fmt: skip
    told = [rule(evidence, records) for rule in rules]
    return (*told, _enough_seeds(finding), _interpolated(finding), _wall_clock(evidence, records))


def _cells(evidence: Evidence) -> Iterator[tuple[str, Cell]]:
    return ((arm.name, cell) for arm in evidence.arms.values() for cell in arm.cells)


def _complete(evidence: Evidence, records: Records) -> Check:
    outcomes = [records[key].outcome for _, cell in _cells(evidence) for key in cell.keys]
    every = evidence.record_keys()
    diverged, failed = outcomes.count("diverged"), sum(records[key].outcome == "failed" for key in every)
    detail = f"{len(outcomes)} final runs, {diverged} diverged; {failed} of all {len(every)} runs failed"
    return Check(name="complete", ok=not diverged and not failed, detail=detail)


def _same_conditions(evidence: Evidence, records: Records) -> Check:
    """By the specs; of runs made elsewhere these are only what was asked for, so by what their results say, too."""
    runs = [records[key] for _, cell in _cells(evidence) for key in cell.keys]
    elsewhere = any(run.spec.device == "external" for run in runs)
    stated = [name for name in SAME if elsewhere and all(name in run.environment for run in runs)]
    differ = [name for name in SAME if len({str(getattr(run.spec, name)) for run in runs}) > 1]
    differ += [name for name in stated if len({str(run.environment[name]) for run in runs}) > 1 and name not in differ]
    seeds = {frozenset(records[k].spec.seed for k in cell.keys) for _, cell in _cells(evidence)}
    if len(seeds) > 1:
        differ.append("seed")
    if differ:
        return Check(name="same_conditions", ok=False, detail=f"differ in {', '.join(differ)}")
    if not elsewhere:
        detail = "same model, data, data order per seed, precision, device"
        return Check(name="same_conditions", ok=True, detail=detail)
    if stated:
        return Check(name="same_conditions", ok=True, detail=f"same {', '.join(stated)}, as the results say")
    detail = "not checked: made elsewhere, and the environment of the results does not say with what"
    return Check(name="same_conditions", ok=None, detail=detail)


def _fresh_seeds(evidence: Evidence, records: Records) -> Check:
    tuned = {records[k].spec.seed for _, cell in _cells(evidence) for t in cell.tuning.trials for k in t.keys}
    final = {records[k].spec.seed for _, cell in _cells(evidence) for k in cell.keys}
    shared = sorted(tuned & final)
    detail = (
        f"seeds {shared} served both" if shared else f"{len(final)} final seeds, {len(tuned)} tuning seeds, disjoint"
    )
    return Check(name="fresh_seeds", ok=not shared, detail=detail)


def _same_tuning(evidence: Evidence, records: Records) -> Check:
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


def _effort(evidence: Evidence, records: Records) -> Check:
    runs = {name: cell.tuning.num_runs for name, cell in _cells(evidence) if _is_main(cell, evidence)}
    most = max(runs.values())
    tunings = {name: [cell.tuning for cell in arm.cells] for name, arm in evidence.arms.items()}
    detail = ", ".join(
        f"{name} {sum(t.num_runs for t in own)} runs ({sum(t.tokens for t in own) / 1e6:.3g}M tokens)"
        for name, own in tunings.items()
    )
    detail += f"; cap {evidence.max_runs} runs a horizon for each"
    return Check(name="tuning_effort", ok=runs[evidence.baseline] >= MIN_EFFORT * most, detail=detail)


def _converged(evidence: Evidence, records: Records) -> Check:
    capped = [
        f"{name} at {cell.horizon_tokens:,} tokens" for name, cell in _cells(evidence) if not cell.tuning.converged
    ]
    detail = f"stopped by the cap: {', '.join(capped)}" if capped else "each tuning ended with a round without a move"
    return Check(name="converged", ok=not capped, detail=detail)


def _interior(evidence: Evidence, records: Records) -> Check:
    edges = [
        f"{name} {edge} = {cell.settings[edge]} at {cell.horizon_tokens:,} tokens"
        + ("" if cell.tuning.converged else " (the cap on runs came before its neighbours: raise --max-runs)")
        for name, cell in _cells(evidence)
        for edge in cell.tuning.edges
    ]
    tried = "each optimum has tried neighbours on both sides"
    detail = f"on an edge of what was tried: {'; '.join(edges)}" if edges else tried
    return Check(name="interior", ok=not edges, detail=detail)


def _own_schedule(evidence: Evidence, records: Records) -> Check:
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


def _enough_seeds(finding: Comparison) -> Check:
    fewest = min(sum(x is not None for x in at.losses) for f in finding.optimizers.values() for at in f.horizons)
    able = ", ".join(
        f"{name} {contrast.resolvable_nats:.3f} nats"
        for name, contrast in finding.contrasts.items()
        if contrast.resolvable_nats is not None
    )
    detail = f"{fewest} seeds a horizon; smallest difference found 4 times out of 5: {able or 'none'}"
    return Check(name="enough_seeds", ok=fewest >= MIN_SEEDS, detail=detail)


def _interpolated(finding: Comparison) -> Check:
    flagged = [f"{name} {speedup.flag}" for name, speedup in finding.speedup.items() if speedup.flag]
    at = ", ".join(f"{name} at {s.horizon_tokens:,} tokens" for name, s in finding.speedup.items() if not s.flag)
    detail = f"not between the baseline's horizons: {', '.join(flagged)}" if flagged else f"read between horizons: {at}"
    return Check(name="interpolated", ok=not flagged, detail=detail)


def _wall_clock(evidence: Evidence, records: Records) -> Check:
    runs = {name: [records[key] for key in cell.keys] for name, cell in _cells(evidence) if _is_main(cell, evidence)}
    machines = {str(run.environment.get("machine")) for group in runs.values() for run in group}
    if len(machines) > 1:
        return Check(name="wall_clock", ok=False, detail=f"records of {len(machines)} machines: null")
    times = {name: [run.step_seconds for run in group if run.step_seconds] for name, group in runs.items()}
    untimed = [name for name, group in times.items() if not group]
    if untimed:
        detail = f"not checked: the final runs of {', '.join(untimed)} have no step times"
        return Check(name="wall_clock", ok=None, detail=detail)
    spread = max(max(group) / min(group) for group in times.values())
    if spread > MAX_SPREAD:
        detail = f"equal runs differ by up to {spread - 1:.0%}: the machine was busy"
        return Check(name="wall_clock", ok=False, detail=detail)
    if machines == {"None"}:
        detail = f"not checked: the results do not say their machine; equal runs differ by up to {spread - 1:.0%}"
        return Check(name="wall_clock", ok=None, detail=detail)
    detail = f"median step times of one machine; equal runs differ by up to {spread - 1:.0%}"
    return Check(name="wall_clock", ok=True, detail=detail)


COUNTING: tuple[Rule, ...] = (_complete, _fresh_seeds)  # rules that count runs, of all sizes together where they hold
OF_CELLS: tuple[Rule, ...] = (_complete, _fresh_seeds, _converged, _interior)  # of tuned cells that nothing compares
OF_EQUAL_RUNS: tuple[Rule, ...] = (  # of optimizers that are compared run by run, whatever is measured of them
    _complete, _same_conditions, _fresh_seeds, _same_tuning, _effort, _converged, _interior, _own_schedule,
)  # fmt: skip
