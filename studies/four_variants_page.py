"""The page of the four variants: what is claimed, derived and measured, from the results that the study keeps."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from four_variants import (
    BATCHES,
    OVERHEAD,
    SEEDS,
    SKEWED,
    STEPS,
    TARGETS,
    VARIANTS,
    Arm,
    Cells,
    critical_batch,
    curves,
    kept,
    measured,
    predicted,
    samples,
)
from numpy.typing import NDArray
from writing import table, whole

from muonlab.records import Record
from muonlab.report.canvas import HUES, draw
from muonlab.report.text import show

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURE = DOCS / "four_variants.md", DOCS / "four_variants.svg"
SHOWN_LR, SHOWN = 0.0125, ((1, 451), (64, 10), (64, 100), (64, 451), (1024, 451))  # batch and K of what is shown
RESOLVED = 1.5  # of ratios of critical batches: the grid of learning rates alone moves one by about as much

Setting = tuple[Arm, float, float | None]  # an arm, a target, and a learning rate or None: tuned


def answers(found: dict[Arm, Cells], gradients: dict[Arm, Cells]) -> Iterator[tuple[str, ...]]:
    """What is asked; claimed, derived, measured; a verdict. `gradients` is of the nuclear norm also with decay."""
    factors = np.concatenate([loose for arm, cells in found.items() for loose in looseness(arm, cells).values()])
    above = f"at {(factors >= 1).sum():,} of {len(factors):,} points"
    above += f", {factors.min():.2g} to {factors.max():.0f} times as large"
    yield "is the bound above the mean", "-", "yes", above, "holds" if (factors >= 1).all() else "does not hold"
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
    where = "lr tuned" if new[2] is None else f"lr {new[2]:g}"
    text = f"{text}; target {new[1]:g}, {where}" if old[1] == new[1] else f"{text}; {where}"
    return text, factor(claimed), factor(derived), f"{factor(ratios[0])} [{interval(ratios)}]", verdict


def divided(a: float, b: float) -> float:
    """nan where one of them is not there."""
    return a / b if math.isfinite(a) and math.isfinite(b) else math.nan


def interval(ratios: Sequence[float]) -> str:
    return "not all finite" if any(map(math.isnan, ratios)) else f"{min(ratios):.2g}, {max(ratios):.2g}"


def factor(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"x{ratio:.2g}"


def direction(ratio: float) -> str:
    if math.isnan(ratio):
        return "open"
    return "rises" if ratio >= RESOLVED else "falls" if ratio <= 1 / RESOLVED else "about the same"


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
        bound = arm.derived.fixed(SHOWN_LR)
        shown = (f"{cells[SHOWN_LR, b].average_at(k):.3f} / {bound.value(k, b):.2f}" for b, k in SHOWN)
        lr, batch = min(ends, key=ends.__getitem__)
        spread = f"{ends[lr, batch]:.2f} (lr {lr:g}, b = {batch})", f"{np.median(list(ends.values())):.1f}"
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
        bounds = (number(predicted(bound, target)) for bound in (arm.claimed, arm.derived.tuned()))
        spans = ("{} [{}, {}]".format(*map(number, measured(cells, target, latest=late))) for late in (False, True))
        tuned = least(samples(cells, target)), ", ".join(best_lrs(cells, target))
        fixed = (number(critical_batch(BATCHES, samples(cells, target, lr))) for lr in STEPS)
        yield arm.name, *bounds, next(spans), *tuned, ", ".join(fixed), next(spans)


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
                bound = [arm.derived.tuned().samples(target, batch) for batch in fine]
                axes.plot(fine, finite(bound), ":", color=hue, label="its bound")
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel=f"samples until the running mean is {target:g}")
        axes.set_ylim(top=3e6)
        axes.set_xticks(BATCHES, map(str, BATCHES))
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=9.5, loc="center left", bbox_to_anchor=(1.01, 0.5))

    alt = f"Samples until the running mean is {target:g}, by batch, learning rate tuned for each: measured, and bounds"
    return whole(draw("four-variants", (720, 400), alt, paint).svg)


def finite(values: Iterable[float]) -> list[float]:
    return [value if math.isfinite(value) else math.nan for value in values]


def page(records: Sequence[Record]) -> str:
    found, gradients = curves(records), curves(records, gap=False)
    batches = [f"b = {batch}" for batch in BATCHES]
    sections = {
        "Claimed, derived, measured": table(
            ("change of the critical batch", "claimed by the paper, v1 to v4", "derived by us", "measured", "verdict"),
            answers(found, gradients),
        ),
        "Does the bound hold?": table(
            ("variant", *(f"b = {b}, K = {k}" for b, k in SHOWN), "holds at", "least factor", "median", "largest"),
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
    "Does the bound hold?": f"""
    The mean over K iterates and all seeds / the bound on it, at lr {SHOWN_LR:g}; at how many points of all curves of a
    variant (every learning rate, every batch) the bound holds; by what factor it is above the measured mean at the ends
    of runs.""",
    "Samples to the target": f"""
    Measured / by the bound, target {TARGETS[0]:g}. *Unreached*: not within the run, of
    {", ".join(f"{steps} steps at lr {lr:g}" for lr, steps in STEPS.items())}; *never*: the bound never gets there.
    What is unreached may be reached at a smaller learning rate in a longer run. *Tuned*: the best learning rate for
    each batch, of the grid where it is measured, of all for the bound.""",
    "Momentum, decay, noise": """
    Critical batches as in the first table. The claim is at a floor of 0, and has the square of a gradient where a
    gradient should be: where it agrees with what is measured, units make it. *Beyond*: the samples at the largest batch
    are not twice the fewest; *none*: no batch gets to the target. A star: the edge of the grid. The
    last column counts until the latest iterates are at the target, not the mean over all: how time to a target is
    usually told.""",
    "Look-ahead": "Samples with look-ahead over samples without, learning rate tuned for each.",
}


def main() -> None:
    records = kept()
    FIGURE.write_text(figure(curves(records), TARGETS[0]))
    PAGE.write_text(page(records))


if __name__ == "__main__":
    main()
