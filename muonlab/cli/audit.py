"""audit: what a reviewer would object to in a table of runs."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from muonlab.cli import options as opt
from muonlab.cli.laboratory import print_json
from muonlab.cli.show import print_parts
from muonlab.cli.tables import STORES, Baseline, Column, Runs, Settings, Where, chosen, read_table
from muonlab.errors import UsageError

__all__ = ["audit"]


def audit(
    source: Runs,
    baseline: Baseline = "adamw",
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
            help="Standard deviation between seeds.",
            show_default="as measured, else 0.003",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings too.")] = False,
    where: Where = None,
    settings: Settings = None,
    column: Column = None,
    json: opt.Json = False,
) -> None:
    """What a reviewer would object to in a comparison of optimizers; exits with 1 if there is an error.

    Columns: optimizer, tokens, loss, and size or params. Optional: seed, step, horizon_tokens; every other column is a
    setting. Or a table of ablations: optimizer, size, chinchilla (or tokens), hyperparameter, value, loss.
    """  # fmt: skip
    from muonlab.analyze.audit import audit as audited
    from muonlab.analyze.audit import from_store, from_table
    from muonlab.analyze.cells import choose_baseline
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
    if evidence.is_ablation and settings is not None:
        raise UsageError("--settings goes with a table of runs: ablations name theirs in the column hyperparameter")
    evidence = replace(evidence, rows=tuple(chosen(evidence.rows, where, settings)))
    if len({run.optimizer for run in evidence.rows}) > 1:  # without a baseline half of the rules would pass unseen
        choose_baseline(baseline, [rows[-1] for rows in evidence.histories])
    found = audited(evidence)
    if json:
        print_json(found.to_dict())
    else:
        print_parts(audit_table(found))
    if not found.is_clean(strict=strict):
        raise typer.Exit(1)
