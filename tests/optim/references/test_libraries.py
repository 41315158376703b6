"""The rules against other people's implementations of them, with the settings that make the two equal.

pytorch_optimizer is a development dependency; the others are compared with where somebody has installed them.
"""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer import scion
from pytorch_optimizer.optimizer.muon import adamuon, normuon
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from side_by_side import (
    LR,
    MATRICES,
    SINGLE_SHARE,
    SQUARE,
    Observing,
    Problem,
    assert_same_path,
    observations,
    ours,
    random_problem,
)
from torch import nn

import muonlab
from muonlab.optim import catalog, kron

FINE = {"polar_dtype": "float64"}
each_decay = pytest.mark.parametrize("weight_decay", [0.0, 0.7])


def optional(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: it is no dependency, only compared with")


# torch


@each_decay
@pytest.mark.parametrize("momentum_decay", [4e-3, 0.3])
def test_nadam(momentum_decay: float, weight_decay: float) -> None:
    """Differs: torch keeps the product of all momenta in float32."""
    problem = random_problem((*MATRICES, (6,)))
    shared = {"betas": (0.8, 0.95), "eps": 1e-2, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
    reference = problem.path(partial(torch.optim.NAdam, lr=LR, decoupled_weight_decay=True, **shared))
    assert_same_path(problem, ours(problem, "nadamw", **shared), reference, 1e-7)


@each_decay
@pytest.mark.parametrize("nesterov", [False, True])
def test_orthogonal_sgdm_is_sgd_on_orthogonalised_gradients(nesterov: bool, weight_decay: float) -> None:
    """The paper's form; torch's decay is an L2 term, which would be orthogonalised with the rest, so here it is not."""
    problem = random_problem()
    factors = [
        [u @ vh for u, _, vh in (torch.linalg.svd(g, full_matrices=False) for g in gs)] for gs in problem.gradients
    ]
    reference = Problem(problem.starts, factors).path(
        lambda params: Decayed(torch.optim.SGD(params, lr=LR, momentum=0.8, nesterov=nesterov), LR * weight_decay)
    )
    form = {"polar": "exact", "momentum_form": "heavy_ball", "adjust_lr_fn": lambda fan_out, fan_in: 1.0}
    found = ours(problem, "orthogonal_sgdm", momentum=0.8, nesterov=nesterov, weight_decay=weight_decay, **form)
    assert_same_path(problem, found, reference, 1e-11)


class Decayed:
    """Another optimizer, whose weights shrink before each step."""

    def __init__(self, optimizer: torch.optim.Optimizer, shrinkage: float) -> None:
        self.optimizer, self.shrinkage = optimizer, shrinkage

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - self.shrinkage)
        self.optimizer.step()


# pytorch_optimizer, element-wise

SHARED = {"betas": (0.8, 0.95), "eps": 1e-2}
SLOW = {"betas": (0.8, 0.95, 0.99), "eps": 1e-2, "alpha": 3.0}
ELEMENTWISE = {
    "lion": ("lion", {"betas": (0.8, 0.95)}, "Lion", {}, {}),
    "signum": ("signum", {"momentum": 0.8}, "SignSGD", {}, {}),
    "adopt": ("adopt", SHARED, "ADOPT", {}, {"clip_lambda": lambda step: (step - 1) ** 0.25}),
    "ademamix": ("ademamix", SLOW, "AdEMAMix", {}, {}),
    "ademamix-warm": ("ademamix", SLOW, "AdEMAMix", {"mix_warmup_steps": 15}, {"t_alpha_beta3": 15}),
    "mars": ("mars", {"betas": (0.8, 0.95), "eps": 1e-15, "gamma": 0.05}, "MARS", {}, {"optimize_1d": True}),
}


@each_decay
@pytest.mark.parametrize("name,shared,cls,here,there", ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_elementwise(name: str, shared: dict, cls: str, here: dict, there: dict, weight_decay: float) -> None:
    """Differs: ADOPT there counts its clipping from the step that only starts; MARS adds 1e-15 to second moments."""
    problem = random_problem((*MATRICES, (6,)))
    shared = {**shared, "weight_decay": weight_decay}
    reference = problem.path(partial(getattr(pytorch_optimizer, cls), lr=LR, weight_decouple=True, **shared, **there))
    tolerance = 1e-7 if name == "mars" else 1e-10
    assert_same_path(problem, ours(problem, name, **shared, **here), reference, tolerance)


@each_decay
def test_sophia(weight_decay: float) -> None:
    """Differs: there the quotient m / max(h, eps) is clipped at p, here m / max(gamma h, eps) at 1: p = gamma."""
    gamma = 0.3
    problem = random_problem()
    observed = observations(problem, 1)

    class WithHessian(pytorch_optimizer.SophiaH):
        def step(self) -> None:
            sampled, num_samples = next(remaining)
            super().step(hessian=[num_samples * g * g for g in sampled])

    remaining = iter(observed)
    reference = problem.path(
        partial(
            WithHessian, lr=LR / gamma, betas=(0.8, 0.7), p=gamma, eps=0.2 / gamma, weight_decay=gamma * weight_decay
        )
    )
    arguments = {"betas": (0.8, 0.7), "gamma": gamma, "eps": 0.2, "weight_decay": weight_decay}
    found = problem.path(lambda params: Observing(params, observed, lr=LR, **arguments))
    assert_same_path(problem, found, reference, 1e-11)


def module(parameters: dict[str, nn.Parameter]) -> nn.Module:
    """Its parameters under these names, dots and all."""
    found = nn.Module()
    for name, p in parameters.items():
        *path, leaf = name.split(".")
        owner = found
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.register_parameter(leaf, p)
    return found


ATTENTION = {"q_proj.weight": (8, 8), "k_proj.weight": (8, 8), "norm.weight": (8,)}


def by_head(names: list[str], params: list[nn.Parameter], num_heads: int, weight_decay: float) -> list[dict]:
    """Groups for AdamMini: heads where the name is that of queries or keys, no decay of norms."""
    return [
        {
            "params": [p],
            "num_heads": num_heads if name[0] in "qk" else None,
            "weight_decay": weight_decay * (p.ndim > 1),
        }
        for name, p in zip(names, params, strict=True)
    ]


@each_decay
def test_adam_mini(weight_decay: float) -> None:
    """Differs: there the second moments of heads are float32."""
    problem = random_problem(tuple(ATTENTION.values()), dtype=torch.float32)
    shared = {"lr": LR, "betas": (0.8, 0.95), "eps": 1e-2}
    names = list(ATTENTION)

    def there(params: list[nn.Parameter]) -> pytorch_optimizer.AdamMini:
        owner = module(dict(zip(names, params, strict=True)))
        return pytorch_optimizer.AdamMini(owner, num_embeds=8, num_heads=2, weight_decay=weight_decay, **shared)

    reference = problem.path(there)
    found = problem.path(lambda ps: catalog.get("adam_mini")(by_head(names, ps, 2, weight_decay), **shared))
    assert_same_path(problem, found, reference, 1e-6)


# pytorch_optimizer, matrices


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes their Newton-Schulz iteration one in float64, of whatever a function makes of its input."""

    def install(prepare: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        def iteration(x: torch.Tensor, num_steps: int = 5, **options: Any) -> torch.Tensor:
            return zero_power_via_newton_schulz_5(prepare(x), num_steps, **{**options, "dtype": torch.float64})

        for owner in (scion, normuon, adamuon):
            monkeypatch.setattr(owner, "zero_power_via_newton_schulz_5", iteration)

    return install


def hidden(params: list[nn.Parameter]) -> list[dict]:
    return [{"params": params, "use_muon": True}]


@each_decay
@pytest.mark.parametrize("nesterov", [False, True])
def test_normuon(nesterov: bool, weight_decay: float, in_float64) -> None:
    in_float64()
    problem = random_problem()
    shared = {"momentum": 0.8, "beta2": 0.7, "nesterov": nesterov, "weight_decay": weight_decay}
    there = {"update_scale": "match_rms", "eps": 1e-12, "foreach": False}
    reference = problem.path(lambda params: pytorch_optimizer.NorMuon(hidden(params), lr=LR, **shared, **there))
    assert_same_path(problem, ours(problem, "normuon", moment_eps=1e-12, **FINE, **shared), reference, 1e-10)


@each_decay
def test_adamuon(weight_decay: float, in_float64) -> None:
    """Differs: there no sign is taken, against the paper; their bias correction falls out by the rescaling."""
    in_float64(torch.sign)
    problem = random_problem()
    reference = problem.path(
        lambda params: pytorch_optimizer.AdaMuon(
            hidden(params), lr=LR, betas=(0.8, 0.7), eps=1e-12, weight_decay=weight_decay
        )
    )
    arguments = {"momentum": 0.8, "beta2": 0.7, "moment_eps": 1e-12, "weight_decay": weight_decay}
    assert_same_path(problem, ours(problem, "adamuon", **FINE, **arguments), reference, 1e-10)


@pytest.mark.parametrize("constraint", [False, True], ids=["unconstrained", "constrained"])
def test_scion(constraint: bool, in_float64) -> None:
    """Differs: momentum there is 1 minus ours; with scale rho and lr gamma, ours is gamma rho, and decay 1 / rho."""
    in_float64()
    problem, gamma, rho = random_problem(), 0.02, 5.0
    reference = problem.path(
        partial(
            pytorch_optimizer.SCION,
            lr=gamma,
            momentum=0.2,
            scale=rho,
            constraint=constraint,
            norm_type=scion.LMONorm.SPECTRAL,
            foreach=False,
        )
    )
    arguments = {"lr": gamma * rho, "momentum": 0.8, "weight_decay": 1 / rho if constraint else 0.0}
    assert_same_path(problem, ours(problem, "scion", **FINE, **arguments), reference, 1e-10)


def test_scion_moves_an_embedding_by_signs() -> None:
    problem = random_problem(((9, 4),))
    sign = {"norm_type": scion.LMONorm.SIGN, "norm_kwargs": {"normalize": False}}
    reference = problem.path(partial(pytorch_optimizer.SCION, lr=0.02, momentum=0.05, **sign))
    found = problem.path(
        lambda params: muonlab.Scion([{"params": params, "role": "embedding"}], lr=1.0, weight_decay=0.0, aux_lr=0.02)
    )
    assert_same_path(problem, found, reference, 1e-12)


@pytest.mark.parametrize("frequency", [1, 5])
@each_decay
def test_soap(weight_decay: float, frequency: int) -> None:
    """Differs: there decay comes last, and not at the first step; the QR factorisation is one of float32."""
    problem = random_problem(SQUARE)
    shared = {"betas": (0.8, 0.9), "shampoo_beta": 0.85, "eps": 1e-15, "precondition_frequency": frequency}
    reference = problem.path(
        lambda params: Decayed(pytorch_optimizer.SOAP(params, lr=LR, weight_decay=0.0, **shared), LR * weight_decay)
    )
    assert_same_path(problem, ours(problem, "soap", weight_decay=weight_decay, **shared), reference, 6e-6)


@each_decay
def test_shampoo(weight_decay: float) -> None:
    """Differs: there eps is added at the start, here it is a floor; both are too small to be seen."""
    problem = random_problem(SQUARE)
    reference = problem.path(
        partial(pytorch_optimizer.Shampoo, lr=LR, weight_decay=weight_decay, weight_decouple=True, matrix_eps=1e-14)
    )
    arguments = {"momentum": 0.0, "beta2": 1.0, "precondition_frequency": 1, "eps": 1e-14}
    assert_same_path(problem, ours(problem, "shampoo", weight_decay=weight_decay, **arguments), reference, 1e-10)


# optax


class Optax:
    """A gradient transformation of optax, in float64, as an optimizer of torch parameters."""

    def __init__(self, params: list[nn.Parameter], transformation: Any) -> None:
        self.jax, self.params, self.transformation = optional("jax"), params, transformation
        with self.jax.enable_x64(True):
            self.weights = [self._array(p) for p in params]
            self.state = transformation.init(self.weights)

    def _array(self, x: torch.Tensor) -> Any:
        return self.jax.numpy.asarray(x.detach().numpy())

    def step(self) -> None:
        with self.jax.enable_x64(True):
            grads = [self._array(p.grad) for p in self.params]
            updates, self.state = self.transformation.update(grads, self.state, self.weights)
            self.weights = [w + u for w, u in zip(self.weights, updates, strict=True)]
        for p, w in zip(self.params, self.weights, strict=True):
            p.data.copy_(torch.tensor(w.tolist(), dtype=p.dtype))


BETAS = {"b1": 0.8, "b2": 0.95}
OPTAX = {
    "nadamw": ("nadamw", SHARED, "nadamw", {**BETAS, "eps": 1e-2}),
    "lion": ("lion", {"betas": (0.8, 0.95)}, "lion", BETAS),
    "ademamix": ("ademamix", SLOW, "contrib.ademamix", {**BETAS, "b3": 0.99, "eps": 1e-2, "alpha": 3.0}),
}


@each_decay
@pytest.mark.parametrize("name,here,there,arguments", OPTAX.values(), ids=OPTAX.keys())
def test_optax(name: str, here: dict, there: str, arguments: dict, weight_decay: float) -> None:
    optax = optional("optax")
    problem = random_problem((*MATRICES, (6,)))
    make = attrgetter(there)(optax)
    reference = problem.path(lambda ps: Optax(ps, make(LR, weight_decay=weight_decay, **arguments)))
    assert_same_path(problem, ours(problem, name, weight_decay=weight_decay, **here), reference, 1e-10)


def test_optax_without_decay() -> None:
    optax = optional("optax")
    problem = random_problem((*MATRICES, (6,)))
    for name, here, make in (
        ("adopt", SHARED, partial(optax.contrib.adopt, LR, **BETAS, eps=1e-2)),
        ("signum", {"momentum": 0.8}, partial(optax.signum, LR, beta=0.8)),
    ):
        reference = problem.path(lambda ps, make=make: Optax(ps, make()))
        assert_same_path(problem, ours(problem, name, weight_decay=0.0, **here), reference, 1e-10)


# heavyball, timm, adam-mini, kron-torch


@pytest.fixture
def heavyball(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, without compilation."""
    library = optional("heavyball")
    monkeypatch.setattr(library.utils, "compile_mode", None)
    return library


@each_decay
@pytest.mark.parametrize(
    "name,cls,here,there",
    [
        ("cautious", "AdamW", {}, {"caution": True}),
        ("nadamw", "NAdam", {"momentum_decay": 4e-3}, {"momentum_decay": 4e-3, "decoupled_weight_decay": True}),
    ],
)
def test_heavyball(name: str, cls: str, here: dict, there: dict, weight_decay: float, heavyball) -> None:
    problem = random_problem(dtype=torch.float32)
    shared = {"lr": LR, "betas": (0.8, 0.95), "eps": 1e-12, "weight_decay": weight_decay}
    reference = problem.path(lambda params: getattr(heavyball, cls)(params, **shared, **there))
    assert_same_path(problem, ours(problem, name, **shared, **here), reference, 6e-6)


def test_heavyball_on_the_sphere(heavyball) -> None:
    """Differs: there the second moment alone is averaged, so beta1 = 0 here."""
    problem = random_problem(dtype=torch.float32)
    reference = problem.path(lambda ps: heavyball.HyperBallAdamW(ps, lr=LR, betas=(0.0, 0.95), eps=1e-12))
    found = ours(problem, "adam_hyperball", betas=(0.0, 0.95), eps=1e-12)
    assert_same_path(problem, found, reference, 6e-6)


@each_decay
def test_timm_cautious(weight_decay: float) -> None:
    timm = optional("timm.optim.adamw")
    problem = random_problem()
    shared = {**SHARED, "weight_decay": weight_decay}
    reference = problem.path(lambda params: timm.AdamWLegacy(params, lr=LR, caution=True, **shared))
    assert_same_path(problem, ours(problem, "cautious", **shared), reference, SINGLE_SHARE)


PROJECTIONS = {"q_proj.weight": (8, 8), "v_proj.weight": (8, 8), "mlp.weight": (12, 8), "norm.weight": (8,)}


@each_decay
def test_package_adam_mini(weight_decay: float) -> None:
    package = optional("adam_mini")
    problem, names = random_problem(tuple(PROJECTIONS.values())), list(PROJECTIONS)
    shared = {"lr": LR, "betas": (0.8, 0.95), "eps": 1e-2}
    there = {"weight_decay": weight_decay, "dim": 8, "n_heads": 2, "verbose": False}
    reference = problem.path(lambda params: package.Adam_mini(list(zip(names, params, strict=True)), **shared, **there))
    found = problem.path(lambda params: catalog.get("adam_mini")(by_head(names, params, 2, weight_decay), **shared))
    assert_same_path(problem, found, reference, 1e-10)


def test_package_kron_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differs: there gradients are not normalised, the probe also perturbs them, and triangular systems are float32."""
    optional("kron_torch")
    from kron_torch import kron as package

    problem = random_problem(SQUARE[:1])
    generator = torch.Generator().manual_seed(1)
    probes = [torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in problem.gradients[0]]
    monkeypatch.setattr(kron, "normal_noise", lambda shape, seed, step, like: probes[step - 1])
    found = ours(problem, "kron", weight_decay=0.0, momentum=0.8, precondition_lr=0.1)
    remaining = iter(probes)
    monkeypatch.setattr(torch, "randn_like", lambda x: next(remaining))
    unit = Problem(problem.starts, [[g / g.square().mean().sqrt() for g in gs] for gs in problem.gradients])
    options = {"b1": 0.8, "precond_lr": 0.1, "preconditioner_update_probability": 1.0, "precond_dtype": torch.float64}
    with torch.compiler.set_stance("force_eager"):
        reference = unit.path(lambda params: package.Kron(params, lr=LR, **options))
    assert_same_path(problem, found, reference, 1e-3)
