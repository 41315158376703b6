"""Muon with and without look-ahead and decay, on a matrix whose constants are known: claims, bounds, measurements.

python studies/four_variants.py --store four_variants.db   # makes the runs, keeps them in four_variants_results.json.gz
python studies/four_variants.py                            # writes docs/four_variants.md again, from that file alone
"""

import argparse
import gzip
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muonlab.analyze.bounds import Bound, Derived, TunedBound, claimed_noise
from muonlab.records import Record, RunSpec
from muonlab.records.record import json_text
from muonlab.records.spec import Schedule
from muonlab.records.watch import Series, Watch
from muonlab.report.canvas import HUES, draw
from muonlab.report.text import show
from muonlab.tasks.matrix import Matrix

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RESULTS, PAGE = HERE / "four_variants_results.json.gz", DOCS / "four_variants.md"

PROBLEM = {"rows": 4, "cols": 8, "rank": 4, "condition": 4.0, "sigma": 4.0}
STEPS = {0.005: 900, 0.0125: 450, 0.03: 300, 0.08: 200, 0.2: 150, 0.5: 60}  # learning rate -> length of its runs
BATCHES, SEEDS = (1, 4, 16, 64, 256, 1024), (0, 1, 2)
TARGETS = (1.0, 0.6)  # of the running mean; it is 2.06 at the start
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
    """Raises   LookupError if a run is missing, or did not end well"""
    done = {record.key: record for record in records if record.outcome == "ok"}
    found: dict[Arm, Cells] = {}
    for arm in ARMS:
        for lr in STEPS:
            for batch in BATCHES:
                runs = [done[with_versions(arm.spec(lr, batch, seed), records[0].spec).key] for seed in SEEDS]
                found.setdefault(arm, {})[lr, batch] = curve(arm, runs)
    return found


def with_versions(spec: RunSpec, like: RunSpec) -> RunSpec:
    """The same run as it was made then."""
    return replace(spec, torch=like.torch, numerics=like.numerics)


def curve(arm: Arm, runs: Sequence[Record]) -> Curve:
    """The nuclear norm of the gradient, with decay the Frank-Wolfe gap; both are known of W_0, which is 0."""
    steps = np.array(runs[0].probes[NUCLEAR].steps)
    measure = np.array([run.probes[NUCLEAR].values for run in runs])
    if arm.weight_decay:
        measure = measure + arm.weight_decay * np.array([run.probes[INNER].values for run in runs])
    start = np.full((len(runs), 1), arm.task.start_nuclear)
    latest, widths = np.hstack([start, measure]), np.diff(steps, prepend=[-1, 0])
    return Curve(steps_and_start(steps), np.cumsum(latest * widths, 1) / np.cumsum(widths), latest)


def steps_and_start(steps: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([[1.0], steps + 1.0])


# What is measured


def samples(cells: Cells, target: float, lr: float | None = None, **how: bool) -> list[float]:
    """SFO by batch: at one learning rate, or at the best for each batch."""
    lrs = STEPS if lr is None else (lr,)
    return [min(batch * cells[rate, batch].reach(target, **how) for rate in lrs) for batch in BATCHES]


def critical_batch(batches: Sequence[float], sfo: Sequence[float]) -> float:
    """Where SFO, beyond its minimum, is OVERHEAD times that, between batches in logarithms; inf if nowhere, nan if no
    batch gets to the target.
    """
    least = int(np.argmin(sfo))
    if math.isinf(sfo[least]):
        return math.nan
    for i in range(least, len(sfo) - 1):
        if sfo[i + 1] > OVERHEAD * sfo[least]:
            at = np.interp(np.log(OVERHEAD * sfo[least]), np.log(sfo[i : i + 2]), np.log(batches[i : i + 2]))
            return float(np.exp(at))
    return math.inf


def measured(cells: Cells, target: float, lr: float | None = None, **how: bool) -> tuple[float, float, float]:
    """The critical batch, and the least and largest without one of the seeds."""
    parts = [{at: c.without(i) for at, c in cells.items()} for i in range(len(SEEDS))]
    found = [critical_batch(BATCHES, samples(part, target, lr, **how)) for part in (cells, *parts)]
    return found[0], min(found[1:]), max(found[1:])


def predicted(bound: Bound | TunedBound, target: float) -> float:
    """The critical batch of a bound, as it is measured."""
    grid = np.geomspace(1, 1e6, 1200)
    return critical_batch(grid, [bound.samples(target, batch) for batch in grid])


# The page


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    heads = list(heads)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def number(value: float) -> str:
    return "none" if math.isnan(value) else "beyond" if math.isinf(value) else f"{value:.3g}"


def span(found: tuple[float, float, float]) -> str:
    return f"{number(found[0])} [{number(found[1])}, {number(found[2])}]"


def held(found: dict[Arm, Cells]) -> Iterator[tuple[str, ...]]:
    """Per arm: at how many points the bound holds for the mean over seeds, and how loose it is at the ends of runs."""
    for arm, cells in found.items():
        ok = total = 0
        factors = {}
        for (lr, batch), one in cells.items():
            bound = arm.derived.fixed(lr)
            above = np.array([bound.value(count, batch) for count in one.counts]) / one.averages.mean(0)
            ok, total = ok + int((above >= 1).sum()), total + len(above)
            factors[lr, batch] = above[-1]
        (lr, batch), least = min(factors.items(), key=lambda item: item[1])
        middle = ((0.0125, b) for b in (BATCHES[0], BATCHES[3], BATCHES[-1]))
        shown = (f"{cells[at].averages[:, -1].mean():.3f} / {bound_at(arm, cells, at):.2f}" for at in middle)
        spread = f"{least:.2f} (lr {lr:g}, b {batch})", f"{np.median(list(factors.values())):.1f}"
        yield (arm.name, *shown, f"{ok} of {total}", *spread, f"{max(factors.values()):.0f}")


def bound_at(arm: Arm, cells: Cells, at: tuple[float, int]) -> float:
    return arm.derived.fixed(at[0]).value(cells[at].counts[-1], at[1])


def oracle(arm: Arm, cells: Cells, target: float) -> Iterator[tuple[str, ...]]:
    """Per learning rate, and tuned: SFO measured and by the bound, and where each is least."""
    for lr in (*STEPS, None):
        bound = arm.derived.tuned() if lr is None else arm.derived.fixed(lr)
        sfo, theirs = samples(cells, target, lr), [bound.samples(target, batch) for batch in BATCHES]
        shown = (
            f"{show(s, 'tokens', 'unreached')} / {show(t, 'tokens', 'never')}" for s, t in zip(sfo, theirs, strict=True)
        )
        yield (arm.name, "tuned" if lr is None else f"{lr:g}", *shown, least(sfo), number(bound.critical_batch(target)))


def least(sfo: Sequence[float]) -> str:
    """The batch that takes the fewest samples, and whether it lies inside the batches that were tried."""
    at = int(np.argmin(sfo))
    if math.isinf(sfo[at]):
        return "none: unreached"
    if at == 0:
        return f"{BATCHES[0]}, the edge"
    return f"{BATCHES[at]}, the edge" if at == len(sfo) - 1 else str(BATCHES[at])


def dependence(found: dict[Arm, Cells], target: float) -> Iterator[tuple[str, ...]]:
    for arm, cells in found.items():
        tuned = samples(cells, target)
        best = [min(STEPS, key=lambda lr: cells[lr, b].reach(target)) for b in BATCHES]
        rates = ", ".join(f"{lr:g}" if math.isfinite(s) else "-" for lr, s in zip(best, tuned, strict=True))
        fixed = [number(critical_batch(BATCHES, samples(cells, target, lr))) for lr in STEPS]
        yield (
            *(arm.name, f"{arm.claimed(target):.3g}", number(predicted(arm.derived.tuned(), target))),
            *(span(measured(cells, target)), least(tuned), rates, ", ".join(fixed)),
            span(measured(cells, target, latest=True)),
        )


@dataclass(frozen=True)
class Question:
    """How a critical batch changes from one setting to another: claimed, derived, measured, as factors."""

    text: str
    claimed: float
    derived: float
    measured: float
    low: float
    high: float

    def row(self) -> tuple[str, ...]:
        found = f"x{number(self.measured)} [{number(self.low)}, {number(self.high)}]"
        return self.text, factor(self.claimed), factor(self.derived), found, self.verdict

    @property
    def verdict(self) -> str:
        said = {"claim": direction(self.claimed), "bound": direction(self.derived)}
        seen = {direction(value) for value in (self.measured, self.low, self.high)}
        if len(seen) > 1 or "open" in seen:
            return "open: seeds disagree, or out of range"
        (seen,) = seen
        return f"measured: {seen}; " + ", ".join(
            f"{who} {'agrees' if what == seen else 'says nothing' if what == 'open' else f'says {what}'}"
            for who, what in said.items()
        )


def factor(value: float) -> str:
    return "-" if math.isnan(value) else "to no batch" if math.isinf(value) else f"x{value:.3g}"


def direction(ratio: float) -> str:
    """
    >>> [direction(value) for value in (0.5, 1.2, 3.0, math.nan)]
    ['falls', 'about the same', 'rises', 'open']
    """
    if math.isnan(ratio):
        return "open"
    return "rises" if ratio >= RESOLVED else "falls" if ratio <= 1 / RESOLVED else "about the same"


def ask(text: str, found: dict[Arm, Cells], old: Arm, new: Arm, target: float, lr: float | None = None) -> Question:
    """From the setting `old` to `new`, at one target."""
    before, after = (measured(found[arm], target, lr) for arm in (old, new))
    bounds = [arm.derived.tuned() if lr is None else arm.derived.fixed(lr) for arm in (old, new)]
    derived = divided(*(predicted(bound, target) for bound in reversed(bounds)))
    ratios = [divided(a, b) for a in after for b in before]
    return Question(
        f"{text}, target {target:g}, lr {'tuned' if lr is None else f'{lr:g}'}",
        new.claimed(target) / old.claimed(target), derived, ratios[0], min(ratios), max(ratios),
    )  # fmt: skip


def divided(a: float, b: float) -> float:
    """nan where one of them is not there."""
    return a / b if math.isfinite(a) and math.isfinite(b) else math.nan


def questions(found: dict[Arm, Cells]) -> Iterator[Question]:
    plain, ahead = Arm(), Arm(nesterov=True)
    low, high = (Arm(momentum=momentum) for momentum in (0.5, 0.95))
    for target in TARGETS:
        yield ask("momentum 0.5 to 0.95", found, low, high, target)
        yield ask("skewed noise, momentum 0.5 to 0.9", found, *SKEWED, target)
        yield ask("look-ahead at momentum 0.5", found, low, Arm(momentum=0.5, nesterov=True), target)
        yield ask("look-ahead at momentum 0.9", found, plain, ahead, target)
        yield ask("decay 0.25 to 1, momentum 0.9", found, Arm(weight_decay=0.25), Arm(weight_decay=1.0), target)
    for lr in (0.005, 0.08):
        yield ask("momentum 0.5 to 0.95", found, low, high, TARGETS[0], lr)
    yield tighter(found, plain)


def tighter(found: dict[Arm, Cells], arm: Arm) -> Question:
    """From the first target to the second."""
    before, after = (measured(found[arm], target) for target in TARGETS)
    derived = divided(*(predicted(arm.derived.tuned(), target) for target in reversed(TARGETS)))
    claimed = arm.claimed(TARGETS[1]) / arm.claimed(TARGETS[0])
    ratios = [divided(a, b) for a in after for b in before]
    text = f"target {TARGETS[0]:g} to {TARGETS[1]:g}, {arm.name}, lr tuned"
    return Question(text, claimed, derived, ratios[0], min(ratios), max(ratios))


def look_ahead(found: dict[Arm, Cells], target: float) -> Iterator[tuple[str, ...]]:
    """SFO with look-ahead over SFO without, lr tuned, by batch."""
    for ahead in (arm for arm in found if arm.nesterov):
        plain = replace(ahead, nesterov=False)
        pairs = zip(samples(found[ahead], target), samples(found[plain], target), strict=True)
        yield (plain.name, *(number(divided(a, b)) if math.isfinite(a + b) else "unreached" for a, b in pairs))


def figure(found: dict[Arm, Cells], target: float) -> str:
    """SFO by batch, measured and by the bound, for three momenta and for skewed noise."""
    shown = [arm for arm in found if not (arm.nesterov or arm.weight_decay or arm.tail)]
    shown.sort(key=lambda arm: (arm.noise, arm.momentum))

    def paint(canvas: Any) -> None:
        axes = canvas.add_axes((0.1, 0.13, 0.58, 0.8))
        for arm, hue in zip(shown, HUES, strict=False):
            dash = "o-" if arm.noise == "signs" else "s--"
            axes.plot(BATCHES, finite(samples(found[arm], target)), dash, color=hue, ms=5, label=arm.name)
            if arm.noise == "signs":
                batches = np.geomspace(BATCHES[0], BATCHES[-1], 200)
                bound = finite([arm.derived.tuned().samples(target, batch) for batch in batches])
                axes.plot(batches, bound, ":", color=hue, label="the bound on it")
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel=f"samples until the running mean is {target:g}")
        axes.set_ylim(top=3e6)
        axes.set_xticks(BATCHES, map(str, BATCHES))
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=9.5, loc="center left", bbox_to_anchor=(1.01, 0.5))

    alt = f"Samples to reach a running mean of {target:g} over the batch, learning rate tuned for each: measured, and the bound"
    svg = draw("four-variants", (720, 400), alt, paint).svg
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg.replace("<svg ", f'<svg {spaces} font-family="sans-serif" style="background:#fff" ', 1) + "\n"


def finite(values: Iterable[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def page(found: dict[Arm, Cells], records: Sequence[Record]) -> str:
    batches = [f"b = {batch}" for batch in BATCHES]
    lines = heading(records)
    lines += ["## Claimed, derived, measured", "", *VERDICTS_EXPLAINED]
    heads = ("critical batch, by", "claimed by the paper, v1-v4", "derived by us", "measured", "verdict")
    lines += table(heads, (question.row() for question in questions(found)))
    lines += ["## Does the bound hold?", "", *HOLDS_EXPLAINED]
    heads = ("variant", *(f"lr 0.0125, b = {b}" for b in (BATCHES[0], BATCHES[3], BATCHES[-1])), "holds at")
    lines += table((*heads, "least factor", "median", "largest"), held(found))
    lines += ["## Samples to the target", "", *SAMPLES_EXPLAINED]
    heads = ("variant", "lr", *batches, "measured: least at", "bound: least at b*")
    lines += table(heads, (row for arm in (*VARIANTS, *SKEWED) for row in oracle(arm, found[arm], TARGETS[0])))
    lines += ["![](four_variants.svg)", "", "## Momentum, decay, noise", "", *DEPENDENCE_EXPLAINED]
    heads = (
        "variant",
        "claimed b*, sigma 4",
        "bound, tuned",
        "measured, tuned",
        "fewest samples at",
        "best lr by batch",
    )
    heads = (*heads, "measured at each fixed lr", "measured, latest iterate")
    for target in TARGETS:
        lines += [f"### Target {target:g}", "", *table(heads, dependence(found, target))]
    lines += ["## Look-ahead", "", *LOOK_AHEAD_EXPLAINED]
    for target in TARGETS:
        lines += table((f"target {target:g}, against", *batches), look_ahead(found, target))
    return "\n".join(lines)


def heading(records: Sequence[Record]) -> list[str]:
    first = records[0]
    minutes = sum(record.wall_seconds for record in records) / 60
    task = Arm().task
    return [
        "# The four variants of Muon: claims, bounds, measurements",
        "",
        "Written by `make four-variants-page` from `studies/four_variants_results.json.gz`, which holds every run;",
        "`make four-variants` makes the runs again.",
        "",
        f"{len(records):,} runs of `muonlab.Muon` on the task `matrix`, {len(SEEDS)} seeds, {minutes:.0f} minutes of one core in",
        f"all, {first.environment.get('machine')}, torch {first.spec.torch}.",
        f"W is {task.rows} x {task.cols}, quadratic unless said otherwise, L = {task.smoothness:g}, curvatures over a factor of",
        f"{task.condition:g}, sigma = {task.sigma:g} a sample; at the start f - f* = {task.start_loss:.3f},",
        f"|grad f|_* = {task.start_nuclear:.3f}, |grad f|_F = {task.start_norm:.3f}. Exact polar factor, averaged momentum,",
        "constant learning rate, no clipping. With decay the measure is the Frank-Wolfe gap, so that numbers with and without",
        "decay, or at two decays, are about different quantities.",
        "",
    ]


VERDICTS_EXPLAINED = [
    "Sato, Naganuma and Iiduka 2025 (2507.01598): versions 1 to 4 claim a formula for the critical batch, known to us second",
    "hand; version 5 says of itself that its absolute value cannot be predicted, only how momentum and decay move it. The",
    "bound is ours (`muonlab.analyze.bounds`). A *critical batch* is here the one at which the samples to the target, beyond",
    f"their minimum, are {OVERHEAD:g} times the fewest; factors are from the first setting to the second. In brackets: the",
    f"extremes over leaving out a seed on either side. Factors within {RESOLVED:g} count as the same: the grid of learning rates",
    "alone moves a critical batch by about as much.",
    "",
]
HOLDS_EXPLAINED = [
    "The mean over seeds of the measure, averaged over the run, / the bound on it; then at how many of all points of all runs",
    "of the variant the bound holds, and by what factor it is above what was measured at the ends of runs.",
    "",
]
SAMPLES_EXPLAINED = [
    f"Measured / by the bound, until the running mean of the measure is {TARGETS[0]:g}. *Unreached*: not within the run (of",
    f"{', '.join(f'{steps} steps at lr {lr:g}' for lr, steps in STEPS.items())}); *never*: the bound never gets there.",
    "",
]
DEPENDENCE_EXPLAINED = [
    "Critical batches as above. *Beyond*: more than the largest batch; *none*: no batch gets there. The last column counts",
    "until the latest iterates, not the mean over all, are at the target, as time to a target is usually counted.",
    "",
]
LOOK_AHEAD_EXPLAINED = ["Samples with look-ahead over samples without, learning rate tuned for each.", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="make the runs that this store lacks, and keep them all")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    asked = parser.parse_args()
    if asked.store:
        keep(make(asked.store, asked.workers))
    records = kept()
    found = curves(records)
    (DOCS / "four_variants.svg").write_text(figure(found, TARGETS[0]))
    PAGE.write_text(page(found, records))


if __name__ == "__main__":
    main()
