"""Symmetric products against plain ones, below and above the size from which they take panels."""

import pytest
import torch
from spectra import gaussian

from muonlab.kernels import symmetric
from muonlab.kernels.inverse import add_weighted_inverses


@pytest.fixture(params=["panels", "plain"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "panels":
        monkeypatch.setattr(symmetric, "PANEL_MIN_SIDE", 1)
        monkeypatch.setattr(symmetric, "PANEL_MIN_WORK", 1)
    return request.param


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (2, 7, 4), (3, 10, 10)])
def test_products_are_the_plain_ones(route: str, shape: tuple[int, int, int]) -> None:
    x = gaussian(*shape, dtype=torch.float64)
    tall = gaussian(shape[0], shape[2], shape[1], dtype=torch.float64)
    a = x @ x.mT
    b = a @ a + a
    assert symmetric._panels_pay(x) == (route == "panels")
    torch.testing.assert_close(symmetric.gram(x), a)
    torch.testing.assert_close(symmetric.gram(tall.mT), tall.mT @ tall)
    torch.testing.assert_close(symmetric.multiply(a, b), a @ b)
    torch.testing.assert_close(symmetric.multiply_add(a, alpha=0.5, beta=-2.0), 0.5 * a @ a - 2.0 * a)


def test_large_products_take_panels_and_mirror_them() -> None:
    x = gaussian(2, 512, 300)
    assert symmetric._panels_pay(x)
    a = symmetric.gram(x)
    assert torch.equal(a[:, :128, 128:].mT, a[:, 128:, :128])
    torch.testing.assert_close(a, x @ x.mT, atol=1e-3, rtol=1e-5)


def test_large_products_have_gradients() -> None:
    x = gaussian(1, 512, 300).requires_grad_()
    symmetric.gram(x).diagonal(dim1=-2, dim2=-1).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


@pytest.mark.parametrize("n", [1, 5, 24, 25, 64, 97, 200])
def test_weighted_inverses(n: int) -> None:
    x = gaussian(2, 3, n, n, dtype=torch.float64)
    a = x @ x.mT / n + torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[:, None, None] * torch.eye(n)
    total, failed = add_weighted_inverses(a, (1.0, 2.0, 3.0))
    expected = (torch.linalg.inv(a) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]).sum(1)
    assert not failed.any()
    torch.testing.assert_close(total, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("n", [5, 64, 97])
def test_a_failed_inverse_is_reported_and_stays_alone(n: int) -> None:
    a = torch.eye(n).repeat(3, 2, 1, 1)
    a[1, 1, -1, -1] = -1.0
    total, failed = add_weighted_inverses(a, (1.0, 1.0))
    assert failed.tolist() == [False, True, False]
    assert torch.equal(total[[0, 2]], 2 * torch.eye(n).repeat(2, 1, 1))
