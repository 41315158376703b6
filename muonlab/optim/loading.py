"""Loading a state dict into an engine: everything is checked before anything is replaced."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from muonlab.optim.groups import adopt_group, check_order
from muonlab.optim.rule import Rule
from muonlab.optim.sharding import moved_to
from muonlab.optim.state import adopt_state, state_dtype

__all__ = ["adopted", "check_state_dict", "restore_dtypes"]

Group = Mapping[str, Any]


def check_state_dict(state_dict: Any, groups: Sequence[Group]) -> None:
    """Raises   ValueError for what cannot be the state dict of an optimizer with these groups"""
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError("not the state dict of an optimizer: it needs the keys 'state' and 'param_groups'")
    check_order(state_dict["param_groups"], groups)


def adopted(
    state: Mapping[str, Any], current: Sequence[Group] | None, rule: type[Rule], companion: type[Rule] | None
) -> dict[str, Any]:
    """The attributes of an optimizer, with groups and state as ours; `current` are the groups that a load replaces.

    Raises   ValueError for groups or state of another optimizer
    """
    loading = current is not None
    groups = [
        adopt_group(group, now, rule, companion)
        for group, now in zip(state["param_groups"], current or [None] * len(state["param_groups"]), strict=True)
    ]
    tensors = defaultdict(dict, state["state"])
    for group in groups:
        built = (rule if group["algorithm"] == rule.name else companion).from_group(group)
        for p in group["params"]:
            if p in tensors:
                found = adopt_state(built, p, tensors.pop(p), group, copy=loading)
                tensors |= {p: found} if found else {}
    return {**state, "param_groups": groups, "state": tensors}


def restore_dtypes(
    saved: Mapping[str, Any], pairs: Sequence[tuple[Rule, Group]], state: Mapping[Tensor, dict[str, Any]]
) -> None:
    """Give state that is not of its parameter's dtype the saved values once more: torch has rounded them."""
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    params = [(rule, group, p) for rule, group in pairs for p in group["params"]]
    for index, (rule, group, p) in zip(indices, params, strict=True):
        for name, value in saved["state"].get(index, {}).items():
            wanted = state_dtype(rule, name, p, group)
            if name != "step" and name in state.get(p, {}) and isinstance(value, Tensor) and wanted != p.dtype:
                state[p][name] = moved_to(p, value.to(p.device, wanted))
