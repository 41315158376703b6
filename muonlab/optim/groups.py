"""Param groups: which rule a group belongs to, which keys it may have, and their defaults."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muonlab.errors import UsageError, unknown
from muonlab.optim.blocks import check_split, num_blocks
from muonlab.optim.routing import FUSED_HINT, MATRIX_ROLES, UNNAMED, match_names, route, unwrapped
from muonlab.optim.rule import Rule, declarations
from muonlab.optim.scaling import Scaling, multipliers_of
from muonlab.roles import Role

__all__ = [
    "FLAGS",
    "FOLLOW",
    "SPLITS",
    "adopt_group",
    "check_flags",
    "check_order",
    "companion_arguments",
    "complete_group",
    "needs_routing",
    "refuse_unsupported",
    "routed_groups",
    "rule_defaults",
]

FLAGS = {"maximize": False, "foreach": None, "fused": None, "rounding": "nearest"}
ROUNDINGS = ("nearest", "stochastic", "master")
SPLITS = {"split_sizes": None, "num_heads": None}  # by name in the constructor, plain values in a param group
SWITCHES = ("amsgrad", "capturable", "differentiable")  # torch's, all off
SHARED = {*FLAGS, *SWITCHES, "algorithm", "role", "num_skipped", "decoupled_weight_decay", "multipliers"}
ALIASES = ("use_muon", "use_fallback")
SCHEDULER_KEYS = {"peak_lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}
NOTES = {"params", "param_names", "name", "lr_scale"}  # a user's or timm's annotations, kept and ignored
FOLLOW = ("aux_lr", "aux_weight_decay")  # None: the same as the main rule's
ORDER = (*MATRIX_ROLES, Role.EMBEDDING, Role.HEAD, Role.VECTOR)  # of the param groups


def routed_groups(
    source: nn.Module | Iterable[Any],
    roles: Mapping[str, Role | str] | None,
    rule: type[Rule],
    *,
    scaling: Scaling | None = None,
    **splits: Mapping[str, Any],  # "split_sizes", "num_heads": by name or glob
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One group per role, split and multipliers, and the reason for each parameter by name.

    Vectors get no weight decay.
    """
    routes = route(source, roles, strict=rule.is_matrix_rule(), asked_by=rule.label())
    named = not any(found.name.startswith(UNNAMED) for found in routes)
    matched = {key: match_names(key, patterns, [found.name for found in routes]) for key, patterns in splits.items()}
    members: dict[tuple, list[Any]] = {}
    for found in routes:
        split = {key: _frozen(wanted[found.name][0]) for key, wanted in matched.items() if found.name in wanted}
        if found.parts and rule.takes_splits():
            split.setdefault("split_sizes", found.parts)
        if found.transposed and rule.is_matrix_rule() and found.role is Role.HIDDEN:
            split["transposed"] = True
        if split and found.role is not Role.HIDDEN:
            raise UsageError(
                f"{next(iter(split))}: {found.name} is not a hidden matrix but {found.role} ({found.reason})"
            )
        check_split(tuple(found.param.shape), split, found.name)
        if scaling is not None:
            split["multipliers"] = tuple(scaling(found, split).items())
        entry = (found.name, found.param) if named else found.param
        members.setdefault((found.role, *split.items()), []).append(entry)
    groups = [
        {"params": params, "role": role.value, **{k: dict(v) if k == "multipliers" else v for k, v in split}}
        for (role, *split), params in sorted(members.items(), key=lambda item: ORDER.index(item[0][0]))
    ]
    if not named:
        return groups, {}
    told = set().union(*matched.values()) if matched else set()
    reasons = {f.name: f.reason.removesuffix(FUSED_HINT) if f.name in told else f.reason for f in routes}
    if any(field.layout == "block" for field in rule.state.values()):
        for group in groups:
            for name, param in group["params"]:
                count = num_blocks(tuple(param.shape), group)
                reasons[name] += f"; {count} block{'s' * (count > 1)}"
    return groups, reasons


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def resolve_algorithm(group: dict[str, Any], rule: type[Rule], companion: type[Rule] | None) -> str:
    """The rule of a group by name: `algorithm`, or the flags that other libraries use, or its role."""
    valid = [rule.name] + ([companion.name] if companion else [])
    claimed = group.get("algorithm")
    for alias in ALIASES:
        if alias in group and companion is not None:
            flag = group.pop(alias)
            if not isinstance(flag, bool | int):
                raise TypeError(f"{alias} must be True or False, got {flag!r}")
            said = rule.name if bool(flag) == (alias == "use_muon") else companion.name
            if claimed not in (None, said):
                raise ValueError(f"a param group says {alias}={flag} and algorithm={claimed!r}: leave one of them out")
            claimed = said
    if claimed is not None and claimed not in valid:
        raise unknown("algorithm of a param group", claimed, valid)
    if claimed is not None:
        return claimed
    if companion is None or group.get("role") is None:
        return rule.name
    return rule.name if group["role"] in MATRIX_ROLES else companion.name


def complete_group(
    group: Mapping[str, Any], defaults: Mapping[str, Any], rule: type[Rule], companion: type[Rule] | None
) -> dict[str, Any]:
    """The group with every key that its rule needs, validated.

    Raises   UsageError for a key that no rule knows; ValueError or TypeError for a value out of range
    """
    group = dict(group)
    if "role" in group and group["role"] not in list(Role):
        raise unknown("role", group["role"], [str(role) for role in Role])
    if group.get("role") is not None:
        group["role"] = str(group["role"])
    group["algorithm"] = resolve_algorithm(group, rule, companion)
    mine = rule if group["algorithm"] == rule.name else companion
    refuse_unknown(group, mine)
    refuse_unsupported(group, mine)
    undecayed = group.get("role") == Role.VECTOR
    if (factors := multipliers_of(group)) is not None:
        group["multipliers"] = factors
    for key, value in _defaults_for(mine, rule, defaults).items():
        value = 0.0 if key == "weight_decay" and undecayed else value
        group.setdefault(key, value * factors[key] if factors and key in factors else value)
    for key, value in FLAGS.items():
        group.setdefault(key, defaults.get(key, value))
    for key in mine.unsupported:
        group.setdefault(key, False)
    group.setdefault("num_skipped", 0)
    check_values(group, mine)
    if group["decay"] == "independent":
        group.setdefault("peak_lr", float(group["lr"]))  # so that a loop that sets lr by hand counts as a schedule
    return group


def check_values(group: Mapping[str, Any], rule: type[Rule]) -> None:
    """Build the rule once for its validation, and check shapes that it cannot take."""
    rule.from_group(group)
    check_flags(group)
    params = [item[1] if isinstance(item, tuple) else item for item in group["params"]]
    if group["rounding"] == "stochastic" and any(param.dtype == torch.float16 for param in params):
        raise ValueError('rounding="stochastic" is for bfloat16 weights: use "master" for float16')
    for param in params:
        if rule.takes_splits():
            check_split(tuple(param.shape), group)
        if not rule.is_matrix_rule():
            continue
        if param.ndim < 2 or (param.ndim == 3 and group.get("role") not in (Role.EXPERT, Role.CONV)):
            raise ValueError(
                f"{rule.label()} only supports 2D parameters, "
                f"and one has shape {tuple(param.shape)}: "
                'leave out `algorithm` to have it routed, or give the group a "role" ("expert" or "conv")'
            )


def check_flags(settings: Mapping[str, Any]) -> None:
    """Raises   ValueError, TypeError or RuntimeError for an engine's own setting that cannot be"""
    if settings.get("rounding", "nearest") not in ROUNDINGS:
        raise ValueError(f"unknown rounding {settings['rounding']!r}: use one of {', '.join(ROUNDINGS)}")
    if settings.get("foreach") and settings.get("fused"):
        raise RuntimeError("`fused` and `foreach` cannot be `True` together")
    betas = settings.get("betas")
    if settings.get("foreach") and isinstance(betas, tuple | list) and betas:  # a hint to us, but torch's AdamW refuses
        for name, value in (("lr", settings["lr"]), ("betas[0]", betas[0])):
            if isinstance(value, Tensor):
                raise ValueError(f"{name} as a Tensor is not supported for capturable=False and foreach=True")
    if not isinstance(settings.get("skip_nonfinite", True), bool):
        raise TypeError(f"skip_nonfinite must be True or False, got {settings['skip_nonfinite']!r}")
    compiled = settings.get("compile", False)
    if not isinstance(compiled, bool | str):
        raise TypeError(f"compile must be True, False or the name of a torch.compile backend, got {compiled!r}")
    if isinstance(compiled, str):
        from torch._dynamo import list_backends  # slow to import, and only needed here

        if compiled not in list_backends(exclude_tags=()):  # those for debugging are taken, and not told
            raise unknown("torch.compile backend", compiled, list_backends())


def check_order(loaded: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]]) -> None:
    """State goes by position, as in torch; where both sides name the same parameters, the positions must agree.

    Raises   ValueError for the same names in another order
    """
    theirs, ours = (
        [unwrapped(n) for group in groups for n in group.get("param_names") or ()] for groups in (loaded, current)
    )
    if theirs != ours and sorted(theirs) == sorted(ours):
        at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
        raise ValueError(
            "the state dict has the same parameters in another order: "
            f"its number {at} is {theirs[at]}, here it is {ours[at]}"
        )


def refuse_unknown(group: Mapping[str, Any], rule: type[Rule]) -> None:
    splits = (*SPLITS, "transposed") if rule.takes_splits() else ()
    allowed = {*declarations(rule), *SHARED, *SCHEDULER_KEYS, *NOTES, *splits}
    for key in group:
        if key not in allowed:
            raise unknown(f"key of a param group of {rule.name}", key, allowed)


def refuse_torchs(loaded: Mapping[str, Any], current: Mapping[str, Any], rule: type[Rule]) -> None:
    """torch's groups name no optimizer, but its Adams are told by their keys: only RAdam has none of its own."""
    if not {"amsgrad", "decoupled_weight_decay"} & set(loaded):
        return
    known = "amsgrad" in rule.unsupported if "amsgrad" in loaded else "momentum_decay" in loaded
    if not known:
        theirs = "Adam or AdamW" if "amsgrad" in loaded else "RAdam"
        raise ValueError(f"loaded param group is for torch.optim.{theirs}, this one for {rule.name}")
    coupled = loaded.get("decoupled_weight_decay") is False and loaded.get("weight_decay")
    if coupled and current["decay"] != "coupled":
        raise ValueError('loaded param group has weight decay in the gradient: make the optimizer with decay="coupled"')


def refuse_unsupported(settings: Mapping[str, Any], rule: type[Rule]) -> None:
    for key in SWITCHES:
        if settings.get(key):
            raise ValueError(f"{rule.name} of muonlab does not support {key}=True")


def needs_routing(params: list[Any]) -> bool:
    """Whether a group without `algorithm` or `role` holds anything but 2-D tensors."""
    tensors = [item[1] if isinstance(item, tuple) and len(item) == 2 else item for item in params]
    return all(isinstance(item, Tensor) for item in tensors) and any(item.ndim != 2 for item in tensors)


def _defaults_for(mine: type[Rule], rule: type[Rule], defaults: Mapping[str, Any]) -> dict[str, Any]:
    if mine is rule:
        return {key: defaults[key] for key in declarations(rule)}
    values = rule_defaults(mine)
    for key in values:
        source = f"aux_{key}"
        if source in defaults:
            values[key] = defaults[key] if source in FOLLOW and defaults[source] is None else defaults[source]
    return values


def companion_arguments(companion: type[Rule], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor that set its companion: `aux_` and the name, with their defaults."""
    own = {**rule_defaults(companion), **defaults}
    names = [name for name, declaration in declarations(companion).items() if not declaration.keyword]
    return {f"aux_{name}": None if f"aux_{name}" in FOLLOW else own[name] for name in names}


def rule_defaults(rule: type[Rule]) -> dict[str, Any]:
    return {name: rule.__dataclass_fields__[name].default for name in declarations(rule)}


def adopt_group(
    loaded: dict[str, Any], current: Mapping[str, Any] | None, rule: type[Rule], companion: type[Rule] | None
) -> dict[str, Any]:
    """A group from a state dict, with the keys that it lacks (an older release, torch's own) from the current group.

    Raises   ValueError if it belongs to another rule, as far as it tells, or its values cannot be
    """
    for alias in ALIASES:
        loaded.pop(alias, None)
    expected = (current or loaded)["algorithm"]
    named = "algorithm" in loaded
    if loaded.setdefault("algorithm", expected) != expected:
        raise ValueError(f"loaded param group is for {loaded['algorithm']}, this one for {expected}")
    mine = rule if expected == rule.name else companion
    strays = set().union(*(declarations(each) for each in (rule, companion) if each))  # schedulers write into any group
    refuse_unknown({key: value for key, value in loaded.items() if key not in strays}, mine)
    if not named:
        refuse_torchs(loaded, current, mine)
    for key, value in {**(current or {**FLAGS, **rule_defaults(mine)}), **mine.unsaid}.items():
        if key != "params":
            loaded.setdefault(key, value)
    for key in ("capturable", "differentiable"):  # say how torch computed the state, not what it means
        if key in loaded:
            loaded[key] = False
    refuse_unsupported(loaded, mine)
    check_values({**loaded, "foreach": None}, mine)  # torch's capturable one may have any tensors beside it
    return loaded
