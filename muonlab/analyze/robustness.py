"""What is lost on corrupted inputs, a challenger's runs beside the baseline's: loss, accuracy, and errors as a factor.

The definitions are ours; the last is made after the mean corruption error of Hendrycks and Dietterich 2019, on other
corruptions and over another baseline: no number here compares with one of theirs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from muonlab.analyze.feature_looks import BySeed, Condition, Look, Pairs, judged, mean_of, names_of
from muonlab.analyze.findings import Effect
from muonlab.analyze.significance import effect
from muonlab.records.watch import CLEAN

__all__ = ["ALL", "CorruptionError", "CorruptionRow", "corruption_error", "corruption_rows", "overall_rows"]

ALL = "all"  # corruptions, in the mean over them
CLEAN_PLACE = ("clean", 0)
Places = Sequence[tuple[str, int]]  # corruption, severity


@dataclass(frozen=True, kw_only=True)
class CorruptionRow:
    """Of a challenger and the baseline on inputs corrupted in one way, or `ALL`; severity 0: the mean over all.

    Accuracy is None where inputs have no classes.
    """

    optimizer: str
    corruption: str
    severity: int
    at: Condition
    rise: float | None  # of the loss over that of clean inputs, nats
    baseline_rise: float | None
    effect: Effect  # of the rise
    accuracy: float | None = None
    baseline_accuracy: float | None = None
    accuracy_effect: Effect | None = None
    drop: float | None = None  # (clean - corrupted) / clean, of accuracy
    baseline_drop: float | None = None
    drop_effect: Effect | None = None


@dataclass(frozen=True, kw_only=True)
class CorruptionError:
    """Errors on corrupted inputs over the baseline's of the same seed, ours: below 1 the challenger makes fewer.

    Math     mean over corruptions of (sum over severities of 1 - accuracy) / (that of the baseline)
    """

    optimizer: str
    at: Condition
    ratio: float | None  # mean over seeds
    low: float | None  # 95 % interval of it
    high: float | None
    effect: Effect  # of the ratio over 1


def corruption_rows(optimizer: str, at: Condition, pairs: Pairs) -> list[CorruptionRow]:
    """A row for every corruption and severity; what is measured of all of them is judged together."""
    return _judged([_row(optimizer, at, pairs, *place, [place]) for place in _places(pairs)])


def overall_rows(optimizer: str, at: Condition, pairs: Pairs) -> list[CorruptionRow]:
    """Over all corruptions, a row for each severity, judged together; then, judged alone, one over all of them."""
    places = _places(pairs)
    severities = sorted({severity for _, severity in places})
    rows = [_row(optimizer, at, pairs, ALL, s, [place for place in places if place[1] == s]) for s in severities]
    return _judged(rows) + _judged([_row(optimizer, at, pairs, ALL, 0, places)] if places else [])


def corruption_error(optimizer: str, at: Condition, pairs: Pairs) -> CorruptionError | None:
    """None where inputs have no classes, or none is corrupted; a seed without errors of the baseline is left out."""
    places = [place for place in _places(pairs) if _known(pairs, [place], "accuracy")]
    if not places:
        return None
    found = {seed: _error_ratio(*pair, places) for seed, pair in pairs.items()}
    known = {seed: ratio for seed, ratio in found.items() if ratio is not None}
    above = effect(known, dict.fromkeys(known, 1.0))
    low, high = (None if end is None else 1 + end for end in (above.low, above.high))
    row = CorruptionError(optimizer=optimizer, at=at, ratio=mean_of(known.values()), low=low, high=high, effect=above)
    return judged([row])[0]


def _error_ratio(ours: Look, theirs: Look, places: Places) -> float | None:
    ratios = []
    for name in dict.fromkeys(name for name, _ in places):
        own = [place for place in places if place[0] == name]
        errors = [sum(1 - look.values[_name("accuracy", place)] for place in own) for look in (ours, theirs)]
        if errors[1] <= 0:
            return None
        ratios.append(errors[0] / errors[1])
    return float(np.mean(ratios))


def _places(pairs: Pairs) -> list[tuple[str, int]]:
    found = (re.fullmatch(r"corrupted\.(.+)\.(\d+)", name) for name in names_of(pairs) if name != CLEAN)
    return [(parts[1], int(parts[2])) for parts in found if parts]


def _name(quantity: str, place: tuple[str, int]) -> str:
    return f"{quantity}.{place[0]}.{place[1]}"


def _known(pairs: Pairs, places: Places, quantity: str) -> bool:
    """Whether every run has it at all of these places and clean."""
    names = [_name(quantity, place) for place in (CLEAN_PLACE, *places)]
    return bool(pairs) and all(name in look.values for pair in pairs.values() for look in pair for name in names)


def _row(optimizer: str, at: Condition, pairs: Pairs, corruption: str, severity: int, places: Places) -> CorruptionRow:
    losses = _sides(pairs, places, "corrupted")
    clean = _sides(pairs, [CLEAN_PLACE], "corrupted")
    rises = [{seed: side[seed] - before[seed] for seed in side} for side, before in zip(losses, clean, strict=True)]
    row = CorruptionRow(
        optimizer=optimizer, corruption=corruption, severity=severity, at=at, rise=mean_of(rises[0].values()),
        baseline_rise=mean_of(rises[1].values()), effect=effect(*rises),
    )  # fmt: skip
    if not _known(pairs, places, "accuracy"):
        return row
    found = _sides(pairs, places, "accuracy")
    clean = _sides(pairs, [CLEAN_PLACE], "accuracy")
    drops = [
        {seed: 1 - side[seed] / before[seed] for seed in side if before[seed] > 0}
        for side, before in zip(found, clean, strict=True)
    ]
    return replace(
        row, accuracy=mean_of(found[0].values()), baseline_accuracy=mean_of(found[1].values()),
        accuracy_effect=effect(*found), drop=mean_of(drops[0].values()), baseline_drop=mean_of(drops[1].values()),
        drop_effect=effect(*drops),
    )  # fmt: skip


def _sides(pairs: Pairs, places: Places, quantity: str) -> tuple[BySeed, BySeed]:
    """The mean over places by seed, of those seeds that have them on both sides."""
    names = [_name(quantity, place) for place in places]
    both = {s: pair for s, pair in pairs.items() if all(name in look.values for look in pair for name in names)}
    ours, theirs = ({s: float(np.mean([pair[i].values[n] for n in names])) for s, pair in both.items()} for i in (0, 1))
    return ours, theirs


def _judged(rows: Sequence[CorruptionRow]) -> list[CorruptionRow]:
    for name in ("effect", "accuracy_effect", "drop_effect"):
        rows = judged(rows, name)
    return list(rows)
