"""Runs that all ranks of a job make together."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from muonlab.errors import UsageError
from muonlab.execute.executor import Observation
from muonlab.execute.local import run_here
from muonlab.records import Record, RunSpec

__all__ = ["RankedExecutor"]


@dataclass
class RankedExecutor:
    """The first rank drives; the others `follow` it, and make the runs that it makes, until it is done.

    `ranks` is that of muonlab.train.ranks; `stop`, when set on any rank, ends a run after a checkpoint. Where a run
    fails on the first rank alone, the others find out when it has gone.
    """

    ranks: Any
    artifacts: Path | None = None
    checkpoint_seconds: float = 60.0
    stop: Event = field(default_factory=Event)
    is_waited_for: bool = True  # whether the others wait for an order, and not in the midst of a run

    def run(self, specs: Sequence[RunSpec], observation: Observation) -> Generator[Record, None, None]:
        for spec in specs:
            self.ranks.gathered(spec.key)
            self.is_waited_for = False
            record = self._run(spec, observation)
            self.is_waited_for = record.outcome != "failed"
            yield record

    def has_weights(self, key: str) -> bool:
        """Raises   UsageError: a run that starts from another is one of one process"""
        raise UsageError("a run that starts from the weights of another is made in one process: leave torchrun out")

    def follow(self, specs: Sequence[RunSpec], observation: Observation) -> int:
        """What the other ranks do meanwhile; the exit code that the first one wants."""
        known = {spec.key: spec for spec in specs}
        while isinstance(order := self.ranks.gathered(None)[0], str):
            self._run(known[order], observation)
        return order

    def dismiss(self, exit_code: int) -> None:
        """The first rank has no more runs."""
        if self.is_waited_for:
            self.ranks.gathered(exit_code)

    def _run(self, spec: RunSpec, observation: Observation) -> Record:
        return run_here(
            spec,
            observation.watch,
            self.artifacts,
            self.checkpoint_seconds,
            observation.on_tokens,
            self.stop,
            self.ranks,
        )
