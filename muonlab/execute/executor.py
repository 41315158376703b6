"""What an executor is: it maps specs to records, in any order, as they come."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from muonlab.records import Record, RunSpec
from muonlab.records.watch import Watch

__all__ = ["Executor", "Observation", "weights_file"]


def weights_file(artifacts: Path, key: str) -> Path:
    """Where a run leaves its last weights, if others are to start from them; it may be removed: they are made again."""
    return artifacts / "weights" / f"{key}.pt"


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

    def has_weights(self, key: str) -> bool:
        """Whether a run can start from those of that record. Asked only where one wants to."""
        ...
