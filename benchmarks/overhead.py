"""What the laboratory costs on top of training: the loop, the workers, the command line.

    python benchmarks/overhead.py --out benchmarks/results/overhead.json
    python benchmarks/overhead.py --only noise ranks --out benchmarks/results/probes.json
    python benchmarks/overhead.py --only ranks    # of command, loop, noise, ranks, child, workers

Everything is interleaved in one process and given as medians and ratios; absolute times depend on the machine.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from muonlab.execute.executor import Observation
from muonlab.execute.local import LocalExecutor
from muonlab.optim import catalog as optimizers
from muonlab.records import RunSpec
from muonlab.records.watch import PROBE_COST, Watch
from muonlab.study.config import validated
from muonlab.study.plan import base_specs
from muonlab.tasks import catalog as tasks
from muonlab.train.environment import environment
from muonlab.train.loop import train
from muonlab.train.ranks import Alone
from muonlab.train.schedules import lr_factor, progress_at
from muonlab.train.watched import Watched

REPEATS = 9
STEPS = 32  # of a run with probes
DENSE = 1e9  # a cost for which a probe measures after every step


def spec_of(optimizer: str, num_steps: int, **settings: Any) -> RunSpec:
    shape = {"task.width": 32, "task.depth": 2, "task.seq_len": 64, "task.eval_tokens": 2048}
    values = {"optimizers": (optimizer,), "baseline": optimizer, "batch_tokens": 1024}
    config = validated({**values, "horizon_tokens": 1024 * num_steps, "settings": {**shape, **settings}})
    return base_specs(config)[optimizer]


def bare_seconds(spec: RunSpec) -> float:
    """Seconds per step of the loop that anyone would write: same model, data, optimizer, schedule and clip."""
    torch.manual_seed(spec.seed)
    task = tasks.resolve(spec.task, spec.task_options)
    model = task.build()
    optimizer = optimizers.build(spec.optimizer, model, task.roles(model), spec.hyperparameters)
    peaks = [group["lr"] for group in optimizer.param_groups]
    samples, times = spec.batch_tokens // task.tokens_per_sample, []
    for step in range(1, spec.num_steps + 1):
        started = time.perf_counter()
        factor = lr_factor(spec.schedule, progress_at(step, spec.num_steps))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        optimizer.zero_grad()
        loss = task.loss(model, task.batch(spec.seed, (step - 1) * samples, samples))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - started)
    return median(times)


def loop_rows() -> list[dict[str, Any]]:
    rows = []
    for name, width in (("adamw", 32), ("muon", 32), ("muon", 64)):
        spec = spec_of(name, 40, **{"task.width": width})
        pairs = [(bare_seconds(spec), train(spec).step_seconds) for _ in range(REPEATS)]
        ratios = sorted(bare / ours for bare, ours in pairs)
        rows.append(
            {
                "what": f"training loop against a bare loop, {name}, width {width}",
                "ratio_of_tokens_per_second": median(ratios),
                "spread": [ratios[1], ratios[-2]],
                "tokens_per_second": spec.batch_tokens / median(ours for _, ours in pairs),
            }
        )
    return rows


def noise_rows() -> list[dict[str, Any]]:
    """Of gradient noise as a batch study measures it."""
    sizes = (("adamw", 32, 1024), ("muon", 32, 1024), ("muon", 64, 4096), ("muon", 128, 8192))
    return [_watched_row("gradient noise measured", *size, Watch(noise_cost=PROBE_COST), "noise") for size in sizes]


def rank_rows() -> list[dict[str, Any]]:
    """Of effective ranks of layers as `muonlab train --ranks` measures them."""
    sizes = (("adamw", 32, 1024), ("muon", 32, 1024), ("muon", 128, 4096))
    return [_watched_row("ranks of layers", *size, Watch(rank_cost=PROBE_COST), "layers") for size in sizes]


def _watched_row(what: str, optimizer: str, width: int, batch: int, watch: Watch, probe: str) -> dict[str, Any]:
    """What a probe adds to a run: CPU time of one measurement over that of the steps from one to the next.

    A measurement is what a run with one after every step takes longer than a run with none, by the step. In a run as it
    is made the difference is smaller than what a machine does beside it.
    """
    shape = {"task.width": width, "task.eval_tokens": 1024}  # which is what a look at ranks takes
    spec = spec_of(optimizer, STEPS, **shape).set({"batch_tokens": batch, "horizon_tokens": STEPS * batch})
    task = tasks.resolve(spec.task, spec.task_options)
    model = task.build()
    engine = optimizers.build(spec.optimizer, model, task.roles(model), spec.hyperparameters)
    every = getattr(Watched(watch, spec, task, model, engine, Alone()), probe).every
    dense = replace(watch, **{name: DENSE for name in ("noise_cost", "rank_cost") if getattr(watch, name)})
    shares = []
    for _ in range(REPEATS):
        plain, watched = (cpu_seconds(partial(train, spec, watch=one)) for one in (Watch(), dense))
        shares.append((watched - plain) / plain / every)
    shares.sort()
    what = f"{what}, {optimizer}, width {width}, {batch} tokens a step"
    return {"what": what, "steps_between": every, "share_of_time": median(shares), "spread": [shares[1], shares[-2]]}


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Of this process: what else the machine does disturbs that little."""
    started = time.process_time()
    call()
    return time.process_time() - started


def worker_row() -> dict[str, Any]:
    """Throughput of 2 workers x 1 thread against 1 worker x 1 thread on a queue of equal runs."""
    specs = [spec_of("muon", 96).set({"seed": seed}) for seed in range(8)]
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(4):  # the first round warms the fork server and is dropped
        for workers in times:
            started = time.perf_counter()
            for record in LocalExecutor(workers).run(specs, Observation()):
                assert record.outcome == "ok", record.error
            times[workers].append(time.perf_counter() - started)
    ratios = [one / two for one, two in zip(times[1][1:], times[2][1:], strict=True)]
    return {"what": "2 workers x 1 thread against 1 x 1", "ratio_of_throughput": median(ratios), "all": ratios}


def child_row() -> dict[str, Any]:
    """What a child per run costs: wall time of an almost empty run."""
    specs = [spec_of("adamw", 8).set({"seed": seed}) for seed in range(30)]
    list(LocalExecutor(1).run(specs[:1], Observation()))
    started = time.perf_counter()
    records = list(LocalExecutor(1).run(specs, Observation()))
    outside = time.perf_counter() - started - sum(record.wall_seconds for record in records)
    return {"what": "process per run, beside its training and evaluation", "seconds": outside / len(specs)}


def command_row() -> dict[str, Any]:
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "muonlab", "--help"], check=True, capture_output=True, cwd=folder)
            times.append(time.perf_counter() - started)
    return {"what": "muonlab --help", "seconds": median(times), "spread": [min(times), max(times)]}


ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "command": lambda: [command_row()],
    "loop": loop_rows,
    "noise": noise_rows,
    "ranks": rank_rows,
    "child": lambda: [child_row()],
    "workers": lambda: [worker_row()],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="these rows alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name, make in ROWS.items() if name in arguments.only for row in make()]
    for row in rows:
        print({k: round(value, 4) if isinstance(value, float) else value for k, value in row.items()}, file=sys.stderr)
    document = json.dumps({"environment": environment("cpu"), "system": platform.platform(), "rows": rows}, indent=1)
    if arguments.out:
        arguments.out.write_text(document + "\n")
    else:
        print(document)


if __name__ == "__main__":
    main()
