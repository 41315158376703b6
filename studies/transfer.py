"""The transfer study of studies/transfer.toml: keep its results in one file, and write docs/transfer_results.md.

muonlab transfer text --config studies/transfer.toml --store transfer.db
python studies/transfer.py --store transfer.db   # also keeps the results in studies/transfer_results.json.gz
python studies/transfer.py                       # writes the page and its figures again, from the file alone
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from results import Results, latest, read, write
from writing import checks, interval, sheet, table

from muonlab.analyze.coordinates import CoordinateFinding
from muonlab.analyze.survey import Slope
from muonlab.analyze.transfer_finding import Place, TransferFinding
from muonlab.records.store import Store
from muonlab.records.transfer_evidence import TransferEvidence
from muonlab.report import coordinates_figures, transfer_figures, transfer_maps
from muonlab.report.axes import marks
from muonlab.report.canvas import looks_of
from muonlab.report.coordinates import coordinate_sentence, power_words, predicted_words, short_layer
from muonlab.report.text import show
from muonlab.study.transfer_fairness import conclude_transfer

HERE = Path(__file__).parent
RESULTS, DOCS, PAGE = HERE / "transfer_results.json.gz", HERE.parent / "docs", "transfer_results.md"
INDEPENDENT = "muon spectral"  # the arm whose lr should not depend on the width, if its parametrization is right
CURVES = ("train_steps", "train_loss", "eval_steps", "eval_loss")  # of a record


def keep(url: str) -> None:
    """The latest transfer study of a store, with its records, without their curves."""
    with Store(url, read_only=True) as store:
        found = Results.of_store(store, latest(store, "transfer"), TransferEvidence)
    write(RESULTS, found.leaner(lambda one: replace(one, **dict.fromkeys(CURVES, ()))).to_dict())


def kept() -> tuple[TransferFinding, Results[TransferEvidence]]:
    found = Results.from_dict(read(RESULTS), TransferEvidence)
    return conclude_transfer(found.evidence, found.records), found


def figures(finding: TransferFinding) -> dict[str, str]:
    """File -> SVG."""
    look = looks_of([arm.name for arm in finding.arms], finding.baseline)
    found = {}
    if finding.survey:
        found["transfer_survey.svg"] = sheet(transfer_figures.survey(finding, look), marks(look))
        found["transfer_maps.svg"] = sheet(transfer_maps.survey_maps(finding))
    if finding.stages:
        found["transfer_meshes.svg"] = sheet(transfer_maps.meshes(finding))
    if drifts := transfer_figures.drifts(finding, look):
        found["transfer_drifts.svg"] = sheet(drifts, marks(look))
    if finding.coordinates is not None:
        layers = coordinates_figures.layer_looks(finding.coordinates)
        legend = {short_layer(layer): mark for layer, mark in marks(layers).items()}
        for name in ("changes", "updates"):
            if drawings := getattr(coordinates_figures, name)(finding.coordinates, layers):
                found[f"transfer_{name}.svg"] = sheet(drawings, legend)
    return found


def independence(slopes: Iterable[Slope]) -> str:
    """Whether the best lr of Muon's hidden matrices is the same at every width under `spectral`."""
    one = next((one for one in slopes if one.arm == INDEPENDENT), None)
    if one is None or one.slope is None or one.low is None or one.high is None:
        return "Whether Muon's best learning rate is the same at every width under `spectral` can't be told."
    measured = f"the slope of log lr\\* over log width is {one.slope:+.2f} {interval(one.low, one.high, '+.2f')}"
    first, last = one.widths[0], one.widths[-1]
    factors = f"{(last / first) ** one.low:.2f} to {(last / first) ** one.high:.2f}"
    moved = f"the best learning rate at width {last} is {factors} times that at {first}"
    if one.low <= 0 <= one.high:
        claim = "is independent of the width within the interval"
        return f"**Under `spectral` Muon's best learning rate {claim}:** {measured}. What it leaves open: {moved}."
    claim = "is not independent of the width"
    return f"**Under `spectral` Muon's best learning rate {claim}:** {measured}, without 0; {moved}."


def survey(finding: TransferFinding) -> list[str]:
    body = [
        (
            one.arm,
            "-" if one.slope is None else f"{one.slope:+.2f} {interval(one.low, one.high, '+.2f')}",
            {"unresolved": "not resolvably"}.get(one.verdict, one.verdict),
            ", ".join(map(str, one.widths)),
            "-" if one.given_up_nats is None else f"{one.given_up_nats:.4f} ± {one.given_up_error or 0.0:.4f}",
        )
        for one in finding.slopes
    ]
    first, last = finding.widths[0], finding.widths[-1]
    given_up = f"nats given up at {last} by the best lr of {first}, ± a standard error"
    rows = table(("", "slope of log lr\\* over log width, 95 %", "moves", "widths with an optimum", given_up), body)
    places = {(one.arm, one.width): one for one in finding.survey}
    body = []
    for arm in dict.fromkeys(one.arm for one in finding.survey):
        own = [places[arm, width] for width in finding.widths]
        body.append((arm, *(f"{words(one.lr, one.low, one.high)} {one.flag}".strip() for one in own)))
    return [
        *rows,
        "![Loss against the learning rate by width, and the best against the width](transfer_survey.svg)",
        "",
        "The best learning rate by width, with 95 % intervals:",
        "",
        *table(("", *map(str, finding.widths)), body),
        "![Losses over learning rate and width](transfer_maps.svg)",
        "",
        "Each width in a row: the darker a cell, the higher its loss above the least of that row, from 0.1 nats on as",
        "dark as can be. Ring: the optimum, with its 95 % interval.",
        "",
    ]


def words(value: float | None, low: float | None, high: float | None) -> str:
    return "-" if value is None else f"{value:.3g} {interval(low, high, '.3g')}"


def places(found: Mapping[str, Place]) -> str:
    return ", ".join(f"{name} {words(one.value, one.low, one.high)}" for name, one in found.items()) or "-"


def telescoping(finding: TransferFinding) -> list[str]:
    stages = [
        (s.arm, s.width, "x".join(map(str, s.points.values())), s.num_runs, places(s.optimum)) for s in finding.stages
    ]
    body = [
        (
            arm.name, ", ".join(f"{name} {show(value, 'value3')}" for name, value in arm.best.items()),
            show(arm.loss_mean, "loss"), interval(arm.loss_low, arm.loss_high, ".4f"), show(arm.cost_ratio, "share"),
            show(arm.direct_nats, "loss"), show(arm.regret_high, "loss"),
        )
        for arm in finding.arms
    ]  # fmt: skip
    heads = (
        "", "settings", "final loss", "95 %", "cost, of a whole grid there", "first optimum gives up, nats",
        "noise may cost, 95 %",
    )  # fmt: skip
    return [
        *table(heads, body),
        "![Optimum against the width](transfer_drifts.svg)",
        "",
        *table(("", "width", "grid", "runs", "optimum"), stages),
        "![Losses of every grid](transfer_meshes.svg)",
        "",
    ]


def coordinates(finding: CoordinateFinding) -> list[str]:
    said = {(p.prediction.name, p.prediction.parametrization): p for p in finding.predictions}
    body = []
    for one in finding.checks:
        p = said[one.name, one.parametrization]
        worst = "-" if one.worst is None else f"{short_layer(one.worst.layer)} {power_words(one.worst)}"
        measured = f"{power_words(p)} {p.verdict}"
        body.append((f"{one.name}, {one.parametrization}", predicted_words(p.prediction), measured, one.verdict, worst))
    lrs = ", ".join(f"{name} {show(lr, 'value')}" for name, lr in finding.lr.items())
    return [
        coordinate_sentence(finding),
        f"Before anything was tuned, on {len(finding.seeds)} seeds, at a constant learning rate ({lrs}).",
        "",
        *table(("", "predicted, update", "measured, update", "check", "layer furthest from 0"), body),
        "![Change of the layers' outputs against the width](transfer_changes.svg)",
        "",
        "![Updates of hidden matrices against the width; grey: predicted](transfer_updates.svg)",
        "",
    ]


def page(finding: TransferFinding, results: Results[TransferEvidence]) -> str:
    parts: dict[str, Sequence[str]] = {}
    if finding.survey:
        parts["Does the best learning rate move with the width?"] = [independence(finding.slopes), "", *survey(finding)]
    if finding.final_width is not None:
        parts[f"Settings for width {finding.final_width}"] = telescoping(finding)
    if finding.coordinates is not None:
        parts["Coordinate check"] = coordinates(finding.coordinates)
    parts["Checks"] = checks(finding.checks)
    lines = [
        "# Learning rates over widths",
        "",
        "Measured by muonlab. Written by `make transfer-page` from `studies/transfer_results.json.gz`, which holds",
        "every run; `make transfer` makes the runs again. What the words mean is in [transfer](transfer.md),",
        "[parametrization](parametrization.md) and [coordinate check](coordinates.md).",
        "",
        "Every model here is tiny. Intervals are those of the noise between seeds or, where that is more, of what",
        "parabolas leave.",
        "",
        f"**{finding.verdict}**",
        "",
        f"`studies/transfer.toml`: {finding.num_runs} runs, {finding.num_failed} failed, "
        f"{show(finding.total_tokens, 'tokens')} tokens, {results.time}, "
        f"{results.machine}.",
        "",
    ]
    for heading, part in parts.items():
        lines += [f"## {heading}", "", *part]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="take the latest transfer study of this store")
    arguments = parser.parse_args()
    if arguments.store:
        keep(arguments.store)
    finding, results = kept()
    for name, svg in figures(finding).items():
        (DOCS / name).write_text(svg)
    (DOCS / PAGE).write_text(page(finding, results))


if __name__ == "__main__":
    main()
