"""What an audit is given: a table of runs, a table of ablations with its tuned points, or a store."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from muonlab.analyze.audit_rows import Configuration, Evidence, is_number
from muonlab.analyze.cells import Key
from muonlab.analyze.runs import Run, from_records, from_rows, frozen
from muonlab.errors import UsageError
from muonlab.records import Record

__all__ = ["from_ablations", "from_runs", "from_store", "from_table", "is_ablation"]

CELL = ("optimizer", "size", "params", "tokens", "chinchilla", "loss", "line")


def from_table(
    rows: Sequence[Mapping[str, Any]], path: object, tuned: Iterable[Mapping[str, Any]] = (), **judged: Any
) -> Evidence:
    """The rows of `read_rows`: a run each, or ablations where there are columns `hyperparameter` and `value`.

    Raises   UsageError naming the line of a bad row, or the column that is missing
    """
    if is_ablation(rows):
        return from_ablations(rows, path, tuned, **judged)
    if tuned:
        raise UsageError("--tuned goes with a table of ablations, which has columns hyperparameter and value")
    if "tokens" not in _columns(rows):
        raise UsageError(f"{path} has no column 'tokens': say which one it is with --column tokens=NAME")
    return from_runs(from_rows(rows, path), **judged)


def is_ablation(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether a row moves one setting away from a tuned point."""
    return {"hyperparameter", "value"} <= _columns(rows)


def _columns(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    return {name for row in rows for name, value in row.items() if value is not None}


def from_ablations(
    rows: Sequence[Mapping[str, Any]], path: object, tuned: Iterable[Mapping[str, Any]] = (), **judged: Any
) -> Evidence:
    """Rows that move one setting each; `tuned` has settings or losses of the points they move it from.

    Raises   UsageError naming the line of a bad row, or the column that is missing
    """
    columns = _columns(rows)
    length = next((name for name in ("tokens", "chinchilla") if name in columns), None)
    if length is None:
        raise UsageError(f"{path} has no column 'tokens' or 'chinchilla', so that no lengths can be told apart")
    cells, where = _tuned(tuned, length)
    found, points, varied = [], {}, {}
    for key, settings in cells.items():
        loss = settings.pop("loss", None)
        points[key] = Configuration(
            settings=settings, losses=() if loss is None else (loss,), num_lost=0, lines=(where[key],)
        )
        if loss is not None:
            run = Run(optimizer=key[0], size=key[1], params=None, tokens=key[2], loss=loss, settings=settings)
            found.append(replace(run, line=where[key], labels={length: key[2]}))
    for row in rows:
        name, value = row.get("hyperparameter"), row.get("value")
        if not name or value is None:
            raise UsageError(f"{path} line {row['line']}: hyperparameter and value must not be empty")
        plain = {"tokens": row.get(length), **{n: row.get(n) for n in ("optimizer", "size", "loss", "seed", "line")}}
        run = from_rows([plain], path)[0]
        base = cells.get((run.optimizer, run.size, run.tokens), {})
        labels = {length: run.tokens, "hyperparameter": name}
        found.append(replace(run, settings={**base, name: value}, labels=labels))
        varied[row["line"]] = name
    unit = "x" if length == "chinchilla" else "tokens"
    return Evidence(rows=tuple(found), is_ablation=True, varied=varied, tuned=points, unit=unit, **judged)


def _tuned(rows: Iterable[Mapping[str, Any]], length: str) -> tuple[dict[Key, dict[str, Any]], dict[Key, str]]:
    """What is known of the tuned points: settings, which may be JSON in a cell, and loss; and where it stands."""
    cells: dict[Key, dict[str, Any]] = defaultdict(dict)
    where: dict[Key, str] = {}
    for row in rows:
        if row.get("optimizer") is None or not isinstance(row.get(length), int | float):
            raise UsageError(f"{row['line']}: a tuned point needs optimizer, size and {length}")
        key = (str(row["optimizer"]), str(row.get("size") or ""), row[length])
        for name, value in row.items():
            if isinstance(value, str) and value.startswith("{"):
                try:
                    cells[key] |= {n: frozen(v) for n, v in json.loads(value).items()}
                except ValueError as error:
                    raise UsageError(f"{row['line']}: {name} is not JSON ({error})") from None
            elif name == "loss" and is_number(value) and math.isfinite(value):
                cells[key][name] = value
            elif value is not None and name not in CELL:
                cells[key][name] = frozen(value)
        where.setdefault(key, str(row["line"]))
    return dict(cells), where


def from_runs(runs: Sequence[Run], **judged: Any) -> Evidence:
    """Runs of whatever origin, a row each."""
    return Evidence(rows=tuple(runs), **judged)


def from_store(records: Iterable[Record], **judged: Any) -> Evidence:
    """The ends of the runs of a store with all that determined them; a line is the key of a record."""
    return from_runs(from_records(records, conditions=True), **judged)
