"""Interchange: optimizer checkpoints of other libraries as ones that muonlab loads, and back.

A checkpoint is read into groups that use torch's names, momentum as an average, one state per parameter in order;
then written in the words of another library. What a library calls things is data: `libraries.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muonlab.errors import unknown
from muonlab.kernels.polar import COEFFICIENTS, coefficients_for
from muonlab.optim.groups import NOTES, SCHEDULER_KEYS
from muonlab.optim.libraries import LIBRARIES, Dialect, Library

__all__ = ["convert"]

KEPT = (SCHEDULER_KEYS | NOTES) - {"params"}  # the same under every library
OF_PARAMS = {"param_names", "name"}  # of those, what does not outlive a change of groups

StateDict = Mapping[str, Any]


@dataclass
class Group:
    """A param group in our own words."""

    rule: str  # "muon" or "adamw"
    settings: dict[str, Any]
    states: list[dict[str, Tensor]]  # one per parameter, empty before its first step
    live: Mapping[str, Any] = field(default_factory=dict)  # the group that it will be loaded into, where known


def convert(
    state_dict: StateDict | Sequence[StateDict],
    *,
    source: str,
    target: str = "muonlab",
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    params: Iterable[Tensor] | None = None,
) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
    """An optimizer checkpoint of one library as a checkpoint of another: the same training goes on.

    `source` and `target` are "muonlab", "torch", "keller_jordan", "pytorch_optimizer", "gram_newton_schulz" or "dion".
    Where a library keeps AdamW in an optimizer of its own (torch, gram_newton_schulz), a checkpoint is the pair
    (Muon's, AdamW's); either alone will do if there is no other. With `optimizer`, the one that will load the result,
    everything is checked against its parameters. It must have the same groups in the same order, unless `params` lists
    its parameters in the order in which the source had them: then they are sorted into its groups.

    Math     momentum as an average = (1 - momentum) x momentum as a sum (dion, gram_newton_schulz)
    Shapes   state tensors have their parameter's
    Raises   UsageError for an unknown library; ValueError for another library's layout, missing or foreign state, wrong
             numbers or shapes of parameters, and settings that the target cannot have
    Differs  from load_state_dict: never changes or aliases its input. Settings that a library keeps outside its
             checkpoints (Newton-Schulz coefficients of dion and gram_newton_schulz) stay those of the live optimizer

    >>> import torch, muonlab
    >>> w = torch.nn.Parameter(torch.ones(2, 2))
    >>> saved = {"state": {0: {"momentum": torch.full((2, 2), 4.0)}}, "param_groups": [{"lr": 0.02, "momentum": 0.75,
    ...     "weight_decay": 0.0, "nesterov": True, "adjust_lr": "spectral_norm", "params": [0]}]}
    >>> optimizer = muonlab.Muon([w])
    >>> optimizer.load_state_dict(convert(saved, source="gram_newton_schulz", optimizer=optimizer))
    >>> optimizer.state[w]["momentum_buffer"].tolist(), optimizer.param_groups[0]["adjust_lr_fn"]
    ([[1.0, 1.0], [1.0, 1.0]], 'spectral')
    """
    origin, goal = _library("source", source), _library("target", target)
    groups = _read(origin, state_dict)
    if optimizer is not None:
        live = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        groups = _sort_into(groups, [group for one in live for group in one.param_groups], params, goal)
    elif params is not None:
        raise ValueError("params are sorted into the groups of an optimizer: give optimizer= too")
    return _write(goal, groups)


def _library(argument: str, name: str) -> Library:
    if name not in LIBRARIES:
        raise unknown(f"{argument} of a checkpoint", name, LIBRARIES)
    return LIBRARIES[name]


# Reading


def _read(library: Library, state_dict: StateDict | Sequence[StateDict]) -> list[Group]:
    parts = [state_dict] if isinstance(state_dict, Mapping) else list(state_dict)
    if not 1 <= len(parts) <= (2 if library.separate else 1):
        raise ValueError(f"{library.name} keeps {library.describe_parts()}, got {len(parts)} checkpoints")
    read = [_read_one(library, part) for part in parts]
    if len(parts) == 2:  # gram_newton_schulz lists AdamW's groups with Muon's, without their state
        if any(state for group in read[0] if group.rule == "adamw" for state in group.states):
            raise ValueError(f"the first checkpoint of {library.name} must be Muon's, and it holds AdamW's state")
        read[0] = [group for group in read[0] if group.rule == "muon"]
    groups = [group for part in read for group in part]
    if library.separate and len(parts) == 1 and len({group.rule for group in groups}) == 2:
        raise ValueError(
            f"{library.name} keeps {library.describe_parts()}: give the pair, AdamW's state is not in this"
        )
    return groups


def _read_one(library: Library, state_dict: StateDict) -> list[Group]:
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(
            "a checkpoint is what optimizer.state_dict() returned, with the keys 'state' and 'param_groups'"
        )
    groups, states = state_dict["param_groups"], dict(state_dict["state"])
    numbers = [number for group in groups for number in group["params"]]
    if len(set(numbers)) != len(numbers):
        raise ValueError("a parameter is in two groups of the checkpoint")
    if foreign := sorted(set(states) - set(numbers), key=str):
        raise ValueError(f"the checkpoint has state for parameters that no group holds: {foreign}")
    found = []
    for number, group in enumerate(groups):
        where = f"group {number} of the {library.name} checkpoint"
        rule = library.rule_of(group, where)
        settings = _read_settings(library, library.dialects[rule], group, where)
        members = [_read_state(library, rule, group, states.get(index, {}), where) for index in group["params"]]
        if rule == "muon":
            settings["momentum_form"] = "ema"
        found.append(Group(rule, settings, members))
    return found


def _read_settings(library: Library, dialect: Dialect, group: Mapping[str, Any], where: str) -> dict[str, Any]:
    settings = {key: deepcopy(group[key]) for key in KEPT & set(group)} | dict(dialect.always)
    for ours, theirs in dialect.settings.items():
        keys = (theirs,) if isinstance(theirs, str) else theirs
        if missing := [key for key in keys if key not in group]:
            if library.own:
                continue
            raise ValueError(f"{where} lacks {missing[0]!r}: was it written by {library.name}?")
        values = [group[key].item() if isinstance(group[key], Tensor) else group[key] for key in keys]
        value = values[0] if isinstance(theirs, str) else tuple(values)
        settings[ours] = dialect.read_value(ours, value, where)
    if "ns_coefficients" in settings:
        settings["ns_coefficients"] = _schedule(settings["ns_coefficients"], settings["ns_steps"])
    for key in (key for key, value in dialect.fixed.items() if group.get(key, value) != value):
        if not library.own:
            raise ValueError(f"{where} has {key}={group[key]!r}, which muonlab cannot continue")
        settings[key] = deepcopy(group[key])
    known = {*dialect.keys(), *KEPT, "params", "step", library.flag}
    if foreign := sorted(set(group) - known):
        raise ValueError(f"{where} has settings of unknown meaning: {', '.join(foreign)}. Delete them if none matters")
    return settings


def _schedule(value: Any, num_steps: int) -> Any:
    """One triple if all steps are the same, else one per step; the name of a record that has a safety factor."""
    if isinstance(value, str):
        record = COEFFICIENTS.get(value)
        if record is None or record.safety != 1.0:
            return value
        value = coefficients_for(value, num_steps).steps
    triples = [tuple(map(float, item)) for item in (value if isinstance(value[0], Sequence) else [value])]
    steps = [triples[min(i, len(triples) - 1)] for i in range(num_steps)]  # the last one goes on, as everywhere
    return steps[0] if len(set(steps)) == 1 else tuple(steps)


def _read_state(
    library: Library, rule: str, group: Mapping[str, Any], state: Mapping[str, Any], where: str
) -> dict[str, Tensor]:
    dialect, found = library.dialects[rule], {key: value for key, value in state.items() if value is not None}
    if not found:
        return {}
    step = found.pop(library.counter, group.get("step") if library.step == "group" else None)
    missing = sorted(set(dialect.state.values()) - set(found))
    if rule == "adamw" and step is None:
        missing.append("step")
    if missing:
        raise ValueError(f"the state of a parameter in {where} lacks {', '.join(missing)}")
    if foreign := sorted(set(found) - set(dialect.state.values())):
        raise ValueError(f"the state of a parameter in {where} holds {', '.join(foreign)}, which {rule} does not use")
    ours = {name: found[theirs].detach().clone() for name, theirs in dialect.state.items()}
    if rule == "adamw":
        return ours | {"step": torch.tensor(float(step), dtype=torch.float32)}
    if library.heavy_ball or group.get("momentum_form") == "heavy_ball":
        ours["momentum_buffer"] *= 1.0 - float(group[dialect.settings["momentum"]])
    return ours


# Sorting


def _sort_into(
    groups: list[Group], live: Sequence[Mapping[str, Any]], params: Iterable[Tensor] | None, goal: Library
) -> list[Group]:
    """The same states in the groups of the optimizer that will load them."""
    sizes = [len(group.states) for group in groups], [len(group["params"]) for group in live]
    own = [p for group in live for p in group["params"]]
    if params is None and sizes[0] != sizes[1]:
        raise ValueError(
            f"the checkpoint has groups of {sizes[0]} parameters, the optimizer of {sizes[1]}: give params="
        )
    order = own if params is None else list(params)
    if len(order) != sum(sizes[0]):
        raise ValueError(f"the checkpoint has {sum(sizes[0])} parameters, params has {len(order)}")
    if len({id(p) for p in order}) != len(order) or {id(p) for p in order} != {id(p) for p in own}:
        raise ValueError("params must list every parameter of the optimizer once, in the order of the checkpoint")
    entries = [(group, state) for group in groups for state in group.states]
    place = {id(p): (number, *entry) for number, (p, entry) in enumerate(zip(order, entries, strict=True))}
    return [
        _merge(number, group, [(p, *place[id(p)]) for p in group["params"]], goal) for number, group in enumerate(live)
    ]


def _merge(number: int, live: Mapping[str, Any], members: Sequence[tuple], goal: Library) -> Group:
    """One group of the live optimizer, whose members may come from several groups of the checkpoint."""
    where = f"group {number} of the optimizer"
    rule = goal.rule_of(live, where)
    for p, index, group, state in members:
        if group.rule != rule:
            raise ValueError(
                f"parameter {index} of the checkpoint was trained by {group.rule}, {where} is {rule}: "
                "make the optimizer with the groups or the roles that it had"
            )
        for name, value in state.items():
            if name != "step" and value.shape != p.shape:
                shapes = f"{tuple(value.shape)}, its parameter in {where} {tuple(p.shape)}"
                raise ValueError(f"parameter {index} of the checkpoint has {name} of shape {shapes}")
    sources = [{k: v for k, v in group.settings.items() if k not in OF_PARAMS} for _, _, group, _ in members] or [{}]
    for other in sources[1:]:
        if differing := sorted(k for k in other.keys() | sources[0].keys() if other.get(k) != sources[0].get(k)):
            raise ValueError(
                f"the checkpoint has several {differing[0]} for {where}: make the optimizer with its groups"
            )
    return Group(rule, sources[0], [state for *_, state in members], live)


# Writing


def _write(library: Library, groups: list[Group]) -> dict[str, Any] | tuple[dict[str, Any], dict[str, Any]]:
    if library.separate and len({group.rule for group in groups}) == 2:
        muon, adamw = ([group for group in groups if group.rule == rule] for rule in ("muon", "adamw"))
        return _write_one(library, muon), _write_one(library, adamw)
    return _write_one(library, groups)


def _write_one(library: Library, groups: list[Group]) -> dict[str, Any]:
    written, states = [], {}
    total = 0
    for number, group in enumerate(groups):
        where = f"group {number}"
        numbers = list(range(total, total + len(group.states)))
        total += len(group.states)
        written.append(_write_settings(library, group, where) | {"params": numbers})
        for index, state in zip(numbers, group.states, strict=True):
            if state:
                states[index] = _write_state(library, group, state)
    return {"state": states, "param_groups": written}


def _write_settings(library: Library, group: Group, where: str) -> dict[str, Any]:
    dialect, settings = library.dialects[group.rule], dict(group.settings)
    kept = KEPT | (set(dialect.fixed) if library.own else set())
    theirs = {} if library.own else deepcopy({**dialect.fixed, **dialect.manner})
    theirs |= {key: settings.pop(key) for key in kept & set(settings)}
    if library.flag:
        theirs[library.flag] = library.flags[group.rule]
    if library.step == "group":
        theirs["step"] = _common_step(group, where)
    for name, value in dialect.always.items():
        if settings.pop(name, value) != value:
            raise ValueError(f"{where} has {name}={group.settings[name]!r}, and {library.name} only knows {value!r}")
    for name, keys in dialect.settings.items():
        keys = (keys,) if isinstance(keys, str) else keys
        if name in settings:
            value = dialect.write_value(name, settings[name], library.name)
            theirs |= dict(zip(keys, (value,) if len(keys) == 1 else value, strict=True))
        elif not library.own:
            if missing := [key for key in keys if key not in group.live]:
                raise ValueError(f"the checkpoint does not say {missing[0]}: give optimizer=, to take its own")
            theirs |= {key: deepcopy(group.live[key]) for key in keys}
    if left := sorted(set(settings) - set(dialect.settings) - set(dialect.outside)):
        raise ValueError(f"{where} has {left[0]}={settings[left[0]]!r}, for which {library.name} has no place")
    return theirs


def _common_step(group: Group, where: str) -> int:
    steps = {int(state["step"]) for state in group.states if "step" in state}
    if len(steps) > 1:
        raise ValueError(f"{where} has parameters of different age, {min(steps)} to {max(steps)} steps, in one group")
    return steps.pop() if steps else 0


def _write_state(library: Library, group: Group, state: Mapping[str, Tensor]) -> dict[str, Any]:
    dialect = library.dialects[group.rule]
    theirs: dict[str, Any] = {key: state[name] for name, key in dialect.state.items()}
    if group.rule == "adamw" and library.step != "group":
        theirs["step"] = state["step"] if library.step == "tensor" else int(state["step"])
    if group.rule == "muon" and library.heavy_ball:
        theirs[dialect.state["momentum_buffer"]] = state["momentum_buffer"] / (1.0 - group.settings["momentum"])
    return theirs
