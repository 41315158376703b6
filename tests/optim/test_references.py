"""torch's own optimizers as oracles, and the fused kernel against the mathematics that it replaces."""

import pytest
import torch

import muonlab
from muonlab.optim import AdamWRule

SHAPES = [(8, 8), (12, 5), (5, 12), (40, 24)]


def run(make, *, steps: int = 12, dtype=torch.float32, shapes=SHAPES, noncontiguous: bool = False):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]
    if noncontiguous:
        params = [torch.nn.Parameter(p.detach().t().contiguous().t()) for p in params]
    optimizer, trace = make(params), []
    for i in range(steps):
        for p in params:
            p.grad = (torch.randn(p.shape, generator=generator) * (1 + i) + 0.1).to(dtype)
        optimizer.step()
        trace.append(torch.cat([p.detach().double().flatten() for p in params]))
    return trace, optimizer


def relative_error(ours, reference, start) -> float:
    return float((ours - reference).norm() / (reference - start).norm())


def compare(cls, arguments, **options) -> list[float]:
    start = run(lambda params: torch.optim.SGD(params, lr=0.0), steps=1, **options)[0][0]
    ours = run(lambda params: getattr(muonlab, cls)(params, **arguments), **options)[0]
    reference = run(lambda params: getattr(torch.optim, cls)(params, **arguments), **options)[0]
    return [relative_error(a, b, start) for a, b in zip(ours, reference, strict=True)]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.3},
        {"lr": 0.05, "eps": 1e-2, "weight_decay": 0.0},
        {"lr": 0.05, "maximize": True, "weight_decay": 0.3},
        {"lr": torch.tensor(0.05)},
    ],
)
@pytest.mark.parametrize("noncontiguous", [False, True])
def test_adamw(arguments: dict, noncontiguous: bool) -> None:
    assert max(compare("AdamW", arguments, noncontiguous=noncontiguous)) < 3e-6


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lr": 0.05, "weight_decay": 0.3},
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"lr": 0.05, "momentum": 0.9, "maximize": True, "weight_decay": 0.1},
    ],
)
def test_sgd(arguments: dict) -> None:
    assert max(compare("SGD", arguments)) < 2e-6


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": 0.02},
        {"lr": 0.02, "weight_decay": 2.0},
        {"lr": 0.02, "nesterov": False, "momentum": 0.8},
        {"lr": 0.02, "adjust_lr_fn": "original"},
        {"lr": 0.02, "adjust_lr_fn": "match_rms_adamw"},
        {"lr": 0.02, "ns_steps": 6, "ns_coefficients": (3.4, -4.7, 2.0)},
    ],
)
def test_muon(arguments: dict) -> None:
    errors = compare("Muon", arguments)
    assert errors[0] < 0.06 and errors[-1] < 0.02  # two right bfloat16 iterations differ by this much


def in_float64(x: torch.Tensor, coefficients=(3.4445, -4.7750, 2.0315), steps: int = 5) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / x.norm()
    for _ in range(steps):
        s = coefficients[0] * s + coefficients[1] * s**3 + coefficients[2] * s**5
    return (u * s) @ vh


@pytest.mark.parametrize(
    "adjust,scale", [(None, (12 / 5) ** 0.5), ("match_rms_adamw", 0.2 * 12**0.5), ("spectral", (12 / 5) ** 0.5)]
)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_equals_its_formula_in_float64(adjust: str | None, scale: float, transposed: bool, nesterov: bool) -> None:
    """Tight enough for a lost decay, a wrong sign, a dropped average or the wrong side of the scale."""
    shape = (5, 12) if transposed else (12, 5)
    scale = {None: 1.0, "spectral": 1 / scale}.get(adjust, scale) if transposed else scale
    trace, _ = run(
        lambda params: muonlab.Muon(
            params, lr=0.1, weight_decay=0.7, adjust_lr_fn=adjust, nesterov=nesterov, polar_dtype="float64"
        ),
        dtype=torch.float64,
        shapes=[shape] * 3,
        steps=4,
    )
    generator = torch.Generator().manual_seed(0)
    ws = [torch.randn(shape, generator=generator).double() for _ in range(3)]
    ms = [torch.zeros(shape, dtype=torch.float64)] * 3
    for i in range(4):
        for j in range(3):
            g = (torch.randn(shape, generator=generator) * (1 + i) + 0.1).double()
            ms[j] = 0.95 * ms[j] + 0.05 * g
            u = 0.05 * g + 0.95 * ms[j] if nesterov else ms[j]
            ws[j] = ws[j] - 0.1 * 0.7 * ws[j] - 0.1 * scale * in_float64(u)
        torch.testing.assert_close(trace[i], torch.cat([w.flatten() for w in ws]), atol=1e-11, rtol=0)


def test_muon_float32_iteration_is_close_to_float64() -> None:
    results = [
        run(lambda params, d=dtype: muonlab.Muon(params, lr=0.1, polar_dtype=d))[0] for dtype in ("float32", "float64")
    ]
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fused_adamw_agrees_with_the_reference_mathematics(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"lr": 0.05, "betas": (0.7, 0.9), "weight_decay": 0.3}
    fused, _ = run(lambda params: muonlab.AdamW(params, **arguments), dtype=dtype)
    monkeypatch.setattr(AdamWRule, "fused", None)
    reference, _ = run(lambda params: muonlab.AdamW(params, **arguments), dtype=dtype)
    for a, b in zip(fused, reference, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6 if dtype == torch.float32 else 1e-14, rtol=0)


def test_bfloat16_momentum_is_not_normalised_in_place() -> None:
    """torch 2.13's Muon is wrong here: its buffer has norm 1 after the step."""
    w = torch.nn.Parameter(torch.zeros(8, 8, dtype=torch.bfloat16))
    w.grad = torch.full((8, 8), 4.0, dtype=torch.bfloat16)
    optimizer = muonlab.Muon([w], nesterov=False)
    optimizer.step()
    assert optimizer.state[w]["momentum_buffer"].float().norm() == pytest.approx(0.05 * 4 * 8, rel=1e-2)


@pytest.mark.parametrize("cls,arguments", [("Muon", {}), ("AdamW", {}), ("SGD", {"momentum": 0.9, "dampening": 0.5})])
def test_torch_state_dicts_load_into_ours(cls: str, arguments: dict) -> None:
    def continued(first, second):
        generator = torch.Generator().manual_seed(0)
        w = torch.nn.Parameter(torch.randn(8, 6, generator=generator))
        optimizer = first([w], lr=0.02, **arguments)
        for i in range(6):
            if i == 3:
                state = optimizer.state_dict()
                optimizer = second([w])
                optimizer.load_state_dict(state)
            w.grad = torch.randn(8, 6, generator=generator)
            optimizer.step()
        return w.detach()

    theirs, ours = getattr(torch.optim, cls), getattr(muonlab, cls)
    expected = continued(theirs, theirs)
    atol = 2e-3 if cls == "Muon" else 1e-6
    torch.testing.assert_close(continued(theirs, ours), expected, atol=atol, rtol=0)
    torch.testing.assert_close(continued(ours, theirs), expected, atol=atol, rtol=0)
