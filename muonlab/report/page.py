"""A finding as one self-contained HTML file: verdict first, every figure after it traceable to a record."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muonlab.analyze.findings import Check, Comparison, OptimizerFinding, Speedup
from muonlab.analyze.significance import WITHHOLDING
from muonlab.errors import UsageError
from muonlab.report import figures
from muonlab.report.canvas import looks
from muonlab.report.slices import slice_figures
from muonlab.report.text import claim, counted, field_name, is_undefined, is_withheld, lookup, plural, show

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["document", "render", "write"]

TEMPLATES = Path(__file__).parent / "templates"
MOST_TILES = 3  # challengers; more of them stand in the table only
MINUS = ("-", "−")
TYPOGRAPHY = {
    "ratio": ("x", "×"), "difference": MINUS, "points": MINUS, "signed3": MINUS, "correlation": MINUS,
    "value3": MINUS, "seconds": ("us", "µs"),
}  # fmt: skip


def render(
    finding: Comparison,
    records_summary: Sequence[Mapping[str, Any]] | None = None,
    *,
    created: str,
    command: str = "",
) -> str:
    """The report as HTML text; the same arguments give the same bytes.

    `records_summary` lists all runs of the study, as `tables.runs_table` takes them; without it only the final runs
    that the finding names are listed. `created` is the only date, `command` what reproduces the report.
    """
    return document(
        "page.html",
        finding,
        state=_state(finding),
        meanings=_meanings(finding),
        challengers=list(finding.contrasts),
        tiled=len(finding.contrasts) <= MOST_TILES,
        coordinates=_coordinates(finding),
        look=looks(finding),
        figures={
            "read_off": figures.read_off(finding),
            "curves": figures.training_curves(finding),
            "seeds": figures.final_losses(finding),
            "slices": slice_figures(finding),
        },
        runs=records_summary,
        created=created,
        command=command,
    )


def document(template: str, finding: Any, **values: Any) -> str:
    """A template filled in: `f` is the finding, `num` writes its fields; what every report shows comes along."""
    environment = _environment()
    environment.globals |= {
        "num": _Numbers(finding),
        "undefined": is_undefined,
        "field": lambda *path: field_name(path),
    }
    return environment.get_template(template).render(
        f=finding,
        broken=_broken(finding.checks),
        environment_rows=_flat(finding.environment),
        config_rows=_flat(finding.config),
        **values,
    )


def write(path: str | os.PathLike[str], html: str) -> None:
    """Write the file whole or not at all; a path that is no regular file (/dev/stdout, a pipe) is written to directly.

    Raises   UsageError naming the path, where the system refuses
    """
    target = Path(path)
    content = html.encode("utf-8", errors="replace")
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            with target.open("wb") as file:
                file.write(content)
        else:
            _replace(Path(os.path.realpath(target)), content)
    except OSError as error:
        raise UsageError(f"cannot write report {str(target)!r}: {error.strerror or error}") from None


def _replace(target: Path, content: bytes) -> None:
    if target.is_dir():
        raise IsADirectoryError(21, "is a directory")
    draft = target.with_name(f".{target.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"claim": claim, "counted": counted, "plural": plural, "show": _typeset, "json": _json}
    environment.tests["undefined_number"] = is_undefined
    return environment


def _typeset(value: Any, kind: str, undefined: str = "–") -> str:
    """`show` with the signs of print: × for x, a true minus."""
    text = show(value, kind, undefined)
    return text.replace(*TYPOGRAPHY[kind]) if kind in TYPOGRAPHY and text != undefined else text


def _json(value: Any) -> str:
    """A setting as its user would write it: words bare, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class _Numbers:
    """`num(kind, *path)` in a template: a field of the finding as text, marked with its name and its full value."""

    def __init__(self, finding: Any) -> None:
        self.finding = finding

    def __call__(self, kind: str, *path: str | int, undefined: str = "–") -> "Markup":
        from markupsafe import Markup

        value, name = lookup(self.finding, path), field_name(path)
        if is_undefined(value) and not (value is None and kind == "value"):
            return Markup('<span class="undefined" data-field="{}" title="undefined">{}</span>').format(name, undefined)
        return self._data(name, value, _typeset(value, kind))

    def span(self, kind: str, *path: str | int, low: str = "low", high: str = "high") -> "Markup":
        """An interval; an end that is None is open."""
        from markupsafe import Markup

        if all(is_undefined(lookup(self.finding, [*path, end])) for end in (low, high)):
            return Markup('<span class="undefined">no interval</span>')
        ends = [self(kind, *path, end, undefined=sign) for end, sign in ((low, "−∞"), (high, "∞"))]
        if kind in ("bare", "tokens") and is_undefined(lookup(self.finding, [*path, low])):
            ends[0] = self(kind, *path, low, undefined="0")
        return Markup('<span class="interval">[{}, {}]</span>').format(*ends)

    def equal(self, name: str, factor: str = "tokens") -> "Markup":
        """Tokens the baseline needs: the speedup times the challenger's horizon."""
        speedup = self.finding.speedup[name]
        paths = [field_name(("speedup", name, part)) for part in (factor, "horizon_tokens")]
        tokens = lookup(speedup, [factor]) * speedup.horizon_tokens
        return self._data(" * ".join(paths), tokens, _typeset(tokens, "tokens"))

    @staticmethod
    def _data(name: str, value: Any, text: str) -> "Markup":
        from markupsafe import Markup

        return Markup('<data value="{}" data-field="{}">{}</data>').format(_plain(value), name, text)


def _plain(value: Any) -> str:
    return repr(value) if isinstance(value, int | float) else str(value)


def _state(finding: Comparison) -> str:
    """One word for the whole, which sets the colour and the line above the verdict."""
    judgements = [contrast.judgement for contrast in finding.contrasts.values()]
    if not finding.verdict or not judgements:
        return "none"
    if is_withheld(finding):
        return "withheld"
    return "resolved" if any(judgement in ("better", "worse") for judgement in judgements) else "unresolved"


def _meanings(finding: Comparison) -> dict[str, str]:
    """Per challenger, which of the template's plain sentences applies."""
    if _state(finding) in ("withheld", "none"):
        return {}
    return {name: _meaning(speedup, finding.contrasts[name].judgement) for name, speedup in finding.speedup.items()}


def _meaning(speedup: Speedup, judgement: str) -> str:
    if is_undefined(speedup.tokens):
        return "undefined"
    if speedup.flag == "censored":
        return "at_most" if speedup.bound == "<" else "at_least"
    return "read" if judgement in ("better", "worse") else "noise"


def _broken(checks: Sequence[Check]) -> list[tuple[int, Check, bool]]:
    """Broken checks with their index, those first that withhold the verdict."""
    found = [(i, check, check.name in WITHHOLDING) for i, check in enumerate(checks) if check.ok is False]
    return sorted(found, key=lambda entry: not entry[2])


def _coordinates(finding: Comparison) -> list[str]:
    """All hyperparameters that any optimizer has, in the order of their first appearance."""
    optimizers: Sequence[OptimizerFinding] = list(finding.optimizers.values())
    return list(dict.fromkeys(name for optimizer in optimizers for name in optimizer.hyperparameters))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as rows of dotted names."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", value))
    return rows
