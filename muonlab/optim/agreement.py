"""What ranks find out about each other before a step: one small all-reduce of each process group."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muonlab.optim.sharding import Layout, local_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["agree", "answered", "settings_of"]

TROUBLE, NOT_FINITE, FINE = range(3)  # the least of all ranks counts
OWN_AFFAIR = ("num_skipped",)


def agree(
    names: Mapping[Tensor, str],
    homes: Mapping[Tensor, int],
    layout: Callable[[Tensor], Layout | None],
    settings: Mapping[str, Any],
    *,
    is_finite: bool,
) -> bool:
    """Whether gradients are finite on every rank; all ranks get the same answer.

    `names` has every parameter, `homes` the number of its param group.

    Process groups take their turn from small to large, so that what one has found gets to all ranks of those that
    contain it.

    Raises   RuntimeError on every rank where a parameter has a gradient on some ranks only, or where settings differ,
             naming it; and where a rank does not answer
    """
    from torch import distributed

    groups: dict[Any, list[Tensor]] = {}
    for p in names:
        found = layout(p)
        if found is not None and found.size > 1:
            groups.setdefault(found.group, []).append(p)
    mine = zlib.crc32(repr(settings).encode())
    finding = FINE if is_finite else NOT_FINITE
    unequal: list[Any] = []
    for group in sorted(groups, key=lambda group: group.size()):
        members = groups[group]
        mark = zlib.crc32(repr([(names[p], homes[p], p.grad is not None) for p in members]).encode(), mine)
        said = torch.tensor([finding, mark, -mark], device=local_of(members[0]).device)
        with answered():
            distributed.all_reduce(said, distributed.ReduceOp.MIN, group=group)
        finding, low, high = said.tolist()
        if low != -high:
            finding = TROUBLE
            unequal.append(group)
    for group in unequal:
        _refuse(group, {names[p]: (homes[p], p.grad is not None) for p in groups[group]}, settings)
    if finding == TROUBLE:
        raise RuntimeError("other ranks do not agree about this step: see the error of those")
    return finding == FINE


def settings_of(groups: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> dict[str, Any]:
    """What has to be equal on all ranks: versions, and every number and name in the param groups."""
    found: dict[str, Any] = dict(versions)
    for k, group in enumerate(groups):
        for name, value in group.items():
            if name not in OWN_AFFAIR and isinstance(value, bool | int | float | str | tuple | None):
                found[f"{name} of group {k}"] = value
    return found


@contextmanager
def answered() -> Iterator[None]:
    """Around a collective: says what it means that it fails."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "another rank does not answer: it has died, hangs, or is making another step than this one; see its "
            f"error, if there is one ({' '.join(str(error).split())[:200]})"
        ) from error


def _refuse(group: "ProcessGroup", members: Mapping[str, tuple[int, bool]], settings: Mapping[str, Any]) -> None:
    """Say what is not the same; `members`: by parameter, number of the param group and whether there is a gradient."""
    from torch import distributed

    everyone: list[Any] = [None] * distributed.get_world_size(group)
    ranks = distributed.get_process_group_ranks(group)
    with answered():
        distributed.all_gather_object(everyone, (dict(members), dict(settings)), group=group)
    homes = [
        {f"the param group of {name}": home for name, (home, _) in theirs.items()} | told for theirs, told in everyone
    ]
    for name in dict.fromkeys(name for found in homes for name in found):
        values = [found.get(name, "nothing") for found in homes]
        other = next((i for i, value in enumerate(values) if repr(value) != repr(values[0])), None)
        if other is not None:
            raise RuntimeError(
                f"{name} is {values[0]!r} on rank {ranks[0]} and {values[other]!r} on rank {ranks[other]}: "
                "every rank must make the same step"
            )
    for name in members:
        lacking = [rank for rank, (theirs, _) in zip(ranks, everyone, strict=True) if not theirs[name][1]]
        if 0 < len(lacking) < len(ranks):
            raise RuntimeError(
                f"{name} has a gradient on some ranks and none on rank {', '.join(map(str, lacking))}: every rank must "
                "compute the gradients of the same parameters; give the missing ones zeros"
            )
    raise RuntimeError("parameters stand in another order on other ranks: every rank must have the same")
