"""The study of the four variants: its runs, what it reads off curves, its answers to planted ones, its page."""

import importlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from muonlab.analyze.bounds import Bound
from muonlab.optim import catalog
from muonlab.records import Record
from muonlab.records.record import Series

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        yield importlib.import_module("four_variants")


@pytest.fixture(scope="module")
def page(script):
    return importlib.import_module("four_variants_page")


@pytest.fixture(scope="module")
def records(script):
    return script.kept()


def planted(script, bound_at):
    """The curves of an arm, for three seeds, if what is measured is a bound, which depends on the learning rate."""
    counts = np.arange(1.0, 40_001.0)
    curves = {(lr, batch): np.tile(bound_at(lr).value(counts, batch), (3, 1)) for lr, batch in grid(script)}
    return {at: script.Curve(counts, values, values) for at, values in curves.items()}


def grid(script):
    return [(lr, batch) for lr in script.STEPS for batch in script.BATCHES]


def test_every_run_is_another_one_and_of_its_variant(script):
    specs = {arm.spec(lr, b, seed): arm for arm in script.ARMS for lr, b in grid(script) for seed in script.SEEDS}
    assert len(specs) == len(script.ARMS) * len(grid(script)) * len(script.SEEDS)
    assert {(arm.nesterov, bool(arm.weight_decay)) for arm in script.VARIANTS} == {
        *((False, False), (True, False), (False, True), (True, True))
    }
    names = {arm.name for arm in script.ARMS}
    assert len(names) == len(script.ARMS) and max(script.BATCHES) >= 64 * min(script.BATCHES)
    for spec, arm in specs.items():
        assert spec.num_steps == script.STEPS[spec.get("opt.lr")] and not spec.clip
        assert spec.get("opt.lr") * arm.weight_decay <= 1 and spec.polar == "exact:float64"
    arguments = catalog.arguments("muon", next(iter(specs)).hyperparameters)
    assert arguments["nesterov"] is False and arguments["momentum"] == 0.9


def test_windows_that_grow_keep_running_means(script):
    values = np.random.default_rng(0).uniform(1.0, 2.0, 300)
    fine = Series(tuple(range(3, 903, 3)), tuple(values))
    coarse = script.coarser(fine)
    assert coarse.steps[:3] == (3, 6, 9) and coarse.steps[-1] == 900 and len(coarse.steps) <= script.NUM_KEPT
    means = np.cumsum(np.diff(coarse.steps, prepend=0) * coarse.values) / coarse.steps
    assert means == pytest.approx([values[: step // 3].mean() for step in coarse.steps], rel=1e-5)


def test_a_curve_begins_at_the_known_start(script):
    arm = script.Arm(weight_decay=0.5)
    spec = arm.spec(0.5, 1, 0)
    probes = {script.NUCLEAR: Series((1, 3), (1.0, 0.4)), script.INNER: Series((1, 3), (0.2, -0.4))}
    start = arm.task.start_nuclear
    runs = [Record(spec=spec, outcome="ok", probes=probes) for _ in range(2)]
    found = script.curve(arm, runs)
    assert found.counts.tolist() == [1, 2, 4] and found.latest[1] == pytest.approx([start, 1.1, 0.2])
    assert found.averages[0] == pytest.approx([start, (start + 1.1) / 2, (start + 1.1 + 2 * 0.2) / 4])
    assert found.reach(start) == 1 and math.isinf(found.reach(0.5))
    assert 2 < found.reach(1.0) < 4 == found.reach((start + 1.1 + 2 * 0.2) / 4)  # linear between points
    assert found.reach(0.65, latest=True) == pytest.approx(3.0)
    for plain in (script.curve(script.Arm(), runs), script.curve(arm, runs, gap=False)):
        assert plain.latest[0] == pytest.approx([start, 1.0, 0.4])


@pytest.mark.parametrize(
    ("sfo", "expected"),
    [
        ([8.0, 8, 8, 32, 128, 512], 32.0),  # between 16 and 64
        ([math.inf, 20, 10, 20.1, 40, 80], 64.0),
        ([math.inf] * 6, math.nan),
        ([5.0, 4, 3, 2, 1, 1], math.inf),
    ],
)
def test_the_critical_batch_of_a_curve(script, sfo, expected):
    assert script.critical_batch(script.BATCHES, sfo) == pytest.approx(expected, rel=0.01, nan_ok=True)


def test_a_planted_critical_batch_is_measured(script, page):
    bound = Bound(start=100.0, noise=2.0, floor=0.2, power=0.5)
    cells = planted(script, lambda lr: bound)
    fine = np.geomspace(1, 1e4, 2000)
    truth = script.critical_batch(fine, [bound.samples(1.0, batch) for batch in fine])
    found, low, high = script.measured(cells, 1.0)
    assert found == low == high == pytest.approx(truth, rel=0.15)
    assert page.least(script.samples(cells, 1.0)) == "16"  # b* is 14.06
    assert script.measured(cells, 0.1) == pytest.approx((math.nan,) * 3, nan_ok=True)


def test_what_is_never_reached_is_shown_so(script, page):
    arm = script.Arm()
    cells = planted(script, lambda lr: Bound(start=1.0, noise=2.0, floor=0.2 if lr < 0.1 else 5.0, power=0.5))
    rows = {row[1]: row for row in page.oracle(arm, cells, 1.0)}
    assert set(rows) == {f"{lr:g}" for lr in script.STEPS} | {"tuned"}
    assert all(cell == "unreached / never" for cell in rows["0.5"][2:8]) and rows["0.5"][8] == "unreached"
    assert rows["0.005"][2] == "unreached / never" and rows["0.005"][8] == rows["tuned"][8] == "16"
    assert list(page.best_lrs(cells, 1.0)) == ["-", "-", *(f"{min(script.STEPS):g}*",) * 4]


@pytest.mark.parametrize(
    ("noise", "verdict"),
    [
        (0.5, "falls: claim agrees, bound agrees"),
        (2.0, "about the same: claim does not agree, bound does not agree"),
        (1e3, "open"),
    ],
)
def test_answers_to_planted_changes(script, page, noise, verdict):
    old, new = script.Arm(momentum=0.5), script.Arm(momentum=0.95)
    found = {
        old: planted(script, lambda lr: Bound(start=100.0, noise=2.0, floor=0.2, power=0.5)),
        new: planted(script, lambda lr: Bound(start=100.0, noise=noise, floor=0.2, power=0.5)),
    }
    text, claimed, derived, _, said = page.change(found, "momentum", (old, 1.0, None), (new, 1.0, None))
    assert (text, claimed, said) == ("momentum; target 1, lr tuned", "x0.1", verdict)
    assert page.change(found, "", (old, 1.0, None), (new, 1.0, None), bounded=False)[2] == "-"
    assert float(derived[1:]) == pytest.approx((0.05 / 1.95) / (0.5 / 1.5), rel=0.1)  # the variance of an average


def test_a_run_that_is_missing_is_no_result(script, records):
    with pytest.raises(KeyError):
        script.curves(records[1:])
    with pytest.raises(KeyError):
        script.curves([replace(records[0], outcome="diverged"), *records[1:]])


def test_the_page_is_what_the_results_say(script, page, records):
    assert page.PAGE.read_text() == page.page(records)
    assert page.FIGURE.exists() and script.RESULTS.stat().st_size < 1_000_000
    for row in page.held(script.curves(records)):
        held, total = row[-4].split(" of ")
        assert held == total and float(row[-3].split()[0]) >= 1, row[0]
