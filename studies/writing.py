"""What the results pages of several studies are written with."""

from collections.abc import Iterable
from typing import Any

__all__ = ["interval", "table"]


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a Markdown table, an empty one below."""
    heads = list(heads)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def interval(low: float | None, high: float | None, kind: str = ".2f") -> str:
    """An end that is None is open."""
    if low is None and high is None:
        return "-"
    return f"[{'0' if low is None else format(low, kind)}, {'unbounded' if high is None else format(high, kind)}]"
