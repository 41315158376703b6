"""People's own trained models: their layers on the task's held-out sample, and how like each other they are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.representations import Ranks, linear_cka
from muonlab.tasks.base import Task
from muonlab.train.corrupted import scores_under_corruption
from muonlab.train.features import (
    Probed,
    fit_probe_is_possible,
    hidden_states,
    layers_of,
    measured_layers,
    sample_of,
)

__all__ = ["features_of_models", "load_weights"]

PARTS = ("model", "state_dict", "model_state_dict")  # where files keep weights that hold more than these
MEASURES = (*(f"rank_{kind}" for kind in Ranks._fields), *Probed._fields)
WRAPPED = ("module.", "_orig_mod.")  # what wrappers put before a name


def features_of_models(task: Task, checkpoints: Sequence[Path], layers: Sequence[str] = ()) -> dict[str, Any]:
    """`layers`, `corruptions` and `cka` as rows; likeness is that of each later model to the first, layer by layer.

    What is not defined is None, and `notes` say why. A file that is named twice is FILE.pt, then FILE.pt (2).

    Raises   UsageError as `load_weights` and `layers_of` do
    """
    sample = sample_of(task)
    labels, notes = sample.labels, []
    if labels is None:
        notes.append("no probe: the task has no labels")
    try:
        fit_probe_is_possible(labels)
    except UsageError as error:
        labels = None
        notes.append(f"no probe: {error}")
    found: dict[str, list[Any]] = {"layers": [], "corruptions": [], "cka": [], "notes": notes}
    first: Mapping[str, Any] = {}
    for path, name in zip(checkpoints, _distinct(checkpoints), strict=True):
        model = task.build()
        load_weights(model, path)
        states = hidden_states(model, sample, layers)
        unused = (layer for layer in layers_of(model, layers) if layer not in states)
        notes += [f"{name}: {layer} is never called by the model" for layer in unused]
        for layer, values in measured_layers(states, labels).items():
            found["layers"].append({"checkpoint": name, "layer": layer, **dict.fromkeys(MEASURES), **values})
            if not values:
                notes.append(f"{name}: nothing is measured of {layer}, whose rows are one, all the same, or not finite")
        scores = scores_under_corruption(task, model)
        clean = scores["clean", 0].loss
        for (kind, severity), score in scores.items():
            row = {"corruption": kind, "severity": severity, **score._asdict(), "rise": score.loss - clean}
            found["corruptions"].append({"checkpoint": name, **row})
        for layer in first:
            found["cka"].append({"checkpoint": name, "layer": layer, "cka": _likeness(first[layer], states[layer])})
        first = first or states
    return found


def _distinct(paths: Sequence[Path]) -> list[str]:
    seen: Counter[str] = Counter()
    found = []
    for name in map(str, paths):
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
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

    Raises   UsageError for a file that is none, is damaged, holds code, does not fit the model, or has NaN or infinity
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except Exception as error:  # torch.load has many
        raise UsageError(f"{path} {_trouble(path, error)}") from None
    for part in PARTS:
        if isinstance(saved, Mapping) and isinstance(saved.get(part), Mapping):
            saved = saved[part]
    if not isinstance(saved, Mapping) or not all(isinstance(value, Tensor) for value in saved.values()):
        raise UsageError(f"{path} holds no state dict: save model.state_dict()")
    weights = {_unwrapped(name): tensor for name, tensor in saved.items()}
    if why := _misfit(model.state_dict(), weights):
        raise UsageError(f"{path} does not fit the task's model: {why}")
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            what = "NaN" if tensor.isnan().any() else "infinity"
            raise UsageError(f"{path}: {what} in {name}: nothing can be measured of it, leave the file out")
    model.load_state_dict(weights)


def _trouble(path: Path, error: Exception) -> str:
    whole = is_zipfile(path)
    with path.open("rb") as file:
        begins = file.read(2) == b"PK"
    if begins and not (whole and isinstance(error, UnpicklingError)):
        return "is damaged: copy or save it anew"
    return "holds more than tensors" + (": " if whole else ", or is no file of torch's: ") + "save model.state_dict()"


def _misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Why weights are not those of a model, with what to do; empty where they are."""
    lost, surplus = own.keys() - given.keys(), given.keys() - own.keys()
    said = []
    for who, names in (("the file lacks", lost), ("the model has no place for", surplus)):
        if names:
            said.append(f"{who} {min(names)}" + (f" and {len(names) - 1} more" if len(names) > 1 else ""))
    if said:
        return f"{', and '.join(said)}: name the task and the options that it was saved with"
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
            return f"{name} is {shapes}: set its shape with --set task..."
    return ""


def _unwrapped(name: str) -> str:
    while prefix := next((prefix for prefix in WRAPPED if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name
