"""What the results pages of several studies are written with."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from muonlab.analyze.findings import Check
from muonlab.analyze.significance import withheld
from muonlab.report.canvas import Drawing

__all__ = ["checks", "interval", "sheet", "table", "whole"]

ENTRIES = 4  # of a legend in a row
ROOM = 920  # CSS pixels, for panels beside each other


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a Markdown table, an empty one below."""
    heads = list(heads)
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def checks(found: Sequence[Check]) -> list[str]:
    """Fairness rules as a table, and which of the broken ones withhold nothing."""
    said = {None: "not checked", False: "**broken**"}
    rows = ((c.name, said.get(c.ok, c.severity or "ok"), c.detail) for c in found)
    lines, withholding = table(("rule", "", "found"), rows), withheld(found)
    if harmless := ", ".join(c.name for c in found if c.ok is False and c not in withholding):
        lines += [f"Broken, but not of the rules that withhold a claim ([method](method.md)): {harmless}.", ""]
    return lines


def interval(low: float | None, high: float | None, kind: str = ".2f") -> str:
    """An end that is None is open."""
    if low is None and high is None:
        return "-"
    return f"[{'0' if low is None else format(low, kind)}, {'unbounded' if high is None else format(high, kind)}]"


def whole(svg: str) -> str:
    """An inline drawing as a file of its own."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return svg.replace("<svg ", f'<svg {spaces} font-family="sans-serif" style="background:#fff" ', 1) + "\n"


def sheet(drawings: Sequence[Drawing], legend: Mapping[str, Drawing] | None = None) -> str:
    """Drawings of one size in rows, with a legend above, as one file."""
    width, height = _size(drawings[0])
    columns = int(max(1, ROOM // width))
    parts, entries, top = [], legend or {}, 0
    for i, (name, mark) in enumerate(entries.items()):
        x, y = 16 + i % ENTRIES * width * columns / ENTRIES, 12 + i // ENTRIES * 20
        parts += [_at(mark, x, y), f'<text x="{x + 36:g}" y="{y + 11:g}" font-size="12">{escape(name)}</text>']
        top = y + 26
    for i, drawing in enumerate(drawings):
        parts.append(_at(drawing, i % columns * width, top + i // columns * height))
    rows = -(-len(drawings) // columns)
    size = f'width="{width * columns:g}" height="{top + rows * height:g}"'
    box = f'viewBox="0 0 {width * columns:g} {top + rows * height:g}"'
    return whole(f"<svg {size} {box}>\n{chr(10).join(parts)}\n</svg>")


def _size(drawing: Drawing) -> tuple[float, float]:
    found = re.search(r'width="([\d.]+)" height="([\d.]+)"', drawing.svg)
    assert found is not None
    return float(found[1]), float(found[2])


def _at(drawing: Drawing, x: float, y: float) -> str:
    return drawing.svg.replace("<svg ", f'<svg x="{x:g}" y="{y:g}" ', 1)
