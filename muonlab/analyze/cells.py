"""Which runs are compared: the configurations tried at each size and length, the best of them, and their noise."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muonlab.analyze.runs import LARGEST, Run, same_run
from muonlab.analyze.significance import KNOWN, Noise, pooled_noise
from muonlab.errors import UsageError, unknown
from muonlab.records.spec import Value, canonical_json

__all__ = [
    "Cell", "Key", "best_cells", "choose_baseline", "configurations", "early_notes", "lost_notes", "named_noise",
    "seed_noise",
]  # fmt: skip

SHOWN = 8  # names that a line lists

Key = tuple[str, str, float]  # optimizer, size, tokens


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one optimizer at one size and length in its best configuration, one per seed."""

    optimizer: str
    size: str
    params: float | None
    tokens: float
    settings: Mapping[str, Value]
    losses: tuple[float, ...]
    seeds: tuple[int | None, ...]  # in the order of `losses`
    num_configurations: int  # among which that one was the best

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))


def early_notes(runs: Sequence[Run], kept: Sequence[Run]) -> list[str]:
    """For a finding: how many rows are not among the ends."""
    early = len(runs) - len(kept)
    return [f"{early} rows before the end of their schedule or run left out"] if early else []


def lost_notes(kept: Sequence[Run]) -> list[str]:
    """For a finding: what divergence cost."""
    notes = []
    if lost := sum(run.loss is None for run in kept):
        notes.append(f"{lost} diverged runs: their configurations are out of the running")
    gone = [key for key, tried in configurations(kept).items() if not any(map(_is_complete, tried))]
    if gone:
        names = [" ".join(filter(None, (name, size, f"{tokens:g} tokens"))) for name, size, tokens in gone]
        more = ", ..." if len(names) > SHOWN else ""
        notes.append(f"no configuration without a diverged run, so left out: {', '.join(names[:SHOWN])}{more}")
    return notes


def configurations(runs: Iterable[Run]) -> dict[Key, tuple[tuple[Run, ...], ...]]:
    """(optimizer, size, tokens) -> the runs of each configuration that was tried there."""
    groups: dict[Key, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.optimizer, run.size, run.tokens][canonical_json(dict(run.settings))].append(run)
    return {key: tuple(map(tuple, tried.values())) for key, tried in groups.items()}


def _is_complete(group: Sequence[Run]) -> bool:
    return all(run.loss is not None for run in group)


def best_cells(runs: Iterable[Run]) -> dict[Key, Cell]:
    """(optimizer, size, tokens) -> its best configuration by the mean over seeds; none where every one lost a run.

    Raises   UsageError for two runs of the same configuration and seed, of which one cannot be right
    """
    cells = {}
    for key, tried in configurations(runs).items():
        for group in tried:
            _refuse_twins(group)
        finished = [group for group in tried if _is_complete(group)]
        if finished:
            best = min(finished, key=lambda group: float(np.mean([run.loss for run in group])))
            cells[key] = Cell(
                optimizer=key[0],
                size=key[1],
                params=best[0].params,
                tokens=key[2],
                settings=best[0].settings,
                losses=tuple(run.loss for run in best if run.loss is not None),
                seeds=tuple(run.seed for run in best),
                num_configurations=len(tried),
            )
    return cells


def _refuse_twins(group: Sequence[Run]) -> None:
    seen: dict[int | None, Run] = {}
    for run in group:
        if run.seed in seen and not (run.identity and run.seed is None):
            raise same_run(seen[run.seed], run)
        seen[run.seed] = run


def choose_baseline(baseline: str, runs: Sequence[Run]) -> None:
    """Whether there is something to measure the others by.

    Raises   UsageError for a baseline that is not there, or that has no configuration left
    """
    names = dict.fromkeys(run.optimizer for run in runs)
    left = {key[0] for key, tried in configurations(runs).items() if any(map(_is_complete, tried))}
    if not left:
        raise UsageError("no run finished")
    if baseline not in names:
        raise UsageError(f"{unknown('baseline', baseline, names)}: choose one with --baseline")
    if baseline not in left:
        raise UsageError(
            f"every configuration of the baseline {baseline} diverged: there is nothing to measure the others by"
        )


def named_noise(nats: float) -> Noise:
    """A standard deviation between seeds that is given, as known exactly.

    Raises   UsageError unless it is a number above 0
    """
    if not 0 < nats < LARGEST:
        raise UsageError(f"--noise wants a standard deviation above 0, such as 0.003 (nats), got {nats:g}")
    return Noise(nats**2, KNOWN)


def seed_noise(cells: Iterable[Cell], noise_nats: float | None = None) -> Noise:
    """Variance between seeds, pooled over the cells that have several; else what is assumed, as known exactly.

    Raises   UsageError where there are no seeds and nothing is assumed
    """
    if noise_nats is not None:
        return named_noise(noise_nats)
    there = list(cells)
    found = pooled_noise([cell.losses for cell in there])
    if found.degrees < 1:
        raise UsageError(
            "no run has a second seed, so the noise is not known: name it, such as --noise 0.003 (nats)" + _alone(there)
        )
    return found


def _alone(cells: Sequence[Cell]) -> str:
    """What to do where columns that are no settings make a configuration of every row."""
    if all(cell.num_configurations == 1 for cell in cells):
        return ""
    names = dict.fromkeys(name for cell in cells for name in cell.settings)
    differ = [name for name in names if len({cell.settings.get(name) for cell in cells}) == len(cells) > 1]
    which = f" ({', '.join(differ[:SHOWN])} differ in all)" if differ else ""
    return f"; or, if columns that are no settings tell runs apart{which}, name those that are with --settings lr,..."
