"""Runs that all ranks of a job make together."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from muonlab.execute.executor import Observation
from muonlab.execute.local import run_here
from muonlab.records import Record, RunSpec

__all__ = ["RankedExecutor"]


@dataclass(frozen=True)
class RankedExecutor:
    """The first rank drives; the others `follow` it, and make the runs that it makes, until it is done.

    `ranks` is that of muonlab.train.ranks; `stop`, when set on any rank, ends a run after a checkpoint.
    """

    ranks: Any
    artifacts: Path | None = None
    checkpoint_seconds: float = 60.0
    stop: Event = field(default_factory=Event)

    def run(self, specs: Sequence[RunSpec], observation: Observation) -> Generator[Record, None, None]:
        for spec in specs:
            self.ranks.gathered(spec.key)
            yield self._run(spec, observation)

    def follow(self, specs: Sequence[RunSpec], observation: Observation) -> None:
        """What the other ranks do meanwhile."""
        known = {spec.key: spec for spec in specs}
        while key := self.ranks.gathered("")[0]:
            self._run(known[key], observation)

    def done(self) -> None:
        """The first rank has no more runs."""
        self.ranks.gathered("")

    def _run(self, spec: RunSpec, observation: Observation) -> Record:
        return run_here(
            spec,
            observation.eval_steps,
            self.artifacts,
            self.checkpoint_seconds,
            observation.on_tokens,
            self.stop,
            self.ranks,
        )
