"""What the verbs on anybody's runs have in common: which file, which column is which, which rows are runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muonlab.errors import UsageError

if TYPE_CHECKING:
    from muonlab.analyze.runs import Run

__all__ = ["Column", "Runs", "Table", "read_runs", "read_table"]

Table = Annotated[str, typer.Argument(metavar="FILE.csv", help="CSV or JSON lines, one run a line; - is stdin.")]
Runs = Annotated[
    str, typer.Argument(metavar="FILE.csv|STORE", help="CSV or JSON lines, one run a line, or a store; - is stdin.")
]
Column = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OURS=THEIRS", help="Which column of the file is which of ours; repeatable."),
]
STORES = (".db", ".sqlite", ".sqlite3")


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
