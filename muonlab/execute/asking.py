"""The executor of somebody else's trainer: it runs nothing, and says what has to be run."""

from collections.abc import Generator, Sequence

from muonlab.execute.executor import Observation
from muonlab.records import Record, RunSpec

__all__ = ["Asked", "AskingExecutor"]


class Asked(Exception):
    """Runs that a protocol cannot go on without."""

    def __init__(self, specs: Sequence[RunSpec]) -> None:
        super().__init__(f"{len(specs)} runs are wanted")
        self.specs = tuple(specs)


class AskingExecutor:
    """Raises   Asked, with every run that the store does not hold"""

    def run(self, specs: Sequence[RunSpec], observation: Observation) -> Generator[Record, None, None]:
        raise Asked(specs)
        yield  # which makes it a generator, as executors are

    def has_weights(self, key: str) -> bool:
        """Whoever trains has them, or makes them again."""
        return True
