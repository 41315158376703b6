"""Meshes and windows: how many points, what they cover, and that nothing the optimum may do leaves them."""

import math

import pytest

from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.study.telescoping import (
    Axis,
    allowed,
    first_axis,
    log_place,
    mesh,
    next_axis,
    num_points,
    value_at,
    within_bounds,
)

LR = Hyperparameter("opt.lr", 0.01, (0.005, 0.01, 0.02), low=0.0, low_closed=False)
MOMENTUM = Hyperparameter("opt.momentum", 0.95, (0.9, 0.95), low=0.0, high=1.0, high_closed=False, log=False)


@pytest.mark.parametrize("num_axes", [1, 2, 3])
@pytest.mark.parametrize("points", [3, 7, 8, 12])
def test_a_mesh_costs_no_more_than_rounding_up_adds(num_axes: int, points: int) -> None:
    """A run costs as the square of the width; exactly as much where the number of points is whole."""
    for factor in (1, 2, 4, 8):
        count = num_points(points, 32, 32 * factor, num_axes)
        exact = points * factor ** (-2 / num_axes)
        assert max(1.0, exact) <= count + 1e-9 and count < exact + 1
        if exact >= 1 and abs(exact - round(exact)) < 1e-9:
            assert count**num_axes * factor**2 == pytest.approx(points**num_axes)


def test_widths_need_not_double() -> None:
    assert num_points(9, 32, 96, 2) == 3 and num_points(8, 32, 32, 3) == 8


@pytest.mark.parametrize("points", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("slack", [0.0, 0.1, 2.0])
def test_a_window_holds_the_cell_before_it_and_the_drift(points: int, slack: float) -> None:
    centre, step, drift = 1.3, 0.7, 0.4
    axis = next_axis(centre + drift, step, slack, points)
    assert axis.low <= centre - step / 2 + drift - slack + 1e-12
    assert axis.high >= centre + step / 2 + drift + slack - 1e-12
    assert len(axis.points) == points and axis.points[0] - axis.low == pytest.approx(axis.step / 2)


def test_cells_cover_the_window_without_a_gap() -> None:
    axis = first_axis(0.0, 2.0, 7)
    assert axis.points[3] == pytest.approx(0.0)
    assert all(b - a == pytest.approx(math.log(2)) for a, b in zip(axis.points, axis.points[1:], strict=False))
    for side, end in (("low", 0), ("high", -1)):
        wider = axis.extended(side)
        assert wider.count == 8 and set(map(round_, axis.points)) < set(map(round_, wider.points))
        assert wider.points[end] == pytest.approx(axis.points[end] + (-1 if side == "low" else 1) * math.log(2))


def round_(x: float) -> float:
    return round(x, 9)


def test_a_momentum_is_meshed_by_its_distance_from_one() -> None:
    axis = within_bounds(first_axis(log_place(MOMENTUM, 0.95), 4.0, 7), MOMENTUM)
    values = [value_at(MOMENTUM, place) for place in axis.points]
    assert all(0 < value < 1 for value in values) and 0.95 in values and 1 < axis.count < 7
    assert (1 - values[0]) * 4 == pytest.approx(1 - values[1], rel=1e-4)
    assert not allowed(MOMENTUM, math.log(1.5)) and allowed(LR, 3.0)


def test_points_of_a_mesh_are_all_combinations() -> None:
    points = mesh({"opt.lr": Axis(-5.0, 1.0, 3), "opt.momentum": Axis(-4.0, 1.0, 2)}, (LR, MOMENTUM))
    assert len(points) == 6 == len({tuple(point.values()) for point in points})
    assert list(points[0]) == ["opt.lr", "opt.momentum"]


@pytest.mark.parametrize(("h", "value"), [(LR, 0.0), (LR, None), (LR, True), (MOMENTUM, 1.0)])
def test_what_has_no_logarithm_has_no_mesh(h: Hyperparameter, value: object) -> None:
    with pytest.raises(UsageError, match=f"{h.name} is .*--set {h.name}="):
        log_place(h, value)  # type: ignore[arg-type]
