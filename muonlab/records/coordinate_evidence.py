"""Evidence of a coordinate check: which runs it made, and what was predicted of them before any was made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["CoordinateEvidence", "CoordinateRun", "Prediction"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The power of the width that the updates of hidden matrices grow with, as a range; a point where both are equal.

    Units    of log update over log width, update in the RMS -> RMS operator norm with lr, at a constant aspect
    """

    name: str
    parametrization: str
    low: float | None  # None: nothing is predicted
    high: float | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class CoordinateRun:
    """One optimizer in one parametrization at one width; a run per seed."""

    name: str
    parametrization: str
    width: int
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CoordinateEvidence:
    """What a coordinate check did: the same few steps at every width."""

    task: str
    optimizers: Mapping[str, str]  # name -> its name in the catalogue
    parametrizations: tuple[str, ...]
    widths: tuple[int, ...]  # ascending; the first is that of the base model
    steps: tuple[int, ...]  # after which was measured, ascending
    seeds: tuple[int, ...]
    lr: Mapping[str, float]  # name -> at the base width
    predictions: tuple[Prediction, ...]
    runs: tuple[CoordinateRun, ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    def record_keys(self) -> tuple[str, ...]:
        """Every record that played a part, each once."""
        return tuple(dict.fromkeys(key for run in self.runs for key in run.keys))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CoordinateEvidence":
        """Inverse of `to_dict`, also after a trip through JSON."""
        plain = {name: tuple(values[name]) for name in ("parametrizations", "widths", "steps", "seeds")}
        predictions = tuple(Prediction(**one) for one in values["predictions"])
        runs = tuple(CoordinateRun(**{**one, "keys": tuple(one["keys"])}) for one in values["runs"])
        return cls(**{**values, **plain, "predictions": predictions, "runs": runs})
