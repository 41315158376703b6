"""What a study of features must hold before anything is said of its transfer. Needs records only, no torch."""

from collections.abc import Mapping
from dataclasses import replace

from muonlab.analyze.feature_transfer import silenced, transfer_claims, transfer_rows
from muonlab.analyze.features import FeaturesFinding
from muonlab.analyze.findings import Check
from muonlab.analyze.significance import withheld
from muonlab.records import Record
from muonlab.records.evidence import Arm, Evidence
from muonlab.records.features import FeaturesEvidence, FeatureTransfer
from muonlab.study.fairness import OF_CELLS, conclude_features

__all__ = ["conclude_features_and_transfer"]

Records = Mapping[str, Record]


def conclude_features_and_transfer(evidence: FeaturesEvidence, records: Records) -> FeaturesFinding:
    """The whole finding of a study of features, with what was transferred where that was asked for.

    A broken rule of the pretraining withholds all, one of the fine-tuning what is said of transfer alone.
    """
    finding = conclude_features(evidence, records)
    if evidence.transfer is None:
        return finding
    checks = [rule(_as_comparison(evidence, evidence.transfer), records) for rule in OF_CELLS]
    broken = withheld([*finding.checks, *checks])
    rows = transfer_rows(evidence, records)
    claims = transfer_claims(evidence, rows)
    if broken:
        why = f"withheld: {', '.join(check.name for check in broken)} broken"
        rows, claims = silenced(rows), tuple(replace(claim, held=None, detail=why) for claim in claims)
    named = [replace(check, name=f"transfer_{check.name}") for check in checks]
    named += [_arrived(evidence, evidence.transfer), _inherited(evidence.transfer, records)]
    return replace(finding, transfer=rows, claims=finding.claims + claims, checks=(*finding.checks, *named))


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
