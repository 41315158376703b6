"""What sharding costs on this machine, measured over gloo, and what `muonlab bench --simulate` predicts of it.

    python benchmarks/sharding.py --out benchmarks/results/sharding.json

For 2, 3 and 4 ranks: a stack of matrices under FSDP2 and under DDP, stepped by several optimizers in
interleaved rounds. The constants of the prediction are those of separate small measurements, which take their turn in
the same rounds: products of matrices on all ranks at a time, and all-to-alls with and without content. A time is that
of the slowest rank. In d256, the matrices of a decoder, products are nearly everything; in d16 latency, and what the
model leaves out; in thin, bytes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from muonlab.train.environment import environment

RANK = Path(__file__).with_name("sharding_rank.py")


def spawned(world: int, num_rounds: int, stacks: str, folder: str) -> dict[str, Any]:
    """What the first of so many ranks wrote."""
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    children = [
        subprocess.Popen([sys.executable, RANK, str(rank), str(world), str(num_rounds), stacks, folder], env=quiet)
        for rank in range(world)
    ]
    codes = [child.wait() for child in children]
    if any(codes):
        raise SystemExit(f"a rank of {world} failed")
    return json.loads((Path(folder) / f"{world}.json").read_text())


def show(found: dict[str, Any]) -> None:
    for (num_ranks, stack), rows in groupby(found["rows"], key=lambda row: (row["num_ranks"], row["stack"])):
        of_these = list(rows)
        flops, bandwidth, latency = of_these[0]["constants"].values()
        print(
            f"\n{num_ranks} ranks, {stack}: {flops / 1e9:.0f} Gflops, {bandwidth / 1e6:.0f} MB/s, "
            f"{latency * 1e6:.0f} us a collective\n"
            f"{'':35s} {'ms':>7s} {'quartiles':>15s} {'of torch':>8s} {'predicted':>9s} {'error':>6s} {'colls':>5s} "
            f"{'MB sent':>7s}"
        )
        for row in of_these:
            median, low, high = (f"{row['seconds'][k] * 1e3:.1f}" for k in ("median", "low", "high"))
            print(
                f"{row['optimizer']:35s} {median:>7s} {low + '-' + high:>15s} {row['ratio_to_torch']['median']:8.2f} "
                f"{row['predicted']['seconds'] * 1e3:9.1f} {row['relative_error']:+6.0%} {row['num_collectives']:5d} "
                f"{row['sent_bytes'] / 1e6:7.2f}"
            )
    for row in found["layouts"]:
        result = row.get("raised") or f"{row['num_collectives']} collectives"
        print(f"{row['layout']:28s} {row['optimizer']:17s} {result[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stacks", default="d16,d256,thin")
    parser.add_argument("--worlds", default="2,3,4")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows, layouts = [], []
    with tempfile.TemporaryDirectory() as folder:
        for world in options.worlds.split(","):
            found = spawned(int(world), options.rounds, options.stacks, folder)
            show(found)
            rows += found["rows"]
            layouts += found["layouts"]
    machine = environment("cpu") | {"threads": 1, "cores": os.cpu_count(), "platform": platform.platform()}
    document = {
        "machine": machine | {"backend": "gloo", "load_before": load, "load_after": os.getloadavg()[0]},
        "rows": rows,
        "layouts": layouts,
    }
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
