"""Showing what a study gave: a table or JSON on stdout, a page in a file."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from muonlab.cli.laboratory import Laboratory, print_json, users_code
from muonlab.errors import UsageError

__all__ = ["print_parts", "show_finding", "show_price", "show_record", "show_tuning"]

RUN_SECONDS = 0.1  # a run's process and the reading of its data, beside the training (benchmarks/overhead.py)


def print_parts(parts: Any) -> None:
    """Print what a report module gave."""
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part)


def show_record(record: Any, json: bool, **more: Any) -> None:
    from muonlab.report.coordinates import probe_table
    from muonlab.report.tables import record_table

    if json:
        return print_json({**record.to_dict(), **more})
    print_parts([*record_table(record), *probe_table(record)])


def show_finding(
    kind: str, finding: Any, executed: int, out: Path, created: str, command: str, json: bool, **more: Any
) -> None:
    """The page in a file, and the finding as tables or as one JSON document with `more` on top."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it has much to say of a HOME that can't be written
    from muonlab.report import page

    render, tables, document = _shown(kind)
    page.write(out, render(finding, created=created, command=command))
    if json:
        return print_json({**more, "runs_executed": executed, "report": str(out), **document(finding)})
    print_parts(tables(finding))
    print(f"\n{executed} runs executed. Report: {out}")


def _shown(kind: str) -> tuple[Callable[..., str], Callable[[Any], Any], Callable[[Any], dict[str, Any]]]:
    """What makes a page, tables and a document of the finding of a study of that kind."""
    from muonlab.report import (
        batch,
        batch_page,
        features,
        features_page,
        ladder,
        ladder_page,
        page,
        tables,
        transfer,
        transfer_page,
    )

    return {
        "comparison": (page.render, tables.comparison_table, _summary),
        "ladder": (ladder_page.render, ladder.ladder_table, asdict),
        "batch": (batch_page.render, batch.batch_table, _batch),
        "features": (features_page.render, features.features_table, asdict),
        "transfer": (transfer_page.render, transfer.transfer_table, _transfer),
    }[kind]


def _transfer(finding: Any) -> dict[str, Any]:
    """With the documented keys of a transfer study, each with an entry for every arm."""
    drifts: dict[str, dict[str, Any]] = {arm.name: {} for arm in finding.arms}
    for one in finding.drifts:
        drifts[one.arm][one.hyperparameter] = asdict(one)
    return asdict(finding) | {
        "best": {arm.name: dict(arm.best) for arm in finding.arms},
        "drift": drifts,
        "slopes": {one.arm: asdict(one) for one in finding.slopes},
    }


def _batch(finding: Any) -> dict[str, Any]:
    """With critical batches by optimizer, at the hardest target that all reached."""
    estimators = ("overhead", "doubling", "sfo", "noise_scale", "nuclear_noise_scale")
    own = [one for one in finding.critical if one.target == finding.hardest]
    critical = {one.optimizer: {"target": one.target} | {e: asdict(getattr(one, e)) for e in estimators} for one in own}
    return asdict(finding) | {"critical_batch": critical}


def _summary(finding: Any) -> dict[str, Any]:
    """The documented keys of `--json`, from the finding's fields alone."""
    optimizers = {
        name: {
            key: getattr(f, key)
            for key in ("optimizer", "fixed", "loss_mean", "loss_std", "num_seeds", "num_diverged", "wall_seconds",
                        "hyperparameters", "tuning_runs", "tuning_tokens", "converged")
        }
        for name, f in finding.optimizers.items()
    }  # fmt: skip
    document = finding.to_dict()
    return {
        "verdict": finding.verdict,
        "optimizers": optimizers,
        "speedup": document["speedup"],
        "contrasts": document["contrasts"],
        "paired": document["paired"],
        "checks": document["checks"],
        "num_runs": finding.num_runs,
        "total_tokens": finding.total_tokens,
    }


def show_tuning(result: Any, records: Any, starts: Any, json: bool) -> None:
    chosen = next(trial for trial in result.trials if dict(trial.settings) == dict(result.best))
    losses = [records[key].final_loss for key in chosen.keys]
    loss = sum(losses) / len(losses) if losses and None not in losses else None
    if json:
        moves = [asdict(move) for move in result.moves]
        return print_json(
            {"best": dict(result.best), "loss": loss, "num_runs": result.num_runs, "tokens": result.tokens,
             "converged": result.converged, "edges": list(result.edges), "starts": starts, "trajectory": moves}
        )  # fmt: skip
    from muonlab.report.tables import tuning_table

    print_parts(tuning_table(result, loss, starts=starts))


def show_price(price: Any, laboratory: Laboratory, json: bool, *, is_done: bool = False) -> None:
    """What a study takes from an empty store on, by the time of a few steps of each kind of run."""
    from muonlab.train.price import estimate_seconds, look_seconds

    num_workers, at_once = laboratory.num_workers, laboratory.num_at_once
    try:
        with users_code():
            rates = [estimate_seconds(part.spec) / part.spec.horizon_tokens / at_once for part in price.parts]
            looks = price.looks.number * look_seconds(price.looks.spec) / at_once if price.looks else 0.0
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"a trial of a few steps failed: {type(error).__name__}: {error}") from error
    document = {
        "runs": {"least": price.least_runs, "most": price.most_runs},
        "tokens": {"least": int(price.least_tokens), "most": int(price.most_tokens)},
        "seconds": {
            "least": _seconds(rates, [p.least_tokens for p in price.parts], price.least_runs, at_once, looks),
            "most": _seconds(rates, [p.most_tokens for p in price.parts], price.most_runs, at_once, looks),
        },
        "workers": num_workers,
        "is_done": is_done,
    }
    if price.looks:
        document["looks"] = {"number": price.looks.number, "seconds": round(looks)}
    if price.check:
        parts, runs = price.check.parts, price.check.least_runs
        seconds = _seconds(rates[: len(parts)], [part.least_tokens for part in parts], runs, at_once)
        tokens = int(price.check.least_tokens)
        document["coordinate_check"] = {"runs": runs, "tokens": tokens, "seconds": seconds}
    if json:
        return print_json(document)
    if is_done:
        print("The store has this study: the command would run nothing. From an empty store on it would take:")
    for name, text in (("runs", "{:,}"), ("tokens", "{:,}"), ("time", "")):
        ends = document.get(name) or document["seconds"]
        least, most = (text.format(x) if text else _duration(x) for x in (ends["least"], ends["most"]))
        print(f"{name:8} {least:>16} to at most {most}" + (f", with {num_workers} workers" if not text else ""))
    if price.check:
        print(f"Of that, the coordinate check: {runs:,} runs, {tokens:,} tokens, {_duration(seconds)}.")
    if price.looks:
        print(f"Of that, {price.looks.number:,} looks at layers and at corrupted inputs: {_duration(looks)}.")
    print("The first figure is a tuning without extended grids or added seeds.")
    if not is_done:
        print("What the store has is not run.")


def _seconds(rates: Sequence[float], tokens: Sequence[float], num_runs: int, at_once: int, looks: float = 0.0) -> int:
    training = sum(rate * count for rate, count in zip(rates, tokens, strict=True))
    return round(training + looks + num_runs * RUN_SECONDS / at_once)


def _duration(seconds: float) -> str:
    """Two units at most.

    >>> _duration(95), _duration(200_000)
    ('1 min 35 s', '2 d 7 h')
    """
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next((i for i, (_, size) in enumerate(units) if seconds >= size), len(units) - 1)
    parts = []
    for name, size in units[first : first + 2]:
        whole, seconds = divmod(round(seconds), size)
        parts.append(f"{whole} {name}")
    return " ".join(parts)
