"""What a linear classifier of a task's classes finds in the last layer of a model that is left as it is."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.records.watch import PROBED
from muonlab.tasks.base import Task
from muonlab.train.features import IGNORED, Array, Sample, hidden_states, layers_of, logistic, sample_of

__all__ = ["can_be_probed", "linear_probe"]

FITTED_SAMPLES = 1024  # first ones of the training stream of seed 0
TRIED_SAMPLES = 1024  # held-out labels, at most


def can_be_probed(task: Task) -> bool:
    """Whether it has classes at all."""
    return sample_of(task).labels is not None


class Rows(NamedTuple):
    """Hidden states with their classes."""

    x: Array  # (rows, features)
    y: NDArray[np.int64]  # (rows,)


def linear_probe(task: Task, model: nn.Module) -> dict[str, float]:
    """Mean cross-entropy and accuracy of a probe on held-out rows, `PROBED`.

    A logistic regression as `fit_probe` fits it: of all optimizers it has one optimum, so that it depends on the
    features alone, and neither on a learning rate nor on a seed. Fitted to the first 1024 training samples where
    batches are (inputs, classes), else to the first half of the held-out sample. Held-out rows whose class was not
    among those fitted are left out.

    Raises   UsageError for a task without classes
    """
    fitted, tried = (_rows(model, sample) for sample in _samples(task))
    known = np.isin(tried.y, fitted.y)
    if len(np.unique(fitted.y)) < 2 or not known.any():
        raise UsageError("a linear probe needs at least two classes among its samples")
    scaler, probe = logistic(fitted.x, fitted.y)
    logs = probe.predict_log_proba(scaler.transform(tried.x[known]))
    places = np.searchsorted(probe.classes_, tried.y[known])
    loss = -logs[np.arange(len(places)), places].mean()
    return dict(zip(PROBED, (float(loss), float((logs.argmax(1) == places).mean())), strict=True))


def _samples(task: Task) -> tuple[Sample, Sample]:
    """To fit to, and to be tried on."""
    if not hasattr(task, "labelled"):
        batch = task.batch(0, 0, FITTED_SAMPLES)
        tried = sample_of(task, TRIED_SAMPLES)
        if tried.labels is None or not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise UsageError(f"a linear probe needs classes, and batches of {type(task).__name__} have none")
        return Sample(*batch), tried
    inputs, labels = sample_of(task, 2 * TRIED_SAMPLES)
    if labels is None:
        raise UsageError(f"a linear probe needs classes, and {type(task).__name__}.labelled gives none")
    half = len(labels) // 2
    return Sample(inputs[:half], labels[:half]), Sample(inputs[half:], labels[half:])


def _rows(model: nn.Module, sample: Sample) -> Rows:
    """Of the last layer; every row is finite."""
    last = list(layers_of(model))[-1]
    x = hidden_states(model, sample, (last,))[last]
    if not np.isfinite(x).all():
        raise UsageError(f"layer {last} gives states that are not finite: there is nothing to probe")
    labels: Tensor = sample.labels if sample.labels is not None else torch.empty(0)
    return Rows(x, labels[labels != IGNORED].cpu().numpy())
