"""A study of features as one self-contained HTML file, with the means of the page of a comparison."""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from muonlab.analyze.feature_looks import CONDITIONS
from muonlab.analyze.features import MEASURES, FeaturesFinding
from muonlab.report import features_figures as figures
from muonlab.report.axes import COLUMNS, marks
from muonlab.report.canvas import looks_of
from muonlab.report.features import HELD, WHERE
from muonlab.report.page import document

__all__ = ["render"]

OFF = ", no decay"
SPREADS = {  # of `LikenessRow`
    "same_seed": "Same seed",
    "other_seeds": "Other seeds",
    "own_seeds": "Two seeds of it",
    "baseline_seeds": "Two of the baseline",
}


def render(finding: FeaturesFinding, *, created: str, command: str = "") -> str:
    """The report as HTML text; the same arguments give the same bytes.

    `created` is the only date, `command` what reproduces the report.
    """
    look = looks_of(finding.optimizers, finding.baseline)
    names = list(look)
    corrupted, classes = bool(finding.corruptions), bool(finding.errors)
    tables, drawn = 2 + 2 * corrupted + classes, corrupted + classes  # numbers of those before the layers'
    return document(
        "features.html",
        finding,
        state=_state(finding),
        names=names,
        challengers=names[1:],
        look=look,
        marks=marks(look),
        columns=COLUMNS,
        conditions=CONDITIONS,
        where=WHERE,
        short={at: f"{figures.AT[at.removesuffix(OFF)]}{OFF if at.endswith(OFF) else ''}" for at in CONDITIONS},
        held=HELD,
        measures=MEASURES,
        spreads=SPREADS,
        claimed=list(dict.fromkeys(claim.claim for claim in finding.claims)),
        layers=list(dict.fromkeys(row.layer for row in finding.layers)),
        corruptions=list(dict.fromkeys(row.corruption for row in finding.corruptions)),
        severities=sorted({row.severity for row in finding.corruptions}),
        places=_places(finding),
        figures={
            "rise": figures.robustness(finding, look, "rise"),
            "accuracy": figures.robustness(finding, look, "accuracy"),
            "rank": figures.layers(finding, look, "rank_effective"),
            "margin": figures.layers(finding, look, "margin_normalised"),
            "likeness": figures.likeness(finding, look),
        },
        tables=tables,
        drawn=drawn,
        later=1 if finding.transfer else 0,
        created=created,
        command=command,
    )


def _state(finding: FeaturesFinding) -> str:
    """One word for the whole, which sets the colour and the line above the verdict."""
    if finding.verdict.lower().startswith("verdict withheld"):
        return "withheld"
    if not finding.claims:
        return "none"
    known = {claim.at for claim in finding.claims if claim.held is not None}
    return "resolved" if "loss" in known else "elsewhere" if known else "unresolved"


def _places(finding: FeaturesFinding) -> dict[str, dict[tuple[Any, ...], int]]:
    """Where in each part of the finding an entry is."""
    return {
        "claims": _by(finding.claims, "optimizer", "claim", "at"),
        "layers": _by(finding.layers, "optimizer", "layer", "measure", "at"),
        "corruptions": _by(finding.corruptions, "optimizer", "corruption", "severity", "at"),
        "severities": _by(finding.severities, "optimizer", "severity", "at"),
        "errors": _by(finding.errors, "optimizer", "at"),
        "cka": _by(finding.cka, "optimizer", "layer", "at"),
    }


def _by(entries: Iterable[Any], *fields: str) -> dict[tuple[Any, ...], int]:
    return {attrgetter(*fields)(one): i for i, one in enumerate(entries)}
