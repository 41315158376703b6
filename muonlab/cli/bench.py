"""bench: how fast, how exact and how hungry the optimizers are on this machine, beside the installed peers."""

import os
import sys
from collections.abc import Sequence
from json import dumps, loads
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import check_out, names
from muonlab.cli.laboratory import print_json, resolve_device, users_code
from muonlab.errors import UsageError
from muonlab.records.record import json_text

__all__ = ["bench"]

ALL = "all"
WIDTH = 100  # where nobody looks on


def bench(
    sets: Annotated[str, typer.Option(metavar="NAMES", help="Parameter sets, comma-separated.")] = ALL,
    peers: Annotated[str, typer.Option(metavar="NAMES", help="Peers beside torch.optim.Muon, or none.")] = ALL,
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="Polar factors of muonlab.Muon.")
    ] = "newton_schulz,auto",
    full: Annotated[bool, typer.Option("--full", help="Whole models: all 12 layers, all embeddings.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each optimizer takes its turn.")] = 15,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the training step that shares are of.")] = 2048,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks that repeat the work, for the overhead in flops.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch.", show_default="torch's own")] = None,
    device: opt.Device = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the JSON document there too.")] = None,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Time optimizer steps against the installed peers: ratios to torch.optim, memory, distance from U V^T."""
    if out:
        check_out(out)
    resolved = resolve_device(device or "auto")
    with users_code():  # also peers print
        document = _measure(
            names(sets) or (), names(peers) or (), names(methods) or (), full, threads, not no_progress,
            num_rounds=rounds, batch_tokens=batch_tokens, num_ranks=ranks, device=resolved,
        )  # fmt: skip
    if out:
        out.write_text(dumps(loads(json_text(document)), indent=1) + "\n")  # lines, for whoever compares two
    if json:
        return print_json(document)
    _show(document)


def _measure(
    sets: Sequence[str], peers: Sequence[str], methods: Sequence[str], full: bool, threads: int | None,
    show_progress: bool, **conditions: Any,
) -> dict[str, Any]:  # fmt: skip
    from muonlab.bench import MUON_PEERS, SETS, Conditions, Plan, find_peer, find_set, ours, run
    from muonlab.train.environment import environment

    if not sets:
        raise UsageError(f"--sets names no set: write some of {', '.join(SETS)}, or {ALL}")
    chosen = [find_set(name) for name in (SETS if sets == (ALL,) else sets)]
    theirs = {ALL: tuple(MUON_PEERS), "none": ()}.get(",".join(peers), peers)
    plan = Plan(
        sets=tuple(found.whole if full else found for found in chosen),
        contenders=(*map(ours, methods), *map(find_peer, theirs)),
        conditions=Conditions(**conditions),
    )
    if threads:
        import torch

        torch.set_num_threads(threads)
    document = run(plan, _say if show_progress else lambda text: None)
    machine = {
        "device": plan.conditions.device,
        "cpu": environment("cpu")["machine"],
        "cores": os.cpu_count(),
        **environment(plan.conditions.device),
    }
    return {**document, "machine": machine | document["machine"]}


def _say(text: str) -> None:
    print(f"muonlab: {text}", file=sys.stderr, flush=True)


def _show(document: dict[str, Any]) -> None:
    """A table per set, at most 100 columns wide, then what the columns mean and what went wrong."""
    from itertools import groupby

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    machine = document["machine"]
    console.print(f"{machine['machine']}, {machine['threads']} threads, torch {machine['torch']}", highlight=False)
    for _, rows in groupby(document["rows"], key=lambda row: row["set"]):
        console.print()
        console.print(_table(list(rows)))
    console.print()
    for text in _notes(document):
        console.print(text, highlight=False, markup=False)


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.table import Table

    from muonlab.report.text import plural, show

    first = rows[0]
    table = Table(
        title=f"{first['set']}: {plural(first['num_matrices'], 'tensor')}, {show(first['num_parameters'], 'tokens')} "
        f"parameters, {plural(max(row['num_rounds'] for row in rows), 'round')}",
        title_justify="left", title_style="bold", header_style="dim", box=box.SIMPLE_HEAD, show_edge=False,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("optimizer", overflow="fold")
    cells = [_cells(row) for row in rows]
    headings = [name for name in cells[0] if any(row[name] != "-" for row in cells)]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row, values in zip(rows, cells, strict=True):
        table.add_row(_label(row), *(values[name] for name in headings))
    return table


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """What a row shows, by heading; a dash for what is undefined."""
    from muonlab.report.text import show

    share = row["share_of_model"]
    return {
        "step": show(row["median_seconds"], "seconds"),
        "of\ntorch": show(row["ratio_to_torch"], "ratio"),
        "quartiles": f"{show(row['ratio_low'], 'bare')}-{show(row['ratio_high'], 'bare')}",
        "of\nlimit": show(row["limit_multiple"], "ratio"),
        "of\nmodel": "-" if share is None else f"{show(100 * share, 'bare')}%",
        "error": _error(row["orthogonality_error"]),
        "cond\n1e3": _error(row["orthogonality_error_loguniform"]),
        "extra": _bytes(row["peak_bytes"]),
        "state": f"{row['state_bytes_per_weight']:.3g} B",
    }


def _label(row: dict[str, Any]) -> str:
    """The class, and which method where it has several.

    >>> _label({"optimizer": "muonlab.Muon", "config": "nesterov=True, polar=gram"})
    'muonlab.Muon gram'
    """
    _, _, method = row["config"].partition("polar=")
    return f"{row['optimizer']} {method}".strip()


def _bytes(count: int) -> str:
    """
    >>> _bytes(12), _bytes(51_200), _bytes(3 * 2**20), _bytes(5 * 2**30)
    ('12 B', '50 KiB', '3 MiB', '5 GiB')
    """
    power = next((power for power in (3, 2, 1) if count >= 1024**power), 0)
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _notes(document: dict[str, Any]) -> list[str]:
    chosen = {_label(r): r["algorithm"] for r in document["rows"] if r["algorithm"]}
    skipped = document["skipped"]
    return [
        "step: median; of torch: median of the ratios of each round to torch.optim's class; of limit: of what the "
        "flops alone would take at the speed of this machine's matrix products; of model: forward and backward pass "
        f"of these matrices with {document['batch_tokens']:,} tokens; error: distance of the applied update from "
        "U V^T, scale fitted, for a Gaussian gradient and one with condition 1e3; extra: memory beside parameters, "
        "gradients and state; state: per weight.",
        *(f"{label}: {algorithm}" for label, algorithm in chosen.items()),
        *(f"skipped {_label(one)} on {one['set'] or 'every set'}: {one['reason']}" for one in skipped),
        *(f"WARNING: {text}" for text in document["warnings"]),
    ]
