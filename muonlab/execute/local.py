"""Runs on this machine: one forked child per run, so that a crash or an out-of-memory kill costs one run."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Collection, Generator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from muonlab.errors import UsageError
from muonlab.execute.executor import Observation, weights_file
from muonlab.execute.signals import signals_held
from muonlab.records import Record, RunSpec
from muonlab.records.watch import Watch

__all__ = ["InlineExecutor", "LocalExecutor", "run_here"]

MAX_ATTEMPTS = 2
PRELOAD = ["muonlab.train.loop", "torch._dynamo"]  # imported once in the fork server, not once per run
REPORT_SECONDS = 0.5
GRACE_SECONDS = 5.0  # for a child to write its checkpoint once its driver is gone or stops


_server_is_up = threading.Event()


@dataclass(frozen=True)
class InlineExecutor:
    """One run after the other in this process: for tests, and for `muonlab train`."""

    artifacts: Path | None = None
    checkpoint_seconds: float = 60.0

    def run(self, specs: Sequence[RunSpec], observation: Observation) -> Generator[Record, None, None]:
        for spec in specs:
            yield run_here(spec, observation.watch, self.artifacts, self.checkpoint_seconds, observation.on_tokens)

    def has_weights(self, key: str) -> bool:
        return self.artifacts is not None and weights_file(self.artifacts, key).is_file()


@dataclass(frozen=True)
class LocalExecutor:
    """`workers` runs at a time, each in a child of a fork server that has torch loaded, with `threads` threads.

    A child that dies without a record is run once more, then recorded as `failed`. When the driver dies, its
    pipes close and the children end with it.
    """

    workers: int
    threads: int = 1
    artifacts: Path | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.threads < 1:
            raise UsageError(f"workers and threads must be at least 1, got {self.workers} and {self.threads}")

    def run(self, specs: Sequence[RunSpec], observation: Observation) -> Generator[Record, None, None]:
        if any(spec.device == "external" for spec in specs):
            raise UsageError(f"{specs[0].task} is trained elsewhere: put the study into a file and `muonlab ask` it")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        waiting = deque((spec, 1) for spec in specs)
        children: list[_Child] = []
        try:
            while waiting or children:
                while waiting and len(children) < self.workers:
                    children.append(self._start(context, *waiting.popleft(), observation))
                for child in _ready(children):
                    record = child.receive(observation)
                    if record is None and not child.lost:
                        continue
                    children.remove(child)
                    child.end()
                    if record is not None:
                        yield record
                    elif child.attempt < MAX_ATTEMPTS:
                        waiting.append((child.spec, child.attempt + 1))
                    else:
                        yield child.failed()
        finally:
            _stop(children)

    def has_weights(self, key: str) -> bool:
        return self.artifacts is not None and weights_file(self.artifacts, key).is_file()

    def _start(self, context: Any, spec: RunSpec, attempt: int, observation: Observation) -> "_Child":
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_child_main,
            args=(theirs, spec, observation.watch, self.threads, self.artifacts, self.checkpoint_seconds),
            daemon=True,
        )
        with _without_main():
            _fork(process)
        theirs.close()
        return _Child(spec, attempt, process, ours)


@dataclass(eq=False)
class _Child:
    """The driver's end of one running child."""

    spec: RunSpec
    attempt: int
    process: Any
    connection: Connection
    lost: bool = False

    def receive(self, observation: Observation) -> Record | None:
        """The next message; a record if the child is done. Sets `lost` where the child died without one.

        Raises   UsageError if the child says that the spec can't be run
        """
        try:
            if not self.connection.poll():
                raise EOFError  # it ended, and a process that it left behind keeps the pipe open
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.lost = True
            return None
        if kind == "tokens":
            observation.on_tokens(value)
            return None
        if kind == "usage":
            raise UsageError(value)
        return replace(Record.from_dict(value), attempts=self.attempt)

    def end(self) -> None:
        self.connection.close()
        self.process.join()

    def failed(self) -> Record:
        code = self.process.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return _failed(self.spec, f"the run's process was {how}{hint}, {self.attempt} times", self.attempt)


def _ready(children: Collection[_Child]) -> list[_Child]:
    """Wait for children that have something to say, or that have ended."""
    ready = set(wait([handle for c in children for handle in (c.connection, c.process.sentinel)]))
    return [c for c in children if c.connection in ready or c.process.sentinel in ready]


def _stop(children: Collection[_Child]) -> None:
    """Let the children write their checkpoints and end; kill those that do not."""
    for child in children:
        child.connection.close()
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        child.process.join(max(0.0, deadline - time.monotonic()))
        if child.process.exitcode is None:
            child.process.kill()
            child.process.join()


def _fork(process: Any) -> None:
    """Start a child, and before the first one the fork server, deaf to the Ctrl-C that would end it on its way up.

    It dies of a request that breaks off. So a signal may interrupt the first one only, which waits for torch's import.
    """
    resource_tracker.ensure_running()  # the server starts it otherwise, and with it lets all signals through again
    with signals_held(signal.SIGINT):
        forkserver.ensure_running()
    with signals_held() if _server_is_up.is_set() else nullcontext():
        process.start()
    _server_is_up.set()


class _without_main:
    """Children need nothing of the driver's main module; without this each would import it again."""

    def __enter__(self) -> None:
        main = sys.modules["__main__"]
        self.saved = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
        main.__spec__ = None

    def __exit__(self, *error: object) -> None:
        sys.modules["__main__"].__dict__.update(self.saved)


def _child_main(
    connection: Connection,
    spec: RunSpec,
    watch: Watch,
    threads: int,
    artifacts: Path | None,
    checkpoint_seconds: float,
) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's; it ends us by closing the pipe
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    multiprocessing.current_process().daemon = False  # a task may have processes of its own: a DataLoader's workers
    torch.set_num_threads(threads)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the driver's stdout carries results, not what a task prints
    stop = threading.Event()
    threading.Thread(target=_follow_driver, args=(connection, stop), daemon=True).start()
    unsent = [0, time.monotonic()]

    def on_tokens(tokens: int) -> None:
        unsent[0] += tokens
        if time.monotonic() - unsent[1] > REPORT_SECONDS:
            with suppress(OSError):  # the driver is gone: `stop` ends the run between two steps, after a checkpoint
                connection.send(("tokens", unsent[0]))
            unsent[:] = [0, time.monotonic()]

    try:
        record = run_here(spec, watch, artifacts, checkpoint_seconds, on_tokens, stop)
        connection.send(("tokens", unsent[0]))
        connection.send(("record", record.to_dict()))
    except UsageError as error:
        with suppress(OSError):
            connection.send(("usage", str(error)))
    except (BrokenPipeError, _interrupted()):
        os._exit(1)


def _interrupted() -> type[Exception]:
    from muonlab.train.loop import Interrupted

    return Interrupted


def _follow_driver(connection: Connection, stop: threading.Event) -> None:
    """End this process when the driver's end of the pipe closes, after a moment for the checkpoint."""
    with suppress(EOFError, OSError):
        connection.poll(None)
    stop.set()
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def run_here(
    spec: RunSpec,
    watch: Watch,
    artifacts: Path | None,
    checkpoint_seconds: float,
    on_tokens: Any,
    stop: threading.Event | None = None,
    ranks: Any = None,
) -> Record:
    """One run in this process; an exception of the run itself becomes a `failed` record, but on ranks that follow."""
    from muonlab.train.checkpoint import Checkpoints
    from muonlab.train.loop import Interrupted, train
    from muonlab.train.ranks import Alone

    ranks = ranks or Alone()
    checkpoints = Checkpoints(artifacts / spec.key, checkpoint_seconds, ranks) if artifacts else None
    try:
        return train(
            spec,
            watch=watch,
            checkpoints=checkpoints,
            on_step=lambda step: on_tokens(spec.batch_tokens),
            should_stop=stop.is_set if stop else lambda: False,
            ranks=ranks,
            initial=weights_file(artifacts, spec.init_from) if artifacts and spec.init_from else None,
            keep=weights_file(artifacts, spec.key) if artifacts and watch.of(spec).weights else None,
        )
    except (UsageError, Interrupted):
        raise
    except Exception as error:
        if ranks.rank:
            raise
        first = f"{type(error).__name__}: {error}".splitlines()[0]
        if ranks.world_size > 1:
            first += " (if another rank has died, what it printed says why; if one is slow, raise --timeout)"
        return _failed(spec, f"{first}\n{traceback.format_exc()}", 1)


def _failed(spec: RunSpec, error: str, attempts: int) -> Record:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(spec=spec, outcome="failed", error=error, attempts=attempts, created=created)
