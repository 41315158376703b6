"""The results page of the transfer study that ships: kept from a store, and written again from the file."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the worlds, which pytest's importlib mode does not find

import coordinate_world
from transfer_world import World

from muonlab.analyze.survey import Slope
from muonlab.records.store import Store
from muonlab.study.transfer_fairness import conclude_transfer

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("transfer")


@pytest.fixture(scope="module")
def made():
    """Evidence and records of a study with all its parts."""
    world, layers = World(noise=0.003), coordinate_world.World()
    evidence = world.study(("adamw", "muon"), survey=True, widths=(32, 64, 128), points=5)
    evidence = replace(evidence, coordinates=coordinate_world.checked(layers)[0])
    return evidence, world.records | layers.records


@pytest.fixture(scope="module")
def kept(script, made, tmp_path_factory):
    """What the script keeps of a store."""
    evidence, records = made
    folder = tmp_path_factory.mktemp("kept")
    url = str(folder / "s.db")
    with Store(url) as store:
        for record in records.values():
            store.put(record)
        store.save_study("a" * 64, "transfer", "made up", {}, evidence.to_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "RESULTS", folder / "results.json.gz")
        script.keep(url)
        return script.kept()


def test_what_is_kept_says_the_same_as_the_store(kept, made) -> None:
    finding, results = kept
    assert finding == conclude_transfer(*made) and set(results.records) == set(made[1]) and results.created


def test_the_page_says_what_was_found(script, kept) -> None:
    finding = kept[0]
    page = script.page(*kept)
    assert finding.verdict in page and script.independence(finding.slopes) in page
    for one in finding.slopes:
        assert f"| {one.arm} | {one.slope:+.2f} [{one.low:+.2f}, {one.high:+.2f}] |" in page
    for one in finding.survey:
        assert f"{one.lr:.3g} [{one.low:.3g}, {one.high:.3g}]" in page
    for check in finding.checks:
        assert check.detail in page
    assert "Coordinate check, widths 32 to 256" in page and "| muon, mup | -1 |" in page


def test_every_figure_is_there_and_is_an_image(script, kept) -> None:
    figures = script.figures(kept[0])
    assert set(re.findall(r"\]\((\w+\.svg)\)", script.page(*kept))) == set(figures) and len(figures) == 6
    for svg in figures.values():
        root = ElementTree.fromstring(svg)
        panels = [one for one in root if one.get("aria-label")]
        assert panels and all(float(one.get("x")) < float(root.get("width")) for one in panels)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.1, 0.2, "is independent of the width within the interval"),
        (0.1, 0.3, "is not independent of the width"),
        (None, None, "can't be told"),
    ],
)
def test_independence_of_the_width_is_said_as_it_was_measured(script, low, high, said) -> None:
    slope = None if low is None else (low + high) / 2
    one = Slope(
        arm="muon spectral", widths=(16, 32, 64), slope=slope, low=low, high=high, verdict="", given_up_nats=None,
        given_up_error=None,
    )  # fmt: skip
    other = replace(one, arm="muon mup", slope=5.0, low=4.0, high=6.0)
    text = script.independence([other, one])
    assert said in text and (low is None or f"{4**low:.2f} to {4**high:.2f} times" in text)
    assert "can't be told" in script.independence([other])
