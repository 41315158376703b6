"""Predicted step times over numbers of ranks: counts of the designs, constants of a machine, and the model between."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from muonlab.bench.designs import DESIGNS, DTYPE, Round, Step, step_of
from muonlab.bench.peers import FIVE_STEPS
from muonlab.bench.sets import ParameterSet, Shape
from muonlab.optim.exchange import Transfer, overlapped
from muonlab.optim.owners import BUCKET_BYTES

__all__ = ["ASSUMED", "Machine", "Schedule", "ranks_that_help", "simulate", "times"]


@dataclass(frozen=True)
class Machine:
    """What the model knows of a machine, each constant for one rank."""

    flops_per_second: float  # of matrix products in bfloat16
    bytes_per_second: float  # that leave a rank, while as many arrive
    latency_seconds: float  # of a collective without content

    def collective(self, num_bytes: float) -> float:
        """Seconds that it takes."""
        return self.latency_seconds + num_bytes / self.bytes_per_second


ASSUMED = {"bytes_per_second": 50e9, "latency_seconds": 20e-6}  # one 400 Gb/s port; nobody measured them here


def times(step: Step, machine: Machine) -> dict[str, Any]:
    """Seconds of a step, and of what in it; None where the optimizer raises.

    Math     a collective takes L + B/b, products take F/f; B of the rank that sends or receives most
             compute  F of the rank with the most flops in all; latency, transfer: all collectives
             serial   one after the other: each round takes its own busiest rank, all others wait
             seconds  as `overlapped` has rounds under way, the network carrying one collective at a time while ranks
                      multiply; serial where a design does not overlap
             waiting  what is left of seconds: owners idle until those of the same rounds are done
    """
    opening = sum(map(machine.collective, step.opening))
    serial = opening + sum(
        float(found.flops.max()) / machine.flops_per_second + sum(map(machine.collective, found.collectives))
        for found in step.rounds
    )
    seconds = opening + Schedule(machine).run(step.rounds) if step.overlaps else serial
    terms = {
        "compute": float(step.flops.max()) / machine.flops_per_second,
        "latency": len(step.collectives) * machine.latency_seconds,
        "transfer": sum(step.collectives) / machine.bytes_per_second,
    }
    terms["waiting"] = max(0.0, seconds - sum(terms.values()))
    found = {
        "seconds": seconds,
        "serial_seconds": serial,
        **{f"{name}_seconds": value for name, value in terms.items()},
        "bound": max(terms, key=terms.__getitem__),
    }
    return dict.fromkeys(found) if step.raises else found


class Schedule:
    """Rounds under way as the optimizer has them: its own order of things, with a clock for every rank."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.clock = torch.zeros(1, dtype=torch.float64)  # by rank, seconds
        self.idle_at = 0.0  # when the network is done with what it has

    def run(self, rounds: Sequence[Round]) -> float:
        """Seconds until the last rank is done."""
        overlapped(map(self._transfer, rounds))
        return float(self.clock.max())

    def _transfer(self, found: Round) -> Transfer:
        yield from self._collectives(found.before)
        self.clock = self.clock + found.flops / self.machine.flops_per_second
        yield from self._collectives(found.after)

    def _collectives(self, sizes: Sequence[float]) -> Transfer:
        for size in sizes:
            ends = self.idle_at = max(self.idle_at, float(self.clock.max())) + self.machine.collective(size)
            yield
            self.clock = self.clock.clamp(min=ends)


def ranks_that_help(shapes: Sequence[Shape]) -> float:
    """Speed-up of the products that no number of owners exceeds: all flops over those of the dearest matrix.

    >>> ranks_that_help([(64, 64), (64, 64), (64, 64)])
    3.0
    """
    flops = [FIVE_STEPS.flops(shape) for shape in shapes]
    return sum(flops) / max(flops)


def simulate(
    sets: Sequence[ParameterSet], worlds: Sequence[int], machine: Machine, sources: Mapping[str, str]
) -> dict[str, Any]:
    """Every set at every number of ranks by every design, as one document; `sources` says of each constant where it is
    from."""
    return {
        "simulated": True,
        "algorithm": str(FIVE_STEPS),
        "dtype": str(DTYPE).removeprefix("torch."),
        "bucket_bytes_per_owner": BUCKET_BYTES,
        "constants": {name: {"value": value, "source": sources[name]} for name, value in asdict(machine).items()},
        "rows": [row for found in sets for row in _rows(found, worlds, machine)],
    }


def _rows(parameters: ParameterSet, worlds: Sequence[int], machine: Machine) -> Iterator[dict[str, Any]]:
    for num_ranks in worlds:
        for design in DESIGNS:
            step = step_of(design, parameters.shapes, num_ranks)
            yield {
                "set": parameters.name,
                "num_matrices": len(parameters.shapes),
                "num_parameters": parameters.num_parameters,
                "ranks_that_help": ranks_that_help(parameters.shapes),
                "num_ranks": num_ranks,
                "design": design,
                **times(step, machine),
                "num_collectives": len(step.collectives),
                "sent_bytes": float(step.sent_bytes.max()),
                "sent_bytes_mean": float(step.sent_bytes.mean()),
                "state_bytes": step.state_bytes,
                "balance": step.balance,
            }
