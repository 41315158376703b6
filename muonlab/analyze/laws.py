"""Laws of hyperparameters: how the tuned value of one goes with parameters N and tokens D, and how well that is known.

A value is looked at on its own scale: log h, or log(1 - h) for what is close to 1, such as momentum. What has no scale
(a word, a switch, a clip whose 0 means none) has no law: the value that was best most often is taken.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from muonlab.analyze.powerlaw import ASSUMED_STEP, EXPONENT_SD, PowerFit, fit_power, fit_power_with_floor
from muonlab.errors import UsageError
from muonlab.records.spec import Value

__all__ = ["HeldOut", "HyperLaw", "Optimum", "Prediction", "fit_law", "kind_of", "predict", "within_a_step"]

UNSCALED = ("clip", "eps", "precondition_frequency", "update_probability", "update_flat_steps", "seed")
FORMULAS = {
    "constant": "the same value everywhere",
    "discrete": "the value that was best most often",
    "power": "log h = log a - A log N - B log D",
    "power with floor": "h = a N^-A D^-B + b",
}


class Optimum(NamedTuple):
    """The tuned value at one size and length."""

    params: float
    tokens: float
    value: Value


@dataclass(frozen=True)
class Prediction:
    """A value with its 95 % interval for what a tuning there would find; None where no interval is known."""

    value: Value
    low: float | None
    high: float | None


@dataclass(frozen=True)
class HeldOut:
    """How well the optima at the largest size follow from those at the others."""

    params: float
    num_cells: int
    num_inside: int  # of the interval; for a discrete one, that are equal
    worst_factor: float | None  # between prediction and tuned value (of 1 - value for a momentum); None: discrete


@dataclass(frozen=True, kw_only=True)
class HyperLaw:
    """A law with everything that a prediction needs. Exponents have 95 % intervals."""

    coordinate: str
    form: str  # a key of FORMULAS
    kind: str  # what `kind_of` says
    counts: tuple[tuple[Value, int], ...]  # how often each value was best, the most frequent first
    num_points: int
    ranges: Mapping[str, tuple[float, float]]
    parameters: Mapping[str, float]  # of the formula, for h or for 1 - h
    intervals: Mapping[str, tuple[float, float]]
    held_out: HeldOut | None = None
    notes: tuple[str, ...] = ()
    deviation: float | None = None  # of a tuned value around the law, as a logarithm; None where there is no law
    curve: PowerFit | None = None
    units: tuple[float, float] = (0.0, 0.0)  # log N, log D: geometric means

    @property
    def formula(self) -> str:
        return FORMULAS[self.form].replace("h =", "(1 - h) =" if self.kind == "momentum" else "h =")

    def to_dict(self) -> dict[str, Any]:
        shown = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("curve", "units", "held_out")}
        return {**shown, "formula": self.formula, "held_out": self.held_out and asdict(self.held_out)}

    def predict(self, params: float, tokens: float) -> Prediction:
        """What tuning would find at that size and length.

        Math     interval: law +- t sqrt(its variance there + that of tuned values around it), on the value's scale
        """
        most = self.counts[0][0]
        if self.curve is None:
            values = [value for value, _ in self.counts]
            plain = all(_is_number(value) for value in values) and len(values) > 1
            return Prediction(most, *((float(min(values)), float(max(values))) if plain else (None, None)))
        centre, half = self.curve.at(math.log(params) - self.units[0], math.log(tokens) - self.units[1])
        low, high = sorted(_from_scale(centre + sign * half, self.kind) for sign in (-1, 1))
        value = most if self.form == "constant" else self._rounded(_from_scale(centre, self.kind))
        return Prediction(value, _digits(low, self.kind, -1), _digits(high, self.kind, 1))

    def _rounded(self, value: float) -> Value:
        values = [value for value, _ in self.counts]
        if not all(isinstance(v, int) for v in values):
            return _digits(value, self.kind)
        least = min(values)
        ratios = [math.log2(v / least) for v in values]
        if all(ratio.is_integer() for ratio in ratios):  # a batch of 2^k sequences stays one
            return max(1, round(least * 2.0 ** round(math.log2(value / least))))
        return max(1, round(value))


def kind_of(coordinate: str) -> str:
    """The scale of a coordinate: "momentum" (1 - h counts), "fraction" (at most 1), "discrete" (none), else "positive".

    >>> [kind_of(name) for name in ("opt.lr", "aux.beta1", "schedule.warmup_fraction", "clip")]
    ['positive', 'momentum', 'fraction', 'discrete']
    """
    leaf = coordinate.rpartition(".")[2]
    if leaf in UNSCALED:
        return "discrete"
    if leaf == "momentum" or "beta" in leaf:
        return "momentum"
    return "fraction" if leaf.endswith("_fraction") else "positive"


def predict(points: Sequence[tuple[float, float, Value]], params: float, tokens: float, coordinate: str = "") -> Value:
    """The value alone that a law through the points (params, tokens, value) gives; see `fit_law`.

    >>> predict([(1e6, 2e7, 0.016), (4e6, 8e7, 0.008), (16e6, 32e7, 0.004)], 64e6, 128e7, "opt.lr")
    0.002
    """
    return fit_law(points, coordinate).predict(params, tokens).value


def fit_law(points: Sequence[tuple[float, float, Value]], coordinate: str = "", grid: Sequence[Value] = ()) -> HyperLaw:
    """The law of one hyperparameter through its tuned values; `grid` is what these were chosen from.

    Math     least squares of log h = log a - A log N - B log D, with A, B ~ N(0, 0.5) before any data: where all sizes
             are equal, or sizes and lengths go together, the exponents are not known better than that, and intervals
             say so. Tuned values lie around the law at least as much as half a step of their grid allows. A floor b is
             fitted where there are five distinct values or more and AICc gains by it. A value that is the same
             everywhere is taken as it is
    Raises   UsageError without points
    Source   h = a N^-A D^-B + b by least squares: Wen et al. 2025, phase III
    Differs  from it: on a logarithmic scale; the floor, which three or four values of a grid cannot tell from the
             exponents, only where it can be told; the prior and the intervals are ours

    >>> law = fit_law([(n, d, 2.0 * n**-0.25) for n in (1e6, 4e6, 16e6) for d in (1e8, 1e9, 1e10)], "opt.lr")
    >>> law.form, round(law.parameters["A"], 2), abs(round(law.parameters["B"], 2))
    ('power', 0.25, 0.0)
    """
    optima = [Optimum(*point) for point in points]
    law = _fitted(optima, coordinate, grid)
    return HyperLaw(**{**vars(law), "held_out": _held_out(optima, coordinate, grid)})


def within_a_step(law: HyperLaw, points: Sequence[tuple[float, float, Value]], grid: Sequence[Value] = ()) -> int:
    """At how many points the law is no more than a step of the grid from the tuned value."""
    step = _step([value for *_, value in points], law.kind, grid)
    return sum(_distance(law, Optimum(*point)) <= step * (1 + 1e-6) for point in points)


def _fitted(optima: Sequence[Optimum], coordinate: str, grid: Sequence[Value]) -> HyperLaw:
    if not optima:
        raise UsageError(f"there is no tuned value of {coordinate or 'it'} to predict from")
    kind, values = kind_of(coordinate), [one.value for one in optima]
    descending = sorted(optima, key=lambda one: -one.params * one.tokens)
    shared = {
        "coordinate": coordinate,
        "counts": tuple(Counter(one.value for one in descending).most_common()),  # ties: at the larger scale
        "num_points": len(optima),
        "ranges": {
            name: (min(getattr(one, name) for one in optima), max(getattr(one, name) for one in optima))
            for name in ("params", "tokens")
        },
    }
    if all(map(_is_number, values)) and kind != "discrete":
        if all(_has_scale(value, kind) for value in values):
            return _power_law(optima, kind, grid, shared)
        if len(set(values)) > 1:
            shared["notes"] = ("0 has no logarithm: no law",)
    form = "constant" if len(set(values)) == 1 and len(optima) > 1 else "discrete"
    return HyperLaw(**{"form": form, "kind": "discrete", "parameters": {}, "intervals": {}, **shared})


def _power_law(optima: Sequence[Optimum], kind: str, grid: Sequence[Value], shared: Mapping[str, Any]) -> HyperLaw:
    logs = np.log([[one.params, one.tokens] for one in optima])
    units = logs.mean(axis=0)
    n, d = (logs - units).T
    u = np.array([_to_scale(one.value, kind) for one in optima])
    least = _step([one.value for one in optima], kind, grid) / math.sqrt(12.0)  # of an even spread over a step
    curve = fit_power(n, d, u, least)
    form = "constant" if len(set(u)) == 1 and len(u) > 1 else "power"
    floored = fit_power_with_floor(n, d, u, curve, least)
    if floored is not None:
        form, curve = "power with floor", floored
    log_a, *exponents = curve.theta[:3]
    parameters = {"a": math.exp(log_a + float(np.dot(exponents, units))), **dict(zip("AB", exponents, strict=True))}
    if floored is not None:
        parameters["b"] = math.exp(curve.theta[3])
    return HyperLaw(
        form=form,
        kind=kind,
        parameters={name: float(value) for name, value in parameters.items()},
        intervals={"A": curve.interval(1), "B": curve.interval(2)},
        notes=_doubts(optima),
        deviation=curve.deviation,
        curve=curve,
        units=(float(units[0]), float(units[1])),
        **shared,
    )


def _doubts(optima: Sequence[Optimum]) -> tuple[str, ...]:
    """What the design leaves open."""
    notes = []
    sizes, lengths = len({one.params for one in optima}), len({one.tokens for one in optima})
    if len(optima) < 4:
        notes.append(f"from {len(optima)} tuned value{'s' if len(optima) > 1 else ''} only")
    for count, what, name in ((sizes, "size", "params"), (lengths, "length", "tokens")):
        if count == 1:
            notes.append(f"one {what} only: how it goes with {name} is assumed, exponent 0 +- {EXPONENT_SD:g}")
    logs = np.log([[one.params, one.tokens] for one in optima])
    if sizes > 1 and lengths > 1 and abs(float(np.corrcoef(logs.T)[0, 1])) > 0.999:
        notes.append("size and length go together: which of them it goes with is not known")
    return tuple(notes)


def _held_out(optima: Sequence[Optimum], coordinate: str, grid: Sequence[Value]) -> HeldOut | None:
    """The check of Wen et al., phase III: predict the largest size from the others; None with one size."""
    largest = max(one.params for one in optima)
    rest, held = ([one for one in optima if (one.params == largest) is where] for where in (False, True))
    if not rest:
        return None
    law = _fitted(rest, coordinate, grid)
    inside, worst = 0, 0.0
    for one in held:
        found = law.predict(one.params, one.tokens)
        if law.curve is not None and _has_scale(one.value, law.kind):
            inside += found.low <= one.value <= found.high
            worst = max(worst, _distance(law, one))
        else:
            inside += found.value == one.value
    return HeldOut(largest, len(held), inside, None if law.curve is None else math.exp(worst))


def _distance(law: HyperLaw, one: Optimum) -> float:
    """Between prediction and tuned value, on the value's scale; for a discrete one 0 or infinite."""
    found = law.predict(one.params, one.tokens).value
    if law.curve is None or not _has_scale(found, law.kind):
        return 0.0 if found == one.value else math.inf
    return abs(_to_scale(found, law.kind) - _to_scale(one.value, law.kind))


def _step(values: Sequence[Value], kind: str, grid: Sequence[Value]) -> float:
    """The usual step of the grid on the value's scale; 0 for values that lie on none."""
    for chosen in (grid, values):
        known = {_to_scale(v, kind) for v in chosen if _is_number(v) and _has_scale(v, kind)}
        if len(known) > 1:
            return 0.0 if chosen is values and len(values) == len(known) else float(np.median(np.diff(sorted(known))))
    return ASSUMED_STEP


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_scale(value: Any, kind: str) -> bool:
    return value < 1 if kind == "momentum" else value > 0


def _to_scale(value: Any, kind: str) -> float:
    return math.log1p(-value) if kind == "momentum" else math.log(value)


def _from_scale(u: float, kind: str) -> float:
    """Never beyond what the coordinate can be."""
    value = math.exp(min(u, 700.0))
    if kind == "momentum":
        return max(0.0, 1.0 - value)
    return min(value, 1.0) if kind == "fraction" else value


def _digits(value: float, kind: str, side: int = 0) -> float:
    """Two significant digits, of 1 - value where that is what counts; `side` -1 never rounds up, 1 never down."""
    x, side = (1.0 - value, -side) if kind == "momentum" else (value, side)
    if x <= 0.0:
        return value
    scale = 10.0 ** (1 - math.floor(math.log10(x)))
    count = {-1: math.floor(x * scale + 1e-6), 0: round(x * scale), 1: math.ceil(x * scale - 1e-6)}[side]
    x = float(f"{count / scale:.12g}")
    return round(1.0 - x, 12) if kind == "momentum" else x
