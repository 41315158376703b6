"""Coordinate checks concluded: planted powers are found, and nothing is said of what was not seen."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from muonlab.analyze.coordinates import BOUND, HIDDEN, fit_width, kind_of_layer

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))  # coordinate_world.py

from coordinate_world import LAYERS, World, checked

TRIALS = 25
MUON_AS_PREDICTED = {
    ("muon", "mup"): -1.0,
    ("adamw", "standard"): 0.75,
    ("adamw", "mup"): -0.25,
    ("adamw", "spectral"): -0.1,
}


@pytest.mark.parametrize("widths", [(32, 64, 128), (32, 64, 128, 256), (32, 64, 128, 256, 512)])
@pytest.mark.parametrize("num_seeds", [1, 2, 5])
def test_planted_powers_lie_in_their_intervals(widths: tuple[int, ...], num_seeds: int) -> None:
    rng, held, trials = np.random.default_rng(0), 0, 400
    for power in rng.uniform(-1, 1, trials):
        points = [(math.log(w), power * math.log(w) + 0.05 * rng.standard_normal()) for w in widths * num_seeds]
        found = fit_width(points)
        held += found.low <= power <= found.high
    assert held / trials >= 0.92


def test_planted_powers_are_found_by_whole_checks() -> None:
    """Every layer, and all updates together, in 25 checks of two optimizers and three parametrizations."""
    planted = {("muon", "standard"): 0.4, ("muon", "mup"): -0.6, ("adamw", "spectral"): 0.05}
    held = total = 0
    for trial in range(TRIALS):
        _, finding = checked(World(change=planted, update=planted, trial=trial))
        for one in finding.slopes:
            held += one.low <= planted.get((one.name, one.parametrization), 0.0) <= one.high
            total += 1
    assert total == TRIALS * 6 * (len({kind_of_layer(layer) for layer in LAYERS}) + 3) and held / total >= 0.9


def test_a_bent_line_is_not_made_certain_by_seeds() -> None:
    """The slope of a parabola through the widths: however many seeds, its interval is that of the few widths."""

    def half(num_seeds: int) -> float:
        rng = np.random.default_rng(0)
        points = [
            (x, 0.1 * x**2 + 0.01 * rng.standard_normal()) for x in (0.0, 1.0, 2.0, 3.0) for _ in range(num_seeds)
        ]
        found = fit_width(points)
        return found.high - found.slope

    assert half(20) == pytest.approx(half(2), rel=0.2) and half(20) > 0.1


def test_what_has_no_interval_has_none() -> None:
    assert fit_width([]) == fit_width([(1.0, 2.0)] * 3) == (None, None, None)
    assert fit_width([(0.0, 1.0), (1.0, 2.0)]) == (1.0, None, None)
    assert None not in fit_width([(0.0, 1.0), (0.0, 1.1), (1.0, 2.0), (1.0, 2.1)])  # two widths, but two seeds


def verdicts(world: World, **values) -> dict[tuple[str, str], str]:
    _, finding = checked(world, **values)
    return {(one.name, one.parametrization): one.verdict for one in finding.checks}


def test_a_check_passes_where_nothing_grows_and_fails_where_something_does() -> None:
    found = verdicts(World(change={("adamw", "standard"): 0.5, ("muon", "mup"): -0.3}))
    assert found.pop(("adamw", "standard")) == found.pop(("muon", "mup")) == "failed"
    assert set(found.values()) == {"passed"}


def test_noise_leaves_it_unresolved() -> None:
    assert set(verdicts(World(noise=0.5)).values()) == {"unresolved"}
    assert set(verdicts(World(change={("muon", "mup"): BOUND})).values()) <= {"passed", "unresolved"}
    assert verdicts(World(), num_seeds=1, widths=(32, 64))["muon", "mup"] == "unresolved"


def test_the_worst_layer_is_named() -> None:
    _, finding = checked(World(change={("adamw", "standard"): 0.5}))
    first = finding.checks[0]
    assert first.worst.slope == max(
        s.slope for s in finding.slopes if (s.name, s.parametrization, s.quantity) == ("adamw", "standard", "change")
    )
    assert "4 of 4 layers" in first.detail


def test_a_diverged_run_lets_nothing_pass() -> None:
    _, finding = checked(World(diverges=("muon", "spectral", 256)))
    found = {(one.name, one.parametrization): one for one in finding.checks}
    one = found["muon", "spectral"]
    assert one.verdict == "unresolved" and one.num_diverged == 3 and one.detail == "of 12 runs 3 diverged: lower lr"
    assert finding.slope("muon", "spectral", "change", "head").values[-1] is None
    assert finding.slope("muon", "spectral", "change", "head").num_runs == 9
    assert found["muon", "mup"].verdict == "passed"


def test_a_layer_that_never_moves_has_no_power() -> None:
    _, finding = checked(World(dead="blocks.0.mlp.up"))
    one = finding.slope("muon", "mup", "change", "blocks.*.mlp.up")
    assert one.slope is None and one.values == (None,) * 4 and one.num_runs == 0
    assert {check.verdict for check in finding.checks} == {"unresolved"}


def test_predictions_are_held_against_all_hidden_matrices() -> None:
    planted = {**MUON_AS_PREDICTED, ("muon", "standard"): 0.5, ("adamw", "spectral"): 0.1}
    _, finding = checked(World(update=planted))
    found = {(p.prediction.name, p.prediction.parametrization): p for p in finding.predictions}
    verdict = {pair: one.verdict for pair, one in found.items()}
    assert verdict == {
        ("adamw", "standard"): "held", ("adamw", "mup"): "held", ("adamw", "spectral"): "unresolved",
        ("muon", "standard"): "did not hold", ("muon", "mup"): "held", ("muon", "spectral"): "held",
    }  # fmt: skip
    own = finding.slope("muon", "mup", "update", HIDDEN)
    assert (found["muon", "mup"].slope, found["muon", "mup"].low) == (own.slope, own.low)
    assert own.slope == pytest.approx(-1.0, abs=0.05)


def test_values_are_geometric_means_over_seeds_and_blocks() -> None:
    world = World(noise=0.0, change={("muon", "mup"): 1.0})
    _, finding = checked(world)
    one = finding.slope("muon", "mup", "change", "blocks.*.mlp.up")
    both = math.sqrt(0.12 * 0.16) * 8  # of the two blocks, after 8 steps
    assert one.values == pytest.approx([both * 2**i for i in range(4)]) and one.slope == pytest.approx(1.0)
