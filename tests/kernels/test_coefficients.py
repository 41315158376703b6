"""Newton-Schulz records: their bands, and the torch-style arguments that make them."""

import math

import pytest
import torch

from muonlab.kernels.coefficients import COEFFICIENTS, JORDAN, POLAR_EXPRESS, Coefficients, coefficients_for


@pytest.mark.parametrize("record", COEFFICIENTS.values(), ids=lambda record: record.name)
def test_band_holds_for_scalars_everywhere_in_the_range(record: Coefficients) -> None:
    s = torch.logspace(math.log10(record.reach), 0, 200_001, dtype=torch.float64) / record.safety
    for a, b, c in record.steps:
        s = a * s + b * s**3 + c * s**5
    assert record.band[0] <= s.min() and s.max() <= record.band[1]
    assert s.min() - record.band[0] < 2e-3 and record.band[1] - s.max() < 2e-3  # and it is no wider than it must be


def test_torch_style_arguments_make_records() -> None:
    assert coefficients_for("polar_express", 5) is POLAR_EXPRESS
    assert coefficients_for("jordan", 5) is JORDAN
    assert coefficients_for((2.0, -1.5, 0.5), 3).steps == ((2.0, -1.5, 0.5),) * 3
    assert coefficients_for(((2.0, -1.5, 0.5), (1.5, -0.5, 0.0)), 2).num_steps == 2
    assert coefficients_for(JORDAN.steps[0], 6).band is None  # nobody has measured that one


@pytest.mark.parametrize(
    "arguments",
    [
        ((1.0, 2.0), 5),
        ((), 5),
        ((1.0, 2.0, float("nan")), 5),
        (JORDAN.steps[0], 0),
        (JORDAN.steps[0], 100),
        ("youjiacheng_6", 5),
        ("jordon", 5),
    ],
)
def test_bad_arguments(arguments: tuple) -> None:
    with pytest.raises(ValueError):
        coefficients_for(*arguments)


def test_a_safety_factor_below_one_is_none() -> None:
    with pytest.raises(ValueError, match="safety"):
        Coefficients("x", ((1.0, 1.0, 1.0),), safety=0.5)
