"""Progress on stderr: a bar with an ETA for the whole study on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from muonlab.records import Record

__all__ = ["Progress"]

LINE_SECONDS = 15.0


class Progress:
    """Counts tokens against an estimate of the study's tokens; once it is used up, no end is foretold any more.

    Use as a context manager around the study. `quiet` shows nothing.
    """

    def __init__(self, expected_tokens: float, *, quiet: bool = False) -> None:
        self.expected = max(expected_tokens, 1.0)
        self.done = self.executed = 0.0
        self.num_runs = self.num_executed = self.num_diverged = 0
        self.quiet = quiet
        self.live = None if quiet else _bar()
        self.started = self.spoken = time.monotonic()

    def __enter__(self) -> "Progress":
        if self.live:
            self.live.start()
            self.bar = self.live.add_task("starting", total=self.expected)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def on_tokens(self, tokens: int) -> None:
        """Tokens trained since the last call."""
        self.executed += tokens
        self._show()

    def on_record(self, record: Record, executed: bool) -> None:
        self.num_runs += 1
        self.num_executed += executed
        self.num_diverged += record.outcome == "diverged"
        if not executed:
            self.done += record.tokens
        self._show()

    def _show(self) -> None:
        done = self.done + self.executed
        over = done > 1.01 * self.expected
        text = "1 run" if self.num_runs == 1 else f"{self.num_runs} runs"
        text += f", {self.num_diverged} diverged" if self.num_diverged else ""
        text += ", more than first estimated" if over else ""
        if self.live:
            self.live.update(self.bar, completed=done, total=None if over else self.expected, description=text)
        elif not self.quiet and time.monotonic() - self.spoken > LINE_SECONDS:
            self.spoken = time.monotonic()
            print(f"muonlab: {text}{'' if over else self._ahead(done)}", file=sys.stderr, flush=True)

    def _ahead(self, done: float) -> str:
        """How far it is, and how long it takes from here."""
        left = max(self.expected - done, 0.0) * (self.spoken - self.started) / max(self.executed, 1.0)
        eta = f", about {left:.0f} s left" if self.num_executed else ""  # the first runs wait for their imports
        return f", {min(done / self.expected, 1.0):.0%}{eta}"


def _bar() -> Any:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(),
        TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    return Bar(*columns, console=console, transient=True, speed_estimate_period=60.0)
