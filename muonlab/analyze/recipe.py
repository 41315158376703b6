"""A recipe: the hyperparameters that tuned runs predict for a model of N parameters trained on D tokens.

Two sweeps may speak: a published one, which is shipped as a table of optima, and the runs of the user's own store.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from muonlab.analyze.laws import HyperLaw, fit_law
from muonlab.analyze.sweeps import REACH, Sweep
from muonlab.errors import UsageError
from muonlab.records.spec import Value

__all__ = ["Cost", "Entry", "Recipe", "SweepFit", "recipe"]

LR_FACTORS = (0.5, 1.0, 2.0)  # of a check
CHECK_SEEDS = 2
FLOPS_PER_TOKEN = 6  # per parameter, forward and backward
FEW_STEPS = 100
LARGEST = 1e18  # of any size or length: nobody trains beyond


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One hyperparameter of a recipe. The interval is 95 %, None where none is known."""

    value: Value
    low: float | None
    high: float | None
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepFit:
    """What one sweep says."""

    source: str
    num_cells: int
    ranges: Mapping[str, tuple[float, float]]
    extrapolation: Mapping[str, float]
    hyperparameters: Mapping[str, Entry]
    laws: Mapping[str, HyperLaw]
    differs: tuple[str, ...]
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        document = {f.name: getattr(self, f.name) for f in fields(self)}
        entries = {key: asdict(one) for key, one in self.hyperparameters.items()}
        return {**document, "hyperparameters": entries, "laws": {key: law.to_dict() for key, law in self.laws.items()}}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a check: a few learning rates around the predicted one, two seeds each, at the size and length asked for."""

    lrs: tuple[float, ...]
    num_seeds: int
    num_runs: int
    tokens: float
    flops: float  # 6 N D a run


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The recommendation, what each sweep says, and what it would take to check."""

    optimizer: str
    params: float
    tokens: float
    source: str  # of the recommended learning rate
    hyperparameters: Mapping[str, Entry]
    extrapolation: Mapping[str, float]  # of that source
    num_steps: int | None
    cost: Cost
    warnings: tuple[str, ...]
    published: SweepFit | None
    own: SweepFit | None

    def to_dict(self) -> dict[str, Any]:
        document = {f.name: getattr(self, f.name) for f in fields(self)}
        document |= {"hyperparameters": {key: asdict(one) for key, one in self.hyperparameters.items()}}
        return {**document, "cost": asdict(self.cost), **{n: f and f.to_dict() for n, f in self._fits.items()}}

    @property
    def _fits(self) -> dict[str, SweepFit | None]:
        return {"published": self.published, "own": self.own}


def recipe(
    optimizer: str,
    params: float,
    tokens: float,
    *,
    batch_tokens: int | None = None,
    published: Sweep | None = None,
    own: Sweep | None = None,
    fallback: Mapping[str, tuple[Value, str]] | None = None,
) -> Recipe:
    """What to train with, from the published sweep and from one's own runs; `fallback` is for names that neither has.

    One's own runs win where they cover size and length within a factor of REACH and tuned the learning rate.

    Raises   UsageError without any sweep, or for a size or length that is not above 0

    >>> from muonlab.analyze.sweeps import published
    >>> found = recipe("muon", 1.2e9, 24e9, published=published()["muon"])
    >>> entry = found.hyperparameters["opt.lr"]
    >>> entry.value, entry.low, entry.high, found.extrapolation["params"]
    (0.0047, 0.0023, 0.0092, 1.0)
    """
    for name, value in (("--params", params), ("--tokens", tokens), ("--batch", batch_tokens)):
        if value is not None and not 0 < value < LARGEST:
            raise UsageError(f"{name} must be above 0 and below {LARGEST:g}, got {value:g}")
    if batch_tokens is not None and batch_tokens > tokens:
        raise UsageError(f"--batch {batch_tokens:,} is more than all of --tokens {tokens:,.0f}: name a smaller one")
    fits = {name: _fit(sweep, params, tokens) for name, sweep in (("published", published), ("own", own)) if sweep}
    wins = own is not None and "opt.lr" in own.values and own.covers(params, tokens)
    order = [fits[name] for name in (("own", "published") if wins else ("published",)) if name in fits]
    if not order:
        order = [found for found in fits.values() if "opt.lr" in found.hyperparameters]
    if not order:
        raise UsageError(f"nothing is known of tuned runs of {optimizer}: no published sweep and no runs in the store")
    entries = {name: Entry(value=v, low=None, high=None, source=s) for name, (v, s) in (fallback or {}).items()}
    for found in reversed(order):
        entries |= found.hyperparameters
    if batch_tokens is not None:
        entries["batch_tokens"] = Entry(value=batch_tokens, low=None, high=None, source="asked for")
    entries = _ordered(entries)
    batch = entries["batch_tokens"].value if "batch_tokens" in entries else None
    num_steps = max(1, int(tokens // batch)) if isinstance(batch, int) else None
    chosen = order[0]
    return Recipe(
        optimizer=optimizer,
        params=params,
        tokens=tokens,
        source=chosen.source,
        hyperparameters=entries,
        extrapolation=chosen.extrapolation,
        num_steps=num_steps,
        cost=_cost(float(entries["opt.lr"].value), params, tokens),
        warnings=_warnings(chosen, num_steps, batch_tokens),
        published=fits.get("published"),
        own=fits.get("own"),
    )


def _fit(sweep: Sweep, params: float, tokens: float) -> SweepFit:
    laws = {name: fit_law(sweep.points(name), name, sweep.grids.get(name, ())) for name in sweep.values}
    entries = {name: _entry(law, sweep, params, tokens) for name, law in laws.items()}
    for name, value in sweep.fixed.items():
        entries[name] = Entry(value=value, low=None, high=None, source=sweep.source, note=sweep.fixed_note)
    sizes, lengths = zip(*sweep.cells, strict=True)
    return SweepFit(
        source=sweep.source,
        num_cells=len(sweep.cells),
        ranges={"params": (min(sizes), max(sizes)), "tokens": (min(lengths), max(lengths))},
        extrapolation=sweep.beyond(params, tokens),
        hyperparameters=_ordered(entries),
        laws=laws,
        differs=sweep.differs,
        left_out=sweep.left_out,
    )


def _entry(law: HyperLaw, sweep: Sweep, params: float, tokens: float) -> Entry:
    found = law.predict(params, tokens)
    return Entry(
        value=found.value,
        low=found.low,
        high=found.high,
        source=sweep.source,
        note="; ".join(filter(None, (_told(law), *law.notes, sweep.notes.get(law.coordinate, "")))),
    )


def _told(law: HyperLaw) -> str:
    if law.form == "constant":
        return f"the same in all {law.num_points} cells"
    if law.form == "discrete":
        counts = ", ".join(f"{value} in {count}" for value, count in law.counts)
        return f"most frequent: {counts} of {law.num_points} cells (their range, no interval)"
    of = "1 - value" if law.kind == "momentum" else "value"
    floor = " + b" if "b" in law.parameters else ""
    powers = " ".join(f"{name}^{-law.parameters[key]:+.2f}" for name, key in (("N", "A"), ("D", "B")))
    told = f"{of} ~ {powers}{floor}, {law.num_points} cells"
    held = law.held_out
    if held is not None and held.worst_factor is not None:
        told += f"; largest size held out: {held.worst_factor:.2g}x off at most"
    return told


def _ordered(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The learning rate first, then the optimizer's own, its companion's, the trainer's."""
    groups = ["opt", "aux", "schedule"]

    def place(name: str) -> tuple[int, bool, str]:
        group = name.partition(".")[0]
        return (groups.index(group) if group in groups else len(groups), name != "opt.lr", name)

    return {name: entries[name] for name in sorted(entries, key=place)}


def _cost(lr: float, params: float, tokens: float) -> Cost:
    num_runs = len(LR_FACTORS) * CHECK_SEEDS
    return Cost(
        lrs=tuple(float(f"{factor * lr:.2g}") for factor in LR_FACTORS),
        num_seeds=CHECK_SEEDS,
        num_runs=num_runs,
        tokens=num_runs * tokens,
        flops=num_runs * FLOPS_PER_TOKEN * params * tokens,
    )


def _warnings(chosen: SweepFit, num_steps: int | None, batch_tokens: int | None) -> tuple[str, ...]:
    warnings = [
        f"{name} is {chosen.extrapolation[name]:.3g}x outside what was tuned: check before you rely on it"
        for name in ("params", "tokens", "tokens_per_param")
        if chosen.extrapolation[name] > REACH
    ]
    entry = chosen.hyperparameters.get("batch_tokens")
    tuned_at = entry.value if entry is not None else batch_tokens
    if batch_tokens and not 0.5 <= batch_tokens / tuned_at <= 2:
        warnings.append(
            f"the learning rate was tuned with batches near {tuned_at:,} tokens, not {batch_tokens:,}: how it goes "
            "with the batch is not in the sweep"
        )
    if num_steps is not None and num_steps < FEW_STEPS:
        warnings.append(f"batches of that size make {num_steps} steps only: name a smaller one with --batch")
    return tuple(warnings)
