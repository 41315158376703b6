"""Evidence of a transfer study: which records played which part on the way from narrow models to a wide one."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from muonlab.records.coordinate_evidence import CoordinateEvidence
from muonlab.records.evidence import Trial, tuples
from muonlab.records.spec import Value

__all__ = ["TransferArm", "TransferEvidence", "TransferStage"]


@dataclass(frozen=True, kw_only=True)
class TransferStage:
    """A mesh that one arm swept at one width."""

    width: int
    points: Mapping[str, int]  # per axis, extensions included
    steps: Mapping[str, float]  # per axis, between neighbours, as logarithms
    trials: tuple[Trial, ...]
    extended: Mapping[str, int] = field(default_factory=dict)  # axis -> how often its window was extended
    edges: tuple[str, ...] = ()  # axes on whose edge the optimum still lies


@dataclass(frozen=True, kw_only=True)
class TransferArm:
    """One optimizer under one parametrization."""

    name: str  # of the arm
    optimizer: str  # in the catalogue
    parametrization: str
    axes: Mapping[str, bool]  # hyperparameter -> whether its mesh is of the value; False: of 1 - value
    stages: tuple[TransferStage, ...] = ()  # of telescoping, from the base width on
    settings: Mapping[str, Value] = field(default_factory=dict)  # of the final runs: predicted, or carried on
    final: tuple[str, ...] = ()  # keys of the runs at the final width
    survey: tuple[TransferStage, ...] = ()  # the whole lr mesh at every width

    def trials(self) -> Iterator[Trial]:
        return (trial for stage in (*self.stages, *self.survey) for trial in stage.trials)


@dataclass(frozen=True, kw_only=True)
class TransferEvidence:
    """What a transfer study did."""

    task: str
    baseline: str  # name of an arm
    arms: tuple[TransferArm, ...]
    widths: tuple[int, ...]  # ascending; telescoping starts at the first
    final_width: int | None  # None: a survey alone
    points: int  # per axis at the first width
    tuning_seeds: tuple[int, ...] = ()
    final_seeds: tuple[int, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    coordinates: CoordinateEvidence | None = None  # None: the check was left out

    def record_keys(self) -> tuple[str, ...]:
        """Every record that played a part, each once."""
        checked = self.coordinates.record_keys() if self.coordinates else ()
        return tuple(dict.fromkeys([*self.arm_keys(), *checked]))

    def arm_keys(self) -> tuple[str, ...]:
        """The records of all arms, without those of the coordinate check, each once."""
        keys = [key for arm in self.arms for trial in arm.trials() for key in trial.keys]
        return tuple(dict.fromkeys([*keys, *(key for arm in self.arms for key in arm.final)]))

    def arm(self, name: str) -> TransferArm:
        """Raises   KeyError if there is none"""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TransferEvidence":
        """Inverse of `to_dict`, also after a trip through JSON."""
        plain = {name: tuples(values[name]) for name in ("widths", "tuning_seeds", "final_seeds")}
        check = values.get("coordinates")
        coordinates = None if check is None else CoordinateEvidence.from_dict(check)
        return cls(**{**values, **plain, "arms": tuple(map(_arm, values["arms"])), "coordinates": coordinates})


def _arm(values: Mapping[str, Any]) -> TransferArm:
    stages = {name: tuple(map(_stage, values[name])) for name in ("stages", "survey")}
    return TransferArm(**{**values, **stages, "settings": tuples(values["settings"]), "final": tuple(values["final"])})


def _stage(values: Mapping[str, Any]) -> TransferStage:
    trials = tuple(Trial(settings=tuples(t["settings"]), keys=tuple(t["keys"])) for t in values["trials"])
    return TransferStage(**{**values, "trials": trials, "edges": tuple(values["edges"])})
