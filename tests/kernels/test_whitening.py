"""The factors of PSGD after a fit: still triangular, and of one size."""

import torch

from muonlab.kernels.whitening import fit_factors_


def test_factors_end_up_with_equal_largest_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    g, probe = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    left, right = 10 * torch.eye(4, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    fit_factors_(left, right, g, probe, 0.2)
    torch.testing.assert_close(left.abs().amax(), right.abs().amax())
    assert torch.equal(left, left.triu()) and torch.equal(right, right.triu())
