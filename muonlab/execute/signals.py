"""Ctrl-C and SIGTERM at a moment that suits: they raise, and what they interrupt must bear that."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["signals_held"]


@contextmanager
def signals_held(*numbers: int) -> Iterator[None]:
    """Signals (SIGINT and SIGTERM if none is named) wait until the end of the block. Processes begun in it never get
    them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers or (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
