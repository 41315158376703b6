"""The findings of an audit, for the terminal."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from muonlab.analyze.audit import SEVERITIES, Audit, Finding
from muonlab.report.layout import cell, clean, grid, spaced
from muonlab.report.text import plural

__all__ = ["audit_table"]

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
SHOWN = 6  # rows that a line names; --json has all


def audit_table(found: Audit) -> list[RenderableType]:
    """One line that sums up, the findings, worst first, and which rules the table does not allow."""
    return spaced(
        Text(_summary(found), style="bold"),
        *([_findings(found)] if found.findings else []),
        *([_skipped(found)] if found.skipped else []),
        Text(_noise(found), style="dim"),
    )


def _summary(found: Audit) -> str:
    counts = ", ".join(plural(found.count(severity), severity) for severity in SEVERITIES)
    rules = f"{len(found.checked)} of {len(found.checked) + len(found.skipped)} rules checked"
    return f"{counts} in {plural(found.num_rows, 'row')}; {rules}, baseline {clean(found.baseline)}."


def _findings(found: Audit) -> Table:
    table = grid("What a reviewer would object to")
    table.add_column("severity", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("what was found", overflow="fold", ratio=1)
    table.add_column("rows", overflow="fold", max_width=14)
    for finding in found.findings:
        severity = Text(finding.severity, style=STYLES[finding.severity])
        table.add_row(severity, cell(finding.rule), cell(finding.detail), cell(_rows(finding)))
    return table


def _rows(finding: Finding) -> str:
    """Lines of the table, or keys as far as they are shown everywhere."""
    rows = sorted(finding.rows, key=lambda row: isinstance(row, str))  # lines of the table, then those of other files
    shown = [_short(str(row)) for row in rows[:SHOWN]]
    more = len(finding.rows) - len(shown)
    return " ".join(shown) + (f" and {more} more" if more else "") or "-"


def _short(row: str) -> str:
    """Of a key what is shown everywhere, of a line of another file its number."""
    name, colon, line = row.rpartition(":")
    return f"tuned:{line}" if name and colon else row[:12]


def _skipped(found: Audit) -> Table:
    table = grid("What this table does not allow to be checked")
    table.add_column("rule", no_wrap=True)
    table.add_column("why, and what would allow it", overflow="fold", ratio=1)
    for rule, why in found.skipped.items():
        table.add_row(cell(rule), cell(why))
    return table


def _noise(found: Audit) -> str:
    source = "measured between seeds" if found.noise_is_measured else "assumed (--noise)"
    return f"Noise of a final loss: {found.noise_nats:.2g} nats, {source}."
