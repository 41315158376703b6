"""Which elements of a parameter are on which rank, discovered from DTensor placements or a DDP module's group."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Box",
    "Layout",
    "any_dtensor",
    "boxes_of",
    "gradient_of",
    "is_dtensor",
    "laid_out_as",
    "layout_of",
    "local_of",
    "moved_to",
    "refuse_flattened",
    "spread_as",
    "whole_of",
]

Shape = tuple[int, ...]
PLAIN = {Tensor, nn.Parameter, nn.Buffer}


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor: what one rank holds of it."""

    start: Shape
    shape: Shape

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def of(self, x: Tensor) -> Tensor:
        """The part of a whole tensor, as a view."""
        for dim, (start, length) in enumerate(zip(self.start, self.shape, strict=True)):
            if length != x.shape[dim]:
                x = x.narrow(dim, start, length)
        return x


@dataclass(frozen=True)
class Layout:
    """Where the elements of a parameter are: one box for each rank of a process group, by its position there."""

    group: "ProcessGroup"
    rank: int  # position of this process in the group
    boxes: tuple[Box, ...]
    rows: tuple[int, ...]  # number of the replica that a rank belongs to; the boxes of one row make up the whole
    sharded_dims: frozenset[int]

    @property
    def size(self) -> int:
        return len(self.boxes)

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds the whole."""
        return not self.sharded_dims

    def sources(self, owner: int) -> list[int]:
        """Ranks whose boxes make up the whole: the owner alone if it has it, else those of its own replica."""
        if self.is_replicated:
            return [owner]
        return [rank for rank in range(self.size) if self.rows[rank] == self.rows[owner] and self.boxes[rank].numel]


def is_dtensor(x: object) -> bool:
    """Whether it is a DTensor; asking does not import what makes them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def any_dtensor(xs: Iterable[Tensor]) -> bool:
    """Whether one of them is; cheap where none is."""
    return not PLAIN.issuperset(map(type, xs)) and any(map(is_dtensor, xs))


def refuse_flattened(params: Iterable[Any]) -> None:
    """Raises   TypeError for a module, or parameters, of which torch's first FSDP has made flat vectors"""
    for item in params:
        modules = item.modules() if isinstance(item, nn.Module) else ()
        if getattr(item, "_is_flat_param", False) or any(
            type(module).__name__ == "FullyShardedDataParallel" for module in modules
        ):
            raise TypeError(
                "FullyShardedDataParallel makes flat vectors of matrices, which have no polar factor: wrap the model "
                "with torch.distributed.fsdp.fully_shard instead"
            )


def local_of(x: Tensor) -> Tensor:
    """The part that is on this rank, sharing its memory."""
    return x.to_local() if is_dtensor(x) else x


def gradient_of(p: Tensor) -> Tensor:
    """The part of its gradient that belongs to the part of the parameter on this rank; a collective if it is not there.

    Tensor-parallel layers may leave a gradient that is still to be summed.
    """
    g = p.grad
    if is_dtensor(g) and g.placements != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    return local_of(g)


def laid_out_as(p: Tensor, local: Tensor, shape: Shape) -> Tensor:
    """A part of a tensor of that shape as a DTensor that lies as `p` does; itself where that is a plain tensor."""
    if not is_dtensor(p):
        return local
    from torch.distributed.tensor import DTensor

    stride = p.stride() if shape == tuple(p.shape) else torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, p.device_mesh, p.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def spread_as(p: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor that every rank has, spread over the ranks of `p`; itself where `p` is a plain tensor.

    As `p`, where it has its shape; else sharded along its first dimension over the longest dimension of the mesh.
    """
    if not is_dtensor(p):
        return whole
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, placements = p.device_mesh, list(p.placements)
    if whole.shape != p.shape:
        longest = max(range(mesh.ndim), key=mesh.size)
        placements = [Shard(0) if i == longest and whole.ndim else Replicate() for i in range(mesh.ndim)]
    box, _ = boxes_of(tuple(whole.shape), mesh.shape, placements, mesh.get_coordinate())
    part = box.of(whole).clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(
        part,
        mesh,
        placements,
        run_check=False,
        shape=whole.shape,
        stride=torch.empty_like(whole, device="meta").stride(),
    )


def whole_of(x: Tensor) -> Tensor:
    """The whole tensor on every rank; a collective where it is spread."""
    return x.full_tensor() if is_dtensor(x) else x


def moved_to(p: Tensor, value: Tensor) -> Tensor:
    """A copy of `value`, spread as `p` or not at all, as `p` is; a collective where `value` is spread otherwise."""
    if not is_dtensor(p) or not value.ndim:
        return whole_of(value).clone()
    if is_dtensor(value) and (value.device_mesh, value.placements) == (p.device_mesh, p.placements):
        return value.clone()
    whole = whole_of(value)
    box, _ = boxes_of(tuple(whole.shape), p.device_mesh.shape, p.placements, p.device_mesh.get_coordinate())
    return laid_out_as(p, box.of(whole).clone(memory_format=torch.contiguous_format), tuple(whole.shape))


def layout_of(p: Tensor, replicas: "ProcessGroup | None" = None) -> Layout | None:
    """Where a parameter is; `replicas` is the group that a DDP module keeps plain ones equal over.

    None for a plain parameter that nobody says anything about: every process updates it by itself.

    Raises   RuntimeError where this rank has no part in the parameter's mesh
    """
    from torch import distributed

    if is_dtensor(p):
        mesh = p.device_mesh
        if mesh.get_coordinate() is None:
            raise RuntimeError("a parameter is on a device mesh that this rank is not part of: give it to the others")
        group = _group_of(mesh)
        ranks = distributed.get_process_group_ranks(group)
        where = {int(rank): tuple(at) for at, rank in _coordinates(mesh)}
        found = [boxes_of(tuple(p.shape), mesh.shape, p.placements, where[rank]) for rank in ranks]
        return Layout(
            group,
            distributed.get_rank(group),
            tuple(box for box, _ in found),
            tuple(row for _, row in found),
            frozenset(
                placement.dim % max(1, p.ndim)
                for placement, size in zip(p.placements, mesh.shape, strict=True)
                if _is_shard(placement) and size > 1
            ),
        )
    if replicas is None:
        return None
    size = distributed.get_world_size(replicas)
    whole = Box((0,) * p.ndim, tuple(p.shape))
    return Layout(replicas, distributed.get_rank(replicas), (whole,) * size, tuple(range(size)), frozenset())


def boxes_of(shape: Shape, mesh: Sequence[int], placements: Sequence[Any], at: Sequence[int]) -> tuple[Box, int]:
    """The part of the rank at these coordinates, and the number of its replica.

    Shards are split as by torch.chunk, those of later mesh dimensions inside those of earlier ones, and strided ones
    (FSDP over tensor parallelism) inside all others.

    >>> from torch.distributed.tensor import Shard, Replicate
    >>> boxes_of((5, 4), (2, 2), (Replicate(), Shard(0)), (1, 1))
    (Box(start=(3, 0), shape=(2, 4)), 1)
    """
    start, length = [0] * len(shape), list(shape)
    row = 0
    plain = [i for i, placement in enumerate(placements) if _is_shard(placement) and not _is_strided(placement)]
    strided = [i for i, placement in enumerate(placements) if _is_strided(placement)]
    for i, placement in enumerate(placements):
        if not _is_shard(placement):
            row = row * mesh[i] + at[i]
    for i in (*plain, *reversed(strided)):
        dim = placements[i].dim % max(1, len(shape))
        chunk = -(-length[dim] // mesh[i])
        first = min(length[dim], chunk * at[i])
        start[dim] += first
        length[dim] = min(length[dim], first + chunk) - first
    return Box(tuple(start), tuple(length)), row


def _is_shard(placement: Any) -> bool:
    return placement.is_shard() or _is_strided(placement)


def _is_strided(placement: Any) -> bool:
    return type(placement).__name__ == "_StridedShard"


def _coordinates(mesh: Any) -> list[tuple[Shape, int]]:
    grid = mesh.mesh
    return [(tuple(at), rank) for at, rank in zip(_places(tuple(grid.shape)), grid.flatten().tolist(), strict=True)]


def _places(shape: Shape) -> list[Shape]:
    places: list[Shape] = [()]
    for size in shape:
        places = [(*place, i) for place in places for i in range(size)]
    return places


GROUPS: dict[Shape, Any] = {}  # of meshes with several dimensions, by their ranks


def _group_of(mesh: Any) -> "ProcessGroup":
    """One process group over all ranks of a mesh."""
    from torch import distributed

    if mesh.ndim == 1:
        return mesh.get_group()
    ranks = tuple(sorted(mesh.mesh.flatten().tolist()))
    if len(ranks) == distributed.get_world_size():
        return distributed.group.WORLD
    known = GROUPS.get(ranks)
    if known is None or known not in distributed.distributed_c10d._world.pg_map:  # else that of an earlier job
        known = GROUPS[ranks] = distributed.new_group(list(ranks), use_local_synchronization=True)
    return known
