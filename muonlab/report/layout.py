"""What all tables of the terminal have in common: plain ASCII, legible without colour."""

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["cell", "clean", "grid", "spaced"]


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
