"""The memo: what is in the store is not run again; what is run is stored at once."""

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol

from muonlab.errors import UsageError
from muonlab.execute.executor import Executor, Observation
from muonlab.execute.signals import signals_held
from muonlab.records import Record, RunSpec
from muonlab.records.watch import Watch

__all__ = ["Memory", "Runner"]

log = logging.getLogger(__name__)


class Memory(Protocol):
    """What the runner needs of a store."""

    @property
    def read_only(self) -> bool: ...

    def get(self, keys: Sequence[str]) -> dict[str, Record]: ...

    def put(self, record: Record, *, replace: bool = False) -> bool: ...


class Runner:
    """Maps specs to records through a memory and an executor; the only writer of the memory."""

    def __init__(
        self,
        memory: Memory,
        executor: Executor,
        observation: Observation | None = None,
        on_record: Callable[[Record, bool], None] = lambda record, executed: None,
    ) -> None:
        self.memory, self.executor = memory, executor
        self.observation = observation or Observation()
        self.on_record = on_record
        self.num_executed = self.num_failed = 0
        self._asked: dict[str, RunSpec] = {}

    def __call__(self, specs: Sequence[RunSpec]) -> dict[str, Record]:
        """Records of all specs by key. A run that failed earlier is tried again.

        Raises   UsageError before the first run if there is something to run and the memory can't be written
        """
        wanted = {spec.key: spec for spec in specs}
        self._asked |= wanted
        known = self.memory.get(list(wanted))
        done = {k: r for k, r in known.items() if r.outcome != "failed" and self.observation.watch.seen_in(r)}
        for record in done.values():
            self.on_record(record, False)
        todo = [spec for key, spec in wanted.items() if key not in done]
        if not todo:
            return done
        if self.memory.read_only:
            raise UsageError(
                f"the store is read-only and lacks {len(todo)} runs: name another, or a copy, with --store"
            )
        self._make_weights(todo)
        with closing(self.executor.run(todo, self.observation)) as records:
            for record in records:
                with signals_held():
                    self.memory.put(record, replace=record.key in known)
                done[record.key] = record
                self.num_executed += 1
                self.num_failed += record.outcome == "failed"
                self.on_record(record, True)
        return done

    def _make_weights(self, specs: Sequence[RunSpec]) -> None:
        """Make again every run whose weights one of `specs` starts from, where these are gone.

        That a run keeps its weights is no part of it, so a record may be there without them; the run gives the same
        ones again, on the same machine to the bit.

        Raises   UsageError if there is no such run, if it diverged, or if it fails now
        """
        keys = dict.fromkeys(spec.init_from for spec in specs if spec.init_from)
        gone = [key for key in keys if not self.executor.has_weights(key)]
        if not gone:
            return
        known = self.memory.get(gone)
        for key in gone:
            if key not in known or known[key].outcome != "ok":
                what = f"ended as {known[key].outcome}" if key in known else "is not in the store"
                raise UsageError(f"a run starts from the weights of {key[:12]}, which {what}: run that one first")
        parents = [self._asked.get(key, known[key].spec) for key in gone]  # as asked for: its data may have moved
        self._make_weights(parents)
        log.warning("%d runs are made again, for weights that others start from", len(parents))
        with closing(self.executor.run(parents, replace(self.observation, watch=Watch(weights=True)))) as records:
            for record in records:
                self.num_executed += 1
                self.on_record(record, True)
                if record.outcome != "ok" or not self.executor.has_weights(record.key):
                    why = record.error.splitlines()[0] if record.error else "it left none: name a folder by --artifacts"
                    raise UsageError(f"run {record.key[:12]} was made again for its weights, but {why}")
