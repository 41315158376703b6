"""What the study verbs have in common: the store, the executor, the progress bar and the way results are shown."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muonlab.errors import UsageError, unknown
from muonlab.records.record import json_text

__all__ = ["Laboratory", "print_json", "resolve_device", "users_code"]


@dataclass(frozen=True)
class Laboratory:
    """Where and how runs are made: nothing here changes a result."""

    store_url: str
    workers: int = 0
    threads: int = 1
    artifacts: Path = Path("muonlab-artifacts")
    show_progress: bool = True
    device: str = "cpu"

    @property
    def num_workers(self) -> int:
        """As asked; else one per core, or a single one on a GPU, which runs would only share."""
        return self.workers or (self._num_places if self.device == "cpu" else 1)

    @property
    def num_at_once(self) -> int:
        """Workers that have cores of their own; all of them on a GPU, where nobody knows how much they share."""
        return min(self.num_workers, self._num_places) if self.device == "cpu" else self.num_workers

    @property
    def _num_places(self) -> int:
        return max(1, (os.cpu_count() or 1) // self.threads)

    def has_study(self, key: str) -> bool:
        """Whether the store, where there is one, has that study with its result."""
        from muonlab.records.database import StoreError
        from muonlab.records.store import Store

        with suppress(StoreError), Store(self.store_url, read_only=True) as store:
            return any(row.key == key for row in store.studies())
        return False

    def run(
        self, protocol: Any, expected_tokens: float, watch: Any = None, executor: Any = None
    ) -> tuple[Any, "Outcome"]:
        """Drive a protocol to its end with the store as memory; its result and what it took.

        Runs are made by `executor`; if there is none, by processes on this machine.
        """
        from muonlab.cli.progress import Progress
        from muonlab.execute.executor import Observation
        from muonlab.execute.local import LocalExecutor
        from muonlab.execute.runner import Runner
        from muonlab.records.store import Store
        from muonlab.records.watch import Watch
        from muonlab.study.protocol import drive

        with Store(self.store_url) as store, Progress(expected_tokens, quiet=not self.show_progress) as progress:
            executor = executor or LocalExecutor(
                workers=self.num_workers,
                threads=self.threads,
                artifacts=self.artifacts,
            )
            runner = Runner(store, executor, Observation(watch or Watch(), progress.on_tokens), progress.on_record)
            result = drive(protocol, runner)
            return result, Outcome(runner.num_executed, runner.num_failed)


@dataclass(frozen=True)
class Outcome:
    """What driving a protocol took in this process."""

    num_executed: int
    num_failed: int


def resolve_device(name: str) -> str:
    """cpu or cuda; `auto` takes cuda where there is one.

    Raises   UsageError if cuda is asked for and not there
    """
    if name not in ("cpu", "cuda", "auto"):
        raise unknown("device", name, ("cpu", "cuda", "auto"))
    if name == "cpu":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        raise UsageError("no CUDA device is available to torch: use --device cpu")
    return "cpu"


@contextmanager
def users_code() -> Iterator[None]:
    """Around whatever may call a task of the user's: stdout is for results, what a task prints goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)  # for what is printed past Python
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_json(document: Mapping[str, Any] | Sequence[Any]) -> None:
    """One JSON document on stdout, undefined numbers as null."""
    sys.stdout.write(json.dumps(json.loads(json_text(document)), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()
