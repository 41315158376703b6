"""What a step sends between ranks: bytes by rank, from the layouts that matrices would have; needs no process group."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from muonlab.bench.sets import Shape
from muonlab.optim import owners
from muonlab.optim.blocks import blocks_of
from muonlab.optim.exchange import Move
from muonlab.optim.owners import Owned, assign, cost
from muonlab.optim.rule import Rule
from muonlab.optim.sharding import Box, Layout, boxes_of

__all__ = ["Traffic", "buckets", "must_send", "owned", "replicated", "sharded", "to_owners", "to_shards"]


def sharded(shape: Shape, num_ranks: int) -> Layout:
    """Rows split over ranks, as `fully_shard` does.

    >>> [box.shape for box in sharded((5, 4), 4).boxes]
    [(2, 4), (2, 4), (1, 4), (0, 4)]
    """
    from torch.distributed.tensor import Shard

    boxes = tuple(boxes_of(shape, (num_ranks,), (Shard(0),), (rank,))[0] for rank in range(num_ranks))
    return Layout(None, 0, boxes, (0,) * num_ranks, frozenset({0}) if num_ranks > 1 else frozenset())


def replicated(shape: Shape, num_ranks: int) -> Layout:
    """Every rank has the whole, as in a DDP module."""
    return Layout(None, 0, (Box((0,) * len(shape), shape),) * num_ranks, tuple(range(num_ranks)), frozenset())


def owned(shapes: Sequence[Shape], layout_of: Callable[[Shape], Layout], rule: Rule, dtype: torch.dtype) -> list[Owned]:
    """Matrices with the owners that an optimizer would give them."""
    layouts = {shape: layout_of(shape) for shape in set(shapes)}
    blocks = [blocks_of(shape, {}) for shape in shapes]
    costs = [cost(rule, found, prod(shape)) for found, shape in zip(blocks, shapes, strict=True)]
    chosen = assign(costs, [0.0] * layouts[shapes[0]].size)
    return [
        Owned(torch.empty(shape, dtype=dtype, device="meta"), layouts[shape], owner, {}, found, frozenset())
        for shape, owner, found in zip(shapes, chosen, blocks, strict=True)
    ]


def buckets(members: Sequence[Owned]) -> Iterator[list[Owned]]:
    """What travels together."""
    for indices in owners.buckets(members):
        yield [members[i] for i in indices]


@dataclass(frozen=True)
class Traffic:
    """Bytes of one collective by rank, without what a rank keeps; each tensor padded as it is in the buffer."""

    sent: Tensor  # (num_ranks,), int64
    received: Tensor

    @property
    def busiest(self) -> int:
        """The most that one rank sends or receives, whichever is more: links carry both at a time."""
        return int(torch.maximum(self.sent, self.received).max())


def to_owners(members: Sequence[Owned], num_copies: int = 1) -> Traffic:
    """Parts to their owners, from the owner's own replica; nothing of what every rank has whole."""
    found = _nothing(members)
    sizes = _sizes([(member, member.p.dtype) for member in members])
    for member, parts in zip(members, sizes, strict=True):
        if member.layout.is_replicated:
            continue
        rows = torch.tensor(member.layout.rows)
        given = torch.where(rows == rows[member.owner], parts, 0)
        given[member.owner] = 0
        found.sent.add_(given, alpha=num_copies)
        found.received[member.owner] += num_copies * given.sum()
    return found


def to_shards(members: Sequence[Owned], dtypes: Sequence[torch.dtype]) -> Traffic:
    """Parts from their owners to every rank that has some of the matrix, each matrix in a dtype."""
    found = _nothing(members)
    sizes = _sizes(list(zip(members, dtypes, strict=True)))
    for member, parts in zip(members, sizes, strict=True):
        taken = parts.clone()
        taken[member.owner] = 0
        found.received.add_(taken)
        found.sent[member.owner] += taken.sum()
    return found


def _nothing(members: Sequence[Owned]) -> Traffic:
    size = members[0].layout.size
    return Traffic(torch.zeros(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64))


def _sizes(members: Sequence[tuple[Owned, torch.dtype]]) -> list[Tensor]:
    """Bytes of each rank's part, in that dtype; worked out once for a layout, which matrices of a shape share."""
    known: dict[tuple[int, torch.dtype], Tensor] = {}
    for member, dtype in members:
        key = id(member.layout), dtype
        if key not in known:
            known[key] = torch.tensor([Move(0, 1, box.shape, dtype).num_bytes for box in member.layout.boxes])
    return [known[id(member.layout), dtype] for member, dtype in members]


def must_send(collective: str, num_bytes: float, num_ranks: int) -> float:
    """Bytes that leave a rank, in the mean over ranks, whatever the algorithm; `num_bytes` is a rank's input.

    Math     all_gather      (W - 1) n         what each of the others lacks has to be sent by somebody
             reduce_scatter  (W - 1) n / W     the same, backwards
             all_reduce      2 (W - 1) n / W   one after the other
             all_to_all      (W - 1) n / W     equal parts for everybody, one of which stays
    Units    ranks send to each other: a switch that adds up or copies may need less
    Raises   ValueError for another collective

    >>> must_send("all_reduce", 8, 4), must_send("all_gather", 8, 4)
    (12.0, 24.0)
    """
    share = {"all_gather": num_ranks, "reduce_scatter": 1, "all_reduce": 2, "all_to_all": 1}
    if collective not in share:
        raise ValueError(f"nothing is known of the collective {collective}")
    return share[collective] * (num_ranks - 1) * num_bytes / num_ranks
