"""The memo: what is in the store is not run again; what is run is stored at once."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Protocol

from muonlab.errors import UsageError
from muonlab.execute.executor import Executor, Observation
from muonlab.execute.signals import signals_held
from muonlab.records import Record, RunSpec

__all__ = ["Memory", "Runner"]


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

    def __call__(self, specs: Sequence[RunSpec]) -> dict[str, Record]:
        """Records of all specs by key. A run that failed earlier is tried again.

        Raises   UsageError before the first run if there is something to run and the memory can't be written
        """
        wanted = {spec.key: spec for spec in specs}
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
        with closing(self.executor.run(todo, self.observation)) as records:
            for record in records:
                with signals_held():
                    self.memory.put(record, replace=record.key in known)
                done[record.key] = record
                self.num_executed += 1
                self.num_failed += record.outcome == "failed"
                self.on_record(record, True)
        return done
