"""The drop-in classes, and small parameters and gradients to drive them with. A new optimizer is one more row."""

import copy

import pytest
import torch
from torch import nn

import muonlab

CLASSES = {
    "muon": (muonlab.Muon, {"lr": 0.02}),
    "adamw": (muonlab.AdamW, {"lr": 0.02}),
    "sgd": (muonlab.SGD, {"lr": 0.02, "momentum": 0.9}),
}
NAMES = {cls: name for name, (cls, _) in CLASSES.items()}
each = pytest.mark.parametrize("cls,arguments", CLASSES.values(), ids=CLASSES.keys())
each_decay = pytest.mark.parametrize("decay", ["decoupled", "independent", "coupled", "cautious"])


def weights(count: int = 3, shape=(6, 4), dtype=torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for _ in range(count)]


def twins_of(params) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in params]


def fill_gradients(params, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def steps(optimizer, params, seeds) -> None:
    for seed in seeds:
        fill_gradients(params, seed)
        optimizer.step()


def bits(tensors) -> list[bytes]:
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]


def state_bits(optimizer) -> list[dict[str, bytes]]:
    """The whole state, parameter by parameter, in the order of the param groups."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [{name: bits([value.reshape(-1)])[0] for name, value in optimizer.state.get(p, {}).items()} for p in params]


def in_float64(cls, arguments: dict) -> dict:
    """Arguments that leave nothing in low precision, for comparison with formulas."""
    return {**arguments, "polar_dtype": "float64"} if cls is muonlab.Muon else dict(arguments)


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))


def backward(model: nn.Module, seed: int) -> float:
    """Gradients of a regression on a batch that depends on the seed; its loss."""
    generator = torch.Generator().manual_seed(seed)
    first = next(model.parameters())
    x = torch.randn(16, first.shape[1], generator=generator, dtype=first.dtype)
    model.zero_grad()
    loss = (model(x) - x[:, :3].sin()).square().mean()
    loss.backward()
    return loss.item()


def copy_of(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
