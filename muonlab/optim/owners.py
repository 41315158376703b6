"""Matrices that no rank has whole: which rank updates which, and how it gets what it needs.

A parameter whose rule needs more of it than a rank holds has an owner. Two ways lead there:

    directions  `local` runs on every shard, its result goes to the owner, `matrix` runs there on stacks of equal
                shapes, and the directions come back to be applied to the shards; what `local` keeps is sharded as the
                parameter
    weights     gradient and weight go to the owner, which makes the whole step, and the new weight comes back; of a
                parameter that every rank has whole only that last part is left

Everything else that a rule keeps of such a parameter is on its owner alone, whole.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from muonlab.optim.blocks import Block
from muonlab.optim.exchange import Move, Transfer, exchange
from muonlab.optim.rule import Rule, StateField
from muonlab.optim.sharding import Layout, local_of
from muonlab.optim.state import create
from muonlab.optim.update import Job, Piece, apply, directions, gradients, update
from muonlab.roles import Role

__all__ = ["Owned", "assign", "buckets", "cost", "needs_owner", "on_shards", "sends_directions", "transfers"]

BUCKET_BYTES = 32 * 2**20  # of parameters that travel to an owner in one exchange


@dataclass(frozen=True, eq=False)
class Owned:
    """A parameter with an owner, as this rank sees it."""

    p: Tensor
    layout: Layout
    owner: int  # position in the group
    state: dict[str, Any]
    blocks: tuple[Block, ...]  # of the whole
    on_shards: frozenset[str]  # names of the state that is sharded as the parameter

    @property
    def is_mine(self) -> bool:
        return self.layout.rank == self.owner

    def owned_names(self) -> list[str]:
        """Keys of the state that the owner has alone, as far as it is there."""
        return [name for name in self.state if name != "step" and name not in self.on_shards]


def needs_owner(rule: Rule, p: Tensor, layout: Layout, group: Mapping[str, Any]) -> bool:
    """Whether a rank cannot, or need not, update by itself what it holds of a parameter."""
    matrices = rule.is_matrix_rule()
    if layout.is_replicated:
        return matrices and layout.size > 1
    if group.get("role") == Role.EXPERT and p.ndim > 2 and max(layout.sharded_dims) < p.ndim - 2:
        return False  # whole experts
    if matrices or rule.sees == "whole":
        return True
    by_rows = {"param", "scalar"} if rule.sees == "elements" else {"param", "scalar", "row", "block"}
    if any(field.layout not in by_rows for field in rule.active_state().values()):
        return True
    if rule.sees == "rows":
        return layout.sharded_dims != {0} or p.ndim < 2 or group.get("num_heads") is not None
    return False


def sends_directions(rule: Rule, layout: Layout) -> bool:
    """Whether `local` runs on shards; else the owner needs gradient and weight."""
    if layout.is_replicated or rule.sees != "elements" or rule.application != "additive":
        return False
    if type(rule).finish is not Rule.finish or not rule.is_matrix_rule():
        return False
    fields = rule.active_state().values()
    return all(field.layout in ("param", "scalar") if field.stage == "local" else not field.start for field in fields)


def on_shards(rule: Rule, layout: Layout) -> Mapping[str, StateField]:
    """The state tensors that `local` keeps of shards; everything else is whole, and on the owner alone."""
    if not sends_directions(rule, layout):
        return {}
    return {name: field for name, field in rule.active_state().items() if field.stage == "local"}


def cost(rule: Rule, blocks: Sequence[Block], numel: int) -> float:
    """About how many operations an update takes, in units that only compare."""
    if not rule.is_matrix_rule():
        return float(numel)
    total = 0.0
    for block in blocks:
        *batch, rows, columns = block.shape
        total += (
            float(torch.Size(batch).numel()) * min(rows, columns) ** 2 * (2 * max(rows, columns) + min(rows, columns))
        )
    return total + numel


def assign(costs: Sequence[float], loads: list[float]) -> list[int]:
    """An owner for each parameter, the dearest first, always the rank with the least to do; `loads` goes up by it.

    >>> loads = [0.0, 0.0]
    >>> assign([1.0, 3.0, 1.0, 1.0], loads), loads
    ([1, 0, 1, 1], [3.0, 3.0])
    """
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = min(range(len(loads)), key=loads.__getitem__)
        loads[owners[i]] += costs[i]
    return owners


def transfers(job: Job, members: Sequence[Owned], group: Mapping[str, Any]) -> Iterator[Transfer]:
    """The updates of a job whose parameters have owners, a bounded number of bytes at a time.

    `job` is of the shards, in the order of `members`.
    """
    ways: dict[bool, list[int]] = {True: [], False: []}
    for i, member in enumerate(members):
        ways[sends_directions(job.rule, member.layout)].append(i)
    for sends, indices in ways.items():
        way = _by_directions if sends else _by_weights
        for bucket in buckets([members[i] for i in indices]):
            chosen = [indices[k] for k in bucket]
            yield way(job.part(chosen), [members[i] for i in chosen], group)


def buckets(members: Sequence[Owned]) -> list[list[int]]:
    """Which members travel together: those of every owner in turn, up to BUCKET_BYTES of each, and at least one."""
    found: list[list[int]] = []
    at: dict[int, tuple[int, int]] = {}  # owner -> its last bucket, and what is left there
    for i, member in enumerate(members):
        size = member.p.numel() * max(4, member.p.element_size())
        k, room = at.get(member.owner, (0, BUCKET_BYTES))
        if size > room and room < BUCKET_BYTES:
            k, room = k + 1, BUCKET_BYTES
        if k == len(found):
            found.append([])
        found[k].append(i)
        at[member.owner] = k, room - size
    return found


def _by_directions(job: Job, members: Sequence[Owned], group: Mapping[str, Any]) -> Transfer:
    rule, t, device = job.rule, job.t, job.ws[0].device
    held = [i for i, w in enumerate(job.ws) if w.numel()]
    part = job.part(held)
    dtype = torch.float32 if job.rounding != "nearest" else job.ws[0].dtype
    shards = [torch.empty(0, dtype=dtype)] * len(members)
    if held:
        for i, u in zip(held, rule.local_each(gradients(part, None), part.ws, part.states, t), strict=True):
            shards[i] = u.to(dtype)
    (wholes,) = yield from _to_owners(members, [shards], device)

    scales = [{rule.scale(block.shape) for block in member.blocks} for member in members]
    if wholes:
        mine = list(wholes)
        _create(rule, [members[i] for i in mine], group)
        us = [wholes[i] for i in mine]
        owned = replace(
            job, ws=us, gs=us, states=[members[i].state for i in mine], blocks=[members[i].blocks for i in mine]
        )
        for k, _, block, u in directions(owned, us):
            scale = rule.scale(block.shape) if len(scales[mine[k]]) > 1 else 1.0
            target = block.of(wholes[mine[k]])
            target.copy_((u if scale == 1.0 else u * scale).reshape(target.shape))

    dtypes = [
        _exact_dtype(rule, member, dtype, device) if len(scale) == 1 else dtype
        for member, scale in zip(members, scales, strict=True)
    ]
    us = yield from _to_shards(members, wholes, dtypes, device)
    pieces = [
        Piece(job.ws[i], job.states[i].get("master"), us[i].to(dtype), min(scales[i]) if len(scales[i]) == 1 else 1.0)
        for i in held
    ]
    if pieces:
        apply(part, pieces, None)


def _exact_dtype(rule: Rule, member: Owned, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """In which a direction comes back without loss."""
    found = (rule.matrix_dtype(block.shape, dtype, device.type) for block in member.blocks)
    return max(found, key=lambda one: one.itemsize)


def _by_weights(job: Job, members: Sequence[Owned], group: Mapping[str, Any]) -> Transfer:
    device = job.ws[0].device
    gs, ws = yield from _to_owners(members, [job.gs, job.ws], device)
    if ws:
        mine = [members[i] for i in ws]
        _create(job.rule, mine, group, list(ws.values()))
        blocks = [member.blocks for member in mine] if job.rule.is_matrix_rule() else []
        states = [member.state for member in mine]
        update(replace(job, ws=list(ws.values()), gs=list(gs.values()), states=states, blocks=blocks))
    new = yield from _to_shards(members, ws, [w.dtype for w in job.ws], device)
    for i, w in new.items():
        if w is not job.ws[i]:
            job.ws[i].copy_(w)


def _to_owners(
    members: Sequence[Owned], kinds: Sequence[Sequence[Tensor]], device: torch.device
) -> Generator[None, None, list[dict[int, Tensor]]]:
    """Of every kind of tensor, given as this rank's parts by member: the wholes of what this rank owns, by member.

    What every rank has whole stays where it is, and is handed on as it is.
    """
    layout = members[0].layout
    there = [
        (i, rank, kind)
        for i, member in enumerate(members)
        if not member.layout.is_replicated
        for rank in member.layout.sources(member.owner)
        for kind in range(len(kinds))
    ]
    moves = [
        Move(rank, members[i].owner, members[i].layout.boxes[rank].shape, kinds[kind][i].dtype)
        for i, rank, kind in there
    ]
    given = {n: kinds[kind][i] for n, (i, rank, kind) in enumerate(there) if rank == layout.rank}
    got = yield from exchange(layout.group, layout.rank, moves, given, device)
    wholes: list[dict[int, Tensor]] = [{} for _ in kinds]
    for i, member in enumerate(members):
        if member.is_mine:
            for found, parts in zip(wholes, kinds, strict=True):
                spread = not member.layout.is_replicated
                found[i] = torch.empty(member.p.shape, dtype=parts[i].dtype, device=device) if spread else parts[i]
    for n, (i, rank, kind) in enumerate(there):
        if members[i].is_mine:
            members[i].layout.boxes[rank].of(wholes[kind][i]).copy_(got[n])
    return wholes


def _to_shards(
    members: Sequence[Owned], wholes: Mapping[int, Tensor], dtypes: Sequence[torch.dtype], device: torch.device
) -> Generator[None, None, dict[int, Tensor]]:
    """The opposite: from the wholes of what this rank owns to this rank's part of every member, where it has one."""
    layout = members[0].layout
    back = [(i, rank) for i, member in enumerate(members) for rank, box in enumerate(member.layout.boxes) if box.numel]
    moves = [Move(members[i].owner, rank, members[i].layout.boxes[rank].shape, dtypes[i]) for i, rank in back]
    given = {
        n: members[i].layout.boxes[rank].of(wholes[i]).to(dtypes[i]) for n, (i, rank) in enumerate(back) if i in wholes
    }
    got = yield from exchange(layout.group, layout.rank, moves, given, device)
    return {i: got[n] for n, (i, rank) in enumerate(back) if rank == layout.rank}


def _create(
    rule: Rule, members: Sequence[Owned], group: Mapping[str, Any], wholes: Sequence[Tensor] | None = None
) -> None:
    """What the owner keeps, where it is missing; nothing of that starts from a weight if there are no `wholes`."""
    for k, member in enumerate(members):
        names = {name: field for name, field in rule.active_state().items() if name not in member.on_shards}
        whole = None if wholes is None else wholes[k]
        if whole is None:
            if all(name in member.state for name in names):
                continue
            whole = torch.empty(member.p.shape, dtype=member.p.dtype, device=local_of(member.p).device)
        create(rule, [whole], [member.state], group, names=names, params=[member.p])
