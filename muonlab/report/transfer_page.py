"""A transfer study as one self-contained HTML file, with the means of the page of a comparison."""

from itertools import count
from typing import Any

from muonlab.analyze.coordinates import HIDDEN, CoordinateFinding
from muonlab.analyze.transfer_finding import TransferFinding
from muonlab.report import coordinates_figures, transfer_figures, transfer_maps
from muonlab.report.axes import COLUMNS, marks
from muonlab.report.canvas import looks_of
from muonlab.report.coordinates import coordinate_sentence, short_layer
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
            "meshes": transfer_maps.meshes(finding),
            "drifts": transfer_figures.drifts(finding, look),
            "maps": transfer_maps.survey_maps(finding),
            "survey": transfer_figures.survey(finding, look),
        },
        checked=None if finding.coordinates is None else _checked(finding.coordinates),
        next_figure=count(1).__next__,
        next_table=count(1).__next__,
        created=created,
        command=command,
    )


def _checked(finding: CoordinateFinding) -> dict[str, Any]:
    """Figures of the coordinate check, and where in the finding its table finds predictions and slopes."""
    look = coordinates_figures.layer_looks(finding)
    layers = dict.fromkeys((one.name, one.quantity, one.layer) for one in finding.slopes)
    return {
        "sentence": coordinate_sentence(finding),
        "changes": coordinates_figures.changes(finding, look),
        "updates": coordinates_figures.updates(finding, look),
        "legend": {short_layer(layer): mark for layer, mark in marks(look).items()},
        "predicted": {(p.prediction.name, p.prediction.parametrization): i for i, p in enumerate(finding.predictions)},
        "layers": [(*key, key[-1] if key[-1] == HIDDEN else short_layer(key[-1])) for key in layers],
        "slopes": {(s.name, s.quantity, s.layer, s.parametrization): i for i, s in enumerate(finding.slopes)},
    }


def _state(finding: TransferFinding) -> str:
    """One word for the whole, which sets the colour and the line above the verdict."""
    if finding.verdict.lower().startswith("verdict withheld"):
        return "withheld"
    judgements = [test.judgement for test in finding.contrasts.values()]
    judgements += ["better" for one in finding.slopes if one.verdict in ("grows", "falls")]
    if not judgements and not finding.slopes:
        return "none"
    return "resolved" if any(judgement in ("better", "worse") for judgement in judgements) else "unresolved"
