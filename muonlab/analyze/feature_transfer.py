"""What a study of features finds on a second task: held-out losses by pretraining, for every way of getting there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muonlab.analyze.features import Claim
from muonlab.analyze.findings import Effect
from muonlab.analyze.significance import effect, judge_effects
from muonlab.records import Record
from muonlab.records.features import FeaturesEvidence, FeatureTransfer
from muonlab.records.spec import Value
from muonlab.records.watch import PROBED

__all__ = ["LINEAR_PROBE", "SCRATCH", "TransferRow", "silenced", "transfer_claims", "transfer_rows"]

LINEAR_PROBE, SCRATCH = "linear probe", "none (scratch)"
ACCURACY = "heldout.accuracy"
Records = Mapping[str, Record]
BySeed = Mapping[int, float | None]


@dataclass(frozen=True, kw_only=True)
class TransferRow:
    """One pretraining and one way to the second task; losses are held-out ones there, nats."""

    task: str
    pretraining: str  # an optimizer, or SCRATCH
    finetuning: str  # an optimizer, or LINEAR_PROBE
    tokens: int  # of fine-tuning
    loss: float | None  # mean over seeds; None where the pretraining, or every run, diverged
    accuracy: float | None  # None: the task has none
    lr: Value  # as tuned for this row; None of a probe
    num_seeds: int
    effect: Effect | None  # of the loss, against the baseline's pretraining; None of that itself


@dataclass(frozen=True)
class Measured:
    """By seed, None where a run was lost."""

    losses: BySeed
    accuracies: BySeed
    lr: Value


def transfer_rows(evidence: FeaturesEvidence, records: Records) -> tuple[TransferRow, ...]:
    """By way, then by pretraining. All rows of one pretraining are judged together, by Holm's correction."""
    if evidence.transfer is None:
        return ()
    ways = [LINEAR_PROBE, *evidence.arms]
    found = {
        (way, origin): _measured(evidence.transfer, way, origin, list(evidence.arms), records)
        for way in ways
        for origin in (*evidence.arms, "")
    }
    if not any(found[LINEAR_PROBE, origin].losses for origin in (*evidence.arms, "")):
        ways = ways[1:]
    judged: dict[tuple[str, str], Effect] = {}
    for origin in (*evidence.arms, ""):
        if origin != evidence.baseline:
            pairs = [effect(found[w, origin].losses, found[w, evidence.baseline].losses) for w in ways]
            judged |= {(way, origin): one for way, one in zip(ways, judge_effects(pairs), strict=True)}
    return tuple(
        TransferRow(
            task=evidence.transfer.task, pretraining=origin or SCRATCH, finetuning=way, lr=found[way, origin].lr,
            tokens=0 if way == LINEAR_PROBE else evidence.transfer.horizon_tokens,
            loss=_mean(found[way, origin].losses), accuracy=_mean(found[way, origin].accuracies),
            num_seeds=sum(loss is not None for loss in found[way, origin].losses.values()),
            effect=judged.get((way, origin)),
        )
        for way in ways
        for origin in (*evidence.arms, "")
    )  # fmt: skip


def transfer_claims(evidence: FeaturesEvidence, rows: Sequence[TransferRow]) -> tuple[Claim, ...]:
    """Of every challenger: that what it has pretrained has the lower loss, by every way."""
    found = []
    for row in rows:
        if row.effect is None or row.pretraining == SCRATCH:
            continue
        by = "a linear probe" if row.finetuning == LINEAR_PROBE else f"full fine-tuning with {row.finetuning}"
        base = next(one for one in rows if (one.finetuning, one.pretraining) == (row.finetuning, evidence.baseline))
        claim = Claim(
            claim=f"transfers better to {row.task} than {evidence.baseline}, by {by}",
            optimizer=row.pretraining,
            at="budget",
            held={"lower": True, "higher": False}.get(row.effect.judgement),
            detail=_told(row, base),
        )
        found.append(claim)
    return tuple(found)


def _told(row: TransferRow, base: TransferRow) -> str:
    if row.loss is None or base.loss is None:
        return "not measured: a run of one side diverged"
    one = row.effect
    ends = "no interval" if not one or one.low is None or one.high is None else f"[{one.low:+.4f}, {one.high:+.4f}]"
    return f"loss {row.loss:.4f} to {base.loss:.4f}, difference {ends} of {one.num_pairs if one else 0} pairs"


def _measured(
    transfer: FeatureTransfer, way: str, origin: str, optimizers: Sequence[str], records: Records
) -> Measured:
    """A probe is taken before the first step, so every fine-tuning has the same one: that of the first is shown."""
    cell = transfer.cell(origin, optimizers[0] if way == LINEAR_PROBE else way)
    if cell is None:
        return Measured({}, {}, None)
    runs = [records[key] for key in cell.keys]
    if way == LINEAR_PROBE:
        losses, accuracies = ({r.spec.seed: _last(r, name) for r in runs} for name in PROBED)
        known = {seed: loss for seed, loss in losses.items() if loss is not None}
        return Measured(known, accuracies, None)
    losses = {r.spec.seed: r.final_loss if r.outcome == "ok" else None for r in runs}
    return Measured(losses, {r.spec.seed: _last(r, ACCURACY) for r in runs}, cell.settings["opt.lr"])


def _last(run: Record, name: str) -> float | None:
    """A probe's last value, where the run came to its end."""
    series = run.probes.get(name)
    return series.values[-1] if series and series.values and (run.outcome == "ok" or name in PROBED) else None


def _mean(values: BySeed) -> float | None:
    known = [value for value in values.values() if value is not None]
    return float(np.mean(known)) if known else None


def silenced(rows: Iterable[TransferRow]) -> tuple[TransferRow, ...]:
    """The rows with every judgement withheld."""
    return tuple(replace(row, effect=replace(row.effect, judgement="withheld")) if row.effect else row for row in rows)
