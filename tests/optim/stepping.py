"""Every optimizer, and small parameters and gradients to drive them with. A new one has its row from the catalogue."""

import copy

import pytest
import torch
from torch import nn

from muonlab.optim import Engine, catalog
from muonlab.optim.rule import declarations

ARGUMENTS = {  # beside lr: so that a few small steps reach every part of the mathematics
    "sgd": {"momentum": 0.9},
    "soap": {"precondition_frequency": 2},
    "soap_muon": {"precondition_frequency": 2},
    "shampoo": {"precondition_frequency": 2},
    "kron": {"update_flat_steps": 1, "update_probability": 0.5},
    "sophia": {"observe_every": 2},
}
CLASSES = {name: (catalog.get(name), {"lr": 0.02, **ARGUMENTS.get(name, {})}) for name in catalog.names()}
NAMES = {cls: name for name, (cls, _) in CLASSES.items()}
OF_TORCH = {name: CLASSES[name] for name in ("muon", "adamw", "sgd")}  # drop-in classes of torch's own

MATRIX = {name: row for name, row in CLASSES.items() if row[0].rule.is_matrix_rule()}

# What does not hold for an optimizer by its nature. `test_exceptions_are_as_declared` holds these to be true.
UNDECAYED = dict.fromkeys(("muon_hyperball", "adam_hyperball"), "the norm of a matrix is fixed: decay would do nothing")
IDLE_AT_FIRST = {
    **dict.fromkeys(("soap", "soap_muon"), "the first step builds the eigenbases, and moves nothing but by decay"),
    "adopt": "the first step starts the second moment, and moves nothing but by decay",
}

each = pytest.mark.parametrize("cls,arguments", CLASSES.values(), ids=CLASSES.keys())
each_with_decay = pytest.mark.parametrize(
    "cls,arguments", [pytest.param(*row, id=name) for name, row in CLASSES.items() if name not in UNDECAYED]
)
each_of_matrices = pytest.mark.parametrize("cls,arguments", MATRIX.values(), ids=MATRIX.keys())
each_of_torch = pytest.mark.parametrize("cls,arguments", OF_TORCH.values(), ids=OF_TORCH.keys())
DECAYS = ("decoupled", "independent", "coupled", "cautious")
ROUNDINGS = ("nearest", "stochastic", "master")
PAIRS = {*zip(DECAYS, (*ROUNDINGS, "nearest"), strict=True)}  # each form of both, where all twelve would take too long
each_decay = pytest.mark.parametrize("decay", DECAYS)
each_way = pytest.mark.parametrize(
    "cls,arguments,decay,rounding",
    [
        pytest.param(*row, decay, rounding, id=f"{name}-{decay}-{rounding}")
        for name, row in CLASSES.items()
        for decay in DECAYS
        for rounding in ROUNDINGS
        if name in OF_TORCH or (decay, rounding) in PAIRS
    ],
)


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
        if isinstance(optimizer, Engine) and optimizer.wants_observation():
            optimizer.observe(num_samples=4.0)
        optimizer.step()


def bits(tensors) -> list[bytes]:
    return [t.detach().contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]


def state_bits(optimizer) -> list[dict[str, bytes]]:
    """The whole state, parameter by parameter, in the order of the param groups."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [{name: bits([value.reshape(-1)])[0] for name, value in optimizer.state.get(p, {}).items()} for p in params]


def has(cls: type[Engine], name: str) -> bool:
    """Whether a hyperparameter of that name is declared."""
    return name in declarations(cls.rule)


def in_float64(cls: type[Engine], arguments: dict) -> dict:
    """Arguments that leave nothing in low precision, for comparison with formulas."""
    return {**arguments, "polar_dtype": "float64"} if has(cls, "polar_dtype") else dict(arguments)


def batch_noise(cls: type[Engine]) -> float:
    """How far a step at lr = 0.02 may differ where a matrix is computed in another batch: by rounding, bfloat16's."""
    return 2e-3 if cls.rule.is_matrix_rule() else 0.0


def declared_dtype(cls: type[Engine], key: str, p: torch.Tensor) -> torch.dtype:
    """Of a state tensor with rounding="nearest": `param` layout follows the parameter, all others are wide."""
    own = key != "step" and cls.rule.state[key.partition(".")[0]].layout == "param"
    return p.dtype if own else torch.float32 if key == "step" else torch.promote_types(p.dtype, torch.float32)


def decaying(cls: type[Engine], weight_decay: float) -> dict:
    """The argument, where there is decay at all."""
    return {} if NAMES[cls] in UNDECAYED else {"weight_decay": weight_decay}


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
