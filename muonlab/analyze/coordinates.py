"""A coordinate check concluded: how activations and updates grow with the width, beside what was predicted."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from muonlab.analyze.significance import LEVEL
from muonlab.records import Record
from muonlab.records.coordinate_evidence import CoordinateEvidence, Prediction
from muonlab.records.watch import CHANGE, UPDATE

__all__ = [
    "BOUND", "HIDDEN", "Checked", "CoordinateFinding", "Predicted", "Slope", "WidthFit", "analyze", "fit_width",
    "kind_of_layer", "verdict_parts",
]  # fmt: skip

BOUND = 0.1  # on a power of the width: a factor of 1.23 over a factor of 8. Ours
POOLED = 0.25  # p value below which widths stray from the line by more than seeds explain (Bancroft 1964)
HIDDEN = "hidden matrices"  # all of them together
Verdict = Literal["passed", "failed", "held", "did not hold", "unresolved", "not predicted"]
Records = Mapping[str, Record]


class WidthFit(NamedTuple):
    """Power of the width, and its 95 % interval; None where it is undefined."""

    slope: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Slope:
    """How one kind of layer, in one parametrization under one optimizer, grows with the width."""

    name: str
    parametrization: str
    quantity: str  # "change" of outputs since initialisation, or "update" of matrices, RMS -> RMS
    layer: str  # with "*" for the number of a block
    values: tuple[float | None, ...]  # by width: geometric mean over seeds, and over blocks
    slope: float | None
    low: float | None
    high: float | None
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The coordinate check of one optimizer in one parametrization."""

    name: str
    parametrization: str
    verdict: Verdict
    worst: Slope | None  # the layer whose slope is furthest from 0
    num_diverged: int
    num_lost: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was registered of the updates of hidden matrices, beside what was measured."""

    prediction: Prediction
    slope: float | None
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class CoordinateFinding:
    """The finding of a coordinate check."""

    task: str
    optimizers: tuple[str, ...]
    parametrizations: tuple[str, ...]
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    step: int  # the last one, which everything here is about
    lr: Mapping[str, float]
    bound: float  # on the absolute value of a slope
    checks: tuple[Checked, ...]
    predictions: tuple[Predicted, ...]
    slopes: tuple[Slope, ...]
    config: Mapping[str, Any]

    def slope(self, name: str, parametrization: str, quantity: str, layer: str) -> Slope | None:
        """None where nothing was measured."""
        wanted = (name, parametrization, quantity, layer)
        return next((s for s in self.slopes if (s.name, s.parametrization, s.quantity, s.layer) == wanted), None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def analyze(evidence: CoordinateEvidence, records: Records) -> CoordinateFinding:
    """Slopes at the last step, whether each parametrization passes, and whether each prediction held.

    A layer's slope is that of its logarithm, mean over the blocks that have it, one value a run, by `fit_width`.

    Raises   KeyError if a record that the evidence names is missing
    """
    pairs = list(product(evidence.optimizers, evidence.parametrizations))
    slopes = {pair: _slopes(evidence, *pair, records) for pair in pairs}
    return CoordinateFinding(
        task=evidence.task,
        optimizers=tuple(evidence.optimizers),
        parametrizations=evidence.parametrizations,
        widths=evidence.widths,
        seeds=evidence.seeds,
        steps=evidence.steps,
        step=evidence.steps[-1],
        lr=evidence.lr,
        bound=BOUND,
        checks=tuple(_checked(evidence, *pair, slopes[pair], records) for pair in pairs),
        predictions=tuple(_predicted(one, slopes[one.name, one.parametrization]) for one in evidence.predictions),
        slopes=tuple(slope for pair in pairs for slope in slopes[pair]),
        config=evidence.config,
    )


def verdict_parts(finding: CoordinateFinding) -> list[str]:
    """Which optimizers and parametrizations pass, which fail, and of which nothing can be said."""
    parts = []
    for verdict, word in {"passed": "passed by", "failed": "failed by", "unresolved": "unresolved for"}.items():
        own = [f"{one.name} {one.parametrization}" for one in finding.checks if one.verdict == verdict]
        parts += [f"{word} {', '.join(own)}"] if own else []
    return parts


def fit_width(points: Sequence[tuple[float, float]]) -> WidthFit:
    """The slope of log values over log widths by least squares; a point is a run, of any seed.

    Math     the interval is Student's. Its variance is that of the points around the line; but where the means of the
             widths stray from the line by more than the seeds at a width explain (F test, p < POOLED), so that the
             line is bent, it is that of the means, with num_widths - 2 degrees of freedom: seeds share a bend, and
             more of them do not average it out. Of one seed, and of two widths, the one variance that there is

    >>> fit = fit_width([(0.0, 1.01), (0.0, 0.99), (1.0, 1.52), (1.0, 1.48), (2.0, 2.01), (2.0, 1.99)])
    >>> [round(value, 2) for value in fit]
    [0.5, 0.48, 0.52]
    """
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    places = np.unique(x)
    if len(places) < 2:
        return WidthFit(None, None, None)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    line = y.mean() + slope * (x - x.mean())
    means = np.array([y[x == place].mean() for place in x])
    bend, noise = float(((means - line) ** 2).sum()), float(((y - means) ** 2).sum())
    degrees = (len(places) - 2, len(x) - len(places))
    if sum(degrees) < 1:
        return WidthFit(slope, None, None)
    squares, count = bend + noise, sum(degrees)
    if all(degrees) and _is_bent(bend / degrees[0], noise / degrees[1], degrees):
        squares, count = bend, degrees[0]
    half = float(stats.t.ppf((1 + LEVEL) / 2, count)) * math.sqrt(squares / count / spread)
    return WidthFit(slope, slope - half, slope + half)


def _is_bent(bend: float, noise: float, degrees: tuple[int, int]) -> bool:
    return bend > 0 and (noise == 0 or float(stats.f.sf(bend / noise, *degrees)) < POOLED)


def kind_of_layer(name: str) -> str:
    """
    >>> kind_of_layer("blocks.0.attention.q.weight"), kind_of_layer("head")
    ('blocks.*.attention.q', 'head')
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name.removesuffix(".weight"))


def _slopes(evidence: CoordinateEvidence, name: str, kind: str, records: Records) -> list[Slope]:
    """Of every kind of layer whose output or update was measured, and of all updates together."""
    runs = [one for one in evidence.runs if (one.name, one.parametrization) == (name, kind)]
    cells = [[records[key] for key in one.keys] for one in sorted(runs, key=lambda one: one.width)]
    found = []
    for prefix in (CHANGE, UPDATE):
        layers = [series for cell in cells for record in cell for series in record.probes if series.startswith(prefix)]
        members: dict[str, list[str]] = {}
        for series in dict.fromkeys(layers):
            members.setdefault(kind_of_layer(series.removeprefix(prefix)), []).append(series)
        if prefix == UPDATE and members:
            members[HIDDEN] = [series for own in members.values() for series in own]
        for layer, own in members.items():
            logs = [[_log_mean(record, own, evidence.steps[-1]) for record in cell] for cell in cells]
            known = [[value for value in at if value is not None] for at in logs]
            points = [
                (math.log(width), v) for width, values in zip(evidence.widths, known, strict=True) for v in values
            ]
            found.append(
                Slope(
                    name=name, parametrization=kind, quantity=prefix.rstrip("."), layer=layer,
                    values=tuple(math.exp(float(np.mean(at))) if at else None for at in known),
                    num_runs=len(points), **fit_width(points)._asdict(),
                )
            )  # fmt: skip
    return found


def _log_mean(record: Record, series: Sequence[str], step: int) -> float | None:
    """Mean of the logarithms after the step; None where one of them is missing or 0, as before a divergence."""
    values = [dict(zip(*record.probes.get(name, ((), ())), strict=True)).get(step, 0.0) for name in series]
    return float(np.mean(np.log(values))) if min(values) > 0 else None


def _checked(
    evidence: CoordinateEvidence, name: str, kind: str, slopes: Sequence[Slope], records: Records
) -> Checked:  # fmt: skip
    """Passed if every layer's interval lies within the bound; failed if one lies outside of it."""
    keys = [key for one in evidence.runs if (one.name, one.parametrization) == (name, kind) for key in one.keys]
    outcomes = [records[key].outcome for key in keys]
    diverged, lost = outcomes.count("diverged"), outcomes.count("failed")
    changes = [slope for slope in slopes if slope.quantity == "change"]
    places = [_place(slope, -BOUND, BOUND) for slope in changes]
    outside = [slope.layer for slope, place in zip(changes, places, strict=True) if place == "outside"]
    open_ones = [slope.layer for slope, place in zip(changes, places, strict=True) if place == "across"]
    verdict: Verdict = "unresolved"
    if outside:
        verdict, detail = "failed", f"{len(outside)} of {len(changes)} layers change with the width"
    elif diverged or lost:
        losses = [f"{count} {word}" for count, word in ((diverged, "diverged: lower lr"), (lost, "failed")) if count]
        detail = f"of {len(keys)} runs {' and '.join(losses)}"
    elif not changes:
        detail = "no layer was measured"
    elif open_ones:
        detail = f"{len(open_ones)} of {len(changes)} layers can't be told: more seeds or widths"
    else:
        verdict, detail = "passed", f"all {len(changes)} layers change alike at every width"
    known = [slope for slope in changes if slope.slope is not None]
    worst = max(known, key=lambda slope: abs(slope.slope or 0.0), default=None)
    return Checked(
        name=name, parametrization=kind, verdict=verdict, worst=worst, num_diverged=diverged, num_lost=lost,
        detail=detail,
    )  # fmt: skip


def _place(slope: Slope | WidthFit, low: float, high: float) -> str:
    """Where the interval lies: "inside" of the range, "outside", or "across" one of its ends or unknown."""
    if slope.low is None or slope.high is None:
        return "across"
    if low <= slope.low and slope.high <= high:
        return "inside"
    return "outside" if slope.high < low or high < slope.low else "across"


def _predicted(one: Prediction, slopes: Sequence[Slope]) -> Predicted:
    """Held if the interval of all hidden matrices together lies within the predicted range, BOUND around it."""
    own = next((slope for slope in slopes if slope.layer == HIDDEN), WidthFit(None, None, None))
    verdict: Verdict = "not predicted"
    if one.low is not None and one.high is not None:
        place = _place(own, one.low - BOUND, one.high + BOUND)
        verdict = {"inside": "held", "outside": "did not hold", "across": "unresolved"}[place]
    return Predicted(prediction=one, slope=own.slope, low=own.low, high=own.high, verdict=verdict)
