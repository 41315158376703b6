"""The evidence of a study of features."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from muonlab.records.evidence import Arm, Cell, Evidence, arms_of, cell_of, keys_of

__all__ = ["FeatureTransfer", "FeaturesEvidence", "FineTuning"]


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """The final runs of one optimizer on the second task, all from the pretrained weights of one other, or from none.

    The run of each seed starts from the pretraining of that seed.
    """

    pretraining: str  # name of an arm; "" = none
    name: str  # of the arm whose optimizer fine-tunes
    cell: Cell


@dataclass(frozen=True, kw_only=True)
class FeatureTransfer:
    """What was fine-tuned on a second task; a pretraining that diverged on some seed is missing."""

    task: str
    horizon_tokens: int
    tunings: tuple[FineTuning, ...]

    def cell(self, pretraining: str, name: str) -> Cell | None:
        """None if there is none."""
        found = (one.cell for one in self.tunings if (one.pretraining, one.name) == (pretraining, name))
        return next(found, None)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FeatureTransfer":
        """From JSON."""
        tunings = (FineTuning(**{**one, "cell": cell_of(one["cell"])}) for one in values["tunings"])
        return cls(**{**values, "tunings": tuple(tunings)})


@dataclass(frozen=True, kw_only=True)
class FeaturesEvidence:
    """What a study of features did: one cell for each optimizer, and one without weight decay."""

    task: str
    baseline: str
    horizon_tokens: int
    arms: Mapping[str, Arm]
    controls: Mapping[str, Arm]  # every weight decay 0, lr tuned again
    transfer: FeatureTransfer | None = None  # None: not asked for
    tuning_seeds: tuple[int, ...] = ()
    final_seeds: tuple[int, ...] = ()
    max_runs: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def record_keys(self) -> tuple[str, ...]:
        """Every record that played a part, each once."""
        cells = [cell for arm in (*self.arms.values(), *self.controls.values()) for cell in arm.cells]
        cells += [one.cell for one in self.transfer.tunings] if self.transfer else []
        return tuple(dict.fromkeys(keys_of(cells)))

    def comparison(self, *, decay: bool = True) -> Evidence:
        """The runs, or those without decay, as a comparison at one horizon."""
        return Evidence(
            task=self.task, baseline=self.baseline, horizon_tokens=self.horizon_tokens,
            arms=self.arms if decay else self.controls, tuning_seeds=self.tuning_seeds,
            final_seeds=self.final_seeds, max_runs=self.max_runs, config=self.config,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FeaturesEvidence":
        """Inverse of `to_dict`, also after a trip through JSON."""
        arms = {name: arms_of(values[name]) for name in ("arms", "controls")}
        seeds = {name: tuple(values[name]) for name in ("tuning_seeds", "final_seeds")}
        transfer = FeatureTransfer.from_dict(values["transfer"]) if values.get("transfer") else None
        return cls(**{**values, **seeds, **arms, "transfer": transfer})
