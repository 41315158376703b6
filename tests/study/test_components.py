"""The study of components: what it reads off runs, and its page."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from muonlab.records.record import Series

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("components")


@pytest.fixture(scope="module")
def records(script):
    return script.kept()


def test_every_run_is_another_one(script, records):
    specs = script.every_spec()
    assert len({spec.key for spec in specs}) == len(specs) == len(records)
    assert all(not spec.clip and spec.schedule.kind == "constant" for spec in specs)


def test_measures_are_read_where_a_loss_is_reached_first(script, records):
    probes = {f"components.{name}": Series((1, 2, 3), (0.0, 1.0, 5.0)) for name in script.MEASURES}
    run = replace(records[0], eval_steps=(1, 2, 3), eval_loss=(2.0, 1.0, 0.25), probes=probes)
    assert script.at_loss(run, 0.5) == pytest.approx(dict.fromkeys(script.MEASURES, 3.0))  # half way in the logarithm
    for loss in (3.0, 0.2):
        with pytest.raises(ValueError, match="no loss"):
            script.at_loss(run, loss)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [([0.5, -0.1], "above"), ([2.0, 2.0], "below"), ([1.01, 0.99], "like"), ([0.5, 2.0], "mixed with")],
)
def test_a_claim_holds_in_every_basis_or_not(script, theirs, said):
    assert script.side(np.array([1.0, 1.0]), np.array(theirs)) == said


def test_a_run_that_is_missing_is_no_result(script, records):
    with pytest.raises(KeyError):
        script.measured([replace(record, outcome="diverged") for record in records[:5]] + records[5:])


def test_the_page_is_what_the_results_say(script, records):
    assert script.PAGE.read_text() == script.page(records)
    assert script.RESULTS.stat().st_size < 1_000_000
