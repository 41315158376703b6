"""A transfer study as one self-contained HTML file, with the means of the page of a comparison."""

from muonlab.analyze.transfer_finding import TransferFinding
from muonlab.report import transfer_figures
from muonlab.report.axes import COLUMNS, marks
from muonlab.report.canvas import looks_of
from muonlab.report.page import document

__all__ = ["render"]


def render(finding: TransferFinding, *, created: str, command: str = "") -> str:
    """The report as HTML text; the same arguments give the same bytes.

    `created` is the only date, `command` what reproduces the report.
    """
    look = looks_of([arm.name for arm in finding.arms], finding.baseline)
    return document(
        "transfer.html",
        finding,
        state=_state(finding),
        names=list(look),
        look=look,
        marks=marks(look),
        columns=COLUMNS,
        axes=list(dict.fromkeys(name for arm in finding.arms for name in arm.axes)),
        figures={
            "meshes": transfer_figures.meshes(finding),
            "drifts": transfer_figures.drifts(finding, look),
            "survey": transfer_figures.survey(finding, look),
        },
        created=created,
        command=command,
    )


def _state(finding: TransferFinding) -> str:
    """One word for the whole, which sets the colour and the line above the verdict."""
    if finding.verdict.lower().startswith("verdict withheld"):
        return "withheld"
    judgements = [test.judgement for test in finding.contrasts.values()]
    judgements += ["better" for one in finding.slopes if one.verdict in ("grows", "falls")]
    if not judgements and not finding.slopes:
        return "none"
    return "resolved" if any(judgement in ("better", "worse") for judgement in judgements) else "unresolved"
