"""A coordinate check on the terminal and in figures."""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from muonlab.analyze.coordinates import HIDDEN
from muonlab.records import Record, RunSpec
from muonlab.report.canvas import BASELINE
from muonlab.report.coordinates import coordinates_table, power_words, predicted_words, probe_table
from muonlab.report.coordinates_figures import changes, layer_looks, updates

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))  # coordinate_world.py

from coordinate_world import World, checked

PLANTED = World(
    change={("adamw", "standard"): 0.5}, update={("adamw", "standard"): 0.7, ("muon", "mup"): -0.9},
    diverges=("muon", "spectral", 256),
)  # fmt: skip


@pytest.fixture(scope="module")
def finding():
    return checked(PLANTED)[1]


def printed(parts, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_and_says_everything(finding, width: int) -> None:
    text = printed(coordinates_table(finding), width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    assert "passed by adamw mup, adamw spectral, muon standard, muon mup; failed by adamw standard" in flat
    assert "unresolved for muon spectral" in flat and "- muon spectral: of 12 runs 3 diverged" in flat
    for one in finding.predictions:
        assert power_words(one) in text and predicted_words(one.prediction) in text
    worst = finding.checks[0].worst
    assert power_words(worst) in text
    half = worst.high - worst.slope
    assert f"{worst.slope:+.2f} +- {half:.2f}" in text


def test_a_panel_for_every_optimizer_and_parametrization(finding) -> None:
    look = layer_looks(finding)
    assert set(look) == {one.layer for one in finding.slopes} - {HIDDEN} and look["head"].colour == BASELINE
    for panels in (changes(finding, look), updates(finding, look)):
        titles = [re.findall(r"<text[^>]*>([^<]*, (?:standard|mup|spectral))</text>", one.svg) for one in panels]
        assert titles == [[f"{name}, {kind}"] for name in finding.optimizers for kind in finding.parametrizations]
    assert [one.svg for one in updates(finding, look)] == [one.svg for one in updates(finding, look)]


def test_the_alternative_text_says_the_powers_and_what_was_predicted(finding) -> None:
    first = updates(finding, layer_looks(finding))[0].alt
    assert power_words(finding.predictions[0]) in first and "predicted 0.5 to 1" in first
    change = finding.slope("muon", "mup", "change", "head")
    assert f"head {power_words(change)}" in changes(finding, layer_looks(finding))[4].alt


def test_lines_go_through_the_values(finding) -> None:
    """The path of a line has a point for each width that has a value: one less where all runs diverged."""
    look = layer_looks(finding)
    whole, cut = changes(finding, look)[4].svg, changes(finding, look)[5].svg
    assert whole.count("<use") - cut.count("<use") >= len(look)


def test_nothing_measured_draws_nothing() -> None:
    _, finding = checked(World(dead="head"))
    assert changes(finding, layer_looks(finding))
    empty = replace(finding, slopes=(), checks=(), predictions=())
    assert changes(empty, layer_looks(empty)) == updates(empty, layer_looks(empty)) == []


def test_what_the_probe_of_a_run_saw() -> None:
    record = next(iter(PLANTED.records.values()))
    text = printed(probe_table(record), 80)
    assert max(map(len, text.splitlines())) <= 80 and "blocks.1.mlp.down" in text
    steps, values = record.probes["change.head"]
    assert steps == (1, 2, 4, 8) and all(f"{value:.3g}" in text for value in values)
    assert (
        probe_table(Record(spec=RunSpec(task="t", optimizer="o", horizon_tokens=2, batch_tokens=1), outcome="ok")) == []
    )
