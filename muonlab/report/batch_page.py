"""A batch study as one self-contained HTML file, with the means of the page of a comparison."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from muonlab.analyze.batch import BatchFinding
from muonlab.report import batch_figures, batch_frontier
from muonlab.report.axes import COLUMNS, marks
from muonlab.report.canvas import looks_of
from muonlab.report.page import document

__all__ = ["render"]


def render(finding: BatchFinding, *, created: str, command: str = "") -> str:
    """The report as HTML text; the same arguments give the same bytes.

    `created` is the only date, `command` what reproduces the report.
    """
    look = looks_of(finding.optimizers, finding.baseline)
    names = list(look)
    return document(
        "batch.html",
        finding,
        state=_state(finding),
        judged=finding.hardest,
        names=names,
        look=look,
        marks=marks(look),
        columns=COLUMNS,
        challengers=names[1:],
        estimators=batch_frontier.ESTIMATORS,
        places=_places(finding),
        coordinates=_coordinates(finding),
        best=_best(finding, names),
        devices=sorted({d for one in finding.dominance for d in one.devices}),
        measured=any(not one.modelled for one in finding.frontier),
        modelled=sorted({one.devices for one in finding.frontier if one.modelled and one.devices > 1}),
        figures={
            "tokens": batch_figures.tokens(finding, look),
            "ratios": batch_figures.ratios(finding, look),
            "critical": batch_frontier.critical_batches(finding, look),
            "noise": batch_figures.noise_scales(finding, look),
            "frontier": batch_frontier.frontiers(finding, look),
            "rates": batch_figures.rates(finding, look),
        },
        created=created,
        command=command,
    )


def _state(finding: BatchFinding) -> str:
    """One word for the whole, which sets the colour and the line above the verdict, of the target it is about."""
    if finding.verdict.lower().startswith("verdict withheld"):
        return "withheld"
    judgements = [one.judgement for one in finding.token_ratio if one.target == finding.hardest and one.judgement]
    if not finding.verdict or not judgements:
        return "none"
    return "resolved" if any(judgement in ("better", "worse") for judgement in judgements) else "unresolved"


def _places(finding: BatchFinding) -> dict[str, dict[tuple[Any, ...], int]]:
    """Where in each part of the finding the entry of an optimizer, batch and target is."""
    return {
        "times": _by(finding.times, "optimizer", "batch_tokens", "target"),
        "token_ratio": _by(finding.token_ratio, "optimizer", "batch_tokens", "target"),
        "noise": _by(finding.noise, "optimizer", "batch_tokens", "target"),
        "trends": _by(finding.trends, "optimizer", "target"),
        "critical": _by(finding.critical, "optimizer", "target"),
        "settings": _by(finding.settings, "optimizer", "batch_tokens"),
    }


def _by(entries: Iterable[Any], *fields: str) -> dict[tuple[Any, ...], int]:
    return {attrgetter(*fields)(one): i for i, one in enumerate(entries)}


def _coordinates(finding: BatchFinding) -> list[str]:
    """All hyperparameters that any optimizer was set by."""
    return list(dict.fromkeys(name for one in finding.settings for name in (*one.predicted, *one.chosen)))


def _best(finding: BatchFinding, names: Sequence[str]) -> list[tuple[int, Any]]:
    """(place in `frontier`, the point) of those that no other dominates, by target, devices and optimizer."""
    found = [(i, one) for i, one in enumerate(finding.frontier) if one.on_frontier]
    order = {target: i for i, target in enumerate(finding.targets)}
    return sorted(found, key=lambda entry: (order[entry[1].target], entry[1].devices, names.index(entry[1].optimizer)))
