"""Packed all-to-all: any tensors from any ranks to any others in one collective, and several of them under way."""

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muonlab.optim.agreement import answered

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Move", "exchange", "overlapped"]

ALIGNMENT = 16  # bytes: every tensor starts where a view of any dtype may
UNDER_WAY = 3  # exchanges that are not waited for at a time

Transfer = Generator[None, None, Any]  # yields while a collective is under way


@dataclass(frozen=True)
class Move:
    """A tensor that one rank has and another gets; ranks are positions in the group."""

    source: int
    target: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return -(-size // ALIGNMENT) * ALIGNMENT


def exchange(
    group: "ProcessGroup", rank: int, moves: Sequence[Move], tensors: Mapping[int, Tensor], device: torch.device
) -> Transfer:
    """Carry out `moves`, the same on every rank; what this one gets, by the number of the move.

    `tensors` has what this rank gives, by the number of the move; what stays where it is is handed on as it is. One
    collective, and none where every tensor stays where it is. It is under way when the generator yields.
    """
    from torch import distributed

    found = {n: tensors[n] for n, move in enumerate(moves) if move.source == move.target == rank}
    if all(move.source == move.target for move in moves):
        return found
    size = distributed.get_world_size(group)
    outgoing: list[list[int]] = [[] for _ in range(size)]
    incoming: list[list[int]] = [[] for _ in range(size)]
    for n, move in enumerate(moves):
        if move.source != move.target and rank in (move.source, move.target):
            (outgoing[move.target] if move.source == rank else incoming[move.source]).append(n)
    given, sent = _sizes(moves, outgoing)
    taken, received = _sizes(moves, incoming)
    out = torch.empty(given, dtype=torch.uint8, device=device)
    into = torch.empty(taken, dtype=torch.uint8, device=device)
    for n, view in _views(out, moves, outgoing):
        view.copy_(tensors[n])
    with answered():
        work = distributed.all_to_all_single(into, out, received, sent, group=group, async_op=True)
    yield
    with answered():
        work.wait()
    return found | dict(_views(into, moves, incoming))


def _sizes(moves: Sequence[Move], by_peer: Sequence[Sequence[int]]) -> tuple[int, list[int]]:
    """Bytes in all, and by peer."""
    sizes = [sum(moves[n].num_bytes for n in numbers) for numbers in by_peer]
    return sum(sizes), sizes


def _views(buffer: Tensor, moves: Sequence[Move], by_peer: Sequence[Sequence[int]]) -> Iterable[tuple[int, Tensor]]:
    """The tensors that lie in a buffer, by the number of their move."""
    start = 0
    for n in (n for numbers in by_peer for n in numbers):
        move = moves[n]
        length = move.dtype.itemsize
        for side in move.shape:
            length *= side
        yield n, buffer[start : start + length].view(move.dtype).view(move.shape)
        start += move.num_bytes


def overlapped(transfers: Iterable[Transfer], limit: int = UNDER_WAY) -> None:
    """Run generators that yield while they wait, up to `limit` at a time; in the same order on every rank."""
    waiting, running = iter(transfers), deque[Transfer]()
    exhausted = False
    while running or not exhausted:
        while not exhausted and len(running) < limit:
            transfer = next(waiting, None)
            if transfer is None:
                exhausted = True
            elif _goes_on(transfer):
                running.append(transfer)
        if running and _goes_on(transfer := running.popleft()):
            running.append(transfer)


def _goes_on(transfer: Transfer) -> bool:
    try:
        next(transfer)
    except StopIteration:
        return False
    return True
