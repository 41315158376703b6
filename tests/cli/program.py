"""Running the program without paying for its imports: each call is a process of its own, forked from a warm server.

What a call sees is what a user's shell would give it: its own arguments, folder, environment, stdin, stdout and stderr.
The server that the program starts for its runs is the warm one too, whence the only difference: what the process of a
run writes to stderr is not in `err`. The locale is the one that this interpreter started with.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, process, resource_tracker
from pathlib import Path
from typing import Any

from muonlab.execute.local import PRELOAD, _without_main

__all__ = ["Call", "Finished", "Program", "until"]

IMPORTS = [
    *PRELOAD, "muonlab.cli.app", "muonlab.cli.progress", "muonlab.records.store", "muonlab.records.importers",
    "muonlab.study.plan", "muonlab.study.fairness", "muonlab.report.page", "muonlab.report.tables", "alembic.command",
    "matplotlib.backends.backend_svg", "rich.console", "muonlab.tasks.text",
]  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """What a call left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; NaN and infinities are no JSON."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} in JSON")

        return json.loads(self.out, parse_constant=refuse)

    def said(self, code: int = 2) -> str:
        """The message of a failure that is no defect: one line, no traceback, nothing on stdout."""
        assert self.code == code, self
        assert self.err.startswith("muonlab: ") and self.err.count("\n") == 1, self.err
        assert self.out == "", self.out
        return self.err.removeprefix("muonlab: ").rstrip("\n")


@dataclass(frozen=True)
class Call:
    """A call under way."""

    process: Any
    out: Path
    err: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 120) -> Finished:
        self.process.join(seconds)
        assert self.process.exitcode is not None, "still running"
        texts = [path.read_text(errors="replace") if path.is_file() else "" for path in (self.out, self.err)]
        return Finished(self.process.exitcode, *texts)


class Program:
    """`muonlab` in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_calls = folder, 0
        self.logs = folder.with_name(f"{folder.name}-logs-{os.getpid()}")
        self.logs.mkdir(exist_ok=True)

    def __call__(self, *arguments: str | Path, **settings: Any) -> Finished:
        return self.start(*arguments, **settings).wait()

    def start(
        self, *arguments: str | Path, environment: Mapping[str, str | None] | None = None, out: Path | None = None,
        **settings: Any,
    ) -> Call:  # fmt: skip
        """Begin a call; `environment` changes variables, None removes one; for `settings` see `_main`."""
        self.num_calls += 1
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTS)
        log = self.logs / str(self.num_calls)
        files = out or log.with_suffix(".out"), log.with_suffix(".err")
        child = context.Process(
            target=_main,
            args=([str(a) for a in arguments], self.folder, dict(environment or {}), files),
            kwargs=settings,
        )
        with _without_main():
            child.start()
        return Call(child, *files)


def _main(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str | None], files: Sequence[Path],
    file_bytes: int | None = None, lock_seconds: float | None = None,
) -> None:  # fmt: skip
    """The call, in its own process; with a limit on the size of files, or a shorter wait for locks."""
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    process.ORIGINAL_DIR = str(folder)  # where the processes of runs will be
    os.chdir(folder)
    for name, value in environment.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    sys.argv = ["muonlab", *arguments]
    for server in (forkserver, forkserver._forkserver):
        server.ensure_running = resource_tracker.ensure_running  # it is up: it forked us
    if lock_seconds is not None:
        from muonlab.records.store import Store

        Store.__init__.__kwdefaults__["timeout"] = lock_seconds
    if file_bytes is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    from muonlab.cli import main

    main()


def until(condition: Callable[[], Any], seconds: float = 60, pause: float = 0.005) -> Any:
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause)
    return value
