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


def divided(a: float, b: float) -> float:
    """nan where one of them is not there."""
    return a / b if math.isfinite(a) and math.isfinite(b) else math.nan


# What is asked, and answered


Setting = tuple[Arm, float, float | None]  # an arm, a target, and a learning rate or None: tuned


def answers(found: dict[Arm, Cells], gradients: dict[Arm, Cells]) -> Iterator[tuple[str, ...]]:
    """What is asked; claimed, derived, measured; a verdict. `gradients` is of the nuclear norm also with decay."""
    factors = np.concatenate([loose for arm, cells in found.items() for loose in looseness(arm, cells).values()])
    held = (
        f"at {(factors >= 1).sum():,} of {len(factors):,} points, by {factors.min():.2g} to {factors.max():.0f} times"
    )
    yield "is the bound above the mean", "-", "yes", held, "holds" if (factors >= 1).all() else "does not hold"
    first, second = TARGETS
    slow, fast = (Arm(momentum=momentum) for momentum in (0.5, 0.95))
    for arm in (slow, Arm(), *SKEWED):
        bests = (f"{bound.critical_batch(first):.2g}" for bound in (arm.claimed, arm.derived.tuned()))
        at = least(samples(found[arm], first))
        verdict = "none inside: neither agrees" if "edge" in at else "open" if at == "unreached" else "one inside"
        yield f"which batch takes the fewest samples, {arm.name}; target {first:g}, lr tuned", *bests, at, verdict
    pairs = {
        "momentum 0.5 to 0.95": (slow, fast),
        "momentum 0.5 to 0.9, skewed noise": SKEWED,
        "look-ahead, momentum 0.5": (slow, Arm(momentum=0.5, nesterov=True)),
        "look-ahead, momentum 0.9": (Arm(), Arm(nesterov=True)),
        "decay 0.25 to 1, the gap": (Arm(weight_decay=0.25), Arm(weight_decay=1.0)),
    }
    for text, (old, new) in pairs.items():
        for target in TARGETS:
            yield change(found, text, (old, target, None), (new, target, None))
    for text, ends in {"decay 0 to 0.5": (0.0, 0.5), "decay 0.25 to 1": (0.25, 1.0)}.items():
        for target in TARGETS:
            old, new = ((Arm(weight_decay=decay), target, None) for decay in ends)
            yield change(gradients, f"{text}, the gradient", old, new, bounded=False)
    for lr in (0.005, 0.08):
        yield change(found, "momentum 0.5 to 0.95", (slow, first, lr), (fast, first, lr))
    yield change(found, f"target {first:g} to {second:g}, momentum 0.9", (Arm(), first, None), (Arm(), second, None))


def change(found: dict[Arm, Cells], text: str, old: Setting, new: Setting, *, bounded: bool = True) -> tuple[str, ...]:
    """By what factor the critical batch is larger at the new setting than at the old one."""
    claimed = divided(*(predicted(arm.claimed, target) for arm, target, _ in (new, old)))
    bounds = ((arm.derived.tuned() if lr is None else arm.derived.fixed(lr), target) for arm, target, lr in (new, old))
    derived = divided(*(predicted(*bound) for bound in bounds)) if bounded else math.nan
    after, before = (measured(found[arm], target, lr) for arm, target, lr in (new, old))
    ratios = [divided(a, b) for a in after for b in before]
    seen, *others = {direction(ratio) for ratio in ratios}
    verdict = "open"
    if seen != "open" and not others:
        words = {seen: "agrees", "open": "says nothing"}
        said = {"claim": direction(claimed), "bound": direction(derived)}
        verdict = f"{seen}: " + ", ".join(f"{who} {words.get(what, 'does not agree')}" for who, what in said.items())
    text += (
        "; "
        + (f"target {new[1]:g}, " if old[1] == new[1] else "")
        + ("lr tuned" if new[2] is None else f"lr {new[2]:g}")
    )
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


def looseness(arm: Arm, cells: Cells) -> dict[tuple[float, int], NDArray[np.float64]]:
    """The bound over the mean over seeds of what it bounds, at every point of every curve."""
    return {
        (lr, batch): arm.derived.fixed(lr).value(one.counts, batch) / one.averages.mean(0)
        for (lr, batch), one in cells.items()
    }


def held(found: dict[Arm, Cells]) -> Iterator[tuple[str, ...]]:
    """At how many points the bound holds, and how far above what it bounds it is at the ends of runs."""
    for arm, cells in found.items():
        above = looseness(arm, cells)
        points, ends = np.concatenate(list(above.values())), {at: factors[-1] for at, factors in above.items()}
        means = {at: cells[at].averages[:, -1].mean() for at in SHOWN}
        lr, batch = min(ends, key=ends.__getitem__)
        spread = f"{ends[lr, batch]:.2f} (lr {lr:g}, b = {batch})", f"{np.median(list(ends.values())):.1f}"
        shown = (f"{mean:.3f} / {mean * ends[at]:.2f}" for at, mean in means.items())
        yield arm.name, *shown, f"{(points >= 1).sum()} of {len(points)}", *spread, f"{max(ends.values()):.0f}"


def oracle(arm: Arm, cells: Cells, target: float) -> Iterator[tuple[str, ...]]:
    """SFO measured and by the bound, and where each is least: at every learning rate, and tuned."""
    for lr in (*STEPS, None):
        bound = arm.derived.tuned() if lr is None else arm.derived.fixed(lr)
        pairs = [(sfo, bound.samples(target, b)) for sfo, b in zip(samples(cells, target, lr), BATCHES, strict=True)]
        shown = (f"{count(sfo, 'unreached')} / {count(theirs, 'never')}" for sfo, theirs in pairs)
        best = bound.critical_batch(target)
        ends = least([sfo for sfo, _ in pairs]), "none" if math.isinf(best) else f"{best:.3g}"
        yield arm.name, "tuned" if lr is None else f"{lr:g}", *shown, *ends


def count(value: float, infinite: str) -> str:
    return infinite if math.isinf(value) else show(math.ceil(value), "tokens")


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
            *(arm.name, number(predicted(arm.claimed, target)), number(predicted(arm.derived.tuned(), target))),
            *(next(spans), least(tuned)),
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


def page(records: Sequence[Record]) -> str:
    found, gradients = curves(records), curves(records, gap=False)
    batches = [f"b = {batch}" for batch in BATCHES]
    sections = {
        "Claimed, derived, measured": table(
            (
                "how the critical batch changes, if nothing else is asked",
                "claimed by the paper, v1 to v4",
                "derived by us",
                "measured",
                "verdict",
            ),
            answers(found, gradients),
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
                    *(f"target {target:g}", "claimed", "bound, lr tuned", "measured, lr tuned", "fewest samples at"),
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
    text = f"""
    {len(records):,} runs of `muonlab.Muon` on the task [`matrix`](tasks.md#matrix), {len(SEEDS)} seeds each,
    {first.environment.get("machine")}, torch {first.spec.torch}. W is
    {task.rows} x {task.cols}, the function quadratic where nothing else is said, L = {task.smoothness:g}, curvatures
    over a factor of {task.condition:g}, sigma = {task.sigma:g} a sample. At the start, W = 0,
    f - f* = {task.start_loss:.3f}, and the gradient has the nuclear norm {task.start_nuclear:.3f}, Frobenius' norm
    {task.start_norm:.3f}. Exact
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
    What is unreached may be reached at a smaller learning rate in a longer run. *Tuned*: the best learning rate for each
    batch, of the grid where it is measured, of all for the bound.""",
    "Momentum, decay, noise": """
    Critical batches as in the first table. The claim is at a floor of 0, and has the square of a gradient where a
    gradient should be: where it agrees with what is measured, units make it. *Beyond*: the samples at the largest batch
    are not twice the fewest; *none*: no batch gets to the target. A star: the edge of the grid. The
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
    FIGURE.write_text(figure(curves(records), TARGETS[0]))
    PAGE.write_text(page(records))


if __name__ == "__main__":
    main()
