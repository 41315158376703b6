"""Per-parameter state: lazy creation, and the checks when a state dict is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muonlab.errors import UsageError
from muonlab.optim.blocks import Block, blocks_of, num_blocks
from muonlab.optim.rule import Rule, Shape, StateField
from muonlab.optim.sharding import is_dtensor, laid_out_as, local_of, moved_to

__all__ = ["HALF", "adopt_state", "count", "create", "lr_fraction", "rounding_of", "state_dtype", "state_key"]

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


def state_key(name: str, block: int) -> str:
    """The name of a state tensor of block number `block` of a parameter.

    >>> state_key("left", 0), state_key("left", 2)
    ('left', 'left.2')
    """
    return f"{name}.{block}" if block else name


def state_dtype(rule: Rule, key: str, w: Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """Of a state tensor: that of the parameter, and float32 where half precision would lose what it is for."""
    field = rule.state.get(key.partition(".")[0])
    own = field is not None and field.layout == "param" and rounding_of(w, group) == "nearest"
    return w.dtype if own or w.dtype not in HALF else torch.float32


def _declared(
    fields: Mapping[str, StateField], w: Tensor, group: Mapping[str, Any]
) -> Iterator[tuple[str, StateField, Shape, Block | None]]:
    """Every state tensor of a parameter: key, declaration, shape, and the block whose it is."""
    blocks = blocks_of(w.shape, group)
    for name, field in fields.items():
        if field.stage == "local" or field.layout == "param":
            shape = field.shape_for(tuple(w.shape), blocks[0].shape, num_blocks(w.shape, group))
            yield name, field, shape, None
        else:
            for k, block in enumerate(blocks):
                yield state_key(name, k), field, field.shape_for(tuple(w.shape), block.shape), block


def create(
    rule: Rule,
    ws: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    group: Mapping[str, Any],
    *,
    names: Mapping[str, StateField] | None = None,
    params: Sequence[Tensor] | None = None,
) -> None:
    """Create whatever state is missing, of those `names`: all that the rule needs, if that is not said.

    `ws` are the weights, `params` the parameters of the group whose they are, if they are others.

    Raises   UsageError for a weight that a state cannot start from; it names the parameter
    """
    names = rule.active_state() if names is None else names
    for w, p, state in zip(ws, params or ws, states, strict=True):
        if any(name not in state for name in names):
            local = local_of(w)
            shapes = {key: shape for key, _, shape, _ in _declared(names, w, group)}
            for key, field, shape, block in _declared(names, local, group):
                if key in state:
                    continue
                try:
                    first = _first(local, field, shape, block, state_dtype(rule, key, w, group))
                except UsageError as error:
                    raise UsageError(f"{_called(p, group)} of shape {tuple(w.shape)}: {error}") from error
                state[key] = laid_out_as(w, first, shapes[key]) if field.layout != "scalar" else first
        if "master" not in state and rounding_of(w, group) == "master":
            state["master"] = w.detach().to(torch.float32, copy=True)


def _called(w: Tensor, group: Mapping[str, Any]) -> str:
    at = next(i for i, p in enumerate(group["params"]) if p is w)
    return group["param_names"][at] if group.get("param_names") else f"parameter {at} of its group"


def count(
    rule: Rule, ws: Sequence[Tensor], states: Sequence[dict[str, Any]], group: Mapping[str, Any]
) -> Sequence[int]:
    """Count one step of each parameter, and return its number (from 1); 0 where nobody asks."""
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


def _first(w: Tensor, field: StateField, shape: Shape, block: Block | None, dtype: torch.dtype) -> Tensor:
    """A state tensor at its start."""
    if field.start is not None:
        view = w.detach() if block is None else block.of(w.detach()).reshape(block.shape)
        return field.start(view.to(dtype), shape)
    if field.layout == "param":
        return torch.zeros_like(w, dtype=dtype, memory_format=torch.preserve_format)
    return torch.zeros(shape, dtype=dtype, device=w.device)


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
    expected = {key: shape for key, _, shape, _ in _declared(rule.state, w, group)}
    foreign = sorted(set(found) - set(expected))
    missing = sorted({key for key, *_ in _declared(rule.active_state(), w, group)} - set(found))
    if foreign:
        raise ValueError(f"loaded state belongs to another optimizer: {rule.name} has no {', '.join(foreign)}")
    if missing and (found or rule.step_count == "required"):
        raise ValueError(f"loaded state of a parameter of {rule.name} lacks {', '.join(missing)}")
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
    if value.shape != w.shape or is_dtensor(w) or is_dtensor(value):
        return moved_to(w, value)
    return torch.empty_like(w, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)
