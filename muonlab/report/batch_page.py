"""A batch study as one self-contained HTML file."""

from muonlab.analyze.batch import BatchFinding

__all__ = ["render"]


def render(finding: BatchFinding, *, created: str, command: str = "") -> str:
    """The report as HTML text; the same arguments give the same bytes."""
    return f"<pre>{finding.verdict}</pre>"
