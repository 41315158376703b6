"""How like each other final models of two optimizers are, by layer, and how like each other those of one's seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from muonlab.analyze.feature_looks import Records
from muonlab.records.evidence import Arm
from muonlab.records.features import FeaturesEvidence
from muonlab.records.grams import unpack_gram
from muonlab.representations import gram_cka

__all__ = ["LikenessRow", "Spread", "likeness"]

Grams = Mapping[int, Mapping[str, Any]]  # seed -> layer -> matrix


@dataclass(frozen=True)
class Spread:
    """Over pairs of runs, which may share a run: no interval of a test."""

    mean: float | None
    least: float | None
    greatest: float | None
    num_pairs: int


@dataclass(frozen=True, kw_only=True)
class LikenessRow:
    """Debiased linear CKA (`muonlab.representations`) of one layer.

    A seed is a first set of weights and an order of the data: of two optimizers at two seeds everything differs that
    differs between two seeds of one. That is what `other_seeds` is held against.
    """

    optimizer: str
    layer: str
    at: Literal["budget", "budget, no decay"]
    same_seed: Spread  # challenger and baseline
    other_seeds: Spread  # challenger and baseline, every pair of different seeds
    own_seeds: Spread  # of the challenger, two seeds
    baseline_seeds: Spread


def likeness(evidence: FeaturesEvidence, records: Records) -> tuple[LikenessRow, ...]:
    """By challenger and layer, with decay and without; none of records without Gram matrices."""
    rows: list[LikenessRow] = []
    for at, arms in (("budget", evidence.arms), ("budget, no decay", evidence.controls)):
        grams = {name: _grams(arm, records) for name, arm in arms.items()}
        for name in arms:
            if name != evidence.baseline:
                rows += _rows(name, at, grams[name], grams[evidence.baseline])
    return tuple(rows)


def _grams(arm: Arm, records: Records) -> Grams:
    runs = [records[key] for key in arm.cells[0].keys]
    return {r.spec.seed: {layer: unpack_gram(g) for layer, g in r.grams.items()} for r in runs if r.outcome == "ok"}


def _rows(optimizer: str, at: Any, ours: Grams, theirs: Grams) -> Iterable[LikenessRow]:
    layers = [layer for one in ours.values() for layer in one if any(layer in other for other in theirs.values())]
    for layer in dict.fromkeys(layers):
        a, b = ({s: one[layer] for s, one in side.items() if one.get(layer) is not None} for side in (ours, theirs))
        yield LikenessRow(
            optimizer=optimizer,
            layer=layer,
            at=at,
            same_seed=_spread((a[s], b[s]) for s in a if s in b),
            other_seeds=_spread((a[s], b[other]) for s in a for other in b if s != other),
            own_seeds=_spread(combinations(a.values(), 2)),
            baseline_seeds=_spread(combinations(b.values(), 2)),
        )


def _spread(pairs: Iterable[tuple[Any, Any]]) -> Spread:
    values = [gram_cka(*pair) for pair in pairs]
    known = [value for value in values if value == value]
    if not known:
        return Spread(None, None, None, 0)
    return Spread(sum(known) / len(known), min(known), max(known), len(known))
