"""Symmetric products on a GPU: the vendor's full product against half of the tiles, by size of the tiles.

    python benchmarks/triton_tiles.py --out benchmarks/results/triton_tiles.json

What `_tiles` in muonlab/kernels/triton_symmetric.py says was read off this. Times are of launches back to back, between
device events; medians over rounds that take all candidates in turn.
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from muonlab.kernels import triton_symmetric
from muonlab.kernels.triton_symmetric import Tiles
from muonlab.train.environment import environment

SHAPES = (
    (192, 64, 64), (192, 64, 256), (96, 128, 128), (96, 128, 512), (48, 256, 256), (48, 256, 1024), (24, 512, 512),
    (36, 768, 768), (12, 768, 3072), (24, 1024, 1024), (24, 1024, 4096), (8, 2048, 2048), (8, 2048, 8192),
    (2, 4096, 4096),
)  # fmt: skip
ROUNDS = 7
SECONDS = 0.004  # launches of one turn


def candidates(n: int) -> list[Tiles]:
    found = [(64, depth, 4, stages) for depth, stages in itertools.product((32, 64), (3, 4)) if n <= 1024]
    if n > 64:
        found += [(128, *rest) for rest in itertools.product((32, 64), (4, 8), (3, 4)) if rest != (32, 4, 4)]
    return found


def seconds_each(calls: dict[Any, Any]) -> dict[Any, float]:
    """Medians over rounds; a call that fails (too much shared memory, say) is left out, and said."""
    launches, times = {}, {}
    for name, call in list(calls.items()):
        try:
            for _ in range(3):
                call()
            launches[name] = max(1, min(200, math.ceil(SECONDS / max(elapsed(call, 3), 1e-6))))
            times[name] = []
        except Exception as error:
            print(f"  left out: {name}: {str(error)[:120]}", file=sys.stderr)
    for _ in range(ROUNDS):
        for name, number in launches.items():
            times[name].append(elapsed(calls[name], number))
    return {name: median(values) for name, values in times.items()}


def elapsed(call: Any, number: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(number):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / number / 1e3


def tiled(x: Tensor, tiles: Tiles, **factors: float) -> Tensor:
    return triton_symmetric.symmetric_product(x, x, tiles, **{"alpha": 1.0, "beta": 0.0} | factors)


def row(batch: int, n: int, m: int, dtype: torch.dtype) -> dict[str, Any]:
    x = torch.randn(batch, n, m, device="cuda").div_(m**0.5).to(dtype)
    calls = {"vendor": lambda: torch.bmm(x, x.mT)}
    calls |= {tiles: lambda tiles=tiles: tiled(x, tiles) for tiles in candidates(n)}
    if n == m:
        a = torch.bmm(x, x.mT)
        calls |= {"vendor, added": lambda: torch.baddbmm(a, a, a, beta=-4.775, alpha=2.0315)}
        calls |= {"ours, added": lambda: triton_symmetric.multiply_add(a, alpha=2.0315, beta=-4.775)}
    seconds = seconds_each(calls)
    flops = 2 * batch * n * n * m
    kind = str(dtype).removeprefix("torch.")
    best = min((name for name in seconds if isinstance(name, tuple)), key=seconds.get)
    shares = {
        name: seconds[name] / seconds["vendor"] for name in (best, "vendor, added", "ours, added") if name in seconds
    }
    texts = (f"{name} {share:.2f}" for name, share in shares.items())
    speed = flops / seconds["vendor"] / 1e12
    print(f"{kind:9} {batch:4} x {n:4} x {m:5}  vendor {speed:5.0f} TFLOP/s ", *texts, file=sys.stderr, flush=True)
    return {
        "batch": batch, "n": n, "m": m, "dtype": kind, "flops": flops,
        "seconds": {str(name): value for name, value in seconds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="all figures")
    arguments = parser.parse_args()
    rows = [row(*shape, dtype) for dtype in (torch.bfloat16, torch.float16) for shape in SHAPES]
    document = {"environment": environment("cuda"), "rows": rows}
    text = json.dumps(document, indent=1) + "\n"
    print(text, end="") if arguments.out is None else arguments.out.write_text(text)


if __name__ == "__main__":
    main()
