"""Evidence: which records played which part in a study. The value that protocols return and analysis reads.

Plain and small, because the records themselves lie in the store: a study is re-analysed, and its report drawn again,
from its evidence without running anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from muonlab.records.spec import Value

__all__ = [
    "Arm", "BatchEvidence", "BatchPoint", "Cell", "Control", "Evidence", "Forecast", "LadderEvidence", "Move", "Rung",
    "Trial", "Tuning", "arms_of", "cell_of", "keys_of", "tuples",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration with the runs made of it, a run per seed."""

    settings: Mapping[str, Value]  # dotted name -> value, every coordinate
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Move:
    """One decision of a tuning: whether a coordinate changed its value, and on what grounds."""

    coordinate: str
    old: Value
    new: Value
    gain: float | None  # nats, mean loss before minus after; None where the old value diverged
    standard_error: float | None  # of the gain
    num_seeds: int
    accepted: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How one optimizer was tuned at one horizon."""

    optimizer: str
    horizon_tokens: int
    coordinates: tuple[str, ...]
    best: Mapping[str, Value]
    trials: tuple[Trial, ...]
    moves: tuple[Move, ...]
    edges: tuple[str, ...]  # coordinates whose optimum lies on an edge of the grid that is not a natural bound
    converged: bool  # False: the cap on runs ended it
    num_runs: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The final runs of one optimizer at one horizon, on seeds that no tuning saw."""

    horizon_tokens: int
    settings: Mapping[str, Value]
    keys: tuple[str, ...]
    tuning: Tuning


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One optimizer in a comparison; its cells from the shortest horizon to the longest.

    `name` is what every table and check calls it: the catalogue's name, or that of a variant with settings of its own.
    """

    name: str
    cells: tuple[Cell, ...]
    optimizer: str = ""  # in the catalogue; "" in evidence from before there were variants: the name
    fixed: Mapping[str, Value] = field(default_factory=dict)  # what the variant sets and no tuning changed

    def cell(self, horizon_tokens: int) -> Cell:
        """Raises   KeyError if the arm has no final runs at that horizon"""
        for cell in self.cells:
            if cell.horizon_tokens == horizon_tokens:
                return cell
        raise KeyError(horizon_tokens)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a comparison did: `arms[baseline]` is what all others are measured against."""

    task: str
    baseline: str
    horizon_tokens: int
    arms: Mapping[str, Arm]
    tuning_seeds: tuple[int, ...] = ()
    final_seeds: tuple[int, ...] = ()
    max_runs: int = 0  # cap on the tuning runs of each optimizer at each horizon
    margin_nats: float | None = None  # a loss higher by no more than this counts as no worse; None: not asked
    config: Mapping[str, Any] = field(default_factory=dict)  # the study as the user asked for it

    def record_keys(self) -> tuple[str, ...]:
        """Every record that played a part, each once."""
        return tuple(dict.fromkeys(keys_of(cell for arm in self.arms.values() for cell in arm.cells)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evidence":
        """Inverse of `to_dict`, also after a trip through JSON."""
        seeds = {name: tuple(values[name]) for name in ("tuning_seeds", "final_seeds")}
        return cls(**{**values, **seeds, "arms": arms_of(values["arms"])})


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One optimizer at one size and one ratio of tokens to parameters."""

    name: str
    size: str
    ratio: float
    origin: str  # of its settings: "tuned" (every coordinate), "retuned" (those that scale), "predicted" (by laws)
    cell: Cell


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """At a size that no law was fitted to: the final runs of what the laws predict, and of what a search finds."""

    name: str
    size: str
    ratio: float
    predicted: Cell
    found: Cell


@dataclass(frozen=True, kw_only=True)
class Control:
    """Final runs of an optimizer with settings that were not tuned for it."""

    name: str
    settings_of: str  # another optimizer of the ladder; "" = the defaults of its own class
    size: str
    ratio: float
    settings: Mapping[str, Value]
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LadderEvidence:
    """What a ladder did: sizes x ratios, each optimizer tuned where `origin` says so."""

    task: str
    baseline: str
    optimizers: Mapping[str, str]  # name -> its name in the catalogue
    sizes: Mapping[str, int]  # name -> parameters that are neither embedding nor head, ascending
    ratios: tuple[float, ...]
    sensitive: Mapping[str, tuple[str, ...]]  # name -> coordinates that no single value suits in every regime
    frozen: Mapping[str, Mapping[str, Value]]  # name -> the others, and the value that does
    rungs: tuple[Rung, ...]
    forecasts: tuple[Forecast, ...]
    controls: tuple[Control, ...]
    insensitive_nats: float
    tuning_seeds: tuple[int, ...] = ()
    final_seeds: tuple[int, ...] = ()
    max_runs: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def record_keys(self) -> tuple[str, ...]:
        """Every record that played a part, each once."""
        cells = [rung.cell for rung in self.rungs]
        cells += [cell for forecast in self.forecasts for cell in (forecast.predicted, forecast.found)]
        keys = [*keys_of(cells), *(key for control in self.controls for key in control.keys)]
        return tuple(dict.fromkeys(keys))

    def rung(self, name: str, size: str, ratio: float) -> Rung:
        """Raises   KeyError if there is none"""
        for rung in self.rungs:
            if (rung.name, rung.size, rung.ratio) == (name, size, ratio):
                return rung
        raise KeyError((name, size, ratio))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LadderEvidence":
        """Inverse of `to_dict`, also after a trip through JSON."""
        parts = {
            "rungs": tuple(Rung(**{**rung, "cell": cell_of(rung["cell"])}) for rung in values["rungs"]),
            "forecasts": tuple(
                Forecast(**{**one, "predicted": cell_of(one["predicted"]), "found": cell_of(one["found"])})
                for one in values["forecasts"]
            ),
            "controls": tuple(Control(**{**one, "keys": tuple(one["keys"])}) for one in values["controls"]),
        }
        plain = {
            name: tuples(values[name]) for name in ("ratios", "sensitive", "frozen", "tuning_seeds", "final_seeds")
        }
        return cls(**{**values, **plain, **parts})


@dataclass(frozen=True, kw_only=True)
class BatchPoint:
    """One optimizer at one batch size."""

    name: str
    batch_tokens: int
    predicted: Mapping[str, Value]  # settings that the rules give, from which the search went on
    cell: Cell


@dataclass(frozen=True, kw_only=True)
class BatchEvidence:
    """What a batch study did: every optimizer at every batch size, with a constant lr, as long as the targets took."""

    task: str
    baseline: str
    optimizers: Mapping[str, str]  # name -> its name in the catalogue
    batches: tuple[int, ...]  # tokens, ascending
    reference: int  # the batch at which tuning began
    targets: tuple[float, ...]  # held-out losses, from the easiest to the hardest
    targets_given: bool  # False: taken from the baseline's curve at the reference batch
    points: tuple[BatchPoint, ...]
    others: tuple[str, ...] = ()  # records of pilots, and of settings that were tried from one batch at another
    tuning_seeds: tuple[int, ...] = ()
    final_seeds: tuple[int, ...] = ()
    max_runs: int = 0  # cap on the tuning runs of each optimizer at each batch
    config: Mapping[str, Any] = field(default_factory=dict)

    def record_keys(self) -> tuple[str, ...]:
        """Every record that played a part, each once."""
        return tuple(dict.fromkeys([*keys_of(point.cell for point in self.points), *self.others]))

    def point(self, name: str, batch_tokens: int) -> BatchPoint:
        """Raises   KeyError if there is none"""
        for point in self.points:
            if (point.name, point.batch_tokens) == (name, batch_tokens):
                return point
        raise KeyError((name, batch_tokens))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BatchEvidence":
        """Inverse of `to_dict`, also after a trip through JSON."""
        points = tuple(BatchPoint(**{**point, "cell": cell_of(point["cell"])}) for point in values["points"])
        plain = {name: tuples(values[name]) for name in PLAIN_OF_BATCH if name in values}
        return cls(**{**values, **plain, "points": points})


PLAIN_OF_BATCH = ("batches", "targets", "others", "tuning_seeds", "final_seeds")


def keys_of(cells: Iterable[Cell]) -> Iterable[str]:
    """Of final runs, and of those of their tuning."""
    for cell in cells:
        yield from cell.keys
        for trial in cell.tuning.trials:
            yield from trial.keys


def arms_of(values: Mapping[str, Any]) -> dict[str, Arm]:
    """From JSON."""
    return {
        name: Arm(**{**arm, "cells": tuple(map(cell_of, arm["cells"])), "fixed": tuples(arm.get("fixed", {}))})
        for name, arm in values.items()
    }


def tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, Mapping):
        return {name: tuples(item) for name, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def cell_of(values: Mapping[str, Any]) -> Cell:
    """From JSON."""
    tuning = dict(values["tuning"])
    tuning["trials"] = tuple(Trial(settings=t["settings"], keys=tuple(t["keys"])) for t in tuning["trials"])
    tuning["moves"] = tuple(Move(**move) for move in tuning["moves"])
    for name in ("coordinates", "edges"):
        tuning[name] = tuple(tuning[name])
    return Cell(**{**values, "keys": tuple(values["keys"]), "tuning": Tuning(**tuning)})
