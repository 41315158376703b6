"""The rules for matrices against their papers, transcribed."""

import pytest
import torch
import transcriptions
from side_by_side import LR, MATRICES, SQUARE, Path, Problem, assert_same_path, ours, random_problem, some_basis
from torch import Tensor
from transcriptions import additive, on_sphere

from muonlab.optim import kron, soap

FINE = {"polar_dtype": "float64"}
EXACT = {"polar": "exact"}
HEAVY = {"momentum_form": "heavy_ball"}
DECAY = {"weight_decay": 0.7}  # else there is none
ORTHOGONAL = {  # name, shared hyperparameters, the package's own
    "scion": ("scion", DECAY, FINE),
    "scion-nesterov": ("scion", {"momentum": 0.7, "nesterov": True}, FINE),
    "scion-exact": ("scion", {"momentum": 0.7, **EXACT, **DECAY}, {}),
    "orthogonal_sgdm": ("orthogonal_sgdm", DECAY, FINE),
    "orthogonal_sgdm-nesterov": ("orthogonal_sgdm", {"momentum": 0.7, "nesterov": True}, FINE),
    "orthogonal_sgdm-paper": ("orthogonal_sgdm", {"momentum": 0.8, **EXACT, **HEAVY}, {}),
    "normuon": ("normuon", DECAY, FINE),
    "normuon-paper": ("normuon", {"momentum": 0.8, "beta2": 0.7, "nesterov": False}, FINE),
    "normuon-eps": ("normuon", {"momentum": 0.8, "moment_eps": 0.3, **EXACT}, {}),
    "adamuon": ("adamuon", DECAY, FINE),
    "adamuon-paper": ("adamuon", {"momentum": 0.8, "beta2": 0.8, **HEAVY}, FINE),
    "adamuon-eps": ("adamuon", {"momentum": 0.8, "beta2": 0.6, "moment_eps": 0.3, "nesterov": True}, FINE),
}
SPHERE = {
    "muon_hyperball": ("muon_hyperball", {}, FINE),
    "muon_hyperball-plain": ("muon_hyperball", {"momentum": 0.7, "nesterov": False, **EXACT}, {}),
    "adam_hyperball": ("adam_hyperball", {}, {}),
    "adam_hyperball-eps": ("adam_hyperball", {"betas": (0.7, 0.9), "eps": 0.1}, {}),
}
BASES = {
    "soap": ("soap", DECAY, {}),
    "soap-often": ("soap", {"betas": (0.8, 0.9), "shampoo_beta": 0.7, "precondition_frequency": 1}, {}),
    "soap-eps": ("soap", {"betas": (0.7, 0.9), "eps": 0.1, "precondition_frequency": 3}, {}),
    "soap_muon": ("soap_muon", DECAY, FINE),
    "soap_muon-often": ("soap_muon", {"beta2": 0.9, "shampoo_beta": 0.7, "precondition_frequency": 1}, FINE),
    "soap_muon-plain": (
        "soap_muon",
        {"momentum": 0.7, "nesterov": False, "moment_eps": 0.1, "precondition_frequency": 3, **EXACT},
        {},
    ),
}
SHAMPOO = {
    "average": DECAY,
    "often": {"beta2": 0.8, "momentum": 0.7, "precondition_frequency": 1, "nesterov": True},
    "sum": {"beta2": 1.0, "precondition_frequency": 3},
    "paper": {"beta2": 1.0, "momentum": 0.0, "precondition_frequency": 1},
    "floor": {**DECAY, "beta2": 0.8, "eps": 0.05, "precondition_frequency": 2},
}


def transcribed(problem: Problem, name: str, apply, weight_decay: float = 0.0, **hyper) -> Path:
    rule = transcriptions.MATRIX[name]
    return problem.path_by(lambda w, gs: apply(w, rule(gs, **hyper), LR, weight_decay))


@pytest.mark.parametrize("name,hyper,own", ORTHOGONAL.values(), ids=ORTHOGONAL.keys())
def test_orthogonal(name: str, hyper: dict, own: dict) -> None:
    problem = random_problem()
    found = ours(problem, name, **hyper, **own)
    assert_same_path(problem, found, transcribed(problem, name, additive, **hyper), 1e-10)


@pytest.mark.parametrize("name,hyper,own", SPHERE.values(), ids=SPHERE.keys())
def test_on_the_sphere(name: str, hyper: dict, own: dict) -> None:
    problem = random_problem()
    found = ours(problem, name, **hyper, **own)
    assert_same_path(problem, found, transcribed(problem, name, on_sphere, **hyper), 1e-10)
    for start, path in zip(problem.starts, found, strict=True):
        for w in path:
            assert float(w.norm() / start.norm()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("hyper", SHAMPOO.values(), ids=SHAMPOO.keys())
def test_shampoo(hyper: dict) -> None:
    problem = random_problem((*MATRICES, (5, 5)))
    found = ours(problem, "shampoo", **hyper)
    assert_same_path(problem, found, transcribed(problem, "shampoo", additive, **hyper), 1e-9)


@pytest.mark.parametrize("name,hyper,own", BASES.values(), ids=BASES.keys())
def test_in_eigenbases(name: str, hyper: dict, own: dict) -> None:
    """Square matrices: where a Gram matrix has a null space, any basis of that is as good as another."""
    problem = random_problem(SQUARE)
    found = ours(problem, name, **hyper, **own)
    assert_same_path(problem, found, transcribed(problem, name, additive, **hyper), 1e-9)


@pytest.mark.parametrize("name,own", [("soap", {}), ("soap_muon", FINE)])
@pytest.mark.parametrize("frequency", [3, 100])
def test_in_given_bases(name: str, own: dict, frequency: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that are not square, with bases to start from in place of eigenvectors that rounding would choose."""
    monkeypatch.setattr(soap, "eigenbasis", some_basis)
    problem = random_problem(((7, 4), (4, 7), (6, 3)))
    hyper = {"shampoo_beta": 0.8, "precondition_frequency": frequency}
    found = ours(problem, name, **hyper, **own)
    reference = transcribed(problem, name, additive, basis=some_basis, **hyper)
    assert_same_path(problem, found, reference, 1e-9)


KRON = {
    "default": DECAY,
    "fast": {"momentum": 0.6, "precondition_lr": 0.5},
    "rarely": {"momentum": 0.8, "update_flat_steps": 3, "update_probability": 0.4},
}


@pytest.mark.parametrize("hyper", KRON.values(), ids=KRON.keys())
def test_kron(hyper: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """With probes that are given to both; when it refreshes is asked of the rule, and tested elsewhere."""
    problem = random_problem()
    num_steps = len(problem.gradients[0])

    def probe(shape: tuple[int, ...], step: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)

    monkeypatch.setattr(kron, "normal_noise", lambda shape, seed, step, like: probe(shape, step))
    found = ours(problem, "kron", **hyper)
    rule = kron.KronRule(**hyper)
    phases = [rule.phase_at(t) for t in range(1, num_steps + 1)]
    assert phases[0] == "refresh"
    learning = {key: hyper[key] for key in ("momentum", "precondition_lr") if key in hyper}

    def move(w: Tensor, gs: list[Tensor]):
        probes = [probe(tuple(w.shape), t) if phase else None for t, phase in enumerate(phases, 1)]
        return additive(w, transcriptions.kron(gs, probes, **learning), LR, hyper.get("weight_decay", 0.0))

    assert_same_path(problem, found, problem.path_by(move), 1e-9)


def test_every_matrix_rule_has_a_row() -> None:
    rows = {name for table in (ORTHOGONAL, SPHERE, BASES) for name, *_ in table.values()}
    assert rows | {"shampoo", "kron"} == set(transcriptions.MATRIX)
