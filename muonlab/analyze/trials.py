"""Trials of training algorithms, as rows of anybody's file: how long each took to the target of its workload."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muonlab.errors import UsageError, unknown

__all__ = ["Trial", "base_workloads", "best_of_studies", "from_rows", "listed", "unequal_numbers"]

NAMES = ("submission", "workload", "study", "trial", "base")
NUM_NAMED = 4  # things that a line lists before it counts the rest


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a submission: how long it took to the target of its workload."""

    submission: str
    workload: str
    study: str = ""
    trial: str = ""
    time: float  # any unit, the same everywhere; inf: the target was missed
    base: str = ""  # the workload of which this one is a held-out variant
    where: str = ""  # for people: the line


def from_rows(rows: Sequence[Mapping[str, Any]], path: object) -> tuple[Trial, ...]:
    """The rows of a table as trials; an empty or infinite time is a target that was missed.

    Raises   UsageError naming the line of a row without submission or workload, or with a time that is no time
    """
    return tuple(_trial(row, f"{path} line {row['line']}") for row in rows)


def _trial(row: Mapping[str, Any], where: str) -> Trial:
    named = {name: str(row.get(name) if row.get(name) is not None else "").strip() for name in NAMES}
    for name in ("submission", "workload"):
        if not named[name]:
            raise UsageError(f"{where}: {name} is empty")
    time = math.inf if row.get("time_to_target") is None else row["time_to_target"]
    if not time > 0:
        raise UsageError(f"{where}: time_to_target must be above 0, or inf or empty for a missed target, got {time!r}")
    if named["base"] == named["workload"]:
        raise UsageError(f"{where}: {named['workload']!r} can't be a held-out variant of itself: leave base empty")
    return Trial(**{**named, "time": float(time), "where": where})


def base_workloads(trials: Sequence[Trial]) -> dict[str, str]:
    """Workload -> its base workload, "" for a base workload itself; in the order of their names."""
    found: dict[str, Trial] = {}
    for trial in trials:
        first = found.setdefault(trial.workload, trial)
        if trial.base != first.base:
            raise UsageError(
                f"{trial.where}: {trial.workload!r} has base {trial.base or 'none'!r}, but {first.base or 'none'!r} "
                f"in {first.where}"
            )
    valid = {name for name, trial in found.items() if not trial.base}
    for trial in found.values():
        if trial.base and trial.base not in valid:
            raise UsageError(f"{trial.where}: {unknown('base workload', trial.base, valid)}")
    return {name: found[name].base for name in sorted(found)}


def best_of_studies(trials: Sequence[Trial]) -> dict[tuple[str, str], list[float]]:
    """(submission, workload) -> the best time of each study, in the order of the studies' names."""
    seen: dict[tuple[str, str, str, str], Trial] = {}
    best: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for trial in trials:
        key = (trial.submission, trial.workload, trial.study, trial.trial)
        if key in seen:
            raise UsageError(
                f"{trial.where} and {seen[key].where} are the same trial twice ({trial.submission}, {trial.workload}): "
                "remove one, or number them in the columns study and trial"
            )
        seen[key] = trial
        own = best[trial.submission, trial.workload]
        own[trial.study] = min(trial.time, own.get(trial.study, math.inf))
    return {key: [own[study] for study in sorted(own)] for key, own in best.items()}


def unequal_numbers(trials: Sequence[Trial], names: Sequence[str]) -> list[str]:
    """Numbers of studies, and of trials in a study, that are not the same for all: more tries are more chances."""
    studies: dict[tuple[str, str], set[str]] = defaultdict(set)
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for trial in trials:
        studies[trial.submission, trial.workload].add(trial.study)
        counts[trial.submission, trial.workload, trial.study] += 1
    lines = []
    for what, each in (("studies", {(s, w): [len(found)] for (s, w), found in studies.items()}),
                       ("trials a study", _gathered(counts))):  # fmt: skip
        odd = []
        for workload in sorted({w for _, w in each}):
            numbers = {s: each[s, workload] for s in names if (s, workload) in each}
            if len({n for found in numbers.values() for n in found}) > 1:
                shown = ", ".join(f"{s} {_span(found)}" for s, found in list(numbers.items())[:NUM_NAMED])
                more = f" and {len(numbers) - NUM_NAMED} more" if len(numbers) > NUM_NAMED else ""
                odd.append(f"{workload} ({shown}{more})")
        if odd:
            lines.append(f"unequal numbers of {what}, and more are more chances: {listed(odd)}")
    return lines


def _gathered(counts: Mapping[tuple[str, str, str], int]) -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (submission, workload, _), count in counts.items():
        found[submission, workload].append(count)
    return found


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
