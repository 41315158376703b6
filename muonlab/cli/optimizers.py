"""optimizers: what can be named, what it keeps, and where a tuning of it starts and what it sweeps."""

from collections.abc import Iterable, Mapping
from inspect import cleandoc
from itertools import pairwise
from typing import Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.laboratory import print_json, users_code

__all__ = ["optimizers"]

WIDTHS = (76, 84, 96, 116)  # of docstrings: those of files, less the indentation


def optimizers(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Only this one, in full; also path/to/file.py:Class.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """List the optimizers, or show one: its update, its hyperparameters, where their tuning starts and why there."""
    from muonlab.optim import catalog

    with users_code():
        found = [_described(one) for one in (catalog.names() if name is None else [name])]
    if json:
        return print_json(found)
    from rich.console import Console

    console = Console()
    for part in _listed(found) if name is None else _in_full(found[0]):
        console.print(part)


def _described(name: str) -> dict[str, Any]:
    from muonlab.bench.memory import state_bytes_per_parameter
    from muonlab.optim import catalog
    from muonlab.study.space import start, starts

    info = catalog.locate(name)
    cls, named = info.cls, info.named
    size = state_bytes_per_parameter(
        lambda w: catalog.build(named, [("weight", w)], {"weight": "hidden"}, start(named))
    )
    known, begin = catalog.hyperparameters(named), starts(named)
    docs = [_docstring(cls.rule), _docstring(cls)]
    differs = [" ".join(_labelled(doc, "Differs").split()) for doc in docs]
    return {
        "name": info.name,
        "class": info.name if ":" in info.name else f"muonlab.optim.{cls.__name__}",
        "summary": docs[0].partition("\n")[0],
        "source": cls.rule.source,
        "companion": cls.companion and cls.companion.name,
        "state_bytes_per_parameter": round(size, 3),  # without the counters of steps, a few bytes in all
        "update": _labelled(docs[0], "Math"),
        "differs": [text for text in dict.fromkeys(differs) if text],
        "hyperparameters": [
            {
                "name": h.name,
                "default": h.default,
                "start": begin[h.name].value,
                "start_source": begin[h.name].source,
                "grid": h.grid,
                "grid_source": h.source if h.grid else "",
                "unit": h.unit,
            }
            for h in known
        ],
        "settings": sorted(catalog.settable(named) - {h.name for h in known}),
    }


def _docstring(cls: type) -> str:
    text = cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text  # a dataclass without one


def _labelled(text: str, label: str) -> str:
    """What stands under a label of a docstring, its lines joined where the next word had no room.

    >>> _labelled("Adds.\\n\\nMath     a\\n         b\\nSource   Euclid", "Math")
    'a\\nb'
    """
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith(f"{label} ")), len(lines))
    width = next((width for width in WIDTHS if max(map(len, lines), default=0) <= width), 0)
    found = "".join(lines[begin : begin + 1]).removeprefix(label).strip()
    for before, line in pairwise(lines[begin:]):
        if not line.strip() or line[0] != " ":
            break
        word = line.split()[0]
        anew = len(before) + 1 + len(word) <= width or word[0].isupper()
        found += ("\n" if anew else " ") + line.strip()
    return found


def _listed(found: Iterable[Mapping[str, Any]]) -> Iterable[Any]:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    table = _table("optimizer", "state", "companion", "update, and its source")
    table.columns[1].justify = "right"
    for one in found:
        what = Group(Text(one["summary"]), Padding(Text(one["source"], style="dim"), (0, 0, 0, 2)))
        table.add_row(one["name"], _state(one), one["companion"] or "-", what)
    yield table
    yield Text(
        "\nstate: bytes per parameter, measured on one square matrix in float32 with the settings that a tuning starts "
        "from. companion: what updates everything else, where an optimizer is for hidden matrices alone. All of one: "
        "muonlab optimizers NAME"
    )


def _in_full(one: Mapping[str, Any]) -> Iterable[Any]:
    from rich.text import Text

    yield Text(": ".join(filter(None, (one["name"], one["summary"]))) + "\n", style="bold")
    about = _table("", "")
    about.show_header = False
    about.add_row("class", one["class"])
    about.add_row("source", Text(one["source"] or "-"))
    about.add_row("update", Text(one["update"] or "-"))
    for i, text in enumerate(one["differs"]):
        about.add_row("" if i else "differs", Text(text))
    about.add_row("companion", f"{one['companion']}, for all but hidden matrices" if one["companion"] else "-")
    about.add_row("state", f"{_state(one)} bytes per parameter of a square matrix in float32")
    yield about
    yield ""
    yield _hyperparameters(one["hyperparameters"])
    for title, source in (("starts", "start_source"), ("grids", "grid_source")):
        if any(row[source] for row in one["hyperparameters"]):
            yield ""
            yield _sources(title, one["hyperparameters"], source)
    if one["settings"]:
        yield Text(f"\nAlso settable: {', '.join(one['settings'])}")


def _hyperparameters(rows: Iterable[Mapping[str, Any]]) -> Any:
    from muonlab.report.text import show

    table = _table("hyperparameter", "default", "start", "grid", "unit")
    table.columns[0].no_wrap = True
    for row in rows:
        grid = " ".join(show(value, "value") for value in row["grid"])
        table.add_row(
            row["name"], show(row["default"], "value"), show(row["start"], "value"), grid or "-", row["unit"] or "-"
        )
    return table


def _sources(title: str, rows: Iterable[Mapping[str, Any]], key: str) -> Any:
    """Who says so, and of which hyperparameters."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if row[key]:
            groups.setdefault(row[key], []).append(row["name"])
    table = _table(title, "from")
    for source, names in groups.items():
        table.add_row(" ".join(names), source)
    return table


def _state(one: Mapping[str, Any]) -> str:
    return f"{one['state_bytes_per_parameter']:.3g}"


def _table(*headings: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
