"""From the parameters of a group to jobs: those that can be updated together."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from muonlab.optim.blocks import blocks_each
from muonlab.optim.owners import Owned, on_shards, sends_directions
from muonlab.optim.rule import Rule
from muonlab.optim.sharding import any_dtensor, local_of
from muonlab.optim.state import count, create, lr_fraction, rounding_of
from muonlab.optim.update import Job

__all__ = ["jobs_of", "owned_jobs_of"]

State = dict[str, Any]
Grads = Mapping[Tensor, Tensor]  # by parameter: what belongs to the part of it on this rank


def jobs_of(
    rule: Rule, group: Mapping[str, Any], params: Sequence[Tensor], states: Sequence[State], grads: Grads
) -> list[Job]:
    """Jobs of parameters, or of this rank's parts of them: one device, dtype, rounding and age each.

    Missing state is created, and a step of each parameter counted.
    """
    create(rule, params, states, group)
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, (p, t) in enumerate(zip(params, count(rule, params, states, group), strict=True)):
        alike[p.device, p.dtype, t].append(i)
    return [
        _job(rule, group, [params[i] for i in indices], [states[i] for i in indices], grads, t)
        for (_, _, t), indices in alike.items()
    ]


def owned_jobs_of(
    rule: Rule, group: Mapping[str, Any], members: Sequence[Owned], grads: Grads
) -> Iterator[tuple[Job, Sequence[Owned]]]:
    """The same of parameters that have owners: jobs of the parts on this rank, each with its parameters."""
    params, states = [member.p for member in members], [member.state for member in members]
    for member in members:
        if sends_directions(rule, member.layout):
            create(rule, [member.p], [member.state], group, names=on_shards(rule, member.layout))
    ages = count(rule, params, states, group)
    alike: dict[tuple, list[int]] = defaultdict(list)
    for i, (member, t) in enumerate(zip(members, ages, strict=True)):
        alike[id(member.layout.group), member.p.device, member.p.dtype, t].append(i)
    for (*_, t), indices in alike.items():
        job = _job(rule, group, [params[i] for i in indices], [states[i] for i in indices], grads, t, whole=False)
        yield job, [members[i] for i in indices]


def _job(
    rule: Rule,
    group: Mapping[str, Any],
    params: Sequence[Tensor],
    states: Sequence[State],
    grads: Grads,
    t: int,
    *,
    whole: bool = True,
) -> Job:
    ws = list(params)
    if any_dtensor(params):
        ws = [local_of(p) for p in params]
        states = [{name: local_of(value) for name, value in state.items()} for state in states]
    return Job(
        rule.at(t),
        ws,
        [grads[p] for p in params],
        list(states),
        blocks_each([w.shape for w in ws], group) if whole and rule.is_matrix_rule() else [],
        t,
        lr_fraction=lr_fraction(rule, group),
        maximize=group["maximize"],
        rounding=rounding_of(ws[0], group),
    )
