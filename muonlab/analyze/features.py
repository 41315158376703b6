"""The finding of a study of features: layers and corruptions at one budget and at one loss, and what was claimed.

The definitions are ours (`muonlab.train.features`, `muonlab.representations`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from muonlab.analyze.findings import Check, Effect
from muonlab.analyze.significance import effect, judge_effects
from muonlab.records import Record
from muonlab.records.features import FeaturesEvidence
from muonlab.records.spec import Value

__all__ = ["CONDITIONS", "Claim", "CorruptionRow", "FeaturesFinding", "LayerRow", "analyze", "look_of"]

Condition = Literal["budget", "loss", "budget, no decay", "loss, no decay"]
CONDITIONS: tuple[Condition, ...] = ("budget", "loss", "budget, no decay", "loss, no decay")
CLEAN = "corrupted.clean.0"
MARGIN, RANK = "margin_normalised", "rank_effective"
Records = Mapping[str, Record]
BySeed = Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One measure of one layer of a challenger and of the baseline, means over the seeds that have both."""

    optimizer: str
    layer: str
    measure: str
    at: Condition
    value: float | None
    baseline_value: float | None
    effect: Effect


@dataclass(frozen=True, kw_only=True)
class CorruptionRow:
    """By how much the loss is higher on corrupted inputs, nats; the baseline beside."""

    optimizer: str
    corruption: str
    severity: int
    at: Condition
    rise: float | None
    baseline_rise: float | None
    effect: Effect


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is claimed of a challenger against the baseline, and whether it is so here."""

    claim: str
    optimizer: str
    at: Condition
    held: bool | None  # None: not resolved, or not measured
    detail: str


@dataclass(frozen=True, kw_only=True)
class FeaturesFinding:
    """`losses` are final ones by optimizer; `transfer` is empty until something is transferred."""

    task: str
    baseline: str
    optimizers: tuple[str, ...]
    horizon_tokens: int
    final_seeds: tuple[int, ...]
    losses: Mapping[str, tuple[float | None, ...]]
    control_losses: Mapping[str, tuple[float | None, ...]]
    hyperparameters: Mapping[str, Mapping[str, Value]]
    fractions: Mapping[str, Mapping[str, float | None]]  # challenger -> optimizer -> share of its run at the one loss
    layers: tuple[LayerRow, ...]
    corruptions: tuple[CorruptionRow, ...]
    claims: tuple[Claim, ...]
    transfer: tuple[Any, ...] = ()
    checks: tuple[Check, ...] = ()
    num_runs: int = 0
    num_failed: int = 0
    total_tokens: int = 0


@dataclass(frozen=True)
class Look:
    """Everything that was measured of a run, at a step between two looks if need be."""

    fraction: float  # of the run
    values: Mapping[str, float]


def look_of(run: Record, loss: float | None = None) -> Look | None:
    """At the end of a run, or where its held-out loss first is `loss`: between looks linear in the loss.

    None where the run did not end well, or does not come down to that loss within its looks.
    """
    steps, losses = np.array(run.eval_steps), np.array(run.eval_loss)
    if run.outcome != "ok" or not len(steps) or CLEAN not in run.probes:
        return None
    hit = len(steps) - 1 if loss is None else int((losses <= loss).argmax())
    if loss is None:
        low, share = hit, 0.0
    elif losses[hit] > loss or hit == 0:
        return None
    else:
        low, share = hit - 1, float((losses[hit - 1] - loss) / (losses[hit - 1] - losses[hit]))
    values = {}
    for name, series in run.probes.items():
        at = dict(zip(series.steps, series.values, strict=True))
        ends = at.get(int(steps[low])), at.get(int(steps[hit]))
        if ends[0] is not None and ends[1] is not None:
            values[name] = ends[0] + share * (ends[1] - ends[0])
    step = float(steps[low] + share * (steps[hit] - steps[low]))
    return Look(step / run.spec.num_steps, values)


def analyze(evidence: FeaturesEvidence, records: Records) -> FeaturesFinding:
    """Everything but the checks. What one claim is about is judged together, by Holm's correction."""
    challengers = [name for name in evidence.arms if name != evidence.baseline]
    layers: list[LayerRow] = []
    corruptions: list[CorruptionRow] = []
    claims: list[Claim] = []
    fractions: dict[str, dict[str, float | None]] = {}
    for name in challengers:
        for at in CONDITIONS:
            pairs = _pairs(evidence, records, name, at)
            if at == "loss":
                fractions[name] = {
                    who: _mean(pair[i].fraction for pair in pairs.values())
                    for i, who in enumerate((name, evidence.baseline))
                }
            own = _layer_rows(name, at, pairs)
            rises = _corruption_rows(name, at, pairs)
            claims += _claims(name, evidence.baseline, at, own, _mean_rise(pairs))
            layers += own
            corruptions += rises
    runs = [records[key] for key in evidence.record_keys()]
    return FeaturesFinding(
        task=evidence.task,
        baseline=evidence.baseline,
        optimizers=tuple(evidence.arms),
        horizon_tokens=evidence.horizon_tokens,
        final_seeds=evidence.final_seeds,
        losses={name: _losses(arm.cells[0].keys, records) for name, arm in evidence.arms.items()},
        control_losses={name: _losses(arm.cells[0].keys, records) for name, arm in evidence.controls.items()},
        hyperparameters={name: arm.cells[0].settings for name, arm in evidence.arms.items()},
        fractions=fractions,
        layers=tuple(layers),
        corruptions=tuple(corruptions),
        claims=tuple(claims),
        num_runs=len(runs),
        num_failed=sum(run.outcome == "failed" for run in runs),
        total_tokens=sum(run.tokens for run in runs),
    )


def _losses(keys: Iterable[str], records: Records) -> tuple[float | None, ...]:
    return tuple(records[key].final_loss for key in keys)


Pairs = dict[int, tuple[Look, Look]]  # seed -> the challenger's and the baseline's


def _pairs(evidence: FeaturesEvidence, records: Records, name: str, at: Condition) -> Pairs:
    """At one loss both are looked at where they have the final loss of the one that ends higher."""
    arms = evidence.controls if at.endswith("no decay") else evidence.arms
    runs = [{records[k].spec.seed: records[k] for k in arms[who].cells[0].keys} for who in (name, evidence.baseline)]
    found: Pairs = {}
    for seed in sorted(runs[0].keys() & runs[1].keys()):
        pair = [by_seed[seed] for by_seed in runs]
        loss = None
        if at.startswith("loss"):
            if any(run.outcome != "ok" or not run.eval_loss for run in pair):
                continue
            loss = max(run.eval_loss[-1] for run in pair)
        looks = [look_of(run, loss) for run in pair]
        if looks[0] is not None and looks[1] is not None:
            found[seed] = looks[0], looks[1]
    return found


def _values(pairs: Pairs, name: str) -> tuple[BySeed, BySeed]:
    """A quantity by seed of those that have it on both sides."""
    both = {s: pair for s, pair in pairs.items() if all(name in look.values for look in pair)}
    return {s: a.values[name] for s, (a, _) in both.items()}, {s: b.values[name] for s, (_, b) in both.items()}


def _names(pairs: Pairs) -> list[str]:
    return list(dict.fromkeys(name for pair in pairs.values() for look in pair for name in look.values))


def _layer_rows(optimizer: str, at: Condition, pairs: Pairs) -> list[LayerRow]:
    found: dict[str, list[LayerRow]] = {}
    for name in _names(pairs):
        if not (parts := re.fullmatch(r"features\.(.+)\.(\w+)", name)):
            continue
        ours, theirs = _values(pairs, name)
        row = LayerRow(
            optimizer=optimizer, layer=parts[1], measure=parts[2], at=at, value=_mean(ours.values()),
            baseline_value=_mean(theirs.values()), effect=effect(ours, theirs),
        )  # fmt: skip
        found.setdefault(parts[2], []).append(row)
    return [row for rows in found.values() for row in _judged(rows)]


def _corruption_rows(optimizer: str, at: Condition, pairs: Pairs) -> list[CorruptionRow]:
    rows = []
    for name in _names(pairs):
        if name == CLEAN or not (parts := re.fullmatch(r"corrupted\.(.+)\.(\d+)", name)):
            continue
        ours, theirs = map(_rises, _values(pairs, name), _values(pairs, CLEAN))
        row = CorruptionRow(
            optimizer=optimizer, corruption=parts[1], severity=int(parts[2]), at=at, rise=_mean(ours.values()),
            baseline_rise=_mean(theirs.values()), effect=effect(ours, theirs),
        )  # fmt: skip
        rows.append(row)
    return _judged(rows)


def _rises(values: BySeed, clean: BySeed) -> dict[int, float]:
    return {seed: values[seed] - clean[seed] for seed in values}


def _judged(rows: list[Any]) -> list[Any]:
    judged = judge_effects([row.effect for row in rows])
    return [replace(row, effect=one) for row, one in zip(rows, judged, strict=True)]


def _mean_rise(pairs: Pairs) -> Effect | None:
    """Of all corruptions and severities together; None where nothing is corrupted."""
    names = [name for name in _names(pairs) if name.startswith("corrupted.") and name != CLEAN]
    if not names:
        return None

    def rise(look: Look) -> float:
        return float(np.mean([look.values[name] for name in names])) - look.values[CLEAN]

    sides = ({s: rise(pair[i]) for s, pair in pairs.items()} for i in (0, 1))
    return judge_effects([effect(*sides)])[0]


def _claims(optimizer: str, baseline: str, at: Condition, rows: list[LayerRow], rise: Effect | None) -> Iterable[Claim]:
    claimed = {
        f"a larger normalised margin of probes in every layer than {baseline}": MARGIN,
        f"a higher effective rank of hidden states in every layer than {baseline}": RANK,
    }
    for text, measure in claimed.items():
        own = [row for row in rows if row.measure == measure]
        said = [row.effect.judgement for row in own]
        held = True if own and set(said) == {"higher"} else False if "lower" in said else None
        shown = f"resolved higher in {said.count('higher')} of {len(own)} layers, lower in {said.count('lower')}"
        yield Claim(claim=text, optimizer=optimizer, at=at, held=held, detail=shown if own else "not measured")
    held = None if rise is None else {"lower": True, "higher": False}.get(rise.judgement)
    text = f"a smaller rise of the loss under corruption than {baseline}, over all corruptions"
    detail = "the task has no corruptions" if rise is None else _told(rise)
    yield Claim(claim=text, optimizer=optimizer, at=at, held=held, detail=detail)


def _told(one: Effect) -> str:
    if one.difference is None or one.low is None or one.high is None:
        return f"{one.num_pairs} pairs of runs: no test"
    size = "" if one.size is None else f", d = {one.size:.1f}"
    return f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}] nats{size}, {one.num_pairs} pairs"


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return float(np.mean(known)) if known else None
