"""What an engine whose parameters are spread over ranks does beside its rules: owners, agreement, complete state."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muonlab.optim.blocks import blocks_of
from muonlab.optim.exchange import overlapped
from muonlab.optim.jobs import owned_jobs_of
from muonlab.optim.owners import Owned, assign, cost, needs_owner, on_shards, sends_directions, transfers
from muonlab.optim.rule import Rule
from muonlab.optim.sharding import Layout, is_dtensor, layout_of, local_of, spread_as, whole_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Sharding"]

Group = Mapping[str, Any]
Work = tuple[Rule, Group, Sequence[Tensor]]  # a rule, its param group, and those parameters that have a gradient


class Sharding:
    """Layouts and owners of an engine's parameters; every rank of a group finds the same.

    Owners are given group by group, as the groups stand, so that they do not depend on which gradients there are.
    """

    def __init__(self, replicas: "ProcessGroup | None" = None) -> None:
        self.replicas = replicas  # over which a DDP module keeps plain parameters equal
        self._layouts: dict[Tensor, Layout | None] = {}
        self._owners: dict[Tensor, int] = {}
        self._loads: dict[Any, list[float]] = {}  # process group -> work given to each rank

    def layout(self, p: Tensor) -> Layout | None:
        if p not in self._layouts:
            self._layouts[p] = layout_of(p, self.replicas)
        return self._layouts[p]

    @property
    def has_owners(self) -> bool:
        """Whether this rank lacks what others keep."""
        return bool(self._owners)

    def is_spread(self, groups: Iterable[Group]) -> bool:
        """Whether anything here concerns other ranks."""
        return self.replicas is not None or any(is_dtensor(p) for group in groups for p in group["params"])

    def owned(self, rule: Rule, group: Group, p: Tensor, state: dict[str, Any]) -> Owned | None:
        """The parameter with its owner; None where this rank updates what it holds of it by itself."""
        layout = self.layout(p)
        if layout is None or not needs_owner(rule, p, layout, group):
            return None
        if p not in self._owners:
            self._assign(rule, group)
        kept = frozenset(on_shards(rule, layout)) | ({"master"} if sends_directions(rule, layout) else set())
        return Owned(p, layout, self._owners[p], state, blocks_of(p.shape, group), kept)

    def _assign(self, rule: Rule, group: Group) -> None:
        """Owners for all parameters of a param group, whether they have gradients or not."""
        by_process_group: dict[Any, list[Tensor]] = {}
        for p in dict.fromkeys(group["params"]):
            layout = self.layout(p)
            if layout is not None and needs_owner(rule, p, layout, group):
                by_process_group.setdefault(layout.group, []).append(p)
        for process_group, params in by_process_group.items():
            size = self.layout(params[0]).size
            loads = self._loads.setdefault(process_group, [0.0] * size)
            costs = [cost(rule, blocks_of(p.shape, group), p.numel()) for p in params]
            self._owners |= dict(zip(params, assign(costs, loads), strict=True))

    def update(self, work: Iterable[tuple[Rule, Group, Sequence[Owned]]]) -> None:
        """Make the step of parameters that have owners."""
        overlapped(
            transfer
            for rule, group, owned in work
            for job, members in owned_jobs_of(rule, group, owned)
            for transfer in transfers(job, members, group)
        )

    def members(
        self, rule: Rule, group: Group, params: Iterable[Tensor], states: Mapping[Tensor, dict[str, Any]]
    ) -> list[Owned]:
        """Those parameters that have owners."""
        found = (self.owned(rule, group, p, states[p]) for p in params)
        return [member for member in found if member is not None]

    def agree(self, params: Mapping[Tensor, str], is_finite: bool) -> bool:
        """Whether the gradients are finite on every rank; all ranks get the same answer.

        Raises   RuntimeError on every rank where a parameter has a gradient on some ranks only; it names it
        """
        from torch import distributed

        by_group: dict[Any, list[Tensor]] = {}
        for p in params:
            layout = self.layout(p)
            if layout is not None and layout.size > 1:
                by_group.setdefault(layout.group, []).append(p)
        for repeated in range(2 if len(by_group) > 1 else 1):  # what one group has found, the others have to know
            for process_group, members in by_group.items():
                has = [p.grad is not None for p in members]
                mark = 0 if repeated else zlib.crc32(bytes(has))
                said = torch.tensor([int(is_finite), mark, -mark], device=local_of(members[0]).device)
                distributed.all_reduce(said, distributed.ReduceOp.MIN, group=process_group)
                finite, low, high = said.tolist()
                if low != -high:
                    _refuse_asymmetry([params[p] for p in members], has, process_group)
                is_finite = bool(finite)
        return is_finite

    def complete(
        self, work: Iterable[Work], states: Mapping[Tensor, dict[str, Any]]
    ) -> dict[Tensor, dict[str, Tensor]]:
        """What is on owners alone, where every rank has its part of it; a collective.

        State of a sharded parameter becomes a DTensor: as the parameter, where it has its shape, else sharded along
        its first dimension. That of a replicated one is whole on every rank.
        """
        members = [member for rule, group, params in work for member in self.members(rule, group, params, states)]
        by_group: dict[Any, list[Owned]] = {}
        for member in members:
            by_group.setdefault(member.layout.group, []).append(member)
        found: dict[Tensor, dict[str, Tensor]] = {}
        for process_group, owned in by_group.items():
            _complete(process_group, owned, found)
        return found

    def keep_owned(self, work: Iterable[Work], states: Mapping[Tensor, dict[str, Any]]) -> None:
        """The opposite, after a state dict was loaded: what belongs to owners stays there alone; a collective."""
        for rule, group, params in work:
            for member in self.members(rule, group, params, states):
                for name in member.owned_names():
                    value = whole_of(member.state.pop(name))
                    if member.is_mine:
                        member.state[name] = value


def _refuse_asymmetry(names: Sequence[str], has: Sequence[bool], process_group: "ProcessGroup") -> None:
    from torch import distributed

    everyone: list[Any] = [None] * distributed.get_world_size(process_group)
    distributed.all_gather_object(everyone, list(has), group=process_group)
    i = next(i for i in range(len(names)) if len({present[i] for present in everyone}) > 1)
    lacking = [rank for rank, present in enumerate(everyone) if not present[i]]
    raise RuntimeError(
        f"{names[i]} has a gradient on some ranks and none on rank {', '.join(map(str, lacking))}: every rank must "
        "compute the gradients of the same parameters; give the missing ones zeros"
    )


def _complete(process_group: "ProcessGroup", owned: Sequence[Owned], found: dict[Tensor, dict[str, Tensor]]) -> None:
    from torch import distributed

    kept = [
        (i, name, tuple(member.state[name].shape), member.state[name].dtype)
        for i, member in enumerate(owned)
        if member.is_mine
        for name in member.owned_names()
    ]
    everyone: list[Any] = [None] * owned[0].layout.size
    distributed.all_gather_object(everyone, kept, group=process_group)
    for i, name, shape, dtype in (entry for some in everyone for entry in some):
        member = owned[i]
        device = local_of(member.p).device
        whole = member.state[name].contiguous() if member.is_mine else torch.empty(shape, dtype=dtype, device=device)
        distributed.broadcast(whole, group_src=member.owner, group=process_group)
        found.setdefault(member.p, {})[name] = spread_as(member.p, whole)
