"""Records out of the store and into it again (JSON lines), and tables of anybody's runs (CSV)."""

import csv
import io
import json
import logging
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from muonlab.errors import UsageError, unknown
from muonlab.records.record import Record, json_text

__all__ = ["atomic_write", "export_csv", "export_jsonl", "import_jsonl", "read_csv"]

log = logging.getLogger(__name__)

RUN_COLUMNS = ("optimizer", "size", "params", "tokens", "loss")  # what the analysis verbs need
NUMERIC = ("params", "tokens", "loss", "seed", "step", "lr", "time_to_target")
SUSPECT = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would take such a cell for a formula


def export_jsonl(records: Iterable[Record], path: str | os.PathLike[str]) -> int:
    """Write one record per line, "-" for standard output; how many there were."""
    count = 0
    with atomic_write(path) as file:
        for count, record in enumerate(records, 1):  # noqa: B007 (the count is the result)
            file.write(json_text(record.to_dict()) + "\n")
    return count


def import_jsonl(path: str | os.PathLike[str]) -> list[Record]:
    """Read what `export_jsonl` wrote. A last line that was torn by a crash is left out, with a warning.

    Raises   UsageError naming file and line for anything else that is not a record
    """
    lines = _read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and records:
                log.warning("%s line %d is incomplete and left out: the writer was interrupted", path, number)
                break
            raise UsageError(f"{path} line {number} is not JSON ({_first_line(error)})") from None
        try:
            records.append(Record.from_dict(values))
        except UsageError as error:
            raise UsageError(f"{path} line {number}: {error}") from None
    return records


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
    try:
        text = _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        head = _head([name.strip() for name in next(reader, [])], path, columns or {}, required)
        return [_parse(head, cells, path, reader.line_num) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise UsageError(f"{path} line {reader.line_num} is not CSV: {error}") from None


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file that appears under its name complete or not at all; "-" is standard output.

    The data go to a temporary file beside it, reach the disk, and only then take the name.

    Raises   UsageError if the place cannot be written or is full; an earlier file stays as it was
    """
    if os.fspath(path) == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    target = Path(os.path.realpath(Path(path).expanduser()))  # through a link, so that the link stays one
    try:
        with _opened(target) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = f"directory {target.parent} does not exist" if not target.parent.is_dir() else error.strerror or error
        raise UsageError(f"cannot write {path}: {reason}") from error


@contextmanager
def _opened(target: Path) -> Iterator[TextIO]:
    if target.exists() and not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
        with open(target, "w", encoding="utf-8", newline="") as file:  # a device or a pipe: renaming would replace it
            yield file
        return
    if target.is_dir():
        raise IsADirectoryError(0, "it is a directory")
    partial = target.with_name(f".{target.name[:200]}.{os.getpid()}.part")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


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


def _read_bytes(path: str | os.PathLike[str]) -> bytes:
    try:
        return sys.stdin.buffer.read() if os.fspath(path) == "-" else Path(path).expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
