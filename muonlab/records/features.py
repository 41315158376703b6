"""The evidence of a study of features."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from muonlab.records.evidence import Arm, Evidence, arms_of, keys_of

__all__ = ["FeaturesEvidence"]


@dataclass(frozen=True, kw_only=True)
class FeaturesEvidence:
    """What a study of features did: one cell for each optimizer, and one without weight decay."""

    task: str
    baseline: str
    horizon_tokens: int
    arms: Mapping[str, Arm]
    controls: Mapping[str, Arm]  # every weight decay 0, lr tuned again
    tuning_seeds: tuple[int, ...] = ()
    final_seeds: tuple[int, ...] = ()
    max_runs: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def record_keys(self) -> tuple[str, ...]:
        """Every record that played a part, each once."""
        arms = (*self.arms.values(), *self.controls.values())
        return tuple(dict.fromkeys(keys_of(cell for arm in arms for cell in arm.cells)))

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
        return cls(**{**values, **seeds, **arms})
