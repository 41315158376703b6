"""What an engine whose parameters are spread over ranks does beside its rules: owners, agreement, complete state."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import muonlab
from muonlab.optim.agreement import agree, settings_of
from muonlab.optim.blocks import blocks_of
from muonlab.optim.exchange import overlapped
from muonlab.optim.jobs import owned_jobs_of
from muonlab.optim.owners import Owned, assign, cost, needs_owner, on_shards, sends_directions, transfers
from muonlab.optim.rule import Rule
from muonlab.optim.sharding import Layout, any_dtensor, layout_of, local_of, spread_as, whole_of

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
        return self.replicas is not None or any(any_dtensor(group["params"]) for group in groups)

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

    def parted(
        self, rule: Rule, group: Group, params: Iterable[Tensor], states: Mapping[Tensor, dict[str, Any]]
    ) -> tuple[list[Tensor], list[Owned]]:
        """Parameters that this rank updates by itself, and those that have owners."""
        alone, away = [], []
        for p in params:
            member = self.owned(rule, group, p, states[p])
            if member is None:
                alone.append(p)
            else:
                away.append(member)
        return alone, away

    def update(self, work: Iterable[tuple[Rule, Group, Sequence[Owned]]], grads: Mapping[Tensor, Tensor]) -> None:
        """Make the step of parameters that have owners."""
        overlapped(
            transfer
            for rule, group, owned in work
            for job, members in owned_jobs_of(rule, group, owned, grads)
            for transfer in transfers(job, members, group)
        )

    def agree(self, names: Mapping[Tensor, str], groups: Sequence[Group], *, is_finite: bool) -> bool:
        """Whether the gradients are finite on every rank: see `muonlab.optim.agreement.agree`."""
        versions = {"version of muonlab": muonlab.__version__, "version of torch": torch.__version__}
        homes = {p: k for k, group in enumerate(groups) for p in group["params"]}
        return agree(names, homes, self.layout, settings_of(groups, versions), is_finite=is_finite)

    def complete(
        self, work: Iterable[Work], states: Mapping[Tensor, dict[str, Any]]
    ) -> dict[Tensor, dict[str, Tensor]]:
        """What is on owners alone, where every rank has its part of it; a collective.

        State of a sharded parameter becomes a DTensor: as the parameter, where it has its shape, else sharded along
        its first dimension. That of a replicated one is whole on every rank.
        """
        members = [member for part in work for member in self.parted(*part, states)[1]]
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
            for member in self.parted(rule, group, params, states)[1]:
                for name in member.owned_names():
                    value = whole_of(member.state.pop(name))
                    if member.is_mine:
                        member.state[name] = value


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
