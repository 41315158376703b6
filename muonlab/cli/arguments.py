"""From what was typed to the values of a study."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from muonlab.cli.laboratory import resolve_device
from muonlab.errors import UsageError

__all__ = ["check_out", "command_line", "names", "numbers", "paths", "values"]

FLAGS = {  # also in files
    "tokens": "horizon_tokens",
    "seeds": "num_seeds",
    "seed": "first_seed",
    "set": "settings",
    "margin": "margin_nats",
    "variant": "variants",
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
