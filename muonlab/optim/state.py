"""Per-parameter state: lazy creation, and the checks when a state dict is loaded."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.blocks import blocks_of
from muonlab.optim.rule import Rule

__all__ = ["HALF", "adopt_state", "advance", "lr_fraction", "rounding_of", "state_dtype"]

HALF = (torch.bfloat16, torch.float16)


def rounding_of(w: Tensor, group: Mapping[str, Any]) -> str:
    """How new values of a parameter are rounded to its dtype; only half precision leaves a choice."""
    return group["rounding"] if w.dtype in HALF else "nearest"


def lr_fraction(rule: Rule, group: Mapping[str, Any]) -> float:
    """The learning rate over the one that its schedule is relative to.

    OneCycleLR notes that as `max_lr`, torch's other schedulers as `initial_lr`, the engine as `peak_lr`.
    """
    peak = float(next((group[key] for key in ("max_lr", "initial_lr", "peak_lr") if key in group), rule.lr))
    return rule.lr / peak if peak else 0.0


def state_dtype(w: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    return w.dtype if rounding_of(w, group) == "nearest" else torch.float32


def advance(
    rule: Rule, ws: Sequence[Tensor], states: Sequence[dict[str, Any]], group: Mapping[str, Any]
) -> Sequence[int]:
    """Create whatever state is missing, count one step of each parameter, and return its number (from 1)."""
    names = rule.active_state()
    for w, state in zip(ws, states, strict=True):
        for name in names:
            if name not in state:
                state[name] = _allocate(rule, w, name, group)
        if "master" not in state and rounding_of(w, group) == "master":
            state["master"] = w.detach().to(torch.float32, copy=True)
    counted = [i for i, w in enumerate(ws) if rule.step_count != "none" or rounding_of(w, group) == "stochastic"]
    ages = [0] * len(ws)
    if not counted:
        return ages
    for i in counted:
        if not isinstance(states[i].get("step"), Tensor):  # new, or a plain number from an old checkpoint
            states[i]["step"] = torch.tensor(float(states[i].get("step", 0.0)), dtype=torch.float32)
    steps = [states[i]["step"] for i in counted]
    torch._foreach_add_(steps, 1.0)
    for i, step in zip(counted, torch.stack(steps).tolist(), strict=True):
        ages[i] = int(step)
    return ages


def _allocate(rule: Rule, w: Tensor, name: str, group: Mapping[str, Any]) -> Tensor:
    """A state tensor at its start, zero."""
    declared, dtype = rule.state[name], state_dtype(w, group)
    if declared.layout == "param":
        return torch.zeros_like(w, dtype=dtype, memory_format=torch.preserve_format)
    return torch.zeros(
        declared.shape_for(tuple(w.shape), blocks_of(w.shape, group)[0].shape), dtype=dtype, device=w.device
    )


def adopt_state(
    rule: Rule, w: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], *, copy: bool
) -> dict[str, Any]:
    """A loaded state, checked against what the rule declares.

    Raises   ValueError for a tensor that is missing, foreign or of another shape
    """
    found = {name: value for name, value in state.items() if value is not None}
    if not found:
        return {}
    step = found.pop("step", None)
    master = found.pop("master", None) if rounding_of(w, group) == "master" else None
    if step is None and rule.step_count == "required":
        raise ValueError(f"loaded state of a parameter of {rule.name} lacks 'step'")
    foreign = sorted(set(found) - set(rule.state))
    missing = sorted(set(rule.active_state()) - set(found))
    if foreign:
        raise ValueError(f"loaded state belongs to another optimizer: {rule.name} has no {', '.join(foreign)}")
    if missing and (found or rule.step_count == "required"):
        raise ValueError(f"loaded state of a parameter of {rule.name} lacks {', '.join(missing)}")
    matrix = blocks_of(w.shape, group)[0].shape
    expected = {name: rule.state[name].shape_for(tuple(w.shape), matrix) for name in found}
    if master is not None:
        found["master"], expected["master"] = master, tuple(w.shape)
    for name, value in found.items():
        if not isinstance(value, Tensor) or tuple(value.shape) != expected[name]:
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(f"loaded {name} has shape {shape}, but its parameter needs {expected[name]}")
    adopted = {name: _laid_out_like(w, value) if copy else value for name, value in found.items()}
    if rule.step_count == "none" and rounding_of(w, group) != "stochastic":
        return adopted
    count = 1.0 if step is None else float(step)  # torch's SGD keeps no step: at least one has been made
    return {"step": torch.tensor(count, dtype=torch.float32), **adopted}


def _laid_out_like(w: Tensor, value: Tensor) -> Tensor:
    """A copy, with the strides of the parameter where it has its shape: fused kernels walk all of them in one order."""
    if value.shape != w.shape:
        return value.clone()
    return torch.empty_like(w, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
