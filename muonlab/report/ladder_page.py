"""The finding of a ladder as one self-contained HTML file, with the means of the page of a comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

from muonlab.analyze.ladder import LadderFinding
from muonlab.report import ladder_figures, ladder_settings
from muonlab.report.axes import COLUMNS, marks
from muonlab.report.canvas import looks_of
from muonlab.report.page import document
from muonlab.report.text import is_undefined

__all__ = ["render"]

LEAST_HEAT, MOST_HEAT = 0.06, 0.5  # opacity of a cell's shade


def render(finding: LadderFinding, *, created: str, command: str = "") -> str:
    """The report as HTML text; the same arguments give the same bytes.

    `created` is the only date, `command` what reproduces the report.
    """
    names = _names(finding)
    look = looks_of(names, finding.baseline)
    return document(
        "ladder.html",
        finding,
        state=_state(finding),
        names=names,
        look=look,
        marks=marks(look),
        columns=COLUMNS,
        challengers=[name for name in names if name != finding.baseline],
        speedups=_speedups(finding),
        regimes=_regimes(finding),
        ordered=_ordered,
        forecast_coordinates=_forecast_coordinates(finding),
        defaults=_defaults(finding, names),
        swaps=_swaps(finding),
        heats=_heats(finding),
        rungs=_rungs(finding, names),
        figures={
            "scaling": list(ladder_figures.scaling(finding, look).values()),
            "speedups": list(ladder_figures.speedups(finding, look).values()),
            "laws": [drawing for *_, drawing in ladder_settings.laws(finding, look)],
            "forecasts": ladder_settings.forecasts(finding, look),
            "gains": ladder_settings.tuning_gains(finding, look),
        },
        created=created,
        command=command,
    )


def _names(finding: LadderFinding) -> list[str]:
    """The baseline, then the others in the order of the finding."""
    others = [*finding.sensitivity, *(rung.optimizer for rung in finding.rungs)]
    return list(dict.fromkeys([finding.baseline, *others]))


def _state(finding: LadderFinding) -> str:
    """One word for the whole, which sets the colour and the line above the verdict."""
    judgements = [row.judgement for row in finding.rows]
    if not finding.verdict or not judgements:
        return "none"
    if "withheld" in judgements or finding.verdict.lower().startswith("verdict withheld"):
        return "withheld"
    return "resolved" if any(judgement in ("better", "worse") for judgement in judgements) else "unresolved"


def _speedups(finding: LadderFinding) -> dict[tuple[str, str, float], int]:
    """Where in `rows` an optimizer's speedup at a size and ratio is."""
    places = {(rung.optimizer, rung.size, rung.ratio): ladder_figures.row_of(finding, rung) for rung in finding.rungs}
    return {key: place for key, place in places.items() if place is not None}


def _regimes(finding: LadderFinding) -> list[str]:
    """All regimes that were tuned in full, by size and ratio."""
    named = {f"{size} {ratio:g}x": None for size in finding.sizes for ratio in finding.ratios}
    seen = dict.fromkeys(r for coordinates in finding.sensitivity.values() for c in coordinates for r in c.near_optimal)
    return [*(regime for regime in named if regime in seen), *(regime for regime in seen if regime not in named)]


def _ordered(values: Sequence[Any]) -> list[int]:
    """Places of the values from the least to the greatest; as they stand if they can't be ordered.

    >>> _ordered((0.2, 0.05, 0.1)), _ordered(("b", None, 1))
    ([1, 2, 0], [0, 1, 2])
    """
    try:
        return sorted(range(len(values)), key=lambda i: values[i])
    except TypeError:
        return list(range(len(values)))


def _forecast_coordinates(finding: LadderFinding) -> list[str]:
    return list(dict.fromkeys(name for one in finding.forecasts for name in (*one.predicted, *one.found)))


def _defaults(finding: LadderFinding, names: Sequence[str]) -> list[tuple[int, Any, int | None]]:
    """(place in `controls`, the control, place in `rows` of the optimizer's own gain) of those at defaults."""
    sizes = list(finding.sizes)
    found = [
        (i, control, ladder_settings.own_gain(finding, control))
        for i, control in enumerate(finding.controls)
        if not control.settings_of
    ]
    return sorted(found, key=lambda entry: (sizes.index(entry[1].size), names.index(entry[1].optimizer)))


def _swaps(finding: LadderFinding) -> dict[tuple[str, str], int]:
    """(optimizer, whose settings it was given) -> place in `controls`."""
    return {(one.optimizer, one.settings_of): i for i, one in enumerate(finding.controls) if one.settings_of}


def _heats(finding: LadderFinding) -> Mapping[int, float]:
    """Opacity of the shade of each exchange of settings, by its cost beside the costliest; none for what may be 0."""
    costs = {
        i: abs(one.difference_nats)
        for i, one in enumerate(finding.controls)
        if one.settings_of and not any(map(is_undefined, (one.difference_nats, one.low, one.high)))
        if not one.low <= 0.0 <= one.high
    }
    most = max(costs.values(), default=0.0) or 1.0
    return {i: round(LEAST_HEAT + (MOST_HEAT - LEAST_HEAT) * cost / most, 3) for i, cost in costs.items()}


def _rungs(finding: LadderFinding, names: Sequence[str]) -> list[tuple[int, Any, int | None]]:
    """(place in `rungs`, the rung, place in `rows` of its speedup) by size, ratio and optimizer."""
    found = [(i, rung, ladder_figures.row_of(finding, rung)) for i, rung in enumerate(finding.rungs)]
    return sorted(found, key=lambda entry: (entry[1].params, entry[1].ratio, names.index(entry[1].optimizer)))
