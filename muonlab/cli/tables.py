"""What the verbs on anybody's runs have in common: which file, which column is which, which rows are runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muonlab.cli.arguments import names
from muonlab.errors import UsageError, unknown

if TYPE_CHECKING:
    from muonlab.analyze.runs import Run

__all__ = ["Baseline", "Column", "NoiseNats", "Runs", "Settings", "Table", "Where", "chosen", "read_runs", "read_table"]

Table = Annotated[str, typer.Argument(metavar="FILE.csv", help="CSV or JSON lines, one run a line; - is stdin.")]
Runs = Annotated[
    str, typer.Argument(metavar="FILE.csv|STORE", help="CSV or JSON lines, one run a line, or a store; - is stdin.")
]
Baseline = Annotated[str, typer.Option("--baseline", help="The optimizer that all others are measured by.")]
Column = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Which column of the file is which of ours; repeatable."),
]
NoiseNats = Annotated[
    float | None,
    typer.Option("--noise", metavar="NATS",
                 help="Standard deviation between seeds that intervals assume; needed where rows have no seeds."),
]  # fmt: skip
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="NAME=VALUE", help="Only rows with that value in that column; repeatable."),
]
Settings = Annotated[
    str | None,
    typer.Option("--settings", metavar="NAMES", help="Columns that are settings, comma-separated.",
                 show_default="every column without another meaning"),
]  # fmt: skip
STORES = (".db", ".sqlite", ".sqlite3")
FIELDS = ("optimizer", "size", "params", "tokens", "seed", "step", "horizon_tokens")  # of a run, beside its settings


def read_table(path: str, columns: Sequence[str] | None, required: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a table with the columns that are required.

    Raises   UsageError naming the line of a bad row, or the column that is missing
    """
    from muonlab.records.tables import read_rows

    named = {}
    for text in columns or ():
        ours, equals, theirs = text.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise UsageError(f"--column wants OURS=THEIRS, such as loss=eval/loss, got {text!r}")
        if ours.strip() in named or theirs.strip() in named.values():
            raise UsageError(f"--column {text}: {ours if ours.strip() in named else theirs} is named twice")
        named[ours.strip()] = theirs.strip()
    rows = read_rows(path, named, required)
    if not rows:
        raise UsageError(f"{path} has no rows")
    return rows


def read_runs(source: str, columns: Sequence[str] | None, required: Sequence[str]) -> tuple["Run", ...]:
    """The runs of a table, or those of a store.

    Raises   UsageError naming the line of a bad row, or the column that is missing
    """
    from muonlab.analyze import runs

    if "://" not in source and Path(source).suffix not in STORES:
        return runs.from_rows(read_table(source, columns, required), source)
    from muonlab.records.store import Store

    with Store(source, read_only=True) as store:
        found = runs.from_records(store.get(row.key for row in store.list(limit=None)).values())
    if not found:
        raise UsageError(f"{source} holds no finished runs")
    return found


def chosen(runs: Sequence["Run"], where: Sequence[str] | None, settings: str | None = None) -> list["Run"]:
    """The runs with the values that --where asks for, and of their settings those that --settings names.

    Raises   UsageError for a column that is not there or asked for two values, or where nothing is left
    """
    kept = list(runs)
    known = set().union(*(run.settings for run in runs))
    valid = {*FIELDS, *known}.union(*(run.labels for run in runs))
    for name, value in _asked(where).items():
        if name not in valid:
            raise unknown("column", name, valid)
        values = {str(_value(run, name)) for run in kept}
        kept = [run for run in kept if _is(_value(run, name), value)]
        if not kept:
            raise UsageError(f"no row has {name}={value}: there are {', '.join(sorted(values)[:8])}")
    named = names(settings)
    if named is None:
        return kept
    for name in named:
        if name not in known:
            raise unknown("column", name, known)
    return [replace(run, settings={n: v for n, v in run.settings.items() if n in named}) for run in kept]


def _asked(where: Sequence[str] | None) -> dict[str, Any]:
    from muonlab.study.config import parse_setting

    asked: dict[str, Any] = {}
    for name, value in (parse_setting(text, "--where") for text in where or ()):
        if asked.setdefault(name, value) != value:
            raise UsageError(f"--where asks for {name}={asked[name]} and {name}={value}: no row has both")
    return asked


def _is(found: Any, asked: Any) -> bool:
    """Whether a value is the one that was typed, which TOML may have read as a number."""
    if isinstance(asked, float) and isinstance(found, str):
        return found == str(asked) or found == f"{asked:g}"
    return bool(found == asked) or str(found) == str(asked)


def _value(run: "Run", name: str) -> Any:
    return getattr(run, name) if name in FIELDS else run.settings.get(name, run.labels.get(name))
