"""Muon with and without look-ahead and decay, on a matrix whose constants are known: runs, and what is read off them.

python studies/four_variants.py --store four_variants.db   # keeps every run in studies/four_variants_results.json.gz
python studies/four_variants_page.py                       # writes docs/four_variants.md and its figure from that alone
"""

import argparse
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muonlab.analyze.bounds import Bound, Derived, TunedBound, claimed_noise
from muonlab.records import Record, RunSpec
from muonlab.records.record import Series, json_text
from muonlab.records.spec import Schedule
from muonlab.records.watch import Watch
from muonlab.tasks.matrix import Matrix

RESULTS = Path(__file__).with_name("four_variants_results.json.gz")

PROBLEM = {"rows": 4, "cols": 8, "rank": 4, "condition": 4.0, "sigma": 4.0}
STEPS = {0.005: 900, 0.0125: 450, 0.03: 300, 0.08: 200, 0.2: 150, 0.5: 60}  # learning rate -> length of its runs
BATCHES, SEEDS = (1, 4, 16, 64, 256, 1024), (0, 1, 2)
TARGETS = (1.0, 0.6)  # of the running mean, which starts at 2.06
OVERHEAD = 2.0  # a critical batch takes so many times the fewest samples
NUM_KEPT = 64  # points of a curve that is kept, evenly spaced in log steps
NUCLEAR, INNER = "matrix.gradient_nuclear", "matrix.gradient_dot_weight"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A variant of Muon on one kind of problem."""

    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    noise: str = "signs"
    tail: float = 0.0

    @property
    def name(self) -> str:
        parts = ["Nesterov" if self.nesterov else "plain"]
        parts += [f"decay {self.weight_decay:g}"] if self.weight_decay else []
        parts += [f"momentum {self.momentum:g}"]
        parts += ["skewed noise"] if self.noise == "skewed" else []
        return ", ".join(parts + (["not convex"] if self.tail else []))

    @property
    def task(self) -> Matrix:
        return Matrix(**PROBLEM, noise=self.noise, tail=self.tail)

    @property
    def derived(self) -> Derived:
        task = self.task
        return Derived(
            gap=task.start_loss,
            start_norm=task.start_norm,
            smoothness=task.smoothness,
            sigma=task.sigma,
            rank=min(task.rows, task.cols),
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )

    @property
    def claimed(self) -> Bound:
        """With floor 0: it is not known to us. Its noise is the square of a gradient: absolute values mean little."""
        setting = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        return Bound(start=1.0, noise=claimed_noise(**setting, sigma=self.task.sigma), floor=0.0, power=1.0)

    def spec(self, lr: float, batch: int, seed: int) -> RunSpec:
        import torch

        from muonlab.optim import catalog

        setting = {"lr": lr, "momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        hyperparameters = {f"opt.{name}": value for name, value in {**setting, "polar": "exact"}.items()}
        options = PROBLEM | {"noise": self.noise} | ({"tail": self.tail} if self.tail else {})
        return RunSpec(
            task="matrix",
            optimizer="muon",
            horizon_tokens=STEPS[lr] * batch,
            batch_tokens=batch,
            seed=seed,
            task_options=options,
            hyperparameters=hyperparameters,
            polar=catalog.polar_description("muon", hyperparameters),
            schedule=Schedule(kind="constant", warmup_fraction=0.0),
            clip=0.0,
            torch=torch.__version__,
            numerics={"task": Matrix.numerics_version, "rule": catalog.locate("muon").numerics},
        )


VARIANTS = tuple(Arm(nesterov=ahead, weight_decay=decay) for decay in (0.0, 0.5) for ahead in (False, True))
SKEWED = tuple(Arm(momentum=momentum, noise="skewed") for momentum in (0.5, 0.9))
ARMS = (
    *VARIANTS,
    *(Arm(momentum=momentum) for momentum in (0.5, 0.95)),
    Arm(momentum=0.5, nesterov=True),
    *(Arm(weight_decay=decay) for decay in (0.25, 1.0)),
    *SKEWED,
    Arm(tail=0.5),
)


@dataclass(frozen=True)
class Curve:
    """A measure over the runs of one cell, which differ in their seed; of W_0, W_1, ..."""

    counts: NDArray[np.float64]  # (points,) number of iterates up to a point
    averages: NDArray[np.float64]  # (seeds, points) mean over all of them: what the bounds are about
    latest: NDArray[np.float64]  # (seeds, points) mean over those since the point before

    def reach(self, target: float, *, latest: bool = False) -> float:
        """Iterates until the mean over seeds is at the target, between points linear; inf where it never is."""
        values = (self.latest if latest else self.averages).mean(0)
        hit = int((values <= target).argmax())
        if values[hit] > target:
            return math.inf
        ends = slice(max(0, hit - 1), hit + 1)
        return float(np.interp(-target, -values[ends], self.counts[ends]))

    def average_at(self, count: float) -> float:
        """The mean over so many iterates, and over seeds; between points linear."""
        return float(np.interp(count, self.counts, self.averages.mean(0)))

    def without(self, seed: int) -> "Curve":
        return Curve(self.counts, *(np.delete(values, seed, 0) for values in (self.averages, self.latest)))


Cells = dict[tuple[float, int], Curve]  # by learning rate and batch


def make(url: str, workers: int) -> list[Record]:
    """Every run, through a store."""
    from muonlab.execute.executor import Observation
    from muonlab.execute.local import LocalExecutor
    from muonlab.execute.runner import Runner
    from muonlab.records.store import Store

    with Store(url) as store:
        found: dict[str, Record] = {}
        for lr, steps in STEPS.items():
            observation = Observation(Watch(eval_steps=frozenset(range(1, steps + 1))))
            specs = [arm.spec(lr, batch, seed) for arm in ARMS for batch in BATCHES for seed in SEEDS]
            found |= Runner(store, LocalExecutor(workers=workers), observation)(specs)
        return list(found.values())


def keep(records: Iterable[Record]) -> None:
    """Without losses, and of what was measured means over windows that grow, to six digits."""
    lean = {"train_steps": (), "train_loss": (), "eval_steps": (), "eval_loss": ()}
    kept = []
    for record in records:
        wanted = (NUCLEAR, INNER) if record.spec.get("opt.weight_decay") else (NUCLEAR,)
        kept.append(replace(record, probes={name: coarser(record.probes[name]) for name in wanted}, **lean).to_dict())
    kept.sort(key=lambda values: values["key"])
    RESULTS.write_bytes(gzip.compress(json_text(kept).encode(), mtime=0))


def coarser(series: Series) -> Series:
    """Means over longer windows, so that running means at their ends are the same."""
    steps = np.array(series.steps)
    ends = np.unique(np.searchsorted(steps, np.geomspace(1, steps[-1], NUM_KEPT)))
    sums = np.cumsum(np.diff(steps, prepend=0) * series.values)[ends]
    values = np.diff(sums, prepend=0) / np.diff(steps[ends], prepend=0)
    return Series(tuple(steps[ends].tolist()), tuple(float(f"{value:.6g}") for value in values))


def kept() -> list[Record]:
    return [Record.from_dict(values) for values in json.loads(gzip.decompress(RESULTS.read_bytes()))]


def curves(records: Sequence[Record], *, gap: bool = True) -> dict[Arm, Cells]:
    """Of the nuclear norm of the gradient; with decay, unless told otherwise, of the Frank-Wolfe gap.

    Raises   KeyError if a run is missing, or has not ended well
    """
    done = {record.key: record for record in records if record.outcome == "ok"}
    versions = {name: getattr(records[0].spec, name) for name in ("torch", "numerics")}  # those of then
    found: dict[Arm, Cells] = {arm: {} for arm in ARMS}
    for arm, cells in found.items():
        for lr in STEPS:
            for batch in BATCHES:
                keys = [replace(arm.spec(lr, batch, seed), **versions).key for seed in SEEDS]
                cells[lr, batch] = curve(arm, [done[key] for key in keys], gap=gap)
    return found


def curve(arm: Arm, runs: Sequence[Record], *, gap: bool = True) -> Curve:
    """From W_0 on, which is 0, so that both measures of it are known."""
    values = np.array([run.probes[NUCLEAR].values for run in runs])
    if arm.weight_decay and gap:
        values = values + arm.weight_decay * np.array([run.probes[INNER].values for run in runs])
    latest = np.hstack([np.full((len(runs), 1), arm.task.start_nuclear), values])
    widths = np.concatenate([[1], np.diff(runs[0].probes[NUCLEAR].steps, prepend=0)])
    counts = np.cumsum(widths)
    return Curve(counts, np.cumsum(latest * widths, axis=1) / counts, latest)


def samples(cells: Cells, target: float, lr: float | None = None, **how: bool) -> list[float]:
    """SFO for each batch: at one learning rate, or at the one that is best for the batch."""
    lrs = STEPS if lr is None else (lr,)
    return [min(batch * cells[rate, batch].reach(target, **how) for rate in lrs) for batch in BATCHES]


def critical_batch(batches: Sequence[float], sfo: Sequence[float]) -> float:
    """Where SFO, beyond its minimum, is OVERHEAD times that, between batches in logarithms; inf if beyond the last, nan
    if no batch gets to the target.
    """
    least = int(np.argmin(sfo))
    if math.isinf(sfo[least]):
        return math.nan
    for i in range(least, len(sfo) - 1):
        if sfo[i + 1] > OVERHEAD * sfo[least]:
            ends = np.log(sfo[i : i + 2]), np.log(batches[i : i + 2])
            return float(np.exp(np.interp(np.log(OVERHEAD * sfo[least]), *ends)))
    return math.inf


def measured(cells: Cells, target: float, lr: float | None = None, **how: bool) -> tuple[float, float, float]:
    """The critical batch, and the least and the largest without one of the seeds."""
    parts = [{at: one.without(i) for at, one in cells.items()} for i in range(len(SEEDS))]
    found, *others = (critical_batch(BATCHES, samples(part, target, lr, **how)) for part in (cells, *parts))
    return found, min(others), max(others)


def predicted(bound: Bound | TunedBound, target: float) -> float:
    """The critical batch of a bound, defined as the one that is measured."""
    grid = np.geomspace(0.01, 1e6, 1200)
    return critical_batch(grid, [bound.samples(target, batch) for batch in grid])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="four_variants.db", help="runs that it holds are not made again")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    keep(make(asked.store, asked.workers))


if __name__ == "__main__":
    main()
