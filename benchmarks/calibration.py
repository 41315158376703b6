"""How often is the pipeline wrong? Simulated studies with and without a planted speedup.

    python benchmarks/calibration.py --studies 400 --out benchmarks/results/calibration.json

The real protocol, analysis, checks and verdict run on a made-up loss whose noise is that of `make demo`. The figures
belong in docs/calibration.md.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from muonlab.study.calibration import calibrate
from muonlab.study.ladder_calibration import calibrate_ladder

PLANTED = (1.0, 1.1, 1.4)
# Standard deviations between seeds of (baseline, challenger), nats: two noisy optimizers, as AdamW against itself;
# a noisy baseline and a quiet challenger, as AdamW and Muon; two quiet ones.
NOISES = ((0.1, 0.1), (0.05, 0.03), (0.01, 0.01))

# Of a ladder: planted speedup at the smallest size, by which power of the size it falls, noise (nats).
LADDERS = ((1.0, 0.0, 0.03), (1.0, 0.0, 0.01), (1.4, 0.0, 0.03), (1.4, 0.1, 0.01))


def run_ladder(job: tuple[float, float, float, int]) -> dict[str, Any]:
    planted, drift, noise, studies = job
    started = time.perf_counter()
    result = calibrate_ladder(planted, studies, noise=noise, speed_drift=drift).to_dict()
    return {**result, "seconds": round(time.perf_counter() - started, 1)}


def run(job: tuple[float, tuple[float, float], int]) -> dict[str, Any]:
    planted, noises, studies = job
    started = time.perf_counter()
    result = calibrate(planted, studies, noises=noises).to_dict()
    return {**result, "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--ladders", type=int, default=100, help="simulated ladders for each row; 0 = none")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    jobs = [(planted, noises, arguments.studies) for planted in PLANTED for noises in NOISES if arguments.studies]
    rows = []
    with ProcessPoolExecutor(arguments.workers) as pool:
        for row in pool.map(run, jobs):
            rows.append(row)
            print(
                f"planted {row['planted']:.1f}  noise {row['baseline']['noise']:.3f}/{row['challenger']['noise']:.3f}  "
                f"false verdicts {row['false_verdicts']:.1%}  verdicts {row['verdicts']:.1%}  "
                f"coverage {row['coverage']:.1%}  median {row['median_speedup']:.2f}x  "
                f"width {row['median_width']:.2f}  censored {row['censored']:.1%}",
                file=sys.stderr,
            )
        ladders = []
        for row in pool.map(run_ladder, [(*job, arguments.ladders) for job in LADDERS] if arguments.ladders else []):
            ladders.append(row)
            print(
                f"ladder, planted {row['planted']:.1f} / size^{row['speed_drift']:g}  noise {row['noise']:.3f}  "
                f"false verdicts {row['false_verdicts']:.1%}  verdicts {row['verdicts']:.1%}  "
                f"coverage {row['coverage']:.1%}, inside {row['coverage_inside']:.1%}",
                file=sys.stderr,
            )
    document = json.dumps({"studies": arguments.studies, "rows": rows, "ladders": ladders}, indent=1)
    if arguments.out:
        arguments.out.write_text(document + "\n")
    else:
        print(document)


if __name__ == "__main__":
    main()
