"""What no corruption takes, and the ends of what it does."""

import math

import numpy as np
import pytest
import torch

from muonlab.errors import UsageError
from muonlab.tasks.corruptions import CORRUPTIONS


@pytest.mark.parametrize(
    ("name", "batch", "message"),
    [
        ("noise", torch.full((1, 1, 4, 4), 1.5), "from 1.5 to 1.5"),
        ("noise", torch.full((1, 1, 4, 4), -0.5), "from -0.5"),
        ("blur", torch.tensor([[[[0.5, math.nan]]]]), "nan"),
        ("blur", np.zeros((1, 1, 4, 4)), "wants a tensor"),
        ("keyboard", torch.tensor([[65, 256]]), "to 256"),
        ("mask", torch.tensor([[65, -1]]), "from -1"),
        ("mask", np.array([[65, 66]]), "wants a tensor"),
        ("mask", torch.tensor([[True, False]]), "bool"),
    ],
)
def test_values_of_no_image_and_no_byte_are_refused(name, batch, message):
    with pytest.raises(UsageError, match=message):
        CORRUPTIONS[name](batch, 3)


@pytest.mark.parametrize("start", [-1, 0.5, True])
def test_a_start_that_is_no_sample_is_refused(start):
    with pytest.raises(UsageError, match="start must be"):
        CORRUPTIONS["mask"](torch.tensor([[65]]), 3, start=start)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_ends_of_the_range_are_taken(name):
    image = CORRUPTIONS[name].kind == "image"
    ends = torch.tensor([0.0, 1.0]).repeat(1, 1, 8, 4) if image else torch.tensor([[0, 255] * 4])
    assert CORRUPTIONS[name](ends, 3).shape == ends.shape
