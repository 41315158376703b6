"""Routing: what each parameter is, decided by module type, tying, output layer, name and shape, in that order."""

import fnmatch
import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from muonlab.errors import UsageError, unknown
from muonlab.roles import Role

__all__ = [
    "FUSED_HINT", "MATRIX_ROLES", "UNNAMED", "Route", "is_vector", "match_names", "owners_of", "route", "unwrapped",
]  # fmt: skip

MATRIX_ROLES = (Role.HIDDEN, Role.CONV, Role.EXPERT)

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase, nn.LocalResponseNorm)
CONVS = nn.modules.conv._ConvNd
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
HEAD_NAMES = re.compile(r"(lm_)?head|classifier|unembed(ding)?|embed_out|fc_out|output_(layer|projection)")
EMBEDDING_NAMES = re.compile(r"wte|wpe|pos(itions?|itional)?|(\w+_)?(emb|embeds?|embeddings?)")
UNNAMED = "parameter "
GATES = {"LSTM": 4, "GRU": 3}
FUSED_HINT = "; fused? then say so in split_sizes"
FUSED_NAMES = re.compile(r"c_attn|in_proj|w?qkv(_proj|_weight)?|query_key_value|kv_proj|gate_up_proj", re.IGNORECASE)
EXPERT_NAMES = re.compile(r"(^|[._])experts?([._]|$)")


class Route(NamedTuple):
    """Where one parameter goes, and why."""

    name: str
    param: Tensor
    role: Role
    reason: str
    parts: tuple[int, ...] = ()  # rows of the matrices that one parameter stacks, where the module says so
    transposed: bool = False  # stored as (fan_in, fan_out), as the Conv1D of transformers is


def route(
    source: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    roles: Mapping[str, Role | str] | None = None,
    *,
    strict: bool = True,
    asked_by: str = "Muon",
) -> list[Route]:
    """Give every parameter exactly one role; the first criterion that matches wins, `roles` (name or glob) before all.

    A module is judged by all five criteria; named parameters by name and shape; bare tensors by shape alone. A tied
    weight appears once, under its first name. With `strict=False` what cannot be told is HIDDEN: good enough for rules
    that treat all matrices alike. `asked_by` is who cannot do without, in the error.

    Raises   UsageError where the role cannot be told, or a pattern of `roles` matches nothing; it says what to write

    >>> for found in route(nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10))):
    ...     print(found.name, found.role)
    0.weight embedding
    1.weight hidden
    1.bias vector
    2.weight head
    2.bias vector
    """
    names, params = _entries(source)
    wanted = _match(roles or {}, names)
    owners = owners_of(source) if isinstance(source, nn.Module) else {}
    head = _output_layer(source) if isinstance(source, nn.Module) else None
    routes = []
    for name, param in zip(names, params, strict=True):
        owned = owners.get(id(param), [])
        role, reason = wanted[name] if name in wanted else _judge(name, param, owned, head, asked_by if strict else "")
        parts = _parts(param, owned) if role is Role.HIDDEN else ()
        routes.append(Route(name, param, role, reason, parts, any(_is_transposed(module) for _, module in owned)))
    return routes


def is_vector(param: Tensor) -> bool:
    """At most one dimension above one."""
    return sum(size != 1 for size in param.shape) <= 1


def _entries(source: object) -> tuple[list[str], list[Tensor]]:
    items = _of_module(source) if isinstance(source, nn.Module) else list(source)
    named = bool(items) and all(isinstance(item, tuple) for item in items)
    names = [item[0] for item in items] if named else [f"{UNNAMED}{i}" for i in range(len(items))]
    params = [item[1] for item in items] if named else items
    if not named and any(p.ndim == 2 and not is_vector(p) for p in params) and any(p.ndim != 2 for p in params):
        warnings.warn(
            "matrices without names are taken for hidden ones; an embedding or an output layer among them would be "
            "treated as hidden too: pass the model, or model.named_parameters()",
            UserWarning,
            stacklevel=4,
        )
    seen: dict[int, str] = {}
    for name, param in zip(names, params, strict=True):
        seen.setdefault(id(param), name)
    kept = set(seen.values())
    return [n for n in names if n in kept], [p for n, p in zip(names, params, strict=True) if n in kept]


def _of_module(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Its parameters under the names that they have without wrappers: torch.compile's, and data parallelism's."""
    prefix = "module." if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) else ""
    return [(unwrapped(name.removeprefix(prefix)), param) for name, param in model.named_parameters()]


def unwrapped(name: str) -> str:
    return name.replace("_orig_mod.", "")


def match_names(what: str, patterns: Mapping[str, Any], names: list[str]) -> dict[str, tuple[Any, str]]:
    """Value and pattern of every parameter that is named, exactly or by a glob.

    An exact name beats a glob, the first glob beats later ones.

    Raises   UsageError for a pattern that matches nothing
    """
    if not isinstance(patterns, Mapping) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UsageError(f"{what} wants a dictionary from parameter names or globs, got {patterns!r}")
    found: dict[str, tuple[Any, str]] = {}
    for pattern, value in patterns.items():
        matched = [pattern] if pattern in names else fnmatch.filter(names, pattern)
        if not matched:
            raise UsageError(f"{what}: no parameter is called {pattern!r} (the first ones are {', '.join(names[:5])})")
        for name in matched:
            if name == pattern or name not in found:
                found[name] = (value, pattern)
    return found


def _match(roles: Mapping[str, Role | str], names: list[str]) -> dict[str, tuple[Role, str]]:
    matched = match_names("roles", roles, names)
    for value in roles.values():
        if value not in list(Role):
            raise unknown("role", value, [str(role) for role in Role])
    return {
        name: (Role(value), "named in roles" if pattern == name else f"roles: {pattern}")
        for name, (value, pattern) in matched.items()
    }


def owners_of(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Id of each parameter -> every (name, module) that has it: a tied one has several."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for name, param in module.named_parameters(recurse=False):
            owners.setdefault(id(param), []).append((f"{path}.{name}" if path else name, module))
    return owners


def _output_layer(model: nn.Module) -> tuple[int, str] | None:
    """The weight that maps to the outputs: as wide as the vocabulary, or the last linear layer outside any block."""
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    linears = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    embedded = {id(module.weight) for module in embeddings}
    if not linears or any(id(module.weight) in embedded for _, module in linears):
        return None
    if embeddings:
        rows = {module.num_embeddings for module in embeddings}
        for path, module in reversed(linears):
            if module.out_features in rows and not _in_block(model, path):
                return id(module.weight), "as many outputs as an embedding has rows"
        return None
    path, module = linears[-1]
    return None if _in_block(model, path) else (id(module.weight), "last linear layer, outside any block")


def _in_block(model: nn.Module, path: str) -> bool:
    """Whether a module lies inside a block: one that occurs repeatedly, or that is an element of a ModuleList."""
    kinds = [type(module) for module in model.modules()]
    parts = path.split(".")
    chain = [model, *(model.get_submodule(".".join(parts[:i])) for i in range(1, len(parts)))]
    return any(
        not isinstance(module, CONTAINERS) and (kinds.count(type(module)) > 1 or isinstance(parent, nn.ModuleList))
        for parent, module in pairwise(chain)
    )


def _judge(
    name: str, param: Tensor, owners: list[tuple[str, nn.Module]], head: tuple[int, str] | None, asked_by: str
) -> tuple[Role, str]:
    modules = [module for _, module in owners]
    by_type = _by_type(param, modules)
    if len(owners) > 1 and by_type is not None and by_type[0] is Role.EMBEDDING:
        other = next(path for path, module in owners if not isinstance(module, nn.Embedding | nn.EmbeddingBag))
        return Role.EMBEDDING, f"embedding, tied to {other}" if other != name else "tied to an embedding"
    if by_type is not None:
        return by_type
    if head is not None and id(param) == head[0]:
        return Role.HEAD, head[1]
    return _by_name(name, param) or _by_shape(name, param, asked_by)


def _by_type(param: Tensor, modules: list[nn.Module]) -> tuple[Role, str] | None:
    for module in modules:
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            return Role.EMBEDDING, f"weight of {type(module).__name__}"
        if isinstance(module, NORMS):
            return Role.VECTOR, f"gain or bias of {type(module).__name__}"
        if isinstance(module, CONVS) and param.ndim > 2:
            if module.groups > 1 and param.shape[1] == 1:
                return Role.VECTOR, "depthwise convolution: one filter per channel, no matrix"
            return Role.CONV, f"kernel of {type(module).__name__}, flattened"
    return None


def _parts(param: Tensor, owners: list[tuple[str, nn.Module]]) -> tuple[int, ...]:
    """Rows of the matrices that torch's own modules stack into one parameter: gates, and query, key and value."""
    for path, module in owners:
        count = 1
        if isinstance(module, nn.MultiheadAttention) and path.endswith("in_proj_weight"):
            count = 3
        elif isinstance(module, nn.RNNBase | nn.RNNCellBase) and "weight_hr" not in path:
            count = GATES.get(type(module).__name__.removesuffix("Cell"), 1)
        if count > 1:
            return (param.shape[0] // count,) * count
    return ()


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _by_name(name: str, param: Tensor) -> tuple[Role, str] | None:
    if is_vector(param):
        return None
    parts = name.split(".")
    owner = parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "kernel", "w") else parts[-1]
    if HEAD_NAMES.fullmatch(owner):
        return Role.HEAD, f"called {owner!r}"
    if EMBEDDING_NAMES.fullmatch(owner):
        return Role.EMBEDDING, f"called {owner!r}"
    if param.ndim == 3 and EXPERT_NAMES.search(name):
        return Role.EXPERT, "three dimensions, called 'expert'"
    return None


def _by_shape(name: str, param: Tensor, asked_by: str) -> tuple[Role, str]:
    if is_vector(param):
        return Role.VECTOR, "at most one dimension above one"
    if param.ndim == 2:
        owner = name.removesuffix(".weight").rpartition(".")[2]
        fused = FUSED_HINT if FUSED_NAMES.fullmatch(owner) else ""
        return Role.HIDDEN, f"a matrix between hidden layers{fused}"
    if param.ndim > 3 and not name.startswith(UNNAMED):
        return Role.CONV, f"{param.ndim} dimensions, flattened to a matrix"
    if not asked_by:
        return Role.HIDDEN, "more than two dimensions, treated like a matrix"
    raise UsageError(
        f"{asked_by} only supports 2D parameters, and {name} has shape {tuple(param.shape)}: say what it is, "
        f'for instance roles={{"{name}": "expert"}} (a stack of matrices) or "conv" (flattened to one matrix)'
    )
