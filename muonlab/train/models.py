"""People's own trained models: their layers on the task's held-out sample, and how like each other they are."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.representations import linear_cka
from muonlab.tasks.base import Task
from muonlab.train.corrupted import scores_under_corruption
from muonlab.train.features import fit_probe_is_possible, hidden_states, measured_layers, sample_of

__all__ = ["features_of_models", "load_weights"]

PARTS = ("model", "state_dict", "model_state_dict")  # where files keep weights that hold more than these
WRAPPED = ("module.", "_orig_mod.")  # what wrappers put before a name


def features_of_models(task: Task, checkpoints: Sequence[Path], layers: Sequence[str] = ()) -> dict[str, Any]:
    """`layers`, `corruptions` and `cka` as rows; likeness is that of each later model to the first, layer by layer.

    Raises   UsageError as `load_weights` and `layers_of` do
    """
    sample = sample_of(task)
    fit_probe_is_possible(sample.labels)
    found: dict[str, list[dict[str, Any]]] = {"layers": [], "corruptions": [], "cka": []}
    first: Mapping[str, Any] = {}
    for path in checkpoints:
        model = task.build()
        load_weights(model, path)
        states, name = hidden_states(model, sample, layers), str(path)
        for layer, values in measured_layers(states, sample.labels).items():
            found["layers"].append({"checkpoint": name, "layer": layer, **values})
        scores = scores_under_corruption(task, model)
        clean = scores["clean", 0].loss
        for (kind, severity), score in scores.items():
            row = {"corruption": kind, "severity": severity, **score._asdict(), "rise": score.loss - clean}
            found["corruptions"].append({"checkpoint": name, **row})
        for layer in first:
            found["cka"].append({"checkpoint": name, "layer": layer, "cka": _likeness(first[layer], states[layer])})
        first = first or states
    return found


def _likeness(x: Any, y: Any) -> float | None:
    """None where it is not defined."""
    try:
        value = linear_cka(x, y)
    except UsageError:
        return None
    return value if math.isfinite(value) else None


def load_weights(model: nn.Module, path: Path) -> None:
    """The weights of a file that torch.save wrote: a state dict, or one under "model" or "state_dict".

    Raises   UsageError for a file that is none, holds code, or does not fit the model
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except Exception:  # torch.load has many
        raise UsageError(f"{path} holds more than tensors, or is no file of torch's: save model.state_dict()") from None
    for part in PARTS:
        if isinstance(saved, Mapping) and isinstance(saved.get(part), Mapping):
            saved = saved[part]
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UsageError(f"{path} holds no state dict: save model.state_dict()")
    try:
        model.load_state_dict({_unwrapped(name): tensor for name, tensor in saved.items()})
    except RuntimeError as error:
        why = "; ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise UsageError(f"{path} does not fit the task's model ({why}): set its shape with --set task...") from None


def _unwrapped(name: str) -> str:
    while prefix := next((prefix for prefix in WRAPPED if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name
