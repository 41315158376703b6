"""Decoupled decay bounds the spectral norm of weights: |W|_2 <= scale x ceiling / weight_decay while lr x weight_decay
<= 1; what happens beyond, and that `explain` says so.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import muonlab
from muonlab.optim import inspection
from muonlab.records import RunSpec
from muonlab.records.spec import Schedule
from muonlab.train.loop import train

METHODS = ("exact", "newton_schulz", "gram", "rational", "auto")
SCALES = (None, "match_rms_adamw", "spectral")
ROUNDING = {"newton_schulz": 0.02}  # bfloat16


def norm(w: torch.Tensor) -> float:
    return torch.linalg.matrix_norm(w.detach(), 2).item()


def weight_of_norm(shape: tuple[int, int], size: float, seed: int) -> nn.Parameter:
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.Parameter(w * (size / norm(w)))


@given(
    shape=st.sampled_from([(4, 4), (3, 7), (8, 2), (1, 5)]),
    polar=st.sampled_from(METHODS),
    scale=st.sampled_from(SCALES),
    nesterov=st.booleans(),
    momentum=st.floats(0.0, 0.99),
    weight_decay=st.floats(1e-3, 1e3),
    shrink=st.floats(1e-3, 1.0),
    start=st.floats(0.0, 1.0),
    outwards=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=150)
def test_weights_stay_bounded(
    shape, polar, scale, nesterov, momentum, weight_decay, shrink, start, outwards, seed
) -> None:
    """Whatever the gradients, also such as always push outwards."""
    settings = {"momentum": momentum, "nesterov": nesterov, "polar": polar, "adjust_lr_fn": scale}
    w = weight_of_norm(shape, 1.0, seed)
    optimizer = muonlab.Muon([("w", w)], lr=shrink / weight_decay, weight_decay=weight_decay, **settings)
    rule = optimizer.rule.from_group(optimizer.param_groups[0])
    bound = rule.scale(shape) / weight_decay
    w.data *= start * bound
    generator = torch.Generator().manual_seed(seed)
    for _ in range(8):
        random = torch.randn(shape, generator=generator, dtype=torch.float64)
        w.grad = -w.detach() if outwards else random
        optimizer.step()
        assert norm(w) <= bound * rule.ceiling(shape) * (1 + ROUNDING.get(polar, 1e-4))


@pytest.mark.parametrize("polar", ["exact", "newton_schulz"])
def test_the_bound_is_attained(polar: str) -> None:
    """From below by outward gradients, to the response at the singular values that are there."""
    w = weight_of_norm((3, 5), 0.01, 0)
    optimizer = muonlab.Muon([("w", w)], lr=0.5, weight_decay=0.4, polar=polar)
    for _ in range(100):
        w.grad = -w.detach()
        optimizer.step()
    assert norm(w) == pytest.approx(1 / 0.4, rel=1e-6 if polar == "exact" else 0.35)


def run(lr: float, weight_decay: float, polar: str = "exact"):
    return train(
        RunSpec(
            task="matrix", optimizer="muon", horizon_tokens=400, batch_tokens=2, task_options={"sigma": 1.0},
            hyperparameters={"opt.lr": lr, "opt.weight_decay": weight_decay, "opt.polar": polar},
            schedule=Schedule(kind="constant", warmup_fraction=0.0), clip=0.0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("polar", ["exact", "newton_schulz"])
def test_beyond_2_the_trainer_reports_a_divergence(polar: str) -> None:
    record = run(1.0, 3.0, polar)
    assert record.outcome == "diverged" and record.final_loss is None
    assert "not finite at step" in record.error
    assert 30 < record.diverged_step < 150  # twice as large at each step, up to 1e38 or its root
    assert run(1.0, 1.9, polar).outcome == "ok"


def table_and_warnings(optimizer) -> tuple[list[str], list[str]]:
    lines = optimizer.explain().splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith("warning: ")), len(lines))
    return lines[:at], lines[at:]


@pytest.mark.parametrize(
    ("lr", "weight_decay", "said"),
    [
        (0.02, 0.1, None),
        (2.0, 0.5, None),  # 1 exactly
        (2.0, 0.6, "1.2 for a and 1 more: above 1 decay overshoots, and bounds them less"),
        (1.0, 2.5, "2.5 for a and 1 more: from 2 on the weights diverge"),
    ],
)
def test_explain_warns_of_a_product_beyond_1(lr, weight_decay, said) -> None:
    pair = [(name, weight_of_norm((4, 4), 0.1, 0)) for name in "ab"]
    table, warnings = table_and_warnings(muonlab.Muon(pair, lr=lr, weight_decay=weight_decay))
    assert len(table) == 3 and warnings == ([f"warning: lr x weight_decay is {said}"] if said else [])


@pytest.mark.parametrize(("polar", "ceiling"), [("exact", 1.0), ("newton_schulz", 1.203), ("rational", 1.063)])
@pytest.mark.parametrize(("shape", "scale"), [((4, 8), 1.0), ((16, 4), 2.0)])
def test_explain_warns_of_a_weight_beyond_its_bound(polar, ceiling, shape, scale) -> None:
    bound = scale * ceiling / 0.5

    def warned(size: float) -> list[str]:
        pair = [("inside", weight_of_norm(shape, 0.1, 0)), ("w", weight_of_norm(shape, size, 1))]
        return table_and_warnings(muonlab.Muon(pair, lr=0.1, weight_decay=0.5, polar=polar))[1]

    assert warned(bound) == []
    assert warned(2 * bound) == [
        f"warning: the spectral norm of w is 2 times {bound:.4g}, to which decay shrinks it in the long run"
    ]


def test_explain_names_the_worst_and_looks_into_blocks() -> None:
    params = [nn.Parameter(torch.cat([torch.eye(4), size * torch.eye(4)])) for size in (20, 60, 1)]
    group = {"params": params, "param_names": ["a", "b", "c"], "split_sizes": (4, 4)}
    _, (warning,) = table_and_warnings(muonlab.Muon([group], weight_decay=0.1, polar="exact"))
    assert warning.startswith("warning: the spectral norm of b (and of 1 more) is 6 times 10,")


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda w: muonlab.Muon([("w", w)], lr=2.0, weight_decay=0.8, decay="independent"),
        lambda w: muonlab.Muon([("w", w)], lr=2.0, weight_decay=0.0),
        lambda w: muonlab.AdamW([("w", w)], lr=0.1, weight_decay=0.8),
        lambda w: muonlab.MuonHyperball([("w", w)], lr=2.0),
        lambda w: muonlab.NorMuon(
            [("w", w)], lr=0.1, weight_decay=0.8
        ),  # its updates have no spectral norm to speak of
        lambda w: muonlab.Muon([("w", w)], lr=0.1, weight_decay=0.8, ns_steps=3),  # nobody has measured the ceiling
        lambda w: muonlab.Muon([("w", nn.Parameter(w.detach().to("meta")))], lr=0.1, weight_decay=0.8),
    ],
)
def test_explain_does_not_warn_where_there_is_no_such_bound(optimizer) -> None:
    assert table_and_warnings(optimizer(weight_of_norm((4, 4), 1e3, 0)))[1] == []


def test_of_weights_that_are_spread_over_ranks_only_the_product_is_looked_at(monkeypatch) -> None:
    monkeypatch.setattr(inspection, "is_dtensor", lambda x: True)
    w = weight_of_norm((4, 4), 1e3, 0)
    assert table_and_warnings(muonlab.Muon([("w", w)], lr=0.1, weight_decay=0.8))[1] == []
    assert len(table_and_warnings(muonlab.Muon([("w", w)], lr=2.0, weight_decay=0.8))[1]) == 1


def test_explain_warns_of_element_wise_rules_too() -> None:
    warned = table_and_warnings(muonlab.AdamW([("w", nn.Parameter(torch.ones(3)))], lr=2.0, weight_decay=0.8))[1]
    assert warned == ["warning: lr x weight_decay is 1.6 for w: above 1 decay overshoots, and bounds them less"]
