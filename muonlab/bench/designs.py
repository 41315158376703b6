"""Ways to orthogonalise matrices that are spread over ranks: what each computes, sends and keeps in a step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from muonlab.bench.peers import FIVE_STEPS
from muonlab.bench.sets import Shape
from muonlab.bench.traffic import buckets, must_send, owned, replicated, sharded, to_owners, to_shards
from muonlab.optim import MuonRule
from muonlab.optim.owners import Owned
from muonlab.optim.rule import Rule
from muonlab.optim.sharding import Layout

__all__ = ["DESIGNS", "DTYPE", "Round", "Step", "step_of"]

DTYPE = torch.float32  # of parameters, momentum and whatever travels but in `per matrix`
MUON = MuonRule()
Alike = tuple[float, tuple[float, ...]]  # flops, and bytes of collectives, of every rank
AGREEMENT_BYTES = 24  # of the all-reduce by which ranks agree that gradients are finite: three integers


@dataclass(frozen=True, eq=False)
class Round:
    """Matrices that are made together: collectives, then products, then collectives.

    Of a collective it is the bytes of the rank that sends or receives most.
    """

    flops: Tensor  # by rank; one number where all ranks do the same
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()

    @property
    def collectives(self) -> tuple[float, ...]:
        return self.before + self.after


@dataclass(frozen=True, eq=False)
class Step:
    """One step of all ranks: what they agree on, then the rounds.

    `overlaps` says whether rounds are under way together, as muonlab.optim.exchange.overlapped has them; `raises`,
    whether there is no such step, because the optimizer raises.
    """

    rounds: tuple[Round, ...]
    sent_bytes: Tensor  # by rank, or one number
    state_bytes: int  # of the fullest rank
    opening: tuple[float, ...] = ()  # collectives
    overlaps: bool = False
    raises: bool = False

    @property
    def collectives(self) -> tuple[float, ...]:
        """Bytes of every collective."""
        return self.opening + tuple(size for found in self.rounds for size in found.collectives)

    @property
    def flops(self) -> Tensor:
        """By rank, or one number."""
        return torch.stack([found.flops for found in self.rounds]).sum(0)

    @property
    def balance(self) -> float:
        """Flops of the mean rank over those of the busiest: 1 where all work alike."""
        return float(self.flops.mean() / self.flops.max())


def _bytes(shape: Shape) -> int:
    return prod(shape) * DTYPE.itemsize


def _shard_bytes(shapes: Iterable[Shape], num_ranks: int) -> int:
    """Of the rank that has most, which is the first."""
    return sum(_bytes((-(-shape[0] // num_ranks), *shape[1:])) for shape in shapes)


def _through_owners(
    shapes: Sequence[Shape], num_ranks: int, rule: Rule, layout: Callable[[Shape, int], Layout], copies: int
) -> Step:
    """Ours. `copies` of each part go to the owner: of 1 it is a direction, and momentum stays on the shards."""
    members = owned(shapes, lambda shape: layout(shape, num_ranks), rule, DTYPE)
    opening = (must_send("all_reduce", AGREEMENT_BYTES, num_ranks),) if num_ranks > 1 else ()
    rounds, sent = [], torch.full((num_ranks,), sum(opening), dtype=torch.float64)
    for bucket in buckets(members):
        shapes_of = (tuple(member.p.shape) for member in bucket)
        dtypes = [rule.matrix_dtype(shape, DTYPE, "cpu") if copies == 1 else DTYPE for shape in shapes_of]
        there, back = to_owners(bucket, copies), to_shards(bucket, dtypes)
        sizes = ((float(found.busiest),) if found.busiest else () for found in (there, back))
        rounds.append(Round(_by_owner(bucket, num_ranks, FIVE_STEPS.flops), *sizes))
        sent += there.sent + back.sent
    kept = _shard_bytes(shapes, num_ranks) if copies == 1 else int(_by_owner(members, num_ranks, _bytes).max())
    return Step(tuple(rounds), sent, kept, opening, overlaps=True)


def _by_owner(members: Sequence[Owned], num_ranks: int, what: Callable[[Shape], float]) -> Tensor:
    """Something of every matrix, added up over what each rank owns."""
    owners = torch.tensor([member.owner for member in members])
    values = torch.tensor([what(tuple(member.p.shape)) for member in members], dtype=torch.float64)
    return torch.zeros(num_ranks, dtype=torch.float64).index_add_(0, owners, values)


def _gathered(shapes: Sequence[Shape], num_ranks: int, rule: Rule) -> Step:
    """Every rank gathers every direction, one after the other, and orthogonalises all of them."""
    send = partial(must_send, "all_gather", num_ranks=num_ranks)
    parts = ((shape, (send(_shard_bytes([shape], num_ranks)),) if num_ranks > 1 else ()) for shape in shapes)
    return _alike(
        [(FIVE_STEPS.flops(shape), collectives) for shape, collectives in parts], _shard_bytes(shapes, num_ranks)
    )


def _repeated(shapes: Sequence[Shape], num_ranks: int, rule: Rule) -> Step:
    """Every rank makes the whole step, on gradients that DDP has made equal."""
    return _alike([(FIVE_STEPS.flops(shape), ()) for shape in shapes], sum(map(_bytes, shapes)))


def _per_matrix(shapes: Sequence[Shape], num_ranks: int, rule: Rule) -> Step:
    """torch.optim.Muon on DTensors of `fully_shard`: products of sharded matrices, collectives in each.

    Math     n, m = sides, n the shorter; T steps in bfloat16; one all-reduce for the norm; then at each step
             n sharded (rows <= columns)  all-gathers of X (n x m), X X^T (n x n) and X again; all products are split
             m sharded                    two all-reduces of X X^T; its square is computed by every rank
             fewer rows than ranks         raises
    Source   collectives as torch 2.13 makes them (benchmarks/sharding.py)
    """
    found = _alike([_on_shards(shape, num_ranks) for shape in shapes], _shard_bytes(shapes, num_ranks))
    return replace(found, raises=any(rows < num_ranks for rows, _ in shapes))


def _on_shards(shape: Shape, num_ranks: int) -> Alike:
    rows, columns = shape
    part = -(-rows // num_ranks)
    steps, send = FIVE_STEPS.num_steps, partial(must_send, num_ranks=num_ranks)
    size = torch.bfloat16.itemsize
    if rows > columns:
        flops = 2.0 * columns**2 * (2 * part + columns)
        traffic = [send("all_reduce", size * columns**2)] * 2
    else:
        flops = 2.0 * part * rows * (2 * columns + rows)
        wide, square = (send("all_gather", size * part * side) for side in (columns, rows))
        traffic = [wide, square, wide]
    return steps * flops, (send("all_reduce", size), *steps * traffic) if num_ranks > 1 else ()


def _alike(rounds: Sequence[Alike], state_bytes: int) -> Step:
    """All ranks do the same, one thing after the other."""
    sent = torch.tensor(float(sum(sum(collectives) for _, collectives in rounds)))
    found = (Round(torch.tensor(flops, dtype=torch.float64), collectives) for flops, collectives in rounds)
    return Step(tuple(found), sent, state_bytes)


DESIGNS: dict[str, Callable[[Sequence[Shape], int, Rule], Step]] = {
    "owner": partial(_through_owners, layout=sharded, copies=1),
    "weights": partial(_through_owners, layout=sharded, copies=2),
    "all-gather": _gathered,
    "per matrix": _per_matrix,
    "DDP owner": partial(_through_owners, layout=replicated, copies=2),
    "DDP repeated": _repeated,
}


def step_of(design: str, shapes: Sequence[Shape], num_ranks: int, rule: Rule = MUON) -> Step:
    """What a step is under a design, one of DESIGNS; `rule` matters to those with owners.

    >>> step = step_of("DDP owner", [(64, 32), (32, 64)], 2)
    >>> len(step.collectives), step.sent_bytes.tolist(), step.balance
    (2, [8216.0, 8216.0], 1.0)
    """
    return DESIGNS[design](shapes, num_ranks, rule)
