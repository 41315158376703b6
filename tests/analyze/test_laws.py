"""Laws of hyperparameters: planted ones are found within their intervals, and poor designs are not believed."""

import math

import numpy as np
import pytest

from muonlab.analyze.laws import Optimum, fit_law, kind_of, predict, within_a_step
from muonlab.errors import UsageError

SIZES, LENGTHS = (1e6, 4e6, 16e6, 64e6), (1e8, 4e8, 16e8)
GRID = tuple(0.001 * 2**i for i in range(-4, 8))


def planted(h, sizes=SIZES, lengths=LENGTHS, noise=0.0, grid=(), seed=0):
    """Optima of a law, off by a factor e^noise, then moved to the nearest value of a grid."""
    rng = np.random.default_rng(seed)
    points = []
    for n in sizes:
        for d in lengths:
            value = h(n, d) * math.exp(noise * rng.standard_normal())
            points.append((n, d, min(grid, key=lambda g: abs(math.log(g / value))) if grid else value))
    return points


def lr(n, d):
    return 0.008 * (n / 1e7) ** -0.4 * (d / 1e9) ** -0.15


def test_planted_exponents_are_covered() -> None:
    inside = 0
    for seed in range(60):
        law = fit_law(planted(lr, noise=0.2, seed=seed), "opt.lr")
        (low, high), (low_d, high_d) = law.intervals["A"], law.intervals["B"]
        inside += (low <= 0.4 <= high) + (low_d <= 0.15 <= high_d)
    assert inside >= 108  # of 120; 114 are expected


def test_intervals_hold_what_a_grid_would_give_where_nothing_was_tuned() -> None:
    inside = width = 0.0
    for seed in range(60):
        law = fit_law(planted(lr, noise=0.1, grid=GRID, seed=seed), "opt.lr", GRID)
        found = law.predict(256e6, 4e8)
        ((*_, tuned),) = planted(lr, (256e6,), (4e8,), noise=0.1, grid=GRID, seed=1000 + seed)
        inside += found.low <= tuned <= found.high
        width += math.log(found.high / found.low) / 60
    assert inside >= 54  # of 60; 57 are expected
    assert width < math.log(8)  # an interval that holds everything says nothing


def test_intervals_widen_outside() -> None:
    law = fit_law(planted(lr, noise=0.1), "opt.lr")
    widths = [math.log(found.high / found.low) for n in (8e6, 1e9, 1e11) for found in [law.predict(n, 4e8)]]
    assert widths[0] < widths[1] < widths[2]


def test_a_floor_is_found_where_there_is_one_and_only_there() -> None:
    """With 20 distinct values; what is close to the floor needs no smaller step any more."""
    sizes, lengths = (1e5, 1e6, 1e7, 1e8, 1e9), (1e8, 1e9, 1e10, 1e11)

    def floored(n, d):
        return 0.02 * (n / 1e5) ** -0.7 * (d / 1e8) ** -0.2 + 0.001

    law = fit_law(planted(floored, sizes, lengths, noise=0.03), "opt.lr")
    assert law.form == "power with floor" and law.formula == "h = a N^-A D^-B + b"
    assert law.parameters["b"] == pytest.approx(0.001, rel=0.15)
    laws = [fit_law(planted(floored, sizes, lengths, noise=0.03, seed=seed), "opt.lr") for seed in range(80)]
    assert sum(law.intervals["A"][0] <= 0.7 <= law.intervals["A"][1] for law in laws) >= 70  # 76 are expected
    places = [law.predict(1e11, 1e11) for law in laws]
    assert sum(found.low <= floored(1e11, 1e11) <= found.high for found in places) >= 72
    without = [fit_law(planted(lr, sizes, lengths, noise=0.1, seed=seed), "opt.lr").form for seed in range(40)]
    assert without.count("power") >= 36  # AICc lets 2 % pass


def test_a_value_that_is_the_same_everywhere_is_taken_as_it_is() -> None:
    law = fit_law([(n, d, 0.1) for n in SIZES for d in LENGTHS], "opt.weight_decay", (0.0, 0.1, 0.2))
    assert law.form == "constant" and law.counts == ((0.1, 12),)
    near, far = law.predict(4e6, 4e8), law.predict(4e9, 4e8)
    assert near.value == far.value == 0.1
    assert far.low < near.low < 0.1 < near.high < far.high
    zero = fit_law([(n, d, 0.0) for n in SIZES for d in LENGTHS], "schedule.warmup_fraction")
    assert zero.form == "constant" and zero.predict(1e9, 1e9) == (zero.predict(1e6, 1e8))
    assert zero.predict(1e9, 1e9).value == 0.0 and zero.predict(1e9, 1e9).low is None


@pytest.mark.parametrize(
    ("values", "coordinate"),
    [((1, 1, 2, 1), "clip"), ((0.0, 0.1, 0.1, 0.2), "opt.weight_decay"), (("a", "b", "b", "b"), "schedule.kind"),
     ((True, False, True, True), "opt.nesterov")],
)  # fmt: skip
def test_what_has_no_scale_is_what_was_best_most_often(values, coordinate) -> None:
    points = [(n, 1e9, value) for n, value in zip(SIZES, values, strict=True)]
    law = fit_law(points, coordinate)
    most = max(set(values), key=values.count)
    found = law.predict(1e9, 1e9)
    assert law.form == "discrete" and found.value == most == law.counts[0][0]
    assert law.parameters == {} and sum(count for _, count in law.counts) == 4
    numbers = not isinstance(values[0], str | bool)
    assert (found.low, found.high) == ((min(values), max(values)) if numbers else (None, None))


def test_a_momentum_never_leaves_its_range() -> None:
    law = fit_law([(1e6, 1e8, 0.9), (4e6, 4e8, 0.95), (16e6, 16e8, 0.98), (64e6, 64e8, 0.98)], "opt.beta1")
    assert law.kind == "momentum" and law.formula.startswith("log (1 - h)")
    for n, d in ((1e3, 1e5), (1e6, 1e8), (1e12, 1e14)):
        found = law.predict(n, d)
        assert 0 <= found.low <= found.value <= found.high <= 1 and found.value < 1
    assert 0 <= fit_law([(1e6, 1e8, 0.5), (4e6, 1e8, 0.9)], "schedule.decay_fraction").predict(1e9, 1e8).value <= 1
    assert fit_law([(1e6, 1e8, 0.2), (4e6, 1e8, 0.1)], "opt.weight_decay").predict(1e12, 1e12).low >= 0


def test_a_batch_of_powers_of_two_stays_one() -> None:
    points = [(n, d, 128 * 2**i) for n in SIZES for i, d in enumerate(LENGTHS)]
    assert all(isinstance(predict(points, 4e6, d, "batch_tokens"), int) for d in (1e6, 1e9, 3e12))
    assert math.log2(predict(points, 4e6, 3e9) / 128).is_integer()
    assert predict([(1e6, 1e8, 10), (2e6, 1e8, 30)], 1e6, 1e8) in range(9, 20)


def test_designs_that_leave_something_open_say_so() -> None:
    one_size = fit_law([(1e6, d, 0.01 * (d / 1e8) ** -0.3) for d in (1e8, 2e8, 4e8, 8e8)], "opt.lr")
    assert any("one size only" in note for note in one_size.notes) and one_size.held_out is None
    assert one_size.parameters["B"] == pytest.approx(0.3, abs=0.01)
    assert one_size.parameters["A"] == 0.0 and one_size.intervals["A"][1] >= 0.9  # 0 +- 2 x 0.5
    here, there = one_size.predict(1e6, 2e8), one_size.predict(16e6, 2e8)
    assert here.value == there.value and there.high / there.low > 10 > 1.1 * here.high / here.low

    together = fit_law([(n, 20 * n, 0.01 * (n / 1e6) ** -0.3) for n in (1e6, 2e6, 4e6, 8e6)], "opt.lr")
    assert any("go together" in note for note in together.notes)
    assert together.parameters["A"] + together.parameters["B"] == pytest.approx(0.3, abs=0.01)
    low, high = together.intervals["A"]
    assert high - low > 0.5
    inside, outside = together.predict(16e6, 20 * 16e6), together.predict(16e6, 16e6)
    assert outside.high / outside.low > 2 * inside.high / inside.low

    single = fit_law([(1e6, 1e8, 0.01)], "opt.lr")
    found = single.predict(1e6, 1e8)
    assert single.notes[0] == "from 1 tuned value only" and found.value == 0.01
    assert found.low < 0.006 and found.high > 0.018
    with pytest.raises(UsageError, match="no tuned value of"):
        fit_law([], "opt.lr")


def test_the_largest_size_is_held_out() -> None:
    held = fit_law(planted(lr), "opt.lr").held_out
    assert (held.params, held.num_cells, held.num_inside) == (64e6, 3, 3) and held.worst_factor < 1.05
    broken = [(n, d, value * (10 if n == 64e6 else 1)) for n, d, value in planted(lr)]
    held = fit_law(broken, "opt.lr").held_out
    assert held.num_inside == 0 and held.worst_factor == pytest.approx(10, rel=0.1)


def test_the_kinds() -> None:
    names = ("opt.lr", "batch_tokens", "opt.shampoo_beta", "aux.momentum", "opt.eps", "opt.weight_decay", "")
    assert [kind_of(name) for name in names] == [
        "positive", "positive", "momentum", "momentum", "discrete", "positive", "positive",
    ]  # fmt: skip


# The tuned learning rates of AdamW and Muon in Wen et al. 2025, at 1, 2, 4, 8, 16x (the last of two sizes only).
PARAMS = (134_217_728, 301_989_888, 536_870_912, 1_207_959_552)
TUNED = {
    "adamw": ((8, 8, 8, 8, 8), (8, 8, 8, 8, 4), (4, 4, 4, 4), (4, 2, 2, 2)),
    "muon": ((16, 8, 8, 8, 8), (8, 8, 4, 8, 8), (8, 4, 8, 8), (4, 4, 4, 4)),
}


@pytest.mark.parametrize("optimizer", TUNED)
def test_published_learning_rates(optimizer) -> None:
    points = [
        Optimum(n, 20 * n * 2**i, lr / 1000)
        for n, lrs in zip(PARAMS, TUNED[optimizer], strict=True)
        for i, lr in enumerate(lrs)
    ]
    law = fit_law(points, "opt.lr")
    assert within_a_step(law, points) == len(points) == 18
    assert law.held_out.worst_factor < 2.0 and law.held_out.num_inside == law.held_out.num_cells == 4
    assert law.form == "power"  # three or four values do not tell a floor
