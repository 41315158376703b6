"""A rehearsal: does a user's task keep the protocol? Found out before the first run, in one line."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.tasks.base import Task

__all__ = ["rehearse"]

SEED, SAMPLES = 0, 2


def rehearse(task: Task) -> None:
    """Build the model, take a batch and a held-out batch twice, and one gradient.

    Raises   UsageError that names the method at fault and what it should give
    """
    torch.manual_seed(SEED)
    model = _call("build()", task.build)
    if not isinstance(model, nn.Module) or not any(p.requires_grad for p in model.parameters()):
        raise UsageError(f"build() must return a model with parameters to train, got {_kind(model)}")
    batch, again = (_call(f"batch({SEED}, 0, {SAMPLES})", task.batch, SEED, 0, SAMPLES) for _ in range(2))
    if not _equal(batch, again):
        raise UsageError("batch() gave other data when called again: it must depend on seed, start and count alone")
    _check_loss(_call("loss()", task.loss, model, batch))
    first, second = (_call("evaluation()", _first_heldout, task) for _ in range(2))
    if not _equal(first, second):
        raise UsageError("evaluation() gave other data when called again: held-out data must always be the same")


def _first_heldout(task: Task) -> Any:
    found = next(iter(task.evaluation()), None)
    if found is None:
        raise UsageError("evaluation() yields nothing: it must yield (batch, weight) at least once")
    if not isinstance(found, tuple | list) or len(found) != 2 or not isinstance(found[1], int | float):
        raise UsageError(f"evaluation() must yield (batch, weight), a weight being a number, got {_kind(found)}")
    return found


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        raise UsageError(f"loss() must return a tensor with one number, got {_kind(loss)}")
    if not loss.requires_grad:
        raise UsageError("loss() returned a tensor without a gradient: compute it from model(...), without detach")
    _call("the gradient of loss()", loss.backward)


def _call(what: str, method: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return method(*arguments)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{what} of the task failed: {type(error).__name__}: {error}") from error


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, tuple | list):
        return isinstance(b, tuple | list) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return True  # of another kind: not for us to compare


def _kind(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
