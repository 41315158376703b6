"""The finding of a batch study for the terminal."""

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.batch import BatchFinding
from muonlab.report.layout import clean, spaced
from muonlab.report.tables import checks_table

__all__ = ["batch_table"]


def batch_table(finding: BatchFinding) -> list[RenderableType]:
    """The finding, verdict first: what `batch` prints when the runs are done."""
    return spaced(Text(clean(finding.verdict), style="bold"), checks_table(finding.checks))
