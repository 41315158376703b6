"""audit: what a reviewer would object to in a table of runs."""

from pathlib import Path
from typing import Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli.laboratory import print_json
from muonlab.cli.show import print_parts
from muonlab.cli.tables import STORES, Column, Runs, read_table
from muonlab.errors import UsageError, unknown

__all__ = ["audit"]


def audit(
    source: Runs,
    baseline: Annotated[
        str, typer.Option("--baseline", help="The optimizer that all others are measured by.")
    ] = "adamw",
    tuned: Annotated[
        list[str] | None,
        typer.Option(
            "--tuned", metavar="FILE.csv", help="Of ablations: settings or losses of the tuned points; repeatable."
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            "--noise",
            metavar="NATS",
            min=0.0,
            help="Standard deviation between seeds.",
            show_default="as measured, else 0.003",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    column: Column = None,
    json: opt.Json = False,
) -> None:
    """What a reviewer would object to in a comparison of optimizers; exits with 1 if there is an error.

    Columns: optimizer, tokens, loss, and size or params. Optional: seed, step, horizon_tokens; every other column is a
    setting. Or a table of ablations: optimizer, size, chinchilla (or tokens), hyperparameter, value, loss.
    """  # fmt: skip
    from muonlab.analyze.audit import audit as audited
    from muonlab.analyze.audit import from_store, from_table
    from muonlab.report.audit import audit_table

    if "://" in source or Path(source).suffix in STORES:
        from muonlab.records.store import Store

        if tuned:
            raise UsageError("--tuned goes with a table of ablations, not with a store")
        with Store(source, read_only=True) as store:
            records = store.get(row.key for row in store.list(limit=None)).values()
        evidence = from_store(records, baseline=baseline, noise_nats=noise)
        if not evidence.rows:
            raise UsageError(f"{source} holds no finished runs")
    else:
        points = [
            {**row, "line": f"{Path(path).name}:{row['line']}"}
            for path in tuned or ()
            for row in read_table(path, None, ("optimizer",))
        ]
        rows = read_table(source, column, ("optimizer", "loss"))
        evidence = from_table(rows, source, points, baseline=baseline, noise_nats=noise)
    names = {row.run.optimizer for row in evidence.rows}
    if baseline not in names and len(names) > 1:  # without it half of the rules would pass unseen
        raise unknown("baseline", baseline, names)
    if len(names) > 1 and all(row.run.loss is None for row in evidence.rows if row.run.optimizer == baseline):
        raise UsageError(f"every run of the baseline {baseline} diverged: there is nothing to measure the others by")
    found = audited(evidence)
    if json:
        print_json(found.to_dict())
    else:
        print_parts(audit_table(found))
    if not found.is_clean(strict=strict):
        raise typer.Exit(1)
