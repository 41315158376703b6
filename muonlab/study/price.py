"""What a study costs before it starts: runs and tokens, at least and at most."""

from collections.abc import Sequence
from dataclasses import dataclass

from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.study.tune import EXHAUSTIVE_GRID

__all__ = ["Looks", "Part", "Price", "num_configurations"]


@dataclass(frozen=True)
class Part:
    """Tokens of all runs that are as fast as `spec`: those of one optimizer at one size."""

    spec: RunSpec
    least_tokens: float
    most_tokens: float


@dataclass(frozen=True)
class Looks:
    """At layers and at corrupted inputs of a model of `spec`, during final runs."""

    spec: RunSpec
    number: int


@dataclass(frozen=True)
class Price:
    """Runs and tokens of a study that starts with an empty store.

    The least is without a move, an extended grid or an added seed.
    """

    least_runs: int
    most_runs: int
    parts: tuple[Part, ...]
    check: "Price | None" = None  # of the coordinate check before it, whose parts come first
    looks: Looks | None = None

    @property
    def least_tokens(self) -> float:
        return sum(part.least_tokens for part in self.parts)

    @property
    def most_tokens(self) -> float:
        return sum(part.most_tokens for part in self.parts)

    @property
    def likely_tokens(self) -> float:
        """What progress is measured against: half as much again as the least, as the demo's noise makes it."""
        return min(1.5 * self.least_tokens, self.most_tokens)


def num_configurations(space: Sequence[Hyperparameter]) -> int:
    """How many a first pass over the first coordinate and a round without a move try."""
    sizes = [len({*h.grid, h.default}) for h in space]
    return sizes[0] + sum(size - 1 if size <= EXHAUSTIVE_GRID else 2 for size in sizes[1:])
