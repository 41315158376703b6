"""The polar factor: bands, scale, shapes, batches, and agreement of the iteration with exact arithmetic."""

import math

import pytest
import torch

from muonlab.kernels.moments import bias_correction, ema_, ema_square_
from muonlab.kernels.norms import update_scale
from muonlab.kernels.polar import COEFFICIENTS, JORDAN, POLAR_EXPRESS, Coefficients, coefficients_for, polar

BF16_SLACK = 0.015  # rounding of the default dtype, measured on the shapes below: at most 0.009
RECORDS = list(COEFFICIENTS.values())


def with_singular_values(fan_out: int, fan_in: int, values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    k = min(fan_out, fan_in)
    left = torch.linalg.qr(torch.randn(fan_out, k, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(fan_in, k, generator=generator, dtype=torch.float64))[0]
    return (left * values.double()) @ right.T


def assert_close_to_orthogonal(x: torch.Tensor, atol: float) -> None:
    short = x if x.shape[-2] <= x.shape[-1] else x.mT
    torch.testing.assert_close(short @ short.mT, torch.eye(short.shape[-2], dtype=x.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_band_holds_for_scalars_everywhere_in_the_range(record: Coefficients) -> None:
    s = torch.logspace(math.log10(record.reach), 0, 200_001, dtype=torch.float64) / record.safety
    for a, b, c in record.steps:
        s = a * s + b * s**3 + c * s**5
    assert record.band[0] <= s.min() and s.max() <= record.band[1]
    assert s.min() - record.band[0] < 2e-3 and record.band[1] - s.max() < 2e-3  # and it is no wider than it must be


@pytest.mark.parametrize("dtype,slack", [(torch.bfloat16, BF16_SLACK), (torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
@pytest.mark.parametrize("shape", [(16, 16), (128, 48), (48, 128)])
def test_band_holds_for_matrices(record: Coefficients, dtype: torch.dtype, slack: float, shape: tuple) -> None:
    k = min(shape)
    spectra = [
        torch.ones(k),
        torch.logspace(0, -1.5, k),
        torch.linspace(0.1, 1, k),
        torch.cat([torch.ones(1), 4e-3 * torch.ones(k - 1)]),
    ]
    for values in spectra:
        assert (values / values.norm()).min() >= record.reach
        x = with_singular_values(*shape, values)
        s = torch.linalg.svdvals(polar(x, coefficients=record, dtype=dtype))
        assert s.min() >= record.band[0] - slack and s.max() <= record.band[1] + slack


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12), (1, 7), (7, 1), (1, 1)])
def test_iteration_is_the_polynomial_of_the_singular_values(shape: tuple) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    for record in RECORDS:
        p = s / (x.norm() * record.safety)
        for a, b, c in record.steps:
            p = a * p + b * p**3 + c * p**5
        torch.testing.assert_close(
            polar(x, coefficients=record, dtype=torch.float64), (u * p) @ vh, atol=1e-12, rtol=1e-12
        )


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
def test_exact_is_orthogonal_and_has_positive_alignment(shape: tuple) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    o = polar(x, method="exact")
    assert_close_to_orthogonal(o, 1e-12)
    torch.testing.assert_close((o * x).sum(), torch.linalg.svdvals(x).sum())


def test_iteration_converges_to_exact() -> None:
    x = with_singular_values(24, 16, torch.linspace(0.2, 1, 16))
    cubic = coefficients_for((1.875, -1.25, 0.375), 30)
    torch.testing.assert_close(
        polar(x, coefficients=cubic, dtype=torch.float64), polar(x, method="exact"), atol=1e-10, rtol=0
    )


@pytest.mark.parametrize("method", ["newton_schulz", "exact"])
def test_rank_deficient_and_zero(method: str) -> None:
    x = torch.outer(torch.arange(1.0, 5.0), torch.tensor([1.0, -2.0, 0.5]))
    o = polar(x, method=method, dtype=torch.float32)
    assert torch.linalg.matrix_rank(o, rtol=1e-3) == 1
    for shape in ((3, 4), (0, 4), (4, 0), (2, 0, 3)):
        zero = polar(torch.zeros(shape), method=method)
        assert zero.shape == shape and not zero.any()


@pytest.mark.parametrize("method", ["newton_schulz", "exact"])
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-10, 1e10, 1e30, 1e37])
def test_scale_does_not_matter(method: str, scale: float) -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    expected = polar(x, method=method, dtype=torch.float32)
    torch.testing.assert_close(polar(x * scale, method=method, dtype=torch.float32), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(4, 6, 9), (2, 3, 9, 6), (5, 7, 7), (1, 4, 3)])
def test_batch_equals_loop(shape: tuple) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x *= torch.logspace(-6, 6, x[..., 0, 0].numel(), dtype=torch.float64).reshape(*shape[:-2], 1, 1)
    loop = torch.stack([polar(matrix, dtype=torch.float64) for matrix in x.reshape(-1, *shape[-2:])]).reshape(shape)
    torch.testing.assert_close(polar(x, dtype=torch.float64), loop, atol=1e-12, rtol=0)


def test_tall_is_the_transpose_of_wide() -> None:
    x = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(polar(x, dtype=torch.float64).T, polar(x.T, dtype=torch.float64), atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_kept_and_input_untouched(dtype: torch.dtype) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(6)).to(dtype)
    before = x.clone()
    for method in ("newton_schulz", "exact"):
        for compute in (torch.bfloat16, torch.float32, torch.float64):
            o = polar(x, method=method, dtype=compute)
            assert o.dtype == dtype and o.shape == x.shape and o.data_ptr() != x.data_ptr()
            assert torch.equal(x, before)


def test_bad_input() -> None:
    for call, error in [
        (lambda: polar(torch.ones(3)), ValueError),
        (lambda: polar(torch.ones(3, 3, dtype=torch.int64)), TypeError),
        (lambda: polar(torch.ones(3, 3, dtype=torch.complex64)), TypeError),
        (lambda: polar(torch.ones(3, 3), method="svd"), ValueError),
        (lambda: polar(torch.ones(3, 3), dtype=torch.float16), ValueError),
        (lambda: coefficients_for((1.0, 2.0), 5), ValueError),
        (lambda: coefficients_for((), 5), ValueError),
        (lambda: coefficients_for((1.0, 2.0, float("nan")), 5), ValueError),
        (lambda: coefficients_for(JORDAN.steps[0], 0), ValueError),
        (lambda: coefficients_for(JORDAN.steps[0], 100), ValueError),
        (lambda: coefficients_for("youjiacheng_6", 5), ValueError),
        (lambda: coefficients_for("jordon", 5), ValueError),
        (lambda: Coefficients("x", ((1.0, 1.0, 1.0),), safety=0.5), ValueError),
    ]:
        with pytest.raises(error):
            call()


def test_torch_style_arguments_make_records() -> None:
    assert coefficients_for("polar_express", 5) is POLAR_EXPRESS
    assert coefficients_for("jordan", 5) is JORDAN
    assert coefficients_for((2.0, -1.5, 0.5), 3).steps == ((2.0, -1.5, 0.5),) * 3
    assert coefficients_for(((2.0, -1.5, 0.5), (1.5, -0.5, 0.0)), 2).num_steps == 2
    assert coefficients_for(JORDAN.steps[0], 6).band is None  # nobody has measured that one


def test_moments() -> None:
    m, v, x = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    torch.testing.assert_close(ema_(m, x, 0.75), torch.tensor([1.5, 1.25]))
    torch.testing.assert_close(ema_square_(v, x, 0.75), torch.tensor([3.0, 1.75]))
    assert bias_correction(0.9, 1) == pytest.approx(0.1) and bias_correction(0.9, 3) == pytest.approx(0.271)


def test_update_scale() -> None:
    assert [update_scale(8, 2, name) for name in (None, "original", "spectral")] == [2.0, 2.0, 2.0]
    assert [update_scale(2, 8, name) for name in (None, "original", "spectral")] == [1.0, 1.0, 0.5]
    assert update_scale(2, 8, "match_rms_adamw") == update_scale(8, 2, "match_rms_adamw") == 0.2 * math.sqrt(8)
    with pytest.raises(ValueError, match="arbitrary is not supported"):
        update_scale(2, 8, "arbitrary")
