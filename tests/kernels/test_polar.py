"""The polar factor: one contract that every method keeps, and what is particular to each."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from spectra import gaussian, low_rank, spectra, spectral_norm, with_singular_values

from muonlab.kernels import gram, normalise
from muonlab.kernels.polar import COEFFICIENTS, JORDAN, METHODS, coefficients_for, polar, polar_each
from muonlab.kernels.rational import POLES
from muonlab.kernels.routes import AUTO_DAMPING

SHAPES = [(16, 16), (128, 48), (48, 128)]
HALF_SLACK = 0.025  # of float16, 0.023 measured
FLOAT32_SLACK = 8e-3  # rounding of x x^T, whose smallest eigenvalues that count are 1e-6 of its largest


@dataclass(frozen=True)
class Promise:
    """What a way to call `polar` says of the singular values s: those of at least `reach` x norm end up in `band`."""

    band: tuple[float, float]
    reach: float
    slack: float
    gram_norm: bool = False  # sqrt(|x x^T|_F), not |x|_F
    arguments: dict[str, Any] = field(default_factory=dict)

    def polar(self, x: torch.Tensor) -> torch.Tensor:
        return polar(x, **self.arguments)

    def reached(self, s: torch.Tensor) -> torch.Tensor:
        return s >= self.reach * ((s**4).sum() ** 0.25 if self.gram_norm else s.norm())


def promises() -> dict[str, Promise]:
    # the default dtype rounds each product, by 0.009 at most on the shapes above
    found = {"newton_schulz:bfloat16": Promise(JORDAN.band, JORDAN.reach, 0.015)}
    for name, record in COEFFICIENTS.items():
        halves = {"coefficients": record, "dtype": torch.float16}
        found[f"newton_schulz:{name}:float16"] = Promise(record.band, record.reach, HALF_SLACK, arguments=halves)
        for dtype, slack in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
            arguments = {"coefficients": record, "dtype": dtype}
            key = f"{name}:{str(dtype)[6:]}"
            found[f"newton_schulz:{key}"] = Promise(record.band, record.reach, slack, arguments=arguments)
            slack = max(slack, FLOAT32_SLACK) if dtype == torch.float32 else slack
            arguments = {"method": "gram", **arguments}
            found[f"gram:{key}"] = Promise(record.band, record.reach, slack, True, arguments)
    for num_poles, poles in POLES.items():
        arguments = {"method": "rational", "num_poles": num_poles}
        found[f"rational:{num_poles}"] = Promise(poles.band, poles.reach, FLOAT32_SLACK, True, arguments)
    found["exact"] = Promise((1.0, 1.0), 1e-9, 1e-9, arguments={"method": "exact"})
    return found


PROMISES = promises()
ONE_EACH = {  # a way to call each method, as tight as the method can be
    "newton_schulz": {"dtype": torch.float32},
    "gram": {"method": "gram"},
    "rational": {"method": "rational"},
    "exact": {"method": "exact"},
    "auto": {"method": "auto"},
}
every_method = pytest.mark.parametrize("method", METHODS)
every_scale = pytest.mark.parametrize(
    "scale", [1e-37, 1e-30, 1e-18, 1e-12, 1e-10, 1e-8, 1e-4, 1e6, 1e10, 1e18, 1e30, 1e37]
)


def assert_alike(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-3) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", PROMISES)
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_end_up_in_the_band(name: str, shape: tuple[int, int]) -> None:
    promise = PROMISES[name]
    low, high = promise.band
    for values in spectra(min(shape)).values():
        x = with_singular_values(*shape, values)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        o = promise.polar(x)
        found = (u.mT @ o @ vh.mT).diagonal()  # f(s), in the order of s
        assert promise.reached(s).any()
        assert found[promise.reached(s)].min() >= low - promise.slack
        assert found.min() >= -2 * promise.slack  # turned round by rounding at most
        assert spectral_norm(o) <= high + promise.slack


@pytest.mark.parametrize("method", ["rational", "exact", "auto"])
def test_it_is_as_close_to_orthogonal_as_five_jordan_steps(method: str) -> None:
    for shape in [(24, 24), (64, 64), (64, 256), (256, 128)]:
        for name, values in spectra(min(shape)).items():
            x = with_singular_values(*shape, values).float()
            exact = polar(x, method="exact")
            error = (polar(x, **ONE_EACH[method]) - exact).norm()
            slack = 1.15 if (method, name) == ("auto", "linear") else 1.0  # its damping shows on small matrices
            assert error <= slack * (polar(x) - exact).norm(), (shape, name)


@every_method
@pytest.mark.parametrize("name", low_rank(96, 160))
def test_low_rank_stays_bounded(method: str, name: str) -> None:
    x = low_rank(96, 160)[name]
    for matrix in (x, x.mT):
        assert spectral_norm(polar(matrix, **ONE_EACH[method])) < 1.21


@pytest.mark.parametrize("name", ["ones", "rank 1", "rank 1, spikes", "rank 3"])
def test_gram_starts_afresh_before_rounding_has_grown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = low_rank(768, 768)[name]
    for record in COEFFICIENTS.values():
        assert spectral_norm(polar(x, method="gram", coefficients=record)) < record.band[1] + FLOAT32_SLACK
    if name == "ones":
        monkeypatch.setattr(gram, "MAX_NOISE", math.inf)
        assert spectral_norm(polar(x, method="gram", coefficients=COEFFICIENTS["polar_express"])) > 2


@pytest.mark.parametrize("name", low_rank(256, 256))
def test_so_it_does_in_float16(name: str) -> None:
    x = low_rank(256, 256)[name]
    for record in COEFFICIENTS.values():
        o = polar(x, coefficients=record, dtype=torch.float16)
        assert spectral_norm(o) < record.band[1] + HALF_SLACK


def test_without_a_new_gram_matrix_float16_would_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    x = with_singular_values(128, 48, spectra(48)["power law 1e3"])
    monkeypatch.setattr(gram, "MAX_NOISE_HALF", math.inf)
    o = polar(x, coefficients=COEFFICIENTS["polar_express"], dtype=torch.float16)
    assert spectral_norm(o) > 2


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 300), (300, 200)])
def test_float16_is_the_same_polynomial(shape: tuple[int, ...]) -> None:
    x = gaussian(*shape).float()
    exactly = polar(x, dtype=torch.float64)
    half, brain = (polar(x, dtype=dtype) for dtype in (torch.float16, torch.bfloat16))
    assert (half - exactly).norm() < 0.01 * exactly.norm() < (brain - exactly).norm()


@every_method
def test_rank_one_and_zero(method: str) -> None:
    x = torch.outer(torch.arange(1.0, 5.0), torch.tensor([1.0, -2.0, 0.5]))
    assert torch.linalg.matrix_rank(polar(x, **ONE_EACH[method]), rtol=1e-3) == 1
    for shape in ((3, 4), (0, 4), (4, 0), (2, 0, 3), (0, 3, 4), (5, 1), (1, 5)):
        zero = polar(torch.zeros(shape), method=method)
        assert zero.shape == shape and not zero.any()


@every_method
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_one_row_is_its_direction(method: str, shape: tuple[int, int]) -> None:
    x = gaussian(*shape)
    o = polar(x, **ONE_EACH[method])
    damping = AUTO_DAMPING if method == "auto" else 0.0  # which takes most of a row
    assert 0.65 < o.norm() + damping < 1.21
    assert_alike(o / o.norm(), x / x.norm(), 1e-6)


@every_method
@every_scale
def test_scale_does_not_matter(method: str, scale: float) -> None:
    x = gaussian(5, 8)
    assert_alike(polar(x * scale, **ONE_EACH[method]), polar(x, **ONE_EACH[method]), 2e-5)


@every_method
def test_neither_eps_nor_a_neighbour_shrinks_a_matrix(method: str) -> None:
    """Scales from 1e-30 to 1e30 and a zero matrix, in one batch."""
    x = gaussian(4, 6, 9)
    scales = torch.tensor([1e-30, 0.0, 1.0, 1e30])[:, None, None]
    o = polar(x * scales, **ONE_EACH[method])
    expected = polar(x, **ONE_EACH[method])
    assert not o[1].any()
    assert_alike(o[[0, 2, 3]], expected[[0, 2, 3]], 2e-5)


@every_method
@pytest.mark.parametrize("shape", [(4, 6, 9), (2, 3, 9, 6), (5, 7, 7), (1, 4, 3)])
def test_batch_equals_loop(method: str, shape: tuple[int, ...]) -> None:
    x = gaussian(*shape) * torch.logspace(-6, 6, math.prod(shape[:-2])).reshape(*shape[:-2], 1, 1)
    loop = [polar(matrix, **ONE_EACH[method]) for matrix in x.reshape(-1, *shape[-2:])]
    assert_alike(polar(x, **ONE_EACH[method]), torch.stack(loop).reshape(shape), 2e-5)


@every_method
def test_each_is_a_loop_whatever_is_mixed(method: str) -> None:
    xs = [
        gaussian(3, 6, 9),
        gaussian(9, 6, dtype=torch.float64),
        torch.zeros(2, 6, 6),
        gaussian(2, 2, 12, 6).bfloat16(),
        gaussian(0, 6, 7),
        gaussian(4, 5) * 1e-30,
        torch.cat([torch.zeros(1, 6, 8), gaussian(1, 6, 8)]),
    ]
    together = polar_each(xs, **ONE_EACH[method])
    assert [(o.shape, o.dtype) for o in together] == [(x.shape, x.dtype) for x in xs]
    for o, x in zip(together, xs, strict=True):
        assert_alike(o, polar(x, **ONE_EACH[method]), 1e-2 if x.dtype == torch.bfloat16 else 2e-5)
    assert polar_each([], **ONE_EACH[method]) == []


@every_method
def test_tall_is_the_transpose_of_wide(method: str) -> None:
    for shape in ((9, 4), (40, 4)):
        x = gaussian(*shape)
        assert_alike(polar(x, **ONE_EACH[method]).T, polar(x.T, **ONE_EACH[method]), 1e-5)


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_kept_and_input_neither_written_nor_returned(method: str, dtype: torch.dtype) -> None:
    for shape in ((4, 6), (6, 4), (2, 4, 4)):
        x = gaussian(*shape).to(dtype)
        before = x.clone()
        for compute in (None, torch.float32, torch.float64) if method != "auto" else (None,):
            o = polar(x, method=method, dtype=compute)
            assert o.dtype == dtype and o.shape == x.shape and o.is_contiguous()
            assert o.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
            assert torch.equal(x, before)


@every_method
def test_non_finite_entries_stay_with_their_matrix(method: str) -> None:
    x = gaussian(4, 30, 40)
    expected = polar(x, **ONE_EACH[method])
    for bad in (math.nan, math.inf):
        broken = x.clone()
        broken[1, 2, 3] = bad
        o = polar(broken, **ONE_EACH[method])
        assert not o[1].isfinite().all()
        assert_alike(o[[0, 2, 3]], expected[[0, 2, 3]], 2e-5)


@every_method
def test_it_is_deterministic_and_changes_no_setting(method: str) -> None:
    before = (torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.get_rng_state().tolist())
    x = gaussian(3, 33, 70)
    assert torch.equal(polar(x, method=method), polar(x, method=method))
    after = (torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.get_rng_state().tolist())
    assert before == after


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"auto"}))
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_damping_lowers_the_response_by_a_share_of_the_normalised_singular_value(method: str, scale: float) -> None:
    arguments = ONE_EACH[method]
    xs = [gaussian(6, 9, seed=1), torch.ones(4, 3), torch.zeros(3, 3), gaussian(40, 12, seed=2)]
    xs = [x.float() for x in xs]
    damped = polar_each([x * scale for x in xs], damping=0.5, **arguments)
    for x, plain, found in zip(xs, polar_each(xs, **arguments), damped, strict=True):
        expected = plain - 0.5 * x / x.norm() if x.any() else torch.zeros_like(x)
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12), (1, 7), (7, 1), (1, 1)])
def test_iteration_is_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    x = gaussian(*shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    for record in COEFFICIENTS.values():
        for method, norm in (("newton_schulz", x.norm()), ("gram", (s**4).sum() ** 0.25)):
            p = s / (norm * record.safety)
            for a, b, c in record.steps:
                p = a * p + b * p**3 + c * p**5
            o = polar(x, method=method, coefficients=record, dtype=torch.float64)
            assert_alike(o, (u * p) @ vh, 1e-10)


def test_iterations_converge_to_exact() -> None:
    x = with_singular_values(24, 16, torch.linspace(0.2, 1, 16))
    cubic = coefficients_for((1.875, -1.25, 0.375), 30)
    exact = polar(x, method="exact")
    assert_alike(exact.mT @ exact, torch.eye(16, dtype=torch.float64), 1e-12)
    torch.testing.assert_close((exact * x).sum(), torch.linalg.svdvals(x).sum())
    for method in ("newton_schulz", "gram"):
        assert_alike(polar(x, method=method, coefficients=cubic, dtype=torch.float64), exact, 1e-10)


def test_branch_free_normalisation_is_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(3, 8, 5)
    fast = normalise.normalise(x, eps=1e-7, safety=1.01)
    monkeypatch.setattr(normalise, "SAFE_NORMS", (math.inf, math.inf))
    assert_alike(normalise.normalise(x, eps=1e-7, safety=1.01), fast, 1e-6)


@pytest.mark.parametrize("method", ["newton_schulz", "gram", "exact"])  # rational looks at its factorisation
def test_it_compiles_without_a_break(method: str) -> None:
    x = gaussian(2, 12, 8) * 1e-30
    compiled = torch.compile(lambda x: polar(x, **ONE_EACH[method]), fullgraph=True, backend="eager")
    assert_alike(compiled(x), polar(x, **ONE_EACH[method]), 2e-5)


def test_gradients_where_they_are_defined_and_an_error_where_not() -> None:
    x = gaussian(5, 8).requires_grad_()
    polar(x, dtype=torch.float32).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()
    for method in ("gram", "rational"):
        with pytest.raises(ValueError, match="not differentiable"):
            polar(x, method=method)
        with torch.no_grad():
            polar(x, method=method)


@pytest.mark.parametrize(
    ("x", "arguments", "error"),
    [
        (torch.ones(3), {}, ValueError),
        (torch.ones(3, 3, dtype=torch.int64), {}, TypeError),
        (torch.ones(3, 3, dtype=torch.complex64), {}, TypeError),
        (torch.ones(3, 3), {"method": "svd"}, ValueError),
        (torch.ones(3, 3), {"dtype": torch.float8_e4m3fn}, ValueError),
        (torch.ones(3, 3), {"method": "gram", "dtype": torch.float16}, ValueError),
        (torch.ones(3, 3), {"method": "rational", "dtype": torch.bfloat16}, ValueError),
        (torch.ones(3, 3), {"method": "rational", "num_poles": 5}, ValueError),
        (torch.ones(3, 3), {"method": "auto", "dtype": torch.float32}, ValueError),
    ],
)
def test_bad_input(x: torch.Tensor, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        polar(x, **arguments)
