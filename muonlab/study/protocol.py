"""What a protocol is, how several run at once, and how one is driven.

A protocol is a generator: it yields the runs it wants next, is sent their records, and returns its result. It knows
neither store nor executor nor terminal, so it is tested in milliseconds against a made-up loss landscape.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import chain, zip_longest
from typing import TypeVar

from muonlab.records import Record, RunSpec

__all__ = ["Protocol", "Records", "drive", "gather", "remembering", "single"]

Result = TypeVar("Result")
Records = Mapping[str, Record]  # key -> record
Protocol = Generator[Sequence[RunSpec], Records, Result]


def drive(protocol: Protocol[Result], run: Callable[[Sequence[RunSpec]], Records]) -> Result:
    """Run a protocol to its end; `run` makes records of specs, from a memory or by training."""
    try:
        specs = next(protocol)
        while True:
            specs = protocol.send(run(specs))
    except StopIteration as end:
        return end.value


def gather(protocols: Mapping[str, Protocol[Result]]) -> Protocol[dict[str, Result]]:
    """Run several protocols in step, their requests merged into one batch, so that no worker waits for one of them.

    The requests take turns in the batch: what disturbs the machine for a while disturbs all protocols alike.
    """
    results: dict[str, Result] = {}
    wants: dict[str, Sequence[RunSpec]] = {}
    records: Records = {}
    while len(results) < len(protocols):
        for name, protocol in protocols.items():
            if name in results:
                continue
            try:
                wants[name] = protocol.send({s.key: records[s.key] for s in wants[name]} if name in wants else None)
            except StopIteration as end:
                results[name] = end.value
                wants.pop(name, None)
        if wants:
            turns = chain.from_iterable(zip_longest(*wants.values()))
            records = yield list({spec.key: spec for spec in turns if spec is not None}.values())
    return {name: results[name] for name in protocols}


def remembering(protocol: Protocol[Result], seen: dict[str, Record]) -> Protocol[Result]:
    """The same protocol, while every record that it is sent is kept in `seen`."""
    try:
        specs = next(protocol)
        while True:
            records = yield specs
            seen.update(records)
            specs = protocol.send(records)
    except StopIteration as end:
        return end.value


def single(spec: RunSpec) -> Protocol[Record]:
    """The smallest protocol: one run."""
    records = yield [spec]
    return records[spec.key]
