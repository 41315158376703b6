"""On a GPU: every optimizer moves weights as on the CPU, and skips what it skips there."""

import warnings

import pytest
import torch
from torch import nn

from muonlab.kernels.polar import polar
from muonlab.optim import catalog

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NAMES = list(catalog.names())


# Eigenvectors between which there is no gap are rounding noise: float64, and gradients of full rank for all.
WIDE = {"soap", "soap_muon"}


def trained(name: str, device: str, poisoned: int | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(64, 16), nn.Linear(16, 16), nn.RMSNorm(16), nn.Linear(16, 64))
    start = nn.Sequential(*module).to(device, torch.float64 if name in WIDE else torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Sophia without observations
        opt = catalog.get(name)(start, lr=1e-3, **({"polar_dtype": "float32"} if _is_polar(name) else {}))
        for step in range(4):
            opt.zero_grad()
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randint(0, 64, (2, 64), generator=generator).to(device)
            nn.functional.cross_entropy(start(x), y).backward()
            if step == poisoned:
                start[1].weight.grad[0, 0] = float("nan")
            opt.step()
    return start.cpu(), opt


def _is_polar(name: str) -> bool:
    return "polar_dtype" in catalog.get(name).__signature__.parameters


@pytest.mark.parametrize("name", NAMES)
def test_the_same_weights_as_on_the_cpu(name):
    torch.backends.cuda.matmul.allow_tf32 = False
    here, there = (trained(name, device)[0] for device in ("cpu", "cuda"))
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_gradient_that_is_not_finite_skips_a_step_there_too(name):
    opt = trained(name, "cuda", poisoned=2)[1]
    assert opt.num_skipped == 1


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 300), (2, 1000, 800), (1, 768, 3072)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_polar_factor_is_that_of_the_cpu(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    here = polar(x, dtype=torch.float32)
    there = polar(x.cuda(), dtype=dtype).cpu()
    assert (there - here).norm() < 0.02 * here.norm()
