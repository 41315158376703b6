"""The element-wise rules against their papers, transcribed."""

import pytest
import torch
import transcriptions
from side_by_side import (
    ANY_SHAPE,
    LR,
    Observing,
    Path,
    Problem,
    assert_same_path,
    observations,
    ours,
    random_problem,
)

from muonlab.optim import catalog

DECAY = {"weight_decay": 0.7}  # else there is none
ROWS = {
    "adam_mini": ("adam_mini", DECAY),
    "adam_mini-eps": ("adam_mini", {"betas": (0.7, 0.9), "eps": 0.1}),
    "ademamix": ("ademamix", DECAY),
    "ademamix-eps": ("ademamix", {"betas": (0.7, 0.9, 0.95), "eps": 0.1, "alpha": 2.0}),
    "ademamix-warm": ("ademamix", {"betas": (0.8, 0.95, 0.99), "mix_warmup_steps": 15}),
    "adopt": ("adopt", DECAY),
    "adopt-eps": ("adopt", {"betas": (0.6, 0.8), "eps": 0.5}),
    "cautious": ("cautious", DECAY),
    "cautious-eps": ("cautious", {"betas": (0.7, 0.9), "eps": 0.1}),
    "lion": ("lion", DECAY),
    "lion-betas": ("lion", {"betas": (0.6, 0.8)}),
    "mars": ("mars", DECAY),
    "mars-eps": ("mars", {"betas": (0.8, 0.9), "eps": 0.1, "gamma": 0.5}),
    "nadamw": ("nadamw", DECAY),
    "nadamw-eps": ("nadamw", {"betas": (0.7, 0.9), "eps": 0.1}),
    "nadamw-decay": ("nadamw", {"betas": (0.8, 0.95), "momentum_decay": 0.3}),
    "signum": ("signum", DECAY),
    "signum-nesterov": ("signum", {"momentum": 0.6, "nesterov": True}),
}


def transcribed(problem: Problem, name: str, weight_decay: float = 0.0, **hyper) -> Path:
    rule = transcriptions.ELEMENTWISE[name]
    return problem.path_by(lambda w, gs: transcriptions.additive(w, rule(gs, **hyper), LR, weight_decay))


@pytest.mark.parametrize("name,hyper", ROWS.values(), ids=ROWS.keys())
def test_transcription(name: str, hyper: dict) -> None:
    problem = random_problem(ANY_SHAPE)
    found = ours(problem, name, **hyper)
    assert_same_path(problem, found, transcribed(problem, name, **hyper), 1e-12)


def test_every_rule_is_transcribed_and_every_elementwise_one_has_a_row() -> None:
    assert {name for name, _ in ROWS.values()} | {"sophia"} == set(transcriptions.ELEMENTWISE)
    told_by_torch = {"adamw", "muon", "sgd"}
    assert set(transcriptions.ELEMENTWISE) | set(transcriptions.MATRIX) | told_by_torch == set(catalog.names())


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_adam_mini_by_heads(num_heads: int) -> None:
    problem = random_problem(((8, 5), (12, 3)))
    found = problem.path(
        lambda params: catalog.get("adam_mini")([{"params": params, "num_heads": num_heads}], lr=LR, weight_decay=0.7)
    )
    assert_same_path(problem, found, transcribed(problem, "adam_mini", 0.7, num_blocks=num_heads), 1e-12)


def test_a_mask_that_leaves_hardly_anything_is_not_scaled_up_without_bound() -> None:
    first = torch.ones(60, 50, dtype=torch.float64)
    second = -0.01 * first
    second[0, 0] = 1.0  # one of 3000 elements agrees
    problem = Problem([torch.zeros_like(first)], [[first, second, second]])
    found = ours(problem, "cautious")
    assert_same_path(problem, found, transcribed(problem, "cautious"), 1e-12)
    moved = found[0][1] - found[0][0]
    assert moved[0, 0] < -10 * LR and moved.count_nonzero() == 1


SOPHIA = [({}, 0.7), ({"betas": (0.8, 0.7), "gamma": 0.3, "eps": 0.2}, 0.0), ({"betas": (0.5, 0.5), "gamma": 0.1}, 0.7)]


@pytest.mark.parametrize("hyper,weight_decay", SOPHIA)
@pytest.mark.parametrize("every", [1, 5])
def test_sophia(hyper: dict, every: int, weight_decay: float) -> None:
    problem = random_problem(ANY_SHAPE)
    observed = observations(problem, every)
    found = problem.path(lambda params: Observing(params, observed, lr=LR, weight_decay=weight_decay, **hyper))
    reference = []
    for i, (w, gs) in enumerate(zip(problem.starts, problem.gradients, strict=True)):
        seen = [None if o is None else (o[0][i], o[1]) for o in observed]
        directions = list(transcriptions.sophia(gs, seen, **hyper))
        reference.append(list(transcriptions.additive(w, directions, LR, weight_decay)))
    assert_same_path(problem, found, reference, 1e-12)


def test_sophia_is_clipped_in_some_places_and_not_in_others() -> None:
    problem = random_problem()
    observed = observations(problem, 5)
    found = problem.path(
        lambda params: Observing(params, observed, lr=LR, weight_decay=0.0, betas=(0.5, 0.5), gamma=0.1)
    )
    sizes = torch.cat([(path[-1] - path[-2]).abs().flatten() for path in found]) / LR
    clipped = (sizes > 1 - 1e-9).double().mean()
    assert 0.05 < clipped < 0.95
