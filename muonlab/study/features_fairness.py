"""What a study of features must hold before anything is said of it. Needs records only, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from muonlab.analyze import features
from muonlab.analyze.feature_transfer import silenced, transfer_claims, transfer_rows
from muonlab.analyze.features import NO_CORRUPTIONS, NO_LABELS, Claim, FeaturesFinding
from muonlab.analyze.findings import Check, Effect
from muonlab.analyze.significance import withheld
from muonlab.analyze.verdicts import features_verdict
from muonlab.records import Record
from muonlab.records.evidence import Arm, Evidence
from muonlab.records.features import FeaturesEvidence, FeatureTransfer
from muonlab.study.fairness import OF_CELLS, OF_EQUAL_RUNS

__all__ = ["conclude_features"]

Records = Mapping[str, Record]


def conclude_features(evidence: FeaturesEvidence, records: Records) -> FeaturesFinding:
    """The whole finding: analysis, checks of the runs with decay and without, what was transferred, verdict.

    A broken rule of the pretraining withholds all, one of the fine-tuning what is said of transfer alone.
    """
    checks = []
    for rule in OF_EQUAL_RUNS:
        tuned, control = (rule(evidence.comparison(decay=decay), records) for decay in (True, False))
        both = tuned.detail if tuned.detail == control.detail else f"{tuned.detail}; without decay: {control.detail}"
        checks.append(replace(control if control.ok is False else tuned, detail=both))
    finding = features.analyze(evidence, records)
    checks.append(_matched(finding))
    finding = replace(finding, checks=tuple(checks), verdict=features_verdict(finding, checks))
    if withheld(checks):
        parts = ("layers", "corruptions", "severities", "errors")
        silent = {name: tuple(map(_silent, getattr(finding, name))) for name in parts}
        finding = replace(finding, claims=_open(finding.claims, checks), **silent)
    return _with_transfer(finding, evidence, evidence.transfer, records) if evidence.transfer else finding


def _with_transfer(
    finding: FeaturesFinding, evidence: FeaturesEvidence, transfer: FeatureTransfer, records: Records
) -> FeaturesFinding:
    checks = [rule(_as_comparison(evidence, transfer), records) for rule in OF_CELLS]
    rows = transfer_rows(evidence, records)
    claims = transfer_claims(evidence, rows)
    if withheld(both := [*finding.checks, *checks]):
        rows, claims = silenced(rows), _open(claims, both)
    named = [replace(check, name=f"transfer_{check.name}") for check in checks]
    named += [_arrived(evidence, transfer), _inherited(transfer, records)]
    return replace(finding, transfer=rows, claims=finding.claims + claims, checks=(*finding.checks, *named))


def _open(claims: Sequence[Claim], checks: Sequence[Check]) -> tuple[Claim, ...]:
    """What no run could measure stays said: mending the broken rule would not bring it."""
    why = f"withheld: {', '.join(check.name for check in withheld(checks))} broken"
    never = (NO_LABELS, NO_CORRUPTIONS)
    return tuple(replace(c, held=None, detail=c.detail if c.detail in never else why) for c in claims)


def _silent(row: Any) -> Any:
    effects = {name: one for name, one in vars(row).items() if isinstance(one, Effect)}
    return replace(row, **{name: replace(one, judgement="withheld") for name, one in effects.items()})


def _matched(finding: FeaturesFinding) -> Check:
    """At one loss only those pairs of runs are compared that both had it between two looks."""
    pairs = {(row.optimizer, row.at): row.effect.num_pairs for row in finding.layers}
    wanted = {(name, at): len(finding.final_seeds) for name in finding.fractions for at in ("loss", "loss, no decay")}
    lost = [f"{name} at one {at}: {pairs.get((name, at), 0)} of {num}" for (name, at), num in wanted.items()
            if pairs.get((name, at), 0) < num]  # fmt: skip
    found = f"pairs of {'; '.join(lost)}" if lost else "every pair of runs had a loss in common"
    return Check(name="matched_loss", ok=not lost, detail=found)


def _as_comparison(evidence: FeaturesEvidence, transfer: FeatureTransfer) -> Evidence:
    """The cells of fine-tuning, each an arm of its own."""
    arms = {}
    for one in transfer.tunings:
        name = f"{one.pretraining or 'scratch'} then {one.name}"
        arms[name] = Arm(name=name, optimizer=evidence.arms[one.name].optimizer, cells=(one.cell,))
    return Evidence(
        task=transfer.task, baseline=next(iter(arms)), horizon_tokens=transfer.horizon_tokens, arms=arms,
        tuning_seeds=evidence.tuning_seeds, final_seeds=evidence.final_seeds, max_runs=evidence.max_runs,
    )  # fmt: skip


def _arrived(evidence: FeaturesEvidence, transfer: FeatureTransfer) -> Check:
    """A pretraining that diverged has nothing to hand on."""
    lost = [name for name in evidence.arms if not any(one.pretraining == name for one in transfer.tunings)]
    detail = f"diverged in pretraining, so not transferred: {', '.join(lost)}" if lost else "every pretraining"
    return Check(name="transfer_from", ok=True, detail=detail, severity="warning" if lost else "")


def _inherited(transfer: FeatureTransfer, records: Records) -> Check:
    """How much of a model the second task has taken over; of all, since all have one shape."""
    runs = [records[key] for one in transfer.tunings if one.pretraining for key in one.cell.keys]
    told = next((run.inherited for run in runs if run.inherited), None)
    if told is None:
        return Check(name="transfer_weights", ok=None, detail="not checked: no run says what it took over")
    own = list(told["own"])
    detail = f"{told['loaded'] / told['params']:.1%} of {told['params']:,} numbers were taken over"
    detail += f"; with an initialisation of their own: {', '.join(own)}" if own else ""
    layers = {name.rpartition(".")[0] for name in own}
    return Check(name="transfer_weights", ok=True, detail=detail, severity="warning" if len(layers) > 1 else "")
