"""What is typed for a simulation: numbers of ranks, constants of a machine, matrices."""

import re
from collections.abc import Mapping
from decimal import Decimal

from muonlab.bench.sets import ParameterSet
from muonlab.errors import UsageError, unknown

__all__ = ["parse_matrices", "parse_simulation"]

MAX_RANKS = 65536
MAX_MATRICES = 10_000
THOUSANDS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
CONSTANTS: dict[str, tuple[str, Mapping[str, float], str]] = {  # as typed: field of Machine, units, an example
    "flops": (
        "flops_per_second",
        {prefix + tail: factor for prefix, factor in THOUSANDS.items() for tail in ("", "flops")},
        "400T",
    ),
    "bandwidth": (
        "bytes_per_second",
        {"": 1.0} | {f"{prefix}B/s": factor for prefix, factor in THOUSANDS.items()} | {"Gb/s": 1e9 / 8},
        "50GB/s",
    ),
    "latency": ("latency_seconds", {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}, "20us"),
}
NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)(.*)")


def parse_simulation(text: str) -> tuple[tuple[int, ...], dict[str, float]]:
    """Numbers of ranks in rising order, and those fields of a Machine that were given.

    >>> parse_simulation("world=8..64,bandwidth=400Gb/s,latency=20us")
    ((8, 16, 32, 64), {'bytes_per_second': 50000000000.0, 'latency_seconds': 2e-05})
    >>> parse_simulation("flops=400T,world=6,4,4")
    ((4, 6), {'flops_per_second': 400000000000000.0})

    Raises   UsageError for anything else
    """
    found: dict[str, str] = {}
    name = ""
    for part in (part.strip() for part in text.split(",")):
        if "=" in part:
            name, _, part = (side.strip() for side in part.partition("="))
            if name not in ("world", *CONSTANTS):
                raise unknown("setting of --simulate", name, ("world", *CONSTANTS))
            if name in found:
                raise UsageError(f"--simulate has {name} twice: write it once")
        elif name != "world":
            raise UsageError(
                f"--simulate cannot read {part!r}: write name=value with commas between, such as latency=20us"
            )
        found[name] = f"{found[name]},{part}" if name in found else part
    if "world" not in found:
        raise UsageError("--simulate wants numbers of ranks: write world=8..4096 or world=4,6,8")
    worlds = {number for part in found.pop("world").split(",") for number in _worlds(part)}
    return tuple(sorted(worlds)), {CONSTANTS[name][0]: _quantity(name, value) for name, value in found.items()}


def _worlds(text: str) -> list[int]:
    first, dots, last = text.partition("..")
    try:
        low, high = int(first), int(last) if dots else int(first)
    except ValueError:
        raise UsageError(f"world={text} is no number of ranks: write world=8..4096 or world=4,6,8") from None
    if not 1 <= low <= high <= MAX_RANKS:
        raise UsageError(f"world={text}: numbers of ranks go from 1 to {MAX_RANKS}, the smaller first")
    return [low << k for k in range((high // low).bit_length())]


def _quantity(name: str, text: str) -> float:
    _, units, example = CONSTANTS[name]
    found = NUMBER.fullmatch(text)
    factor = units.get(found[2].strip()) if found else None
    value = float(Decimal(found[1]) * Decimal(repr(factor))) if found and factor else 0.0
    if not 0.0 < value < float("inf"):
        known = ", ".join(unit for unit in units if unit)
        raise UsageError(f"{name}={text}: write a number above 0, with a unit of {known} or none, such as {example}")
    return value


def parse_matrices(text: str) -> ParameterSet:
    """A set of one's own: numbers of matrices, rows, columns.

    >>> parse_matrices("2*64x32, 32x64").shapes
    ((64, 32), (64, 32), (32, 64))

    Raises   UsageError for anything else
    """
    shapes: list[tuple[int, ...]] = []
    for part in (part.strip() for part in text.split(",")):
        found = re.fullmatch(r"(?:(\d{1,9})\*)?(\d{1,9})x(\d{1,9})", part)
        count, *sides = (int(found[1] or 1), int(found[2]), int(found[3])) if found else (0,)
        if not count or not all(sides) or len(shapes) + count > MAX_MATRICES:
            raise UsageError(
                f"--matrices cannot read {part!r}: write count*rowsxcolumns with commas between, such as "
                f"32*4096x4096,32*11008x4096 (at most {MAX_MATRICES} matrices)"
            )
        shapes += count * [tuple(sides)]
    return ParameterSet("matrices", tuple(shapes))
