"""From what was typed to the values of a study."""

import os
import shlex
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

import typer

from muonlab.cli.laboratory import resolve_device
from muonlab.errors import UsageError

__all__ = [
    "check_out", "command_line", "count", "names", "numbers", "paths", "refuse_flags", "values", "whole_numbers",
]  # fmt: skip

SUFFIXES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
FLAGS = {  # also in files
    "tokens": "horizon_tokens",
    "seeds": "num_seeds",
    "seed": "first_seed",
    "set": "settings",
    "transfer_set": "transfer_settings",
    "margin": "margin_nats",
    "variant": "variants",
    "latency": "latency_seconds",
    "hyperparameters": "tune",
}


def values(
    config: Path | None, flags: dict[str, Any], settings: list[str] | None, precision: str | None, compile: bool
) -> dict[str, Any]:
    """Config file, then flags, then --set: the later wins."""
    from muonlab.study.config import flattened, load_config, parse_setting

    chosen = {FLAGS.get(name, name): value for name, value in (load_config(config) if config else {}).items()}
    chosen |= {name: value for name, value in flags.items() if value is not None}
    chosen["device"] = resolve_device(str(chosen.get("device", "auto")))
    optimizers = chosen.get("optimizers")
    if "baseline" not in chosen and isinstance(optimizers, list | tuple) and optimizers:
        chosen["baseline"] = optimizers[0]
    if not isinstance(chosen.get("settings", {}), dict):
        raise UsageError(f"settings: must be a table of dotted names, got {chosen['settings']!r}")
    merged = flattened(chosen.get("settings", {}))
    if precision:
        merged["precision"] = precision
    if compile:
        merged["compile"] = True
    merged |= dict(parse_setting(text) for text in settings or ())
    for name in ("horizon_tokens", "batch_tokens"):
        if name in merged:
            chosen[name] = merged.pop(name)
    return {**chosen, "settings": merged}


def names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text is not None else None


def numbers(flag: str, text: str | None) -> tuple[float, ...] | None:
    """Comma-separated numbers.

    Raises   UsageError for anything else
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip()) if text is not None else None
    except ValueError:
        raise UsageError(f"{flag} wants numbers with commas between, got {text!r}") from None


def whole_numbers(flag: str, text: str | None) -> tuple[int, ...] | None:
    """Comma-separated whole numbers.

    Raises   UsageError for anything else
    """
    found = numbers(flag, text)
    if found is not None and any(not number.is_integer() for number in found):
        raise UsageError(f"{flag} wants whole numbers with commas between, got {text!r}")
    return None if found is None else tuple(map(int, found))


def count(text: str, option: str) -> float:
    """A number of parameters or tokens.

    >>> count("350M", "--params"), count("7e9", "--tokens")
    (350000000.0, 7000000000.0)

    Raises   UsageError for what is no number of at least 1
    """
    scale = SUFFIXES.get(text[-1:], 1.0)
    try:
        value = float(text[:-1] if text[-1:] in SUFFIXES else text) * scale
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise UsageError(f"{option} wants a number of at least 1, such as 350M or 3.5e8, got {text!r}")
    return value


def refuse_flags(context: typer.Context, named: Container[str], why: str) -> None:
    """Of the flags that were typed those that have no effect here.

    Raises   UsageError naming them
    """
    typed = [
        option.opts[0] if option.opts[0].startswith("-") else (option.name or "").upper()
        for option in context.command.params
        if option.name in named and getattr(context.get_parameter_source(option.name), "name", "") == "COMMANDLINE"
    ]
    if typed:
        raise UsageError(f"{', '.join(typed)}: {why}")


def paths(paths: list[Path] | None) -> tuple[str, ...] | None:
    return tuple(map(str, paths)) if paths else None


def check_out(out: Path) -> None:
    """Find out now, not after an hour, that the report can't be written."""
    parent = out.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"cannot write report {out}: there is no folder {parent}")
    if out.is_dir():
        raise UsageError(f"cannot write report {out}: it is a folder")
    if out.exists() and not out.is_file():
        return  # a pipe or a device
    if not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write report {out}: the folder is read-only")


def command_line() -> str:
    return shlex.join(["muonlab", *sys.argv[1:]])
