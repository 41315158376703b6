"""bench: how fast, how exact and how hungry the optimizers are on this machine, beside the installed peers."""

import os
from collections.abc import Sequence
from json import dumps, loads
from pathlib import Path
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import check_out, names, refuse_flags
from muonlab.cli.bench_text import ALL, bytes_text, print_by_set, say, table
from muonlab.cli.laboratory import print_json, resolve_device, users_code
from muonlab.cli.simulate import show as show_simulation
from muonlab.cli.simulate import simulated
from muonlab.errors import UsageError
from muonlab.records.record import json_text

__all__ = ["bench"]

OF_MEASURING = ("peers", "methods", "rounds", "batch_tokens", "ranks")


def bench(
    context: typer.Context,
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
    simulate: Annotated[
        str | None,
        typer.Option(metavar="NAME=VALUE,...",
                     help="Predict steps over ranks instead: how many, and what is known of the machine, e.g. "
                     "world=8..4096,flops=400T, bandwidth=50GB/s,latency=20us."),
    ] = None,
    matrices: Annotated[
        str | None,
        typer.Option(metavar="N*RxC,...", help="With --simulate: your own matrices, e.g. 32*4096x4096,64*11008x4096."),
    ] = None,
    device: opt.Device = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the JSON document there too.")] = None,
    json: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:  # fmt: skip
    """Time optimizer steps against the installed peers: ratios to torch.optim, memory, distance from U V^T."""
    if out:
        check_out(out)
    if simulate is None:
        refuse_flags(context, ("matrices",), "no effect without --simulate")
    else:
        refuse_flags(context, OF_MEASURING, "no effect with --simulate")
    if matrices is not None:
        refuse_flags(context, ("sets", "full"), "no effect with --matrices")
    resolved = resolve_device(device or "auto")
    show = _show
    with users_code():  # also peers print
        if simulate is not None:
            show = show_simulation
            document = simulated(simulate, names(sets) or (), matrices, full, threads, resolved, not no_progress)
        else:
            document = _measure(
                names(sets) or (), names(peers) or (), names(methods) or (), full, threads, not no_progress,
                num_rounds=rounds, batch_tokens=batch_tokens, num_ranks=ranks, device=resolved,
            )  # fmt: skip
    if out:
        out.write_text(dumps(loads(json_text(document)), indent=1) + "\n")  # lines, for whoever compares two
    if json:
        return print_json(document)
    show(document)


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
    document = run(plan, say if show_progress else lambda text: None)
    machine = {
        "device": plan.conditions.device,
        "cpu": environment("cpu")["machine"],
        "cores": os.cpu_count(),
        **environment(plan.conditions.device),
    }
    return {**document, "machine": machine | document["machine"]}


def _show(document: dict[str, Any]) -> None:
    """A table per set, at most 100 columns wide, then what the columns mean and what went wrong."""
    machine = document["machine"]
    heading = f"{machine['machine']}, {machine['threads']} threads, torch {machine['torch']}"
    print_by_set(heading, document["rows"], _table, _notes(document))


def _table(rows: list[dict[str, Any]]) -> Any:
    from muonlab.report.text import plural, show

    first = rows[0]
    found = table(
        f"{first['set']}: {plural(first['num_matrices'], 'tensor')}, {show(first['num_parameters'], 'tokens')} "
        f"parameters, {plural(max(row['num_rounds'] for row in rows), 'round')}"
    )
    found.add_column("optimizer", overflow="fold")
    cells = [_cells(row) for row in rows]
    headings = [name for name in cells[0] if any(row[name] != "-" for row in cells)]
    for heading in headings:
        found.add_column(heading, justify="right", no_wrap=True)
    for row, values in zip(rows, cells, strict=True):
        found.add_row(_label(row), *(values[name] for name in headings))
    return found


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
        "extra": bytes_text(row["peak_bytes"]),
        "state": f"{row['state_bytes_per_weight']:.3g} B",
    }


def _label(row: dict[str, Any]) -> str:
    """The class, and which method where it has several.

    >>> _label({"optimizer": "muonlab.Muon", "config": "nesterov=True, polar=gram"})
    'muonlab.Muon gram'
    """
    _, _, method = row["config"].partition("polar=")
    return f"{row['optimizer']} {method}".strip()


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
