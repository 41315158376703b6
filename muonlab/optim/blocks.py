"""Blocks: the matrices that a parameter is made of, as views. Convolutions flattened, fused projections split."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from muonlab.roles import Role

__all__ = ["Block", "blocks_each", "blocks_of", "check_split", "matrix_shape", "num_blocks"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a parameter that the matrix stage sees under a shape of their own."""

    start: int
    rows: int
    shape: Shape  # (..., fan_out, fan_in)
    transposed: bool = False  # the parameter is stored as (fan_in, fan_out)

    def of(self, x: Tensor) -> Tensor:
        """The rows of a parameter-shaped tensor, as a view."""
        x = x.mT if self.transposed else x
        return x if not x.ndim or self.rows == x.shape[0] else x.narrow(0, self.start, self.rows)

    def view_of(self, x: Tensor) -> Tensor:
        """The same in the shape of the block; a copy where a view cannot have it."""
        x = self.of(x)
        return x if x.shape == self.shape else x.reshape(self.shape)


def matrix_shape(shape: Shape, role: str | None) -> Shape:
    """The shape of a parameter as a matrix or a batch of matrices: convolutions flattened, experts as they are.

    >>> matrix_shape((64, 16, 3, 3), "conv"), matrix_shape((8, 64, 16), "expert")
    ((64, 144), (8, 64, 16))
    """
    if len(shape) < 3 or role == Role.EXPERT:
        return tuple(shape)
    return (shape[0], math.prod(shape[1:]))


def blocks_of(shape: Shape, group: Mapping[str, Any]) -> tuple[Block, ...]:
    """The matrices of a parameter in a param group, by its `role`, `transposed`, `split_sizes` and `num_heads`.

    Equal parts become one block, a batch, so that a rule may keep state for them.

    >>> blocks_of((6, 4), {"split_sizes": (2, 2, 2)})
    (Block(start=0, rows=6, shape=(3, 2, 4), transposed=False),)
    >>> [block.shape for block in blocks_of((8, 4), {"split_sizes": (4, 2, 2), "num_heads": (2, 1, 1)})]
    [(2, 2, 4), (1, 2, 4), (1, 2, 4)]
    """
    return blocks_each([shape], group)[0]


def blocks_each(shapes: Sequence[Shape], group: Mapping[str, Any]) -> list[tuple[Block, ...]]:
    """`blocks_of` of many parameters of one group."""
    told = tuple(_hashable(group.get(key)) for key in ("role", "transposed", "split_sizes", "num_heads"))
    return [_blocks(tuple(shape), *told) for shape in shapes]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@functools.lru_cache(maxsize=4096)
def _blocks(
    shape: Shape,
    role: str | None,
    transposed: bool | None,
    split_sizes: tuple[int, ...] | None,
    num_heads: int | tuple[int, ...] | None,
) -> tuple[Block, ...]:
    transposed = bool(transposed)
    shape = tuple(reversed(shape)) if transposed else shape
    whole = matrix_shape(shape, role)
    sizes, heads = _parts(whole, split_sizes, num_heads)
    if len(sizes) == 1 and heads[0] == 1:
        return (Block(0, shape[0] if shape else 1, whole, transposed),)
    per_head = {size // count for size, count in zip(sizes, heads, strict=True)}
    if len(per_head) == 1 and (len(sizes) == 1 or len(set(sizes)) == 1):
        return (Block(0, whole[0], (sum(heads), per_head.pop(), whole[1]), transposed),)
    blocks, start = [], 0
    for size, count in zip(sizes, heads, strict=True):
        matrices = (count, size // count, whole[1]) if num_heads else (size, whole[1])
        blocks.append(Block(start, size, matrices, transposed))
        start += size
    return tuple(blocks)


def _parts(
    whole: Shape, split_sizes: Sequence[int] | None, num_heads: int | Sequence[int] | None
) -> tuple[Shape, Shape]:
    sizes = tuple(split_sizes) if split_sizes else whole[:1] or (1,)
    heads = (num_heads or 1,) * len(sizes) if not isinstance(num_heads, Sequence) else tuple(num_heads)
    return sizes, heads


def num_blocks(shape: Shape, group: Mapping[str, Any]) -> int:
    """Equal parts of a parameter that share a second moment: heads where `num_heads` names them, else rows.

    A vector is one part.

    Source   Zhang et al. 2024 (2406.16793), "Adam-mini", principle 1 as its section 2.3 uses it

    >>> num_blocks((64, 16), {}), num_blocks((64, 16), {"num_heads": 4}), num_blocks((64,), {})
    (64, 4, 1)
    """
    if group.get("role") == Role.VECTOR or len(shape) < 2:
        return 1
    whole = matrix_shape(tuple(shape), group.get("role"))
    if group.get("num_heads") is None:
        return math.prod(whole[:-1])
    sizes, heads = _parts(whole, group.get("split_sizes"), group["num_heads"])
    if len({size // count for size, count in zip(sizes, heads, strict=True)}) > 1:
        return math.prod(whole[:-1])
    return sum(heads)


def check_split(shape: Shape, group: Mapping[str, Any], name: str = "a parameter") -> None:
    """Raises   ValueError where `split_sizes`, `num_heads` or `transposed` do not fit the shape; it says what would"""
    split_sizes, num_heads = group.get("split_sizes"), group.get("num_heads")
    if split_sizes is None and num_heads is None and not group.get("transposed"):
        return
    if len(shape) != 2:
        raise ValueError(f"split_sizes, num_heads, transposed are for matrices, and {name} has shape {tuple(shape)}")
    shape = tuple(reversed(shape)) if group.get("transposed") else tuple(shape)
    for key, value in (("split_sizes", split_sizes), ("num_heads", num_heads)):
        items = value if isinstance(value, tuple | list) else () if value is None else (value,)
        if not all(isinstance(item, int) and not isinstance(item, bool) and item > 0 for item in items):
            raise ValueError(f"{key} must be positive whole numbers, got {value!r}")
    if split_sizes is not None and (not isinstance(split_sizes, tuple | list) or sum(split_sizes) != shape[0]):
        raise ValueError(f"split_sizes must add up to the {shape[0]} rows of {name}, got {split_sizes!r}")
    sizes, heads = _parts(shape, split_sizes, num_heads)
    if len(heads) != len(sizes):
        raise ValueError(f"num_heads must be one number, or one per part of split_sizes, got {num_heads!r}")
    for size, count in zip(sizes, heads, strict=True):
        if size % count:
            raise ValueError(f"num_heads={num_heads!r} must divide the {size} rows of {name}")
