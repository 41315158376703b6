"""What the tables of `bench` and `bench --simulate` have in common."""

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

__all__ = ["ALL", "bytes_text", "print_by_set", "say", "table"]

ALL = "all"
WIDTH = 100  # where nobody looks on


def say(text: str) -> None:
    print(f"muonlab: {text}", file=sys.stderr, flush=True)


def print_by_set(
    heading: str, rows: Sequence[dict[str, Any]], table_of: Callable[[list[dict[str, Any]]], Any], notes: Iterable[str]
) -> None:
    """A heading, a table of the rows of each parameter set, and notes."""
    from rich.console import Console

    out = Console(width=None if sys.stdout.isatty() else WIDTH)
    out.print(heading, highlight=False)
    for _, of_set in groupby(rows, key=lambda row: row["set"]):
        out.print()
        out.print(table_of(list(of_set)))
    out.print()
    for text in notes:
        out.print(text, highlight=False, markup=False)


def table(title: str) -> Any:
    """An empty one in the style of all."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=box.SIMPLE_HEAD,
        show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip


def bytes_text(count: int) -> str:
    """
    >>> bytes_text(12), bytes_text(51_200), bytes_text(3 * 2**20), bytes_text(5 * 2**30)
    ('12 B', '50 KiB', '3 MiB', '5 GiB')
    """
    power = next((power for power in (3, 2, 1) if count >= 1024**power), 0)
    return f"{count / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
