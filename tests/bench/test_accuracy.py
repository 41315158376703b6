"""The distance from U V^T, against planted updates."""

import pytest
import torch

from muonlab.bench.accuracy import orthogonality_error, problems

SHAPES = [(16, 48), (32, 32), (48, 16), (16, 48)]


class Applies(torch.optim.Optimizer):
    """Moves the weights by `-lr * update(gradient)`."""

    def __init__(self, params, update, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.update = update

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.sub_(group["lr"] * self.update(weight.grad))


def with_values(values):
    def update(gradient):
        u, s, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
        return (u * values(s)) @ vh

    return update


@pytest.mark.parametrize("spectrum", ["gaussian", "loguniform"])
@pytest.mark.parametrize("lr", [1e-4, 3.0])
def test_the_polar_factor_itself_has_no_error_at_any_scale(spectrum, lr):
    planted = problems(SHAPES, "cpu")[spectrum]
    assert orthogonality_error(lambda ps: Applies(ps, with_values(torch.ones_like), lr), planted) < 1e-4


def test_the_error_is_the_one_of_the_singular_values():
    """With update U D V^T it is sqrt(1 - (sum d)^2 / (n sum d^2)) for one matrix."""
    planted = problems([(16, 16)], "cpu")["gaussian"]
    d = torch.linspace(0.7, 1.2, 16, dtype=torch.float64)
    expected = float(1 - d.sum() ** 2 / (16 * d.square().sum())) ** 0.5
    assert orthogonality_error(lambda ps: Applies(ps, with_values(lambda s: d)), planted) == pytest.approx(expected)


def test_the_problems_are_what_they_are_called():
    found = problems(SHAPES, "cpu")
    for spectrum, (low, high) in {"gaussian": (2.0, 1e3), "loguniform": (900.0, 1100.0)}.items():
        for shape, problem in zip(SHAPES, found[spectrum], strict=True):
            values = torch.linalg.svdvals(problem.gradient.double())
            assert problem.gradient.shape == problem.factor.shape == shape
            assert problem.gradient.dtype == torch.float32 and low < values[0] / values[-1] < high
            torch.testing.assert_close(torch.linalg.svdvals(problem.factor), torch.ones_like(values))
    assert found["gaussian"][0] is found["gaussian"][3]
    entries = found["gaussian"][1].gradient
    assert abs(float(entries.mean())) < 0.15 and 0.9 < float(entries.std()) < 1.1


@pytest.mark.parametrize("update", [torch.zeros_like, lambda g: g * float("nan"), lambda g: g * float("inf")])
def test_an_update_that_is_none_is_refused(update):
    with pytest.raises(RuntimeError, match="unchanged or not finite"):
        orthogonality_error(lambda ps: Applies(ps, update), problems([(4, 4)], "cpu")["gaussian"])
