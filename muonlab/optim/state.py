"""Per-parameter state: lazy creation, matrix views, and the checks when a state dict is loaded."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.rule import Rule, allocate
from muonlab.roles import Role

__all__ = ["adopt_state", "advance", "matrix_shape"]


def matrix_shape(shape: tuple[int, ...], role: str | None) -> tuple[int, ...]:
    """The shape under which the matrix stage sees a parameter: convolutions flattened, experts as they are.

    >>> matrix_shape((64, 16, 3, 3), "conv"), matrix_shape((8, 64, 16), "expert")
    ((64, 144), (8, 64, 16))
    """
    if len(shape) < 3 or role == Role.EXPERT:
        return tuple(shape)
    columns = 1
    for size in shape[1:]:
        columns *= size
    return (shape[0], columns)


def advance(rule: Rule, w: Tensor, state: dict[str, Any], role: str | None) -> int:
    """Create whatever state is missing, count one step, and return its number (from 1)."""
    if not isinstance(state.get("step"), Tensor):  # new, or a plain number from an old checkpoint
        state["step"] = torch.tensor(float(state.get("step", 0.0)), dtype=torch.float32)
    for name in rule.active_state():
        if name not in state:
            state[name] = allocate(rule, w, matrix_shape(tuple(w.shape), role), name)
    state["step"] += 1
    return int(state["step"].item())


def adopt_state(rule: Rule, w: Tensor, state: Mapping[str, Any], role: str | None, *, copy: bool) -> dict[str, Any]:
    """A loaded state, checked against what the rule declares.

    Raises   ValueError for a tensor that is missing, foreign or of another shape
    """
    found = {name: value for name, value in state.items() if value is not None}
    if not found:
        return {}
    step = found.pop("step", None)
    if step is None and rule.uses_step:
        raise ValueError(f"loaded state of a parameter of {rule.name} lacks 'step'")
    foreign = sorted(set(found) - set(rule.state))
    missing = sorted(set(rule.active_state()) - set(found))
    if foreign:
        raise ValueError(f"loaded state belongs to another optimizer: {rule.name} has no {', '.join(foreign)}")
    if missing and (found or rule.uses_step):
        raise ValueError(f"loaded state of a parameter of {rule.name} lacks {', '.join(missing)}")
    for name, value in found.items():
        expected = rule.state[name].shape_for(tuple(w.shape), matrix_shape(tuple(w.shape), role))
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(f"loaded {name} has shape {shape}, but its parameter needs {expected}")
    adopted = {name: value.clone() if copy else value for name, value in found.items()}
    count = 1.0 if step is None else float(step)  # torch's SGD and Muon keep no step: at least one has been made
    return {"step": torch.tensor(count, dtype=torch.float32), **adopted}
