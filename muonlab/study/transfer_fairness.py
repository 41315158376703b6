"""What a transfer study must hold before its verdict means anything. Needs records only, no torch."""

from collections.abc import Mapping
from dataclasses import replace

from muonlab.analyze import transfer
from muonlab.analyze.coordinates import CoordinateFinding, verdict_parts
from muonlab.analyze.findings import Check
from muonlab.analyze.significance import withheld
from muonlab.analyze.transfer_finding import TransferFinding
from muonlab.analyze.verdicts import transfer_verdict
from muonlab.records import Record
from muonlab.records.transfer_evidence import TransferEvidence
from muonlab.study.fairness import SAME

__all__ = ["conclude_transfer"]

Records = Mapping[str, Record]

NATS = 3e-3  # a smaller difference does not matter (Wen et al. 2025)


def conclude_transfer(evidence: TransferEvidence, records: Records) -> TransferFinding:
    """The whole finding: analysis, checks, verdict."""
    finding = transfer.analyze(evidence, records)
    checks = [_complete(evidence, records), _same_conditions(evidence, records)]
    if evidence.final_width is not None:
        checks += [_fresh_seeds(evidence, records), _interior(finding), _lawful(finding), _quiet(finding)]
    if finding.survey:
        checks.append(_surveyed(finding))
    if finding.coordinates is not None:
        checks.append(_coordinates(finding.coordinates))
    if withheld(checks):
        contrasts = {name: replace(test, judgement="withheld") for name, test in finding.contrasts.items()}
        finding = replace(finding, contrasts=contrasts)
    return replace(finding, checks=tuple(checks), verdict=transfer_verdict(finding, checks))


def _complete(evidence: TransferEvidence, records: Records) -> Check:
    outcomes = [records[key].outcome for arm in evidence.arms for key in arm.final]
    every = evidence.record_keys()
    diverged, failed = outcomes.count("diverged"), sum(records[key].outcome == "failed" for key in every)
    stuck = [arm.name for arm in evidence.arms if evidence.final_width is not None and not arm.final]
    detail = f"{len(outcomes)} final runs, {diverged} diverged; {failed} of all {len(every)} runs failed"
    detail += f"; every run of a mesh diverged: {', '.join(stuck)}" if stuck else ""
    return Check(name="complete", ok=not diverged and not failed and not stuck, detail=detail)


def _same_conditions(evidence: TransferEvidence, records: Records) -> Check:
    """All but the width, and the parametrization with its base, which is what may be compared."""
    specs = [records[key].spec for key in evidence.arm_keys()]
    compared = ("parametrization", "base")
    seen = {name: {str(getattr(spec, name)) for spec in specs} for name in SAME if name not in compared}
    seen["task_options"] = {str({k: v for k, v in spec.task_options.items() if k != "width"}) for spec in specs}
    seen["horizon_tokens"] = {str(spec.horizon_tokens) for spec in specs}
    differ = [name for name, values in seen.items() if len(values) > 1]
    detail = (
        f"differ in {', '.join(differ)}" if differ else "same model but for the width, data, tokens, precision, device"
    )
    return Check(name="same_conditions", ok=not differ, detail=detail)


def _fresh_seeds(evidence: TransferEvidence, records: Records) -> Check:
    tuned = {records[key].spec.seed for arm in evidence.arms for trial in arm.trials() for key in trial.keys}
    final = {records[key].spec.seed for arm in evidence.arms for key in arm.final}
    shared = sorted(tuned & final)
    held = f"{len(final)} final seeds, {len(tuned)} tuning seeds, disjoint"
    return Check(name="fresh_seeds", ok=not shared, detail=f"seeds {shared} served both" if shared else held)


def _interior(finding: TransferFinding) -> Check:
    edges = [f"{one.arm} {edge} at width {one.width}" for one in finding.stages for edge in one.edges]
    detail = f"on an edge of what was tried: {'; '.join(edges)}" if edges else "every optimum lies inside of its window"
    return Check(name="interior", ok=not edges, detail=detail)


def _lawful(finding: TransferFinding) -> Check:
    """A drift that is not as 1 / width goes on beyond the last width measured."""
    told = [one for one in finding.drifts if one.low is not None]
    other = [f"{one.arm} {one.hyperparameter}" for one in told if not one.lawful]
    if len(finding.widths) < 3 or not told:
        return Check(name="drift", ok=None, detail="not checked: it takes an optimum at three widths")
    detail = f"moves otherwise than as 1 / width: {'; '.join(other)}" if other else "as 1 / width, within the noise"
    return Check(name="drift", ok=True, detail=detail, severity="warning" if other else "")


def _quiet(finding: TransferFinding) -> Check:
    known = {arm.name: arm.regret_high for arm in finding.arms}
    loud = any(regret is None or regret > NATS for regret in known.values())
    parts = [f"{n} {'unknown' if r is None else format(r, '.4f')}" for n, r in known.items()]
    detail = f"nats that noise may cost by the choice of settings, 95 %: {', '.join(parts)}"
    return Check(name="noise", ok=True, detail=detail, severity="warning" if loud else "")


def _surveyed(finding: TransferFinding) -> Check:
    flagged = [f"{one.arm} at width {one.width}: {one.flag}" for one in finding.survey if one.flag]
    detail = f"no optimum inside of the mesh: {'; '.join(flagged)}" if flagged else "an optimum inside of every mesh"
    return Check(name="survey", ok=True, detail=detail, severity="warning" if flagged else "")


def _coordinates(finding: CoordinateFinding) -> Check:
    """Only the standard parametrization may fail: it does not claim that lr means the same at every width."""
    failed = any(one.verdict == "failed" and one.parametrization != "standard" for one in finding.checks)
    missed = [one.prediction for one in finding.predictions if one.verdict == "did not hold"]
    parts = verdict_parts(finding)
    if missed:
        parts.append(f"predictions that did not hold: {', '.join(f'{p.name} {p.parametrization}' for p in missed)}")
    lost = any(one.num_lost for one in finding.checks)
    severity = "warning" if failed or missed or lost else ""
    return Check(name="coordinates", ok=True, detail="; ".join(parts), severity=severity)
