"""Muon with and without look-ahead and decay, on a matrix whose constants are known: claims, bounds, measurements.

python studies/four_variants.py --store four_variants.db   # makes the runs, keeps them in four_variants_results.json.gz
python studies/four_variants.py                            # writes docs/four_variants.md again, from that file alone
"""

import argparse
import gzip
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muonlab.analyze.bounds import Bound, Derived, claimed_noise
from muonlab.records import Record, RunSpec
from muonlab.records.record import json_text
from muonlab.records.spec import Schedule
from muonlab.records.watch import Series, Watch
from muonlab.report.canvas import HUES, draw
from muonlab.report.text import show
from muonlab.tasks.matrix import Matrix

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RESULTS = HERE / "four_variants_results.json.gz"
PAGE, FIGURE = DOCS / "four_variants.md", DOCS / "four_variants.svg"

PROBLEM = {"rows": 4, "cols": 8, "rank": 4, "condition": 4.0, "sigma": 4.0}
STEPS = {0.005: 900, 0.0125: 450, 0.03: 300, 0.08: 200, 0.2: 150, 0.5: 60}  # learning rate -> length of its runs
BATCHES, SEEDS = (1, 4, 16, 64, 256, 1024), (0, 1, 2)
TARGETS = (1.0, 0.6)  # of the running mean, which starts at 2.06
SHOWN = tuple((0.0125, batch) for batch in (1, 64, 1024))
OVERHEAD = 2.0  # a critical batch takes so many times the fewest samples
RESOLVED = 1.5  # of ratios of critical batches: the grid of learning rates alone moves one by about as much
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

    def claimed(self, target: float) -> float:
        """b* of the claimed form with floor 0, in units of which only ratios mean something."""
        setting = {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}
        noise = claimed_noise(**setting, sigma=self.task.sigma)
        return Bound(start=1.0, noise=noise, floor=0.0, power=1.0).critical_batch(target)

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
        """Iterates until the mean over seeds is at the target; inf where it never is."""
        hit = (self.latest if latest else self.averages).mean(0) <= target
        return float(self.counts[hit.argmax()]) if hit.any() else math.inf

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


def curves(records: Sequence[Record]) -> dict[Arm, Cells]:
    """Raises   KeyError if a run is missing, or has not ended well"""
    done = {record.key: record for record in records if record.outcome == "ok"}
    versions = {
        "torch": records[0].spec.torch,
        "numerics": records[0].spec.numerics,
    }  # those that the runs were made by
    found: dict[Arm, Cells] = {arm: {} for arm in ARMS}
    for arm, cells in found.items():
        for lr in STEPS:
            for batch in BATCHES:
                keys = [replace(arm.spec(lr, batch, seed), **versions).key for seed in SEEDS]
                cells[lr, batch] = curve(arm, [done[key] for key in keys])
    return found


def curve(arm: Arm, runs: Sequence[Record]) -> Curve:
    """The nuclear norm of the gradient, with decay the Frank-Wolfe gap; of W_0, which is 0, both are known."""
    values = np.array([run.probes[NUCLEAR].values for run in runs])
    if arm.weight_decay:
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


def predicted(arm: Arm, target: float, lr: float | None = None) -> float:
    """The critical batch of the bound, defined as the one that is measured."""
    bound = arm.derived.tuned() if lr is None else arm.derived.fixed(lr)
    grid = np.geomspace(1, 1e6, 1200)
    return critical_batch(grid, [bound.samples(target, batch) for batch in grid])


def divided(a: float, b: float) -> float:
    """nan where one of them is not there."""
    return a / b if math.isfinite(a) and math.isfinite(b) else math.nan


# What is asked, and answered


def questions(found: dict[Arm, Cells]) -> Iterator[tuple[str, ...]]:
    """How a critical batch changes from one setting to another: claimed, derived, measured, and a verdict."""
    slow, fast = (Arm(momentum=momentum) for momentum in (0.5, 0.95))
    pairs = {
        "momentum 0.5 to 0.95": (slow, fast),
        "momentum 0.5 to 0.9, skewed noise": SKEWED,
        "look-ahead, momentum 0.5": (slow, Arm(momentum=0.5, nesterov=True)),
        "look-ahead, momentum 0.9": (Arm(), Arm(nesterov=True)),
        "decay 0.25 to 1, momentum 0.9": (Arm(weight_decay=0.25), Arm(weight_decay=1.0)),
    }
    for target in TARGETS:
        for text, pair in pairs.items():
            yield answer(found, f"{text}; target {target:g}, lr tuned", pair, (target, target))
    for lr in (0.005, 0.08):
        yield answer(found, f"momentum 0.5 to 0.95; target 1, lr {lr:g}", (slow, fast), (1.0, 1.0), lr)
    yield answer(found, f"target {TARGETS[0]:g} to {TARGETS[1]:g}; momentum 0.9, lr tuned", (Arm(), Arm()), TARGETS)


def answer(
    found: dict[Arm, Cells], text: str, arms: Sequence[Arm], targets: Sequence[float], lr: float | None = None
) -> tuple[str, ...]:
    ends = list(zip(arms, targets, strict=True))
    (old, new), (before, after) = ends, (measured(found[arm], target, lr) for arm, target in ends)
    claimed = new[0].claimed(new[1]) / old[0].claimed(old[1])
    derived = divided(predicted(*new, lr), predicted(*old, lr))
    ratios = [divided(a, b) for a in after for b in before]
    seen = {direction(ratio) for ratio in ratios}
    verdict = "open"
    if len(seen) == 1 and "open" not in seen:
        (way,) = seen
        said = {"claim": direction(claimed), "bound": direction(derived)}
        words = {way: "agrees", "open": "says nothing"}
        verdict = f"{way}: " + ", ".join(f"{who} {words.get(what, 'does not agree')}" for who, what in said.items())
    return text, factor(claimed), factor(derived), f"{factor(ratios[0])} [{interval(ratios)}]", verdict


def interval(ratios: Sequence[float]) -> str:
    return "not all finite" if any(map(math.isnan, ratios)) else f"{min(ratios):.2g}, {max(ratios):.2g}"


def factor(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"x{ratio:.2g}"


def direction(ratio: float) -> str:
    if math.isnan(ratio):
        return "open"
    return "rises" if ratio >= RESOLVED else "falls" if ratio <= 1 / RESOLVED else "about the same"


# The page


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    heads = list(heads)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def number(value: float) -> str:
    return "none" if math.isnan(value) else "beyond" if math.isinf(value) else f"{value:.3g}"


def held(found: dict[Arm, Cells]) -> Iterator[tuple[str, ...]]:
    """At how many points the bound holds for the mean over seeds, and how far above it is at the ends of runs."""
    for arm, cells in found.items():
        bounds = {at: [arm.derived.fixed(at[0]).value(k, at[1]) for k in one.counts] for at, one in cells.items()}
        above = {at: np.array(bounds[at]) / one.averages.mean(0) for at, one in cells.items()}
        points = np.concatenate(list(above.values()))
        ends = {at: factors[-1] for at, factors in above.items()}
        lr, batch = min(ends, key=ends.__getitem__)
        shown = (f"{cells[at].averages[:, -1].mean():.3f} / {bounds[at][-1]:.2f}" for at in SHOWN)
        spread = f"{ends[lr, batch]:.2f} (lr {lr:g}, b = {batch})", f"{np.median(list(ends.values())):.1f}"
        yield arm.name, *shown, f"{(points >= 1).sum()} of {len(points)}", *spread, f"{max(ends.values()):.0f}"


def oracle(arm: Arm, cells: Cells, target: float) -> Iterator[tuple[str, ...]]:
    """SFO measured and by the bound, and where each is least: at every learning rate, and tuned."""
    for lr in (*STEPS, None):
        bound = arm.derived.tuned() if lr is None else arm.derived.fixed(lr)
        pairs = [(sfo, bound.samples(target, b)) for sfo, b in zip(samples(cells, target, lr), BATCHES, strict=True)]
        shown = (f"{show(sfo, 'tokens', 'unreached')} / {show(theirs, 'tokens', 'never')}" for sfo, theirs in pairs)
        ends = least([sfo for sfo, _ in pairs]), number(bound.critical_batch(target))
        yield arm.name, "tuned" if lr is None else f"{lr:g}", *shown, *ends


def least(sfo: Sequence[float]) -> str:
    """The batch that takes the fewest samples, and whether it is inside the range of those that were tried."""
    at = int(np.argmin(sfo))
    edge = ", the edge" if at in (0, len(sfo) - 1) else ""
    return "unreached" if math.isinf(sfo[at]) else f"{BATCHES[at]}{edge}"


def dependence(found: dict[Arm, Cells], target: float) -> Iterator[tuple[str, ...]]:
    for arm, cells in found.items():
        tuned = samples(cells, target)
        spans = ("{} [{}, {}]".format(*map(number, measured(cells, target, latest=late))) for late in (False, True))
        fixed = (number(critical_batch(BATCHES, samples(cells, target, lr))) for lr in STEPS)
        yield (
            *(arm.name, f"{arm.claimed(target):.3g}", number(predicted(arm, target)), next(spans), least(tuned)),
            *(", ".join(best_lrs(cells, target)), ", ".join(fixed), next(spans)),
        )


def best_lrs(cells: Cells, target: float) -> Iterator[str]:
    """For each batch; with a star at the edge of the grid."""
    for batch in BATCHES:
        steps = {lr: cells[lr, batch].reach(target) for lr in STEPS}
        lr = min(steps, key=steps.__getitem__)
        yield "-" if math.isinf(steps[lr]) else f"{lr:g}{'*' if lr in (min(STEPS), max(STEPS)) else ''}"


def look_ahead(found: dict[Arm, Cells], target: float) -> Iterator[tuple[str, ...]]:
    """SFO with look-ahead over SFO without, lr tuned, by batch."""
    for arm in (arm for arm in found if arm.nesterov):
        plain = replace(arm, nesterov=False)
        pairs = zip(samples(found[arm], target), samples(found[plain], target), strict=True)
        yield plain.name, *(f"{a / b:.2f}" if math.isfinite(a + b) else "unreached" for a, b in pairs)


def figure(found: dict[Arm, Cells], target: float) -> str:
    """SFO by batch, measured and by the bound, for three momenta; measured for skewed noise."""
    shown = [arm for arm in found if not (arm.nesterov or arm.weight_decay or arm.tail)]
    shown.sort(key=lambda arm: (arm.noise, arm.momentum))
    fine = np.geomspace(BATCHES[0], BATCHES[-1], 200)

    def paint(canvas: Any) -> None:
        axes = canvas.add_axes((0.1, 0.13, 0.58, 0.8))
        for arm, hue in zip(shown, HUES, strict=False):
            look = {"color": hue, "ms": 5, "label": arm.name}
            axes.plot(BATCHES, finite(samples(found[arm], target)), "o-" if arm.noise == "signs" else "s--", **look)
            if arm.noise == "signs":
                bound = arm.derived.tuned()
                axes.plot(
                    fine, finite(bound.samples(target, batch) for batch in fine), ":", color=hue, label="its bound"
                )
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel=f"samples until the running mean is {target:g}")
        axes.set_ylim(top=3e6)
        axes.set_xticks(BATCHES, map(str, BATCHES))
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=9.5, loc="center left", bbox_to_anchor=(1.01, 0.5))

    alt = f"Samples until the running mean is {target:g}, by batch, learning rate tuned for each: measured, and bounds"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = draw("four-variants", (720, 400), alt, paint).svg
    return svg.replace("<svg ", f'<svg {spaces} font-family="sans-serif" style="background:#fff" ', 1) + "\n"


def finite(values: Iterable[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def page(found: dict[Arm, Cells], records: Sequence[Record]) -> str:
    batches = [f"b = {batch}" for batch in BATCHES]
    sections = {
        "Claimed, derived, measured": table(
            ("how the critical batch changes", "claimed by the paper, v1-v4", "derived by us", "measured", "verdict"),
            questions(found),
        ),
        "Does the bound hold?": table(
            ("variant", *(f"lr {lr:g}, b = {b}" for lr, b in SHOWN), "holds at", "least factor", "median", "largest"),
            held(found),
        ),
        "Samples to the target": [
            *table(
                ("variant", "lr", *batches, "measured: least at", "bound: least at"),
                (row for arm in (*VARIANTS, *SKEWED) for row in oracle(arm, found[arm], TARGETS[0])),
            ),
            "![Samples to the target by batch, measured and by the bound](four_variants.svg)",
            "",
        ],
        "Momentum, decay, noise": [
            line
            for target in TARGETS
            for line in table(
                (
                    *(f"target {target:g}", "claimed b*", "bound", "measured, lr tuned", "fewest samples at"),
                    *("best lr by batch", f"measured at lr {', '.join(f'{lr:g}' for lr in STEPS)}", "latest iterates"),
                ),
                dependence(found, target),
            )
        ],
        "Look-ahead": [
            line
            for target in TARGETS
            for line in table((f"target {target:g}, against", *batches), look_ahead(found, target))
        ],
    }
    lines = heading(records)
    for title, body in sections.items():
        lines += [f"## {title}", "", *wrapped(EXPLAINED[title]), "", *body]
    return "\n".join(lines)


def heading(records: Sequence[Record]) -> list[str]:
    first, task = records[0], Arm().task
    minutes = sum(record.wall_seconds for record in records) / 60
    text = f"""
    {len(records):,} runs of `muonlab.Muon` on the task [`matrix`](tasks.md#matrix), {len(SEEDS)} seeds each,
    {minutes:.0f} minutes of one core in all, {first.environment.get("machine")}, torch {first.spec.torch}. W is
    {task.rows} x {task.cols}, the function quadratic where nothing else is said, L = {task.smoothness:g}, curvatures
    over a factor of {task.condition:g}, sigma = {task.sigma:g} a sample. At the start, W = 0,
    f - f* = {task.start_loss:.3f}, |grad f|_* = {task.start_nuclear:.3f}, |grad f|_F = {task.start_norm:.3f}. Exact
    polar factor, averaged momentum, constant learning rate, no clipping. The measure is the nuclear norm of the true
    gradient, with decay the Frank-Wolfe gap: numbers with and without decay, or at two decays, are about different
    quantities. Targets are of its mean over all iterates so far, and over seeds: what the theorems bound."""
    return [
        "# The four variants of Muon: claims, bounds, measurements",
        "",
        "Written by `make four-variants-page` from `studies/four_variants_results.json.gz`, which holds every run;",
        "`make four-variants` makes the runs again. What follows from it is in the [lab notebook](dev/LOG.md).",
        "",
        *wrapped(text),
        "",
    ]


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 118, break_on_hyphens=False)


EXPLAINED = {
    "Claimed, derived, measured": f"""
    Sato, Naganuma and Iiduka 2025 (2507.01598): versions 1 to 4 claim a formula for the critical batch, known to us
    second hand and, without look-ahead, by inference; version 5 says of itself that only how momentum and decay move
    it can be predicted. The bound is ours (`muonlab.analyze.bounds`). A *critical batch* is here where the samples to
    the target, beyond their minimum, are {OVERHEAD:g} times the fewest. Factors are from the first setting to the
    second; in brackets the extremes over leaving out a seed on either side. Within {RESOLVED:g} they count as the same,
    for the grid of learning rates alone moves a critical batch by about as much. *Open*: seeds disagree, or a critical
    batch is not there.""",
    "Does the bound hold?": """
    The mean over run and seeds / the bound on it, in three cells; at how many points of all curves of a variant (every
    learning rate, every batch) the bound holds; by what factor it is above the measured mean at the ends of runs.""",
    "Samples to the target": f"""
    Measured / by the bound, target {TARGETS[0]:g}. *Unreached*: not within the run, of
    {", ".join(f"{steps} steps at lr {lr:g}" for lr, steps in STEPS.items())}; *never*: the bound never gets there.
    *Tuned*: the best learning rate for each batch, of the grid where it is measured, of all for the bound.""",
    "Momentum, decay, noise": """
    Critical batches as in the first table; b* of the claim is at sigma = 4 and a floor of 0. *Beyond*: the samples at
    the largest batch are not twice the fewest; *none*: no batch gets to the target. A star: the edge of the grid. The
    last column counts until the latest iterates are at the target, not the mean over all: how time to a target is
    usually told.""",
    "Look-ahead": "Samples with look-ahead over samples without, learning rate tuned for each.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="make the runs that this store lacks, and keep all of them")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    if asked.store:
        keep(make(asked.store, asked.workers))
    records = kept()
    found = curves(records)
    FIGURE.write_text(figure(found, TARGETS[0]))
    PAGE.write_text(page(found, records))


if __name__ == "__main__":
    main()
