"""What is found in people's own models, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from muonlab.report.layout import cell, clean, grid, spaced
from muonlab.report.text import short_layers, show

__all__ = ["models_table"]


def models_table(found: Mapping[str, Sequence[Any]]) -> list[RenderableType]:
    """Layers, likeness and corruptions of people's own models."""
    columns = {"rank_effective": "effective\nrank", "rank_stable": "stable\nrank", "accuracy": "probe\naccuracy",
               "margin": "margin", "margin_normalised": "normalised\nmargin"}  # fmt: skip
    like = {(row["checkpoint"], row["layer"]): row["cka"] for row in found["cka"]}
    short = short_layers(row["layer"] for row in found["layers"])
    named = next((f"{name.removesuffix(end)}N" for name, end in short.items() if name != end), "")
    title = f"Layers{f' {named}' if named else ''} on one held-out sample; likeness is CKA to the first checkpoint"
    table = grid(clean(title))
    for heading in ("checkpoint", "layer"):
        table.add_column(heading, overflow="fold")
    for heading in (*columns.values(), "likeness"):
        table.add_column(heading, no_wrap=True)
    last = None
    for row in found["layers"]:
        name = row["checkpoint"]
        values = (show(row.get(column), "value3") for column in columns)
        table.add_row(cell("" if name == last else name), cell(short[row["layer"]]), *values,
                      show(like.get((name, row["layer"])), "value3"))  # fmt: skip
        last = name
    corruptions = [row for row in found["corruptions"] if row["severity"]]
    parts = [table, _corrupted(found["corruptions"], "loss", "rise", "signed3")]
    if any(row["accuracy"] is not None for row in corruptions):
        parts.append(_corrupted(found["corruptions"], "accuracy", "accuracy", "share"))
    if found["notes"]:
        parts.append(Text("\n".join(map(clean, found["notes"])), style="dim"))
    return spaced(*parts)


TITLES = {
    "loss": "Loss of clean inputs, and its rise on corrupted ones, nats by severity",
    "accuracy": "Accuracy on clean inputs, and on corrupted ones by severity",
}


def _corrupted(rows: Sequence[Mapping[str, Any]], clean: str, corrupted: str, kind: str) -> RenderableType:
    """`clean` and `corrupted` name what is shown of the two, `kind` how the latter is written."""
    severities = sorted({row["severity"] for row in rows if row["severity"]})
    table = grid(TITLES[clean] if severities else f"{clean.capitalize()} on held-out inputs")
    for heading in ("checkpoint", "inputs"):
        table.add_column(heading, overflow="fold")
    for heading in (clean, *map(str, severities)):
        table.add_column(heading, no_wrap=True)
    for name in dict.fromkeys(row["checkpoint"] for row in rows):
        own = [row for row in rows if row["checkpoint"] == name]
        first = show(own[0][clean], "loss" if clean == "loss" else kind)
        table.add_row(cell(name), "clean", first, *("" for _ in severities))
        for inputs in dict.fromkeys(row["corruption"] for row in own[1:]):
            values = {row["severity"]: row[corrupted] for row in own if row["corruption"] == inputs}
            table.add_row("", cell(inputs), "", *(show(values.get(s), kind) for s in severities))
    return table
