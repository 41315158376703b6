"""Which way to the polar factor is the fastest that is close enough: the table behind polar="auto".

    python benchmarks/polar.py --out benchmarks/results/polar.json --table muonlab/kernels/routes.json

Times are CPU seconds of one thread, medians, all routes interleaved in one process: a busy neighbour disturbs them
little. Ratios, not seconds, are what they are for.
A route may enter the table only if on every spectrum its error is at most that of five Jordan steps in bfloat16.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from muonlab.kernels.coefficients import JORDAN
from muonlab.kernels.polar import polar, polar_each
from muonlab.kernels.routes import Route
from muonlab.train.environment import environment

REFERENCE = "newton_schulz:jordan:5:bfloat16"
CANDIDATES = (
    REFERENCE,
    "newton_schulz:jordan:5:float32",
    "newton_schulz:polar_express:5:bfloat16",
    "gram:jordan:5:float32",
    "gram:polar_express:5:float32",
    "rational:1:float32",
    "rational:2:float32",
    "rational:3:float32",
    "rational:4:float32",
)
SIDES = {16: 16, 32: 16, 64: 8, 96: 8, 128: 8, 256: 4, 512: 2, 768: 1}  # shorter side: matrices at a time
ASPECTS = (1, 4, 16)
MAX_ELEMENTS = 2**22
SETS = {
    "d64": [(4, 192, 64), (4, 64, 64), (4, 256, 64), (4, 64, 256)],
    "d128": [(6, 384, 128), (6, 128, 128), (6, 512, 128), (6, 128, 512)],
    "tall": [(4, 4096, 256)],
    "gpt2-small": [(1, 2304, 768), (1, 768, 768), (1, 3072, 768), (1, 768, 3072)],
}
ERROR_SIDES = (16, 32, 64, 128, 256, 512)
TIE = 1.05  # of two routes as close as that in time, the one with the smaller error


def call(description: str, xs: list[Tensor]) -> list[Tensor]:
    route = Route.parse(description)
    return polar_each(
        xs,
        method=route.method,
        coefficients=route.coefficients or JORDAN,
        num_poles=route.num_poles or 3,
        dtype=route.dtype,
    )


def torch_muon(xs: list[Tensor]) -> list[Tensor]:
    """What torch.optim.Muon 2.13 does with each matrix, written out."""
    a, b, c = JORDAN.steps[0]
    results = []
    for x in (matrix for stack in xs for matrix in stack):
        o = x.bfloat16()
        o = o.T if len(o) > o.shape[1] else o
        o = o / o.norm().clamp(min=1e-7)
        for _ in range(JORDAN.num_steps):
            gram = o @ o.T
            o = torch.addmm(o, torch.addmm(gram, gram, gram, beta=b, alpha=c), o, beta=a)
        results.append(o.T if len(x) > x.shape[1] else o)
    return results


def spectra(k: int) -> dict[str, Tensor]:
    index = torch.arange(1, k + 1, dtype=torch.float64)
    return {
        "gaussian": torch.linalg.svdvals(torch.randn(k, k, dtype=torch.float64)),
        "power law 1e3": index ** (-3 / torch.log10(index[-1])),
        "log-uniform 1e3": torch.logspace(0, -3, k, dtype=torch.float64),
        "log-uniform 1e6": torch.logspace(0, -6, k, dtype=torch.float64),
    }


def error_rows() -> list[dict[str, Any]]:
    """|O - U V^T|_F / |U V^T|_F of square matrices."""
    rows = []
    for n in ERROR_SIDES:
        for name, values in spectra(n).items():
            left, right = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for _ in range(2))
            x = ((left * values) @ right).float()
            exact = polar(x.double(), method="exact")
            errors = {key: ((call(key, [x])[0] - exact).norm() / exact.norm()).item() for key in CANDIDATES}
            rows.append({"side": n, "spectrum": name, "errors": errors})
    return rows


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first round warms up
        for name, function in calls.items():
            started = time.process_time()
            function()
            times[name].append(time.process_time() - started)
    return {name: median(found[1:]) for name, found in times.items()}


def time_row(shapes: list[tuple[int, int, int]], repeats: int, **labels: Any) -> dict[str, Any]:
    xs = [torch.randn(shape) for shape in shapes]
    calls: dict[str, Callable[[], Any]] = {key: (lambda key=key: call(key, xs)) for key in CANDIDATES}
    calls["torch.optim.Muon"] = lambda: torch_muon(xs)
    calls["auto"] = lambda: polar_each(xs, method="auto")
    row = {**labels, "shapes": shapes, "seconds": interleaved(calls, repeats)}
    base = row["seconds"]["torch.optim.Muon"]
    print(labels, {key: round(value / base, 3) for key, value in row["seconds"].items()}, file=sys.stderr)
    return row


def multiple_of_limit(row: dict[str, Any]) -> float:
    """Seconds of "auto" over those of a fixed amount of arithmetic at the speed of a large float32 product.

    The yardstick is the rational route with two poles: x x^T by symmetry, two inverses, and their product with x.
    """
    square = torch.randn(1024, 1024)
    peak = 2 * 1024**3 / interleaved({"mm": lambda: square @ square}, 9)["mm"]
    flop = 0
    for count, *shape in row["shapes"]:
        short, long = sorted(shape)
        flop += count * (3 * short**2 * long + 2 * short**3)
    return row["seconds"]["auto"] / (flop / peak)


def table(grid: list[dict[str, Any]], errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One route per shorter side, whatever the aspect: stacks share the work on that side only if they go one way."""
    allowed = [key for key in CANDIDATES if all(row["errors"][key] <= row["errors"][REFERENCE] for row in errors)]
    error = {key: sum(row["errors"][key] for row in errors) for key in allowed}
    rows: list[dict[str, Any]] = []
    for side in SIDES:
        aspects = [row["seconds"] for row in grid if row["side"] == side]
        cost = {key: sum(seconds[key] / seconds["torch.optim.Muon"] for seconds in aspects) for key in allowed}
        bound = TIE * min(cost.values())
        route = min((key for key in allowed if cost[key] <= bound), key=error.get)
        if rows and rows[-1]["route"] == route:
            rows.pop()
        rows.append({"short_max": side, "route": route})
    rows[-1]["short_max"] = None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="all figures")
    parser.add_argument("--table", type=Path, help="where the table of routes goes")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    errors = error_rows()
    grid = [
        time_row([(count, n, n * aspect)], arguments.repeats, side=n, aspect=aspect)
        for n, count in SIDES.items()
        for aspect in ASPECTS
        if count * n * n * aspect <= MAX_ELEMENTS
    ]
    if arguments.table:
        arguments.table.write_text(json.dumps({"cpu": table(grid, errors)}, indent=1) + "\n")
    sets = [time_row(shapes, arguments.repeats, set=name) for name, shapes in SETS.items()]
    for row in sets:
        row["multiple_of_limit"] = multiple_of_limit(row)
    document = {"environment": environment("cpu"), "system": platform.platform(), "threads": 1}
    document |= {"errors": errors, "grid": grid, "sets": sets}
    text = json.dumps(document, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
