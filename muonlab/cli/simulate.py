"""bench --simulate: predicted step times over numbers of ranks, by design."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from muonlab.cli.bench_text import ALL, bytes_text, print_by_set, say, table
from muonlab.errors import UsageError

__all__ = ["show", "simulated"]

DESIGNS = {
    "owner": "muonlab on FSDP2: momentum on shards, directions to owners and back",
    "weights": "the same of rules that need gradient and weight",
    "all-gather": "every rank gathers and orthogonalises every matrix",
    "per matrix": "torch.optim.Muon on FSDP2",
    "DDP owner": "muonlab given the DDP module: new weights travel from owners",
    "DDP repeated": "every rank makes the whole step",
}


def simulated(
    typed: str, sets: Sequence[str], matrices: str | None, full: bool, threads: int | None, device: str,
    show_progress: bool,
) -> dict[str, Any]:  # fmt: skip
    """The document; what of the machine was not typed is measured or assumed.

    Raises   UsageError for what cannot be read, and for sets that are not for Muon
    """
    from muonlab.bench.sets import SETS, find_set
    from muonlab.bench.simulate import ASSUMED, Machine, simulate
    from muonlab.bench.typed import parse_matrices, parse_simulation

    worlds, given = parse_simulation(typed)
    if matrices is not None:
        chosen = [parse_matrices(matrices)]
    else:
        found = [find_set(name) for name in (SETS if sets == (ALL,) else sets)]
        chosen = [one.whole if full else one for one in found if one.rule == "muon"]
        if not chosen or (sets != (ALL,) and len(chosen) < len(found)):
            known = ", ".join(name for name, one in SETS.items() if one.rule == "muon")
            raise UsageError(f"--simulate is for sets of Muon: write some of {known}, or {ALL}")
    measured = {} if "flops_per_second" in given else {"flops_per_second": _flops(device, threads, show_progress)}
    constants = {**ASSUMED, **measured, **given}
    sources = dict.fromkeys(ASSUMED, "assumed") | dict.fromkeys(measured, "measured") | dict.fromkeys(given, "given")
    return simulate(chosen, worlds, Machine(**constants), sources)


def _flops(device: str, threads: int | None, show_progress: bool) -> float:
    """Of this machine; a processor that lacks bfloat16 converts to float32."""
    from muonlab.bench.limits import matmul_flops_per_second

    if threads:
        import torch

        torch.set_num_threads(threads)
    if show_progress:
        say("products of matrices, for the arithmetic limit")
    return max(matmul_flops_per_second(dtype, device) for dtype in ("bfloat16", "float32"))


def show(document: dict[str, Any]) -> None:
    """What is assumed, a table per set, at most 80 columns wide, and what the columns mean."""
    print_by_set(_constants(document), document["rows"], _table, _notes(document))


def _constants(document: dict[str, Any]) -> str:
    from muonlab.report.text import show as text

    found = {name: (one["value"], one["source"]) for name, one in document["constants"].items()}
    flops, bandwidth, latency = (found[name] for name in ("flops_per_second", "bytes_per_second", "latency_seconds"))
    return (
        "Predicted, not measured. For each rank "
        f"{flops[0] / 1e12:.3g} Tflops ({flops[1]}), {bandwidth[0] / 1e9:.3g} GB/s ({bandwidth[1]}), "
        f"{text(latency[0], 'seconds')} a collective ({latency[1]}); {document['algorithm']}; "
        f"parameters in {document['dtype']}."
    )


def _table(rows: list[dict[str, Any]]) -> Any:
    from muonlab.report.text import plural
    from muonlab.report.text import show as text

    first = rows[0]
    found = table(
        f"{first['set']}: {plural(first['num_matrices'], 'tensor')}, {text(first['num_parameters'], 'tokens')} "
        f"parameters, at most {text(first['ranks_that_help'], 'ratio')} by owners"
    )
    for heading in ("ranks", "design", "step", "serial", "bound by", "sent", "colls", "state"):
        found.add_column(heading, justify="left" if heading in ("design", "bound by") else "right", no_wrap=True)
    for num_ranks, group in groupby(rows, key=lambda row: row["num_ranks"]):
        for i, row in enumerate(group):
            found.add_row("" if i else f"{num_ranks:,}", *_cells(row), end_section=i + 1 == len(DESIGNS))
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    from muonlab.report.text import show as text

    bound = "raises"
    if row["bound"]:
        bound = f"{row['bound']} {row[row['bound'] + '_seconds'] / row['seconds']:.0%}"
    return [
        row["design"],
        text(row["seconds"], "seconds"),
        text(row["serial_seconds"], "seconds"),
        bound,
        bytes_text(row["sent_bytes"]),
        f"{row['num_collectives']:,}",
        bytes_text(row["state_bytes"]),
    ]


def _notes(document: dict[str, Any]) -> list[str]:
    raises = any(row["seconds"] is None for row in document["rows"])
    return [
        "step: with as many exchanges under way as the optimizer has; serial: one thing after the other; bound by: the "
        "largest of compute, latency, transfer and waiting for other owners, over the step; sent, state: bytes of "
        "the rank that has most; colls: collectives; at most by owners: all products over those of the dearest tensor, "
        "which is what more ranks cannot exceed. The model is in docs/bench.md.",
        *(f"{name}: {text}" for name, text in DESIGNS.items()),
        *(["raises: on a matrix with fewer rows than there are ranks"] if raises else []),
    ]
