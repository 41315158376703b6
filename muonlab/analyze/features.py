"""The finding of a study of features: layers and corruptions at one budget and at one loss, and what was claimed.

The definitions are ours (`muonlab.train.features`, `muonlab.representations`).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from muonlab.analyze.feature_looks import (
    CONDITIONS,
    Condition,
    Pairs,
    Records,
    judged,
    mean_of,
    names_of,
    pairs_of,
    values_of,
)
from muonlab.analyze.findings import Check, Effect
from muonlab.analyze.likeness import LikenessRow, likeness
from muonlab.analyze.robustness import (
    CorruptionError,
    CorruptionRow,
    corruption_error,
    corruption_rows,
    overall_rows,
)
from muonlab.analyze.significance import effect
from muonlab.records.features import FeaturesEvidence
from muonlab.records.spec import Value

__all__ = ["MEASURES", "NO_CORRUPTIONS", "NO_LABELS", "Claim", "FeaturesFinding", "LayerRow", "analyze"]

MARGIN, RANK = "margin_normalised", "rank_effective"
NO_LABELS, NO_CORRUPTIONS = (f"not measured: the task has no {what}" for what in ("labels", "corruptions"))
LOWER = {"lower": True, "higher": False}  # whether what is claimed to be lower is so
MEASURES = {RANK: "effective rank", MARGIN: "normalised margin", "accuracy": "probe accuracy"}  # of layers, as shown


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
    control_hyperparameters: Mapping[str, Mapping[str, Value]]
    fractions: Mapping[str, Mapping[str, float | None]]  # challenger -> optimizer -> share of its run at the one loss
    layers: tuple[LayerRow, ...]
    corruptions: tuple[CorruptionRow, ...]
    severities: tuple[CorruptionRow, ...]  # over all corruptions
    errors: tuple[CorruptionError, ...]  # of tasks with classes
    cka: tuple[LikenessRow, ...]
    claims: tuple[Claim, ...]
    environment: Mapping[str, Any]
    config: Mapping[str, Any]
    transfer: tuple[Any, ...] = ()
    checks: tuple[Check, ...] = ()
    verdict: str = ""
    num_runs: int = 0
    num_failed: int = 0
    total_tokens: int = 0


def analyze(evidence: FeaturesEvidence, records: Records) -> FeaturesFinding:
    """Everything but the checks. What one claim is about is judged together, by Holm's correction."""
    challengers = [name for name in evidence.arms if name != evidence.baseline]
    layers: list[LayerRow] = []
    corruptions: list[CorruptionRow] = []
    severities: list[CorruptionRow] = []
    errors: list[CorruptionError] = []
    claims: list[Claim] = []
    fractions: dict[str, dict[str, float | None]] = {}
    for name in challengers:
        for at in CONDITIONS:
            pairs = pairs_of(evidence, records, name, at)
            if at == "loss":
                fractions[name] = {
                    who: mean_of(pair[i].fraction for pair in pairs.values())
                    for i, who in enumerate((name, evidence.baseline))
                }
            own = _layer_rows(name, at, pairs)
            over_all = overall_rows(name, at, pairs)
            claims += _claims((name, evidence.baseline, at), pairs, own, over_all)
            layers += own
            corruptions += corruption_rows(name, at, pairs)
            severities += over_all
            errors += [found] if (found := corruption_error(name, at, pairs)) else []
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
        control_hyperparameters={name: arm.cells[0].settings for name, arm in evidence.controls.items()},
        fractions=fractions,
        layers=tuple(layers),
        corruptions=tuple(corruptions),
        severities=tuple(severities),
        errors=tuple(errors),
        cka=likeness(evidence, records),
        claims=tuple(claims),
        environment=records[evidence.arms[evidence.baseline].cells[0].keys[0]].environment,
        config=evidence.config,
        num_runs=len(runs),
        num_failed=sum(run.outcome == "failed" for run in runs),
        total_tokens=sum(run.tokens for run in runs),
    )


def _losses(keys: Iterable[str], records: Records) -> tuple[float | None, ...]:
    return tuple(records[key].final_loss for key in keys)


def _layer_rows(optimizer: str, at: Condition, pairs: Pairs) -> list[LayerRow]:
    found: dict[str, list[LayerRow]] = {}
    for name in names_of(pairs):
        if not (parts := re.fullmatch(r"features\.(.+)\.(\w+)", name)):
            continue
        ours, theirs = values_of(pairs, name)
        row = LayerRow(
            optimizer=optimizer, layer=parts[1], measure=parts[2], at=at, value=mean_of(ours.values()),
            baseline_value=mean_of(theirs.values()), effect=effect(ours, theirs),
        )  # fmt: skip
        found.setdefault(parts[2], []).append(row)
    return [row for rows in found.values() for row in judged(rows)]


def _claims(
    about: tuple[str, str, Condition], pairs: Pairs, rows: list[LayerRow], over_all: list[CorruptionRow]
) -> Iterable[Claim]:
    optimizer, baseline, at = about
    claimed = {
        f"a larger normalised margin of probes in every layer than {baseline}": MARGIN,
        f"a higher effective rank of hidden states in every layer than {baseline}": RANK,
    }
    for text, measure in claimed.items():
        own = [row for row in rows if row.measure == measure]
        said = [row.effect.judgement for row in own]
        held = True if own and set(said) == {"higher"} else False if "lower" in said else None
        shown = f"resolved higher in {said.count('higher')} of {len(own)} layers, lower in {said.count('lower')}"
        missing = NO_LABELS if measure == MARGIN and rows else "not measured"
        yield Claim(claim=text, optimizer=optimizer, at=at, held=held, detail=shown if own else missing)
    text = f"a smaller rise of the loss under corruption than {baseline}, over all corruptions"
    if not over_all:
        detail = NO_CORRUPTIONS if pairs else "not measured"
        yield Claim(claim=text, optimizer=optimizer, at=at, held=None, detail=detail)
        return
    last = over_all[-1]
    rise = _told(last.effect, "+.4f", " nats")
    yield Claim(claim=text, optimizer=optimizer, at=at, held=LOWER.get(last.effect.judgement), detail=rise)
    if last.drop_effect:
        text = f"a smaller share of accuracy lost under corruption than {baseline}, over all corruptions"
        held, drop = LOWER.get(last.drop_effect.judgement), _told(last.drop_effect, "+.1f", " points", 100)
        yield Claim(claim=text, optimizer=optimizer, at=at, held=held, detail=drop)


def _told(one: Effect, kind: str, unit: str, factor: float = 1) -> str:
    if one.difference is None or one.low is None or one.high is None:
        return f"{one.num_pairs} pairs of runs: no test"
    size = "" if one.size is None else f", d = {one.size:.1f}"
    values = (format(factor * value, kind) for value in (one.difference, one.low, one.high))
    return "{} [{}, {}]".format(*values) + f"{unit}{size}, {one.num_pairs} pairs"
