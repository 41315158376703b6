"""Moving averages against their formulas."""

import pytest
import torch

from muonlab.kernels.moments import bias_correction, ema_, ema_square_


def test_moments() -> None:
    m, v, x = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
    torch.testing.assert_close(ema_(m, x, 0.75), torch.tensor([1.5, 1.25]))
    torch.testing.assert_close(ema_square_(v, x, 0.75), torch.tensor([3.0, 1.75]))
    assert bias_correction(0.9, 1) == pytest.approx(0.1) and bias_correction(0.9, 3) == pytest.approx(0.271)
