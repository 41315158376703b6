"""Tables of anybody's runs: CSV both ways, and JSON as experiment trackers export it."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from muonlab.errors import UsageError, unknown
from muonlab.records.importers import atomic_write, first_line, read_bytes
from muonlab.records.record import Record

__all__ = ["RUN_COLUMNS", "export_csv", "read_csv", "read_rows"]

RUN_COLUMNS = ("optimizer", "size", "params", "tokens", "loss")  # what the analysis verbs need
NUMERIC = ("params", "tokens", "loss", "seed", "step", "lr", "horizon_tokens", "time_to_target")
SUSPECT = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would take such a cell for a formula
JSON = (".jsonl", ".ndjson", ".json")


def export_csv(records: Iterable[Record], path: str | os.PathLike[str]) -> int:
    """Write one row per run, readable by `read_csv` and by spreadsheets; "-" for standard output; how many there were.

    The first columns are those of the analysis verbs; then every dotted hyperparameter that any run has; undefined
    cells are empty. `loss` is the final held-out loss, empty for a run that diverged.
    """
    rows = [_row(record) for record in records]
    fixed = list(_row_heads())
    dotted = sorted({name for row in rows for name in row} - set(fixed))
    with atomic_write(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*fixed, *dotted])
        for row in rows:
            writer.writerow([_cell(row.get(name)) for name in (*fixed, *dotted)])
    return len(rows)


def read_rows(
    path: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    required: Sequence[str] = RUN_COLUMNS,
) -> list[dict[str, Any]]:
    """Rows of a table: JSON where it begins like that or is named so, else CSV; see `read_csv`.

    JSON is an object a line, or one array of objects, whose rows are numbered like lines. What is nested in an object
    gets a dotted name, and a list or null stays what it is.

    Raises   UsageError naming file and line, or the column that is missing
    """
    content = read_bytes(path)
    text = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if Path(path).suffix not in JSON and text[:1] not in (b"[", b"{"):
        return _read_csv(content, path, columns, required)
    objects = _array(text, path) if text[:1] == b"[" else _lines(content, path)
    names = list(dict.fromkeys(name for _, values in objects for name in values))
    head = dict(zip(names, _head(names, path, columns or {}, required), strict=True))
    return [_checked({head[k]: v for k, v in values.items() if head[k]}, path, line) for line, values in objects]


def read_csv(
    path: str | os.PathLike[str],
    columns: Mapping[str, str] | None = None,
    required: Sequence[str] = RUN_COLUMNS,
) -> list[dict[str, Any]]:
    """Rows of a table of runs, as dictionaries; each also holds its `line` in the file.

    `columns` maps our names to those in the file. Columns that have a meaning here (`params, tokens, loss, seed, step,
    lr, time_to_target`) must be numbers, `inf` and `nan` included; elsewhere what looks like a number becomes one.
    An empty cell is None. Commas, semicolons or tabs separate.

    Raises   UsageError naming file and line, or the column that is missing
    """
    return _read_csv(read_bytes(path), path, columns, required)


def _read_csv(
    content: bytes, path: Any, columns: Mapping[str, str] | None, required: Sequence[str]
) -> list[dict[str, Any]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        head = _head([name.strip() for name in next(reader, [])], path, columns or {}, required)
        return [_parse(head, cells, path, reader.line_num) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UsageError(f"{path} line {reader.line_num} is not CSV: {error}") from None


def _row_heads() -> tuple[str, ...]:
    measured = ("seed", "outcome", "step", "task", "wall_seconds", "step_seconds", "flops", "batch_tokens")
    return (
        *RUN_COLUMNS,
        *measured,
        "horizon_tokens",
        "precision",
        "device",
        "polar",
        "parametrization",
        "created",
        "key",
    )


def _row(record: Record) -> dict[str, Any]:
    spec = record.spec
    row: dict[str, Any] = {
        "optimizer": spec.optimizer,
        "size": spec.task_options.get("size", record.num_params),
        "params": record.num_params,
        "tokens": record.tokens or spec.horizon_tokens,
        "loss": record.final_loss,
        "outcome": record.outcome,
        "step": spec.num_steps if record.diverged_step is None else record.diverged_step,
        "key": record.key,
    }
    for name in ("wall_seconds", "step_seconds", "flops", "created"):
        row[name] = getattr(record, name)
    for name in ("task", "seed", "batch_tokens", "horizon_tokens", "precision", "device", "polar", "parametrization"):
        row[name] = getattr(spec, name)
    row |= {f"task.{name}": value for name, value in spec.task_options.items()}
    row |= {f"base.{name}": value for name, value in spec.base.items()}
    row |= {f"schedule.{name}": value for name, value in vars(spec.schedule).items()}
    return row | dict(spec.hyperparameters)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(SUSPECT) and _number(value) is None else value
    return json.dumps(value) if isinstance(value, list | tuple | bool) else repr(value)


def _head(names: list[str], path: Any, columns: Mapping[str, str], required: Sequence[str]) -> list[str]:
    """Our name of each column of the file."""
    if not any(names):
        raise UsageError(f"{path} is empty: its first line must name the columns ({', '.join(required)})")
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise UsageError(f"{path} has two columns {twice[0]!r}")
    for theirs in columns.values():
        if theirs not in names:
            raise unknown(f"column of {path}", theirs, names)
    ours = {theirs: ours for ours, theirs in columns.items()}
    head = [ours.get(name, "" if name in columns else name) for name in names]
    missing = [name for name in required if name not in head]
    if missing:
        raise UsageError(
            f"{path} has no column {missing[0]!r} (it has {', '.join(filter(None, names))}): "
            f"say which one it is with --column {missing[0]}=NAME"
        )
    return head


def _lines(content: bytes, path: Any) -> list[tuple[int, dict[str, Any]]]:
    lines = enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
    found = [(number, f"{path} line {number}", line) for number, line in lines if line.strip()]
    return [(number, _object(_json(line, where), where)) for number, where, line in found]


def _array(text: bytes, path: Any) -> list[tuple[int, dict[str, Any]]]:
    return [(number, _object(value, f"{path} row {number}")) for number, value in enumerate(_json(text, str(path)), 1)]


def _json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        one = ": one object a line, or one array of objects" if text.strip() in (b"{", b"[") else ""
        raise UsageError(f"{where} is not JSON ({first_line(error)}){one}") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UsageError(f'{where} must be an object such as {{"loss": 3.2}}, got {str(value)[:40]!r}')
    return _dotted(value)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _checked(row: dict[str, Any], path: Any, line: int) -> dict[str, Any]:
    """The same, once every column that has to be a number is one or nothing; trackers write NaN and inf as text."""
    for name in NUMERIC:
        if isinstance(value := row.get(name), str):
            row[name] = _number(value)
        if value is not None and (isinstance(row[name], bool) or not isinstance(row[name], int | float)):
            raise UsageError(f"{path} line {line}: {name} must be a number, got {value!r}")
    return {**row, "line": line}


def _parse(head: list[str], cells: list[str], path: Any, line: int) -> dict[str, Any]:
    if len(cells) != len(head):
        raise UsageError(f"{path} line {line} has {len(cells)} cells, the first line has {len(head)}")
    row: dict[str, Any] = {}
    for name, cell in zip(head, cells, strict=True):
        text = cell.strip()
        if not name:
            continue
        value = _number(text)
        if name in NUMERIC and text and value is None:
            raise UsageError(f"{path} line {line}: {name} must be a number, got {text!r}")
        text = text[1:] if text[:1] == "'" and text[1:].startswith(SUSPECT) else text
        row[name] = (text or None) if value is None or name in ("optimizer", "size") else value
    return {**row, "line": line}


def _number(text: str) -> int | float | None:
    if "_" in text:  # Python's notation, nobody else's
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
