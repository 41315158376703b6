"""How values are written: one spelling of every kind of number for terminal and page, and names for their fields."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from muonlab.analyze.findings import Check, Comparison, Paired

__all__ = [
    "FORMATS", "claim", "counted", "field_name", "is_undefined", "is_withheld", "lookup", "plural", "short_layers",
    "shorten", "show",
]  # fmt: skip

Path = Sequence[str | int]


def is_undefined(value: Any) -> bool:
    """None, and what is not finite: never shown as a number."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def is_withheld(finding: Comparison) -> bool:
    """Whether a broken rule forbids any claim, whatever the single tests say."""
    judged = [contrast.judgement for contrast in finding.contrasts.values()]
    return "withheld" in judged or finding.verdict.lower().startswith("verdict withheld")


def claim(test: Paired) -> str:
    """What is said of a margin; empty where none was set."""
    if test.margin_nats is None:
        return ""
    return {None: "withheld", True: "shown", False: "not shown"}[test.no_worse]


def show(value: Any, kind: str, undefined: str = "-") -> str:
    """The value as text, in ASCII where it is a number.

    >>> show(1.4023, "ratio"), show(2.34567, "loss"), show(None, "loss"), show(4_194_304, "tokens")
    ('1.40x', '2.3457', '-', '4.19M')
    >>> show(-0.03, "difference"), show(125.2, "seconds"), show(0.00012, "p"), show((0.9, 0.95), "value")
    ('-0.0300', '2m 05s', '< 0.001', '(0.9, 0.95)')
    >>> show(353.0376, "tokens"), show(1.46e-11, "tokens"), show(1e10, "rate"), show(0.1049, "share")
    ('353', '1.46e-11', '10 GB/s', '10.5%')
    """
    if is_undefined(value) and not (value is None and kind == "value"):  # None is a setting like any other
        return undefined
    return FORMATS[kind](value)


def _bare(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _three(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _tokens(value: float) -> str:
    if abs(value) >= 1e15:
        return f"{value:.3g}"
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * scale:
            return f"{float(f'{value / scale:.3g}'):g}{suffix}"
    return f"{value:.3g}"


def _rate(value: float) -> str:
    for scale, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g} {suffix}/s"
    return f"{value:.3g} B/s"


def _seconds(value: float) -> str:
    if value < 0.9995e-3:
        return f"{_three(value * 1e6)} us"
    if value < 0.9995:
        return f"{_three(value * 1e3)} ms"
    if value < 59.95:
        return f"{_three(value)} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60:,}h {minutes % 60:02d}m"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.0f}" if 1e5 <= abs(value) < 1e15 and value.is_integer() else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"({', '.join(_value(item) for item in value)})"
    return str(value)


FORMATS: Mapping[str, Callable[[Any], str]] = {
    "bare": _bare,  # a ratio inside an interval
    "correlation": lambda value: f"{value:+.2f}",
    "count": lambda value: f"{value:,}",
    "difference": lambda value: f"{value:+.4f}",
    "loss": lambda value: f"{value:.4f}",
    "p": lambda value: "< 0.001" if value < 0.001 else f"{value:.3f}",
    "percent": lambda value: f"{100 * value:.3g}%",
    "points": lambda value: f"{value:+.1%}",  # a difference of shares
    "ratio": lambda value: f"{_bare(value)}x",
    "rate": _rate,  # bytes per second
    "seconds": _seconds,
    "share": lambda value: f"{value:.1%}",
    "text": str,
    "signed3": lambda value: f"{value:+.3g}",
    "tokens": _tokens,
    "value": _value,
    "value3": lambda value: f"{value:.3g}",
}


def plural(count: int, noun: str) -> str:
    """
    >>> plural(1, "seed"), plural(5, "seed")
    ('1 seed', '5 seeds')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def counted(checks: Sequence[Check]) -> str:
    """How many rules are broken and how many could not be checked.

    >>> counted([Check(name="interior", ok=False, detail=""), Check(name="wall_clock", ok=None, detail="")])
    '1 broken, 1 not checked'
    """
    unknown = sum(check.ok is None for check in checks)
    return f"{sum(check.ok is False for check in checks)} broken" + (f", {unknown} not checked" if unknown else "")


def shorten(text: str, width: int = 22) -> str:
    """A name that fits a figure, on one line and free of control characters."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return clean if len(clean) <= width else clean[: width - 1] + "…"


def short_layers(names: Iterable[str]) -> dict[str, str]:
    """Names without what they begin with in common.

    >>> short_layers(["blocks.0", "blocks.1"]), short_layers(["stem"])
    ({'blocks.0': '0', 'blocks.1': '1'}, {'stem': 'stem'})
    """
    parts = {name: name.split(".") for name in names}
    common = 0
    while len(parts) > 1 and len({tuple(p[: common + 1]) for p in parts.values()}) == 1:
        common += 1
    return {name: ".".join(p[common:]) or name for name, p in parts.items()}


def field_name(path: Path) -> str:
    """The name of a field of a finding, as the page's `data-field` attributes have it.

    >>> field_name(("optimizers", "muon", "hyperparameters", "opt.lr")), field_name(("checks", 0, "ok"))
    ("optimizers.muon.hyperparameters['opt.lr']", 'checks[0].ok')
    """
    parts = [part if isinstance(part, str) and part.isidentifier() else f"[{part!r}]" for part in path]
    return "".join(f".{part}" if i and part[0] != "[" else part for i, part in enumerate(parts))


def lookup(finding: Any, path: Path) -> Any:
    """The field itself, in dataclasses, mappings and sequences alike."""
    for part in path:
        if isinstance(part, int) or isinstance(finding, Mapping):
            finding = finding[part]
        else:
            finding = getattr(finding, part)
    return finding
