"""What is taken of a model's hidden states during its run."""

import math
from dataclasses import dataclass, field

from torch import nn

from muonlab.records.grams import pack_gram
from muonlab.records.watch import RANK
from muonlab.tasks.base import Task
from muonlab.train.corrupted import scores_under_corruption
from muonlab.train.features import (
    Sample,
    fit_probe_is_possible,
    hidden_states,
    measured_layers,
    sample_of,
)

__all__ = ["FeatureProbe", "RankProbe"]

RANK_SAMPLES = 128  # for ranks during training
GRAM_ROWS = 64  # of the sample, by which models are told to be alike
SVD_FLOPS = 40  # of n d min(n, d): what a thread could do by matrix products while LAPACK takes the singular values


@dataclass
class FeatureProbe:
    """Everything that a study of features takes of a model at some steps of its run, by name.

    Raises   UsageError where the model has no layers, or the task's labels can't be probed
    """

    task: Task
    model: nn.Module
    sample: Sample = field(init=False)

    def __post_init__(self) -> None:
        self.sample = sample_of(self.task)
        hidden_states(self.model, self.sample)
        fit_probe_is_possible(self.sample.labels)

    def measure(self) -> dict[str, float]:
        """features.LAYER.MEASURE, corrupted.NAME.SEVERITY, and of classes accuracy.NAME.SEVERITY."""
        found = {
            f"features.{layer}.{name}": value
            for layer, values in measured_layers(hidden_states(self.model, self.sample), self.sample.labels).items()
            for name, value in values.items()
        }
        for (name, severity), score in scores_under_corruption(self.task, self.model).items():
            found[f"corrupted.{name}.{severity}"] = score.loss
            if score.accuracy is not None:
                found[f"accuracy.{name}.{severity}"] = score.accuracy
        return found

    def grams(self) -> dict[str, str]:
        """By layer, of the first rows of the sample; of a layer that has collapsed an empty text."""
        states = hidden_states(self.model, self.sample)
        return {layer: pack_gram(x[:GRAM_ROWS]) for layer, x in states.items()}


class RankProbe:
    """Effective ranks by layer during a run, as often as `cost` of its time allows, and after the last step."""

    def __init__(
        self, task: Task, model: nn.Module, batch_tokens: int, flops_per_token: float, cost: float, last: int = 0
    ) -> None:
        self.last = last  # step of the run
        self.model, self.sample = model, sample_of(task, RANK_SAMPLES)
        states = hidden_states(model, self.sample)
        self.names = tuple(f"{RANK}{layer}" for layer in states)
        tokens = len(self.sample.inputs) * task.tokens_per_sample
        spectra = sum(SVD_FLOPS * math.prod(x.shape) * min(x.shape) for x in states.values())
        self.every = math.ceil((tokens * flops_per_token / 3 + spectra) / (flops_per_token * batch_tokens * cost))

    def is_due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.last

    def measure(self) -> dict[str, float]:
        """rank.LAYER; of a layer that has collapsed, nothing."""
        found = measured_layers(hidden_states(self.model, self.sample), None)
        return {f"{RANK}{layer}": values["rank_effective"] for layer, values in found.items() if values}
