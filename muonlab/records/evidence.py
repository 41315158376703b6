"""Evidence: which records played which part in a study. The value that protocols return and analysis reads.

Plain and small, because the records themselves lie in the store: a study is re-analysed, and its report drawn again,
from its evidence without running anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from muonlab.records.spec import Value

__all__ = ["Arm", "Cell", "Evidence", "Move", "Trial", "Tuning"]


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
        return tuple(dict.fromkeys(_keys(self.arms.values())))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Evidence":
        """Inverse of `to_dict`, also after a trip through JSON."""
        arms = {
            name: Arm(**{**arm, "cells": tuple(map(_cell, arm["cells"])), "fixed": _tuples(arm.get("fixed", {}))})
            for name, arm in values["arms"].items()
        }
        seeds = {name: tuple(values[name]) for name in ("tuning_seeds", "final_seeds")}
        return cls(**{**values, **seeds, "arms": arms})


def _keys(arms: Iterable[Arm]) -> Iterable[str]:
    for arm in arms:
        for cell in arm.cells:
            yield from cell.keys
            for trial in cell.tuning.trials:
                yield from trial.keys


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(value, Mapping):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _cell(values: Mapping[str, Any]) -> Cell:
    tuning = dict(values["tuning"])
    tuning["trials"] = tuple(Trial(settings=t["settings"], keys=tuple(t["keys"])) for t in tuning["trials"])
    tuning["moves"] = tuple(Move(**move) for move in tuning["moves"])
    for name in ("coordinates", "edges"):
        tuning[name] = tuple(tuning[name])
    return Cell(**{**values, "keys": tuple(values["keys"]), "tuning": Tuning(**tuning)})
