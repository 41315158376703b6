"""What an executor is: it maps specs to records, in any order, as they come."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from muonlab.records import Record, RunSpec
from muonlab.records.watch import Watch

__all__ = ["Executor", "Observation"]


@dataclass(frozen=True)
class Observation:
    """What is watched during runs, and who is told how far they are."""

    watch: Watch = field(default_factory=Watch)
    on_tokens: Callable[[int], None] = field(default=lambda tokens: None)  # tokens trained since the last call


class Executor(Protocol):
    """Runs specs and yields their records; a run that crashes gives a record with outcome `failed`.

    Closing the generator ends the runs under way, after their checkpoints.
    """

    def run(self, specs: Sequence[RunSpec], observation: Observation) -> Generator[Record, None, None]: ...
