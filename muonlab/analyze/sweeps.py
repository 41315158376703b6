"""Sweeps: tuned values of one optimizer, cell by cell; a published one, and those that the user's own store holds."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from muonlab.analyze.laws import Optimum
from muonlab.errors import UsageError
from muonlab.records import Record
from muonlab.records.spec import Value, canonical_json

__all__ = ["REACH", "Sweep", "own_sweep", "published", "sweep_of"]

REACH = 4.0  # beyond a sweep by more than this factor its laws are not to be relied on; ours
OUTSIDE = ("embedding", "head")  # roles that are not counted, as the published sweep counts


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Tuned values of one optimizer, cell by cell."""

    source: str
    cells: tuple[tuple[float, float], ...]  # params, tokens
    values: Mapping[str, tuple[Value, ...]]  # dotted name -> the value in each cell; None where it has none
    grids: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Value] = field(default_factory=dict)  # what was not tuned, or makes our conventions theirs
    differs: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)  # their name -> why
    fixed_note: str = "as theirs"
    task: str = ""  # whose runs they are; "" for a published one
    notes: Mapping[str, str] = field(default_factory=dict)  # dotted name -> what must be said of it

    def points(self, name: str) -> list[Optimum]:
        """The optima of one hyperparameter."""
        pairs = zip(self.cells, self.values[name], strict=True)
        return [Optimum(*cell, value) for cell, value in pairs if value is not None]

    def beyond(self, params: float, tokens: float) -> dict[str, float]:
        """How far outside a place lies; 1 is inside."""
        asked = {"params": params, "tokens": tokens, "tokens_per_param": tokens / params}
        sizes, lengths = zip(*self.cells, strict=True)
        seen = {"params": sizes, "tokens": lengths, "tokens_per_param": [d / n for n, d in self.cells]}
        return {name: max(1.0, x / max(seen[name]), min(seen[name]) / x) for name, x in asked.items()}

    def covers(self, params: float, tokens: float) -> bool:
        beyond = self.beyond(params, tokens)
        return beyond["params"] <= REACH and beyond["tokens"] <= REACH


@cache
def _table() -> Mapping[str, Any]:
    return json.loads((Path(__file__).parent / "recipes.json").read_text())


def published() -> dict[str, Sweep]:
    """Optimizer -> what is known of its tuned values from the shipped table.

    >>> sweep = published()["muon"]
    >>> sweep.source, len(sweep.cells), sweep.points("opt.lr")[0].value
    ('Wen et al. 2025 (2509.02046)', 18, 0.016)
    """
    return {name: sweep_of(name, _table()) for name in _table()["optimizers"]}


def sweep_of(optimizer: str, table: Mapping[str, Any]) -> Sweep:
    """One optimizer of a table such as benchmarks/recipes.py writes."""
    found = table["optimizers"][optimizer]
    return Sweep(
        source=table["source"],
        cells=tuple((float(params), float(tokens)) for params, tokens in found["cells"]),
        values={name: tuple(values) for name, values in found["values"].items()},
        grids={name: tuple(values) for name, values in found["grids"].items()},
        fixed=found["settings"],
        differs=tuple(found["differs"]),
        left_out=found["left_out"],
        notes={
            name: "theirs goes with bf16 on TPUs: left at the default of the class"
            for name in found["values"]
            if name.endswith(".eps")
        },
    )


def own_sweep(records: Iterable[Record], optimizer: str, task: str | None = None) -> Sweep | None:
    """The optima that the runs of a store hold, or None: cells where several configurations were tried, the best of
    each by its mean final loss. Sizes are counted without embedding and head, as published ones are.

    Raises   UsageError where they are of several tasks and none is named
    """
    ends = [r for r in records if r.outcome != "failed" and r.spec.optimizer == optimizer and _num_params(r)]
    found: dict[str, dict[tuple, dict[str, list[Record]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for record in ends:
        found[record.spec.task][_cell(record)][canonical_json(_settings(record))].append(record)
    usable = {
        name: {cell: tried for cell, tried in cells.items() if len(tried) > 1 and any(map(_finished, tried.values()))}
        for name, cells in found.items()
    }
    tasks = sorted(name for name, cells in usable.items() if cells and task in (None, name))
    if len(tasks) > 1:
        raise UsageError(f"the store has tuned runs of several tasks ({', '.join(tasks)}): choose one with --task")
    return _own(tasks[0], usable[tasks[0]]) if tasks else None


def _num_params(record: Record) -> int:
    return sum(n for role, n in record.params.items() if role not in OUTSIDE) or record.num_params


def _cell(record: Record) -> tuple:
    """What runs must share to be compared; the first two are its size and length."""
    spec = record.spec
    same = (spec.data_fingerprint, spec.precision, canonical_json(dict(spec.task_options)), spec.init_from)
    same += (spec.parametrization, canonical_json(dict(spec.base)))
    return (float(_num_params(record)), float(spec.horizon_tokens), *same)


def _settings(record: Record) -> dict[str, Value]:
    spec = record.spec
    schedule = {f"schedule.{name}": value for name, value in vars(spec.schedule).items()}
    return {**spec.hyperparameters, **schedule, "clip": spec.clip, "batch_tokens": spec.batch_tokens}


def _finished(records: Sequence[Record]) -> bool:
    return all(record.outcome == "ok" and record.final_loss is not None for record in records)


def _own(task: str, cells: Mapping[tuple, Mapping[str, Sequence[Record]]]) -> Sweep:
    best, tried = [], []
    for configurations in cells.values():
        groups = [group for group in configurations.values() if _finished(group)]
        best.append(_settings(min(groups, key=lambda group: float(np.mean([one.final_loss for one in group])))[0]))
        tried.append([_settings(group[0]) for group in configurations.values()])
    names = list(dict.fromkeys(name for settings in best for name in settings))
    tuned = {name: [len({one.get(name) for one in every}) > 1 for every in tried] for name in names}
    values = {
        name: tuple(settings.get(name) if varied else None for settings, varied in zip(best, tuned[name], strict=True))
        for name in names
        if any(tuned[name])
    }
    return Sweep(
        source=f"your runs of {task}",
        task=task,
        cells=tuple(cell[:2] for cell in cells),
        values=values,
        grids={
            name: tuple({one[name] for every in tried for one in every if _is_number(one.get(name))}) for name in values
        },
        fixed={
            name: Counter(settings[name] for settings in best if name in settings).most_common(1)[0][0]
            for name in names
            if name not in values
        },
        fixed_note="held fixed in your runs, not tuned",
        notes={name: note for name in values if (note := _edges(name, best, tried))},
    )


def _edges(name: str, best: Sequence[Mapping[str, Value]], tried: Sequence[Sequence[Mapping[str, Value]]]) -> str:
    """How often the best value is the least or the greatest that was tried; 0 is nobody's edge."""
    count = 0
    for settings, every in zip(best, tried, strict=True):
        values = sorted({one[name] for one in every if _is_number(one.get(name))})
        count += len(values) > 1 and settings.get(name) in (values[0], values[-1]) and settings.get(name) != 0
    return f"on an edge of what was tried in {count} of {len(best)} cells" if count else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
