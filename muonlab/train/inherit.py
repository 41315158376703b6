"""Weights that a run leaves for others, and what a run takes over from the one that it starts from."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.optim.routing import route
from muonlab.roles import Role
from muonlab.tasks.base import Task
from muonlab.train.checkpoint import DamagedError, read_checked, write_checked
from muonlab.train.features import sample_of

__all__ = ["has_own_classes", "head_of", "inherit", "keep_weights", "weights_in"]

Tensors = Mapping[str, Tensor]


def keep_weights(path: Path, model: nn.Module) -> None:
    """The parameters and buffers of a model as a file that is there whole or not at all.

    Raises   UsageError if it can't be written
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checked(temporary, {name: tensor.cpu() for name, tensor in model.state_dict().items()})
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write weights {path}: {error.strerror or error}") from None


def weights_in(path: Path) -> Tensors:
    """Raises   UsageError for a file that can't be read, or is not as it was written"""
    try:
        return read_checked(path)
    except OSError as error:
        raise UsageError(f"cannot read weights {path}: {error.strerror or error}") from None
    except DamagedError:
        raise UsageError(
            f"weights {path} are damaged: remove the file, and the run that left it is made again"
        ) from None


def inherit(model: nn.Module, weights: Tensors, roles: Mapping[str, Role] | None, fresh_head: bool) -> dict[str, Any]:
    """Load what has the same name and shape into a model, in place; the rest keeps its own initialisation.

    Returns how many numbers were loaded, of how many, and the names of the parameters that were not.

    Raises   UsageError where no parameter agrees
    """
    own = model.state_dict()
    kept = head_of(model, roles) if fresh_head else frozenset()
    taken = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape and n not in kept}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    loaded = sum(size for name, size in sizes.items() if name in taken)
    if not loaded:
        raise UsageError(
            "the two models have no parameter of one name and shape in common: give both tasks one model, "
            "by --set task... for both and --transfer-set task... for the second alone"
        )
    model.load_state_dict(taken, strict=False)
    return {"loaded": loaded, "params": sum(sizes.values()), "own": [name for name in sizes if name not in taken]}


def head_of(model: nn.Module, roles: Mapping[str, Role] | None) -> frozenset[str]:
    """The parameters of the layer that gives the logits, its bias among them."""
    heads = {found.name.rpartition(".")[0] for found in route(model, roles, strict=False) if found.role == Role.HEAD}
    return frozenset(name for name, _ in model.named_parameters() if name.rpartition(".")[0] in heads)


def has_own_classes(task: Task) -> bool:
    """Whether its logits are of classes that no other task has, however many: a label for each sample, as of images.

    Where there is one for each position, as of text, they are of tokens that mean the same elsewhere.
    """
    labels = sample_of(task).labels
    return labels is not None and labels.ndim == 1
