"""The page and the tables of a transfer study: every number is a field of the finding, and no study breaks them."""

import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from reading import CREATED, Page, check_figures, check_self_contained, numbers_of
from rich.console import Console
from test_browser import BROWSER, browse
from test_page import HOSTILE

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))

import coordinate_world
from transfer_world import World

from muonlab.analyze.transfer_finding import TransferFinding
from muonlab.report import page, transfer_page
from muonlab.report.transfer import transfer_table
from muonlab.study.transfer_fairness import conclude_transfer

STUDIES = {
    "whole": ({"noise": 0.003}, {"names": ("adamw", "muon"), "survey": True}),
    "alone": ({}, {"num_axes": 1, "points": 8}),
    "momentum": ({"noise": 0.001}, {"num_axes": 3, "points": 4}),
    "survey": ({"noise": 0.003, "power": 1.0}, {"survey": True, "final_width": None}),
    "edge": ({"best": (20.0, 0.0, 0.0)}, {"max_extensions": 0, "survey": True}),
    "lost": ({"diverges_above": 0.0}, {"survey": True}),
    "checked": ({"noise": 0.003}, {"names": ("adamw", "muon")}),
    "not measured": ({"noise": 0.003}, {"num_axes": 1}),
}
LAYERS = {
    "checked": {"change": {("muon", "mup"): -0.6}, "update": {("adamw", "standard"): 0.7}},
    "not measured": {"diverges": ("adamw", "mup", 64), "dead": "head"},
}


@cache
def finding_of(name: str) -> TransferFinding:
    world, study = STUDIES[name]
    made = World(**world)
    evidence, records = made.study(**study), made.records
    if name in LAYERS:
        layers = coordinate_world.World(**LAYERS[name])
        evidence = replace(evidence, coordinates=coordinate_world.checked(layers)[0])
        records = records | layers.records
    return conclude_transfer(evidence, records)


@cache
def page_of(name: str) -> str:
    return transfer_page.render(finding_of(name), created=CREATED)


def width_of(rows, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in rows:
        console.print(part)
    return console.export_text()


@pytest.mark.parametrize("name", STUDIES)
def test_every_number_is_a_field_of_the_finding(name: str) -> None:
    assert numbers_of(page_of(name), finding_of(name).to_dict()).bare == []


def test_the_finding_is_all_there() -> None:
    finding, names = finding_of("whole"), {name for name, _, _ in Page(page_of("whole")).fields}
    for i, one in enumerate(finding.stages):
        assert {f"stages[{i}].{part}" for part in ("width", "loss", "num_runs", "num_lost", "tokens", "flops")} <= names
        assert {f"stages[{i}].optimum['{axis}'].{part}" for axis in one.optimum for part in ("value", "low")} <= names
    for i in range(len(finding.drifts)):
        assert {f"drifts[{i}].{part}" for part in ("rate", "low", "high", "predicted.value", "used")} <= names
    for i in range(len(finding.arms)):
        parts = ("loss_mean", "flops", "direct_flops", "grid_flops", "cost_ratio", "direct_nats", "regret_high")
        assert {f"arms[{i}].{part}" for part in parts} <= names
    for i in range(len(finding.survey)):
        assert {f"survey[{i}].{part}" for part in ("width", "lr", "loss", "flag")} <= names
    for i in range(len(finding.slopes)):
        assert {f"slopes[{i}].{part}" for part in ("slope", "low", "high", "verdict", "given_up_nats")} <= names
    assert {"verdict", "cost_ratio", "num_runs", "num_failed", "total_tokens", "total_flops"} <= names


def test_the_coordinate_check_is_all_there() -> None:
    finding, html = finding_of("checked"), page_of("checked")
    names = {name for name, _, _ in Page(html).fields}
    check = finding.coordinates
    assert check is not None and check.slopes
    for i in range(len(check.slopes)):
        assert {f"coordinates.slopes[{i}].{part}" for part in ("slope", "low", "high")} <= names
    for i in range(len(check.predictions)):
        said = {f"coordinates.predictions[{i}].{part}" for part in ("slope", "low", "high", "verdict")}
        assert said | {f"coordinates.predictions[{i}].prediction.low"} <= names
    for i in range(len(check.checks)):
        assert {f"coordinates.checks[{i}].{part}" for part in ("verdict", "detail", "worst.slope")} <= names
    panels = [f"{name}, {kind}: {of}" for of in ("change of", "update") for name in check.optimizers
              for kind in check.parametrizations]  # fmt: skip
    assert all(html.count(f'aria-label="{panel}') == 1 for panel in panels)
    text = " ".join(width_of(transfer_table(finding), 80).split())
    assert "Coordinate check, widths 32 to 256, after 8 steps" in text and "failed by muon mup" in text


@pytest.mark.parametrize("name", STUDIES)
def test_figures_and_tables_are_counted_without_a_gap(name: str) -> None:
    for kind in ("Figure", "Table"):
        numbers = [int(n) for n in re.findall(rf"<b>{kind} (\d+)\.", page_of(name))]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > (kind == "Table")


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_is_asked_of_the_network(name: str) -> None:
    html = page_of(name)
    check_self_contained(html)
    check_figures(html)
    assert html.count("<table") == html.count("<caption")


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_the_terminal(name: str, width: int) -> None:
    finding = finding_of(name)
    text = width_of(transfer_table(finding), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert finding.verdict.split()[0] in text and "Fairness checks" in text
    for one in finding.stages:
        assert f"{one.width:,}" in text


def test_each_grid_has_a_heat_map_whose_text_says_what_it_shows() -> None:
    finding, html = finding_of("whole"), page_of("whole")
    for one in finding.stages:
        assert f"{one.arm} at width {one.width:,}: losses of {len(one.mesh)} points" in html
    assert html.count("<svg") == 2 + len(finding.stages) + 2 + 3 + 2 + 2
    for arm in ("adamw", "muon"):
        assert f"{arm}: losses over opt.lr and width, above the least at that width; the best at" in html


def test_a_hostile_name_is_text() -> None:
    world = World()
    evidence = world.study(("adamw", HOSTILE), num_axes=1, points=8, survey=True)
    finding = conclude_transfer(evidence, world.records)
    html = transfer_page.render(finding, created=CREATED, command=HOSTILE)
    assert "<script" not in html and "<img" not in html and html.count("</style>") == html.count("<style>") == 1
    assert "\x1b[31m" not in width_of(transfer_table(finding), 80)


def test_the_same_finding_gives_the_same_bytes() -> None:
    assert transfer_page.render(finding_of("momentum"), created=CREATED) == page_of("momentum")


@pytest.mark.skipif(BROWSER is None, reason="no browser found")
def test_a_browser_has_nothing_to_say(tmp_path) -> None:
    page.write(tmp_path / "report.html", page_of("whole"))
    result = browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", "--dump-dom")
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
