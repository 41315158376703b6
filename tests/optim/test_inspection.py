"""Diagnostics against singular value decompositions in float64, and the table for people."""

import math

import pytest
import torch
from stepping import (
    NAMES,
    bits,
    decaying,
    each,
    each_of_matrices,
    fill_gradients,
    in_float64,
    small_model,
    state_bits,
    steps,
    weights,
)
from torch import Tensor, nn
from torch.optim import lr_scheduler

import muonlab
from muonlab.optim import catalog

QUANTITIES = {
    *("update_rms", "update_norm", "orthogonality_error", "effective_rank", "weight_norm"),
    *("decay_per_step", "norm_over_bound"),
}
SETTINGS = {"lr": 0.1, "weight_decay": 0.3, "polar_dtype": "float64"}


def norm(x: Tensor) -> float:
    return torch.linalg.matrix_norm(x, 2).item()


def low_rank(shape, values, seed: int = 0) -> nn.Parameter:
    """A matrix with the singular values given: gaps, so that power iteration converges."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(shape[0], len(values), generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], len(values), generator=generator, dtype=torch.float64))
    return nn.Parameter((u * torch.tensor(values, dtype=torch.float64)) @ v.T)


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_every_quantity_against_svd(shape, adjust) -> None:
    w = low_rank(shape, [3.0, 1.0, 0.5, 0.2, 0.1])
    optimizer = muonlab.Muon([("w", w)], adjust_lr_fn=adjust, **SETTINGS)
    steps(optimizer, [w], range(3))
    momentum = optimizer.state[w]["momentum_buffer"]
    scale = 0.2 * math.sqrt(max(shape)) if adjust else math.sqrt(max(1.0, shape[0] / shape[1]))
    u, s, vh = torch.linalg.svd(momentum, full_matrices=False)
    shrunk = s / momentum.norm()
    for _ in range(5):
        shrunk = 3.4445 * shrunk - 4.7750 * shrunk**3 + 2.0315 * shrunk**5
    direction = (u * shrunk) @ vh
    found = optimizer.diagnostics()
    assert set(found) == {f"w/{name}" for name in QUANTITIES}
    expected = {
        "update_rms": 0.1 * scale * direction.square().mean().sqrt().item(),
        "orthogonality_error": ((shrunk**2 - 1).norm() / math.sqrt(min(shape))).item(),
        "effective_rank": (s.square().sum() ** 2 / s.pow(4).sum()).item(),
        "decay_per_step": 0.1 * 0.3,
    }
    for name, value in expected.items():
        assert found[f"w/{name}"] == pytest.approx(value, rel=1e-4), name
    for name, value in {  # power iteration: from below
        "update_norm": 0.1 * scale * shrunk.max().item(),
        "weight_norm": norm(w.detach()),
        "norm_over_bound": norm(w.detach()) * 0.3 / scale,
    }.items():
        assert 0.9 * value < found[f"w/{name}"] < value * (1 + 1e-5), name


WHITENS_MOMENTUM = ("muon", "normuon", "adamuon", "scion", "muon_hyperball")  # the rest orthogonalises or averages else


@each
def test_looking_changes_nothing(cls, arguments) -> None:
    model = small_model()
    optimizer, params = cls(model, **arguments), list(model.parameters())
    steps(optimizer, params, range(3))
    before = bits(params), state_bits(optimizer), torch.get_rng_state()
    first = optimizer.diagnostics()
    assert first == optimizer.diagnostics() and optimizer.explain() == optimizer.explain()
    assert (bits(params), state_bits(optimizer)) == before[:2] and torch.equal(torch.get_rng_state(), before[2])
    assert all(p.grad is not None and p.requires_grad for p in params)
    seen = {"0.weight", "2.weight"} if NAMES[cls] in WHITENS_MOMENTUM else set()  # head and biases are the companion's
    assert {tag.rpartition("/")[0] for tag in first} == seen
    assert all(isinstance(value, float) and math.isfinite(value) for value in first.values())


@pytest.mark.parametrize("name", WHITENS_MOMENTUM)
def test_the_update_told_is_the_one_made_without_the_next_gradient(name: str) -> None:
    """Two matrices in one parameter, their second moments and radii; momentum stands still for the step after."""
    (w,) = weights(1, (10, 5), torch.float64)
    cls = catalog.get(name)
    settings = in_float64(cls, {"lr": 1e-3, "nesterov": False, **decaying(cls, 0.0)})
    optimizer = cls([{"params": [w], "param_names": ["w"], "split_sizes": (5, 5)}], **settings)
    steps(optimizer, [w], range(3))
    told, before = optimizer.diagnostics(), w.detach().clone()
    w.grad = optimizer.state[w]["momentum_buffer"].clone()
    optimizer.step()
    parts = (w.detach() - before).split(5)
    assert told["w/update_rms"] == pytest.approx(max(part.square().mean().sqrt().item() for part in parts), rel=2e-3)
    assert told["w/update_norm"] == pytest.approx(max(map(norm, parts)), rel=0.05)


def test_nothing_to_tell_before_the_first_step_or_without_matrices() -> None:
    assert muonlab.Muon(small_model()).diagnostics() == {}
    params = weights(1)
    optimizer = muonlab.AdamW(params)
    steps(optimizer, params, [0])
    assert optimizer.diagnostics() == {}


def test_of_several_matrices_the_worst_counts() -> None:
    w = nn.Parameter(torch.zeros(8, 4, dtype=torch.float64))
    optimizer = muonlab.Muon([{"params": [w], "split_sizes": (4, 4)}], **SETTINGS, momentum=0.0, nesterov=False)
    w.grad = torch.cat([torch.eye(4), torch.diag(torch.tensor([1.0, 0, 0, 0]))]).double()
    optimizer.step()
    found = {tag.rpartition("/")[2]: value for tag, value in optimizer.diagnostics().items()}
    assert found["effective_rank"] == pytest.approx(1.0)  # of 4.0 and 1.0
    assert found["orthogonality_error"] > math.sqrt(3 / 4) * 0.99  # three of four singular values are missing


@pytest.mark.parametrize("decay,first,second", [("decoupled", 0.03, 0.015), ("independent", 0.3, 0.15)])
def test_decay_per_step_follows_its_form_and_the_schedule(decay, first, second) -> None:
    params = weights(1, dtype=torch.float64)
    optimizer = muonlab.Muon([("w", params[0])], **SETTINGS, decay=decay)
    scheduler = lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    steps(optimizer, params, [0])
    assert optimizer.diagnostics()["w/decay_per_step"] == pytest.approx(first)
    scheduler.step()
    assert optimizer.diagnostics()["w/decay_per_step"] == pytest.approx(second)


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e30])
def test_diagnostics_are_finite_at_any_scale(magnitude: float) -> None:
    (w,) = weights(1)
    optimizer = muonlab.Muon([("w", w)])
    fill_gradients([w], 0)
    w.grad *= magnitude
    optimizer.step()
    assert all(math.isfinite(value) for value in optimizer.diagnostics().values())


def test_explain_names_each_step_size_and_split() -> None:
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(6, 2, bias=False),
            "fused": nn.Linear(6, 16, bias=False),
            "convolution": nn.Conv2d(3, 8, 2, bias=False),
            "norm": nn.LayerNorm(6),
        }
    )
    optimizer = muonlab.Muon(
        model, lr=0.1, aux_lr=0.01, roles={"fused.weight": "hidden"}, split_sizes={"fused.weight": (10, 6)}
    )
    rows = {line.split("  ")[0]: line for line in optimizer.explain().splitlines()[1:]}
    assert set(rows) == {name for name, _ in model.named_parameters()}
    assert "as 3 of 6 x 6" in rows["attention.in_proj_weight"] and "0.1 spectral" in rows["attention.in_proj_weight"]
    assert "as 1 of 10 x 6, 1 of 6 x 6" in rows["fused.weight"] and "0.1 to 0.1291 spectral" in rows["fused.weight"]
    assert "8 x 3 x 2 x 2" in rows["convolution.weight"] and "flattened" in rows["convolution.weight"]
    assert "0.01 per element" in rows["norm.weight"] and "gain or bias of LayerNorm" in rows["norm.weight"]


def told(optimizer) -> tuple[float, str]:
    """The step size in the last row of the table, and its unit."""
    size, _, unit = optimizer.explain().rsplit("  ", 1)[1].partition(" ")
    return float(size), unit


@pytest.mark.parametrize("cls", [muonlab.NorMuon, muonlab.AdaMuon, muonlab.Kron])
def test_a_step_has_the_root_mean_square_that_is_told(cls) -> None:
    (w,) = weights(1, (8, 5), torch.float64)
    before = w.detach().clone()
    optimizer = cls([w], lr=0.05, **decaying(cls, 0.0))
    steps(optimizer, [w], [0])
    size, unit = told(optimizer)
    tolerance = 0.2 if cls is muonlab.Kron else 0.01
    assert unit == "root mean square"
    assert (w.detach() - before).square().mean().sqrt().item() == pytest.approx(size, rel=tolerance)


@pytest.mark.parametrize("cls", [muonlab.MuonHyperball, muonlab.AdamHyperball])
@pytest.mark.parametrize("lr", [0.02, 1.0])
def test_a_step_on_a_sphere_turns_by_the_angle_that_is_told(cls, lr: float) -> None:
    """Where direction and weight are orthogonal."""
    w = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    before = w.detach().clone()
    w.grad = torch.tensor([[3.0, -3.0], [3.0, -3.0]], dtype=torch.float64)
    optimizer = cls([w], lr=lr)
    optimizer.step()
    cosine = (w.detach() * before).sum() / (w.detach().norm() * before.norm())
    size, unit = told(optimizer)
    assert unit == "radian" and math.acos(cosine) == pytest.approx(size, rel=1e-3)


@each_of_matrices
def test_spectral_norms_are_told_of_what_has_them_alone(cls, arguments) -> None:
    model = nn.ModuleDict({"fused": nn.Linear(6, 16, bias=False)})
    split = {"roles": {"fused.weight": "hidden"}, "split_sizes": {"fused.weight": (10, 6)}}
    optimizer = cls(model, **{**arguments, "lr": 0.1}, **split)
    row = optimizer.explain().splitlines()[1]
    assert "as 1 of 10 x 6, 1 of 6 x 6" in row
    exactly = NAMES[cls] in ("muon", "scion", "orthogonal_sgdm", "soap_muon")
    assert row.endswith("spectral norm") is exactly
    assert (" to " in row.rpartition("6 x 6")[2]) is exactly  # sizes that differ with the shape


def test_explain_follows_the_schedule() -> None:
    optimizer = muonlab.Muon([("w", weights(1, (4, 4))[0])], lr=0.1)
    assert "0.1 spectral norm" in optimizer.explain()
    optimizer.param_groups[0]["lr"] = 0.05
    assert "0.05 spectral norm" in optimizer.explain()


def test_explain_tells_the_number_of_blocks_of_adam_mini() -> None:
    optimizer = muonlab.AdamMini(small_model(), num_heads={"2.weight": 4})
    rows = {line.split("  ")[0]: line for line in optimizer.explain().splitlines()[1:]}
    found = {name: len(optimizer.state[p]["exp_avg_sq"]) for name, p in stepped(optimizer)}
    assert found == {"0.weight": 8, "2.weight": 4, "4.weight": 3, "0.bias": 1, "2.bias": 1, "4.bias": 1}
    for name, count in found.items():
        assert f"; {count} block{'s' * (count > 1)}  " in rows[name]


def stepped(optimizer) -> list[tuple[str, Tensor]]:
    """Names and parameters, after a step."""
    found = [pair for g in optimizer.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]
    steps(optimizer, [p for _, p in found], [0])
    return found
