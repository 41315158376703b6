"""runs list, show, export, import and rm: the store."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli.laboratory import print_json
from muonlab.cli.show import show_record
from muonlab.errors import UsageError, unknown

if TYPE_CHECKING:
    from muonlab.records.store import Store

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The runs in the store: list, show, export, import, rm.")

Limit = Annotated[int, typer.Option(min=1, help="How many, newest first.")]
Key = Annotated[str, typer.Argument(help="Key of a run, or its beginning.")]
FORMATS = (".jsonl", ".csv")


@app.command("list")
def list_runs(
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Only this optimizer.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only ok, diverged or failed.")] = None,
    limit: Limit = 50,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    json: opt.Json = False,
) -> None:
    """List runs, newest first."""
    if outcome not in (None, "ok", "diverged", "failed"):
        raise unknown("outcome", outcome, ("ok", "diverged", "failed"))
    with _existing(store) as opened:
        rows = [asdict(row) for row in opened.list(task, optimizer, outcome, limit)]
        total = opened.count()
    if json:
        return print_json({"runs": rows, "total": total})
    from rich.console import Console

    from muonlab.report.tables import runs_table

    Console().print(runs_table(rows))
    print(f"{len(rows)} of {total} runs in {store}")


@app.command("show")
def show(key: Key, store: opt.StoreUrl = opt.DEFAULT_STORE, json: opt.Json = False) -> None:
    """Show one run."""
    with _existing(store) as opened:
        record = opened.find(key)
    show_record(record, json)


@app.command("export")
def export(
    path: Annotated[Path, typer.Argument(help="FILE.jsonl (whole records) or FILE.csv (a row per run).")],
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Only this optimizer.")] = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
) -> None:
    """Write runs to a file."""
    from muonlab.records.importers import export_jsonl
    from muonlab.records.tables import export_csv

    if path.suffix not in FORMATS:
        raise UsageError(f"cannot export to {path}: its name must end with {' or '.join(FORMATS)}")
    with _existing(store) as opened:
        records = opened.get([row.key for row in opened.list(task, optimizer)]).values()
    (export_jsonl if path.suffix == ".jsonl" else export_csv)(records, path)
    print(f"{len(records)} runs written to {path}")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="FILE.jsonl, as written by export.")],
    store: opt.StoreUrl = opt.DEFAULT_STORE,
) -> None:
    """Add the runs of a file to the store; what is there already stays."""
    from muonlab.records.importers import import_jsonl
    from muonlab.records.store import Store

    records = import_jsonl(path)
    with Store(store) as opened:
        added = sum(opened.put(record) for record in records)
    print(f"{added} of {len(records)} runs added to {store}")


@app.command("rm")
def remove(
    keys: Annotated[list[str], typer.Argument(help="Keys of runs, or their beginnings.")],
    store: opt.StoreUrl = opt.DEFAULT_STORE,
) -> None:
    """Forget runs: a study that needs them runs them again."""
    with _existing(store) as opened:
        removed = opened.remove([opened.find(key).key for key in keys])
    print(f"{removed} runs removed from {store}")


def _existing(url: str) -> "Store":
    """The store, which must exist: looking at runs makes no new file."""
    from muonlab.records.store import Store

    if "://" not in url and not Path(url).exists():
        raise UsageError(f"there is no store {url}: run a study first, or name another with --store")
    return Store(url)
