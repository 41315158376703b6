"""Which parameter of a base model answers to which of a larger one, and by how much that has grown."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.optim.blocks import matrix_shape
from muonlab.optim.parametrization import Growth
from muonlab.optim.routing import owners_of, route
from muonlab.roles import Role

__all__ = ["TABLES", "Pair", "growth_of", "matched", "pattern_of"]

TABLES = (nn.Embedding, nn.EmbeddingBag)
CONVS = nn.modules.conv._ConvNd
SAME_CLASS = "build both with the same class"


@dataclass(frozen=True)
class Pair:
    """A parameter and its counterparts: the one of its name, or, where numbers of blocks differ, all of its pattern."""

    name: str
    param: Tensor
    role: Role
    of_base: Sequence[Tensor]
    depth: float
    modules: Sequence[nn.Module]  # that have the parameter
    transposed: bool  # stored as (fan_in, fan_out)

    @property
    def is_alike(self) -> bool:
        """Whether shape and number are those of the base."""
        return self.depth == 1 and self.param.shape == self.of_base[0].shape

    @property
    def has_table(self) -> bool:
        """Whether it is the table of an embedding, tied or not."""
        return any(isinstance(module, TABLES) for module in self.modules)


def pattern_of(name: str) -> str:
    """The name without the numbers of blocks.

    >>> pattern_of("blocks.10.attention.o.weight")
    'blocks.#.attention.o.weight'
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


def matched(model: nn.Module, base: nn.Module, roles: Mapping[str, Role | str] | None) -> list[Pair]:
    """Every parameter of the model with its counterparts in the base.

    Raises   UsageError where one of them has none: the two are of different kinds
    """
    routes, owners = route(model, roles, strict=False), owners_of(model)
    of_base = {found.name: found.param for found in route(base, strict=False)}
    alike: dict[str, list[Tensor]] = {}
    for name, param in of_base.items():
        alike.setdefault(pattern_of(name), []).append(param)
    counts = Counter(pattern_of(found.name) for found in routes)
    for pattern in sorted(alike.keys() ^ counts.keys()):
        has, lacks = ("base", "model") if pattern in alike else ("model", "base")
        raise UsageError(f"the {has} has {pattern}, the {lacks} has nothing like it: {SAME_CLASS}")
    pairs = []
    for name, param, role, _, _, transposed in routes:
        others = alike[pattern_of(name)]
        depth = counts[pattern_of(name)] / len(others)
        if depth == 1 and name in of_base:
            others = [of_base[name]]
        if any(other.shape != others[0].shape for other in others) or others[0].ndim != param.ndim:
            raise UsageError(f"{name} has no counterpart of one shape in the base: {SAME_CLASS}")
        modules = [module for _, module in owners[id(param)]]
        pairs.append(Pair(name, param, role, others, depth, modules, transposed))
    return pairs


def growth_of(pair: Pair) -> Growth:
    """How much larger it is than its counterpart.

    Raises   UsageError where it is smaller, or has another number of experts
    """
    shape, base_shape = tuple(pair.param.shape), tuple(pair.of_base[0].shape)
    if any(now < before for now, before in zip(shape, base_shape, strict=True)):
        sizes = " and ".join(" x ".join(map(str, size)) for size in (shape, base_shape))
        raise UsageError(f"{pair.name} is {sizes} in the base: the base must be the smaller one")
    if pair.role is Role.EXPERT and shape[0] != base_shape[0]:
        raise UsageError(f"{pair.name} has {shape[0]} experts, in the base {base_shape[0]}: build both with as many")
    fan_out, fan_in = (now / before for now, before in zip(_fans(pair, shape), _fans(pair, base_shape), strict=True))
    return Growth(role=pair.role, shape=shape, base_shape=base_shape, fan_out=fan_out, fan_in=fan_in, depth=pair.depth)


def _fans(pair: Pair, shape: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs that count as growing; 1 where they do not."""
    if pair.role is Role.VECTOR:
        return math.prod(shape), 1
    if pair.role is Role.EMBEDDING:
        is_map = isinstance(pair.modules[0], nn.Linear | CONVS) and not pair.has_table
        return shape[0 if is_map else -1], 1
    fan_out, fan_in = matrix_shape(shape, pair.role.value)[-2:]
    if pair.transposed or isinstance(pair.modules[0], nn.modules.conv._ConvTransposeNd):
        fan_out, fan_in = (shape[1] * math.prod(shape[2:]), shape[0])
    return (1, fan_in) if pair.role is Role.HEAD else (fan_out, fan_in)
