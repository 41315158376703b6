"""What all tables of the terminal have in common: plain ASCII, legible without colour."""

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from muonlab.analyze.findings import Check
from muonlab.analyze.significance import withheld
from muonlab.report.text import show

__all__ = ["cell", "clean", "grid", "interval", "reasons", "spaced"]


def spaced(*parts: RenderableType) -> list[RenderableType]:
    """The parts, an empty line above each."""
    return [Padding(part, (1, 0, 0, 0)) for part in parts]


def grid(title: str) -> Table:
    """A table without rows yet."""
    return Table(
        title=Text(title, style="bold") if title else None, title_justify="left", box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, expand=False, header_style="dim",
    )  # fmt: skip


def cell(text: str) -> Text:
    """Text, never markup: names come from users."""
    return Text(clean(text))


def clean(text: str) -> str:
    """Without control characters but line feeds, so that no name can drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def interval(low: float | None, high: float | None, kind: str = "bare", neither: str = "no interval") -> str:
    """Where one end is open, in words."""
    if low is None and high is None:
        return neither
    return f"[{show(low, kind, 'open')}, {show(high, kind, 'open')}]"


def reasons(checks: Sequence[Check]) -> list[RenderableType]:
    """Why a verdict is withheld, a line for each part of what was found; nothing where it is not."""
    found = [f"- {check.name}, {part}" for check in withheld(checks) for part in check.detail.split("; ")]
    return [Text(clean("\n".join(found)))] if found else []
