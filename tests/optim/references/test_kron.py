"""Kron is stochastic by nature: what holds whatever its probes are. Its arithmetic is in test_matrix."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from muonlab.optim import Kron, KronRule

SHAPE = (7, 5)
Factors = tuple[Tensor, Tensor]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, condition: float, seed: int) -> Tensor:
    """A random one of that condition number, its trace the size."""
    q = torch.linalg.qr(noise((size, size), seed))[0]
    s = torch.logspace(0, math.log10(condition), size, dtype=torch.float64)
    return q @ torch.diag(s * size / s.sum()) @ q.T


def problems(condition: float) -> list[Factors]:
    """Covariances a of rows and b of columns."""
    return [tuple(covariance(size, condition, seed + size) for size in SHAPE) for seed in (10, 20, 30, 40)]


def fitted(pairs: list[Factors], learning: Callable[[float], float], num_steps: int = 500) -> list[Factors]:
    """Factors after gradients of covariance b (x) a; `learning` gives precondition_lr by the share of steps done."""
    params = [nn.Parameter(torch.zeros(len(a), len(b), dtype=torch.float64)) for a, b in pairs]
    white = [noise((num_steps, *w.shape), i) for i, w in enumerate(params)]
    gradients = [
        torch.linalg.cholesky(a) @ x @ torch.linalg.cholesky(b).T for (a, b), x in zip(pairs, white, strict=True)
    ]
    optimizer = Kron(params, lr=0.0, momentum=0.0)
    for step in range(num_steps):
        optimizer.param_groups[0]["precondition_lr"] = learning(step / num_steps)
        for w, gs in zip(params, gradients, strict=True):
            w.grad = gs[step]
        optimizer.step()
    return [(optimizer.state[w]["left"], optimizer.state[w]["right"]) for w in params]


def whitened(pair: Factors, factors: Factors) -> Tensor:
    """The covariance of preconditioned gradients."""
    left, right = (q.T @ q for q in factors)
    return torch.kron(left @ pair[0] @ left, right @ pair[1] @ right)


def condition(c: Tensor) -> float:
    s = torch.linalg.eigvalsh(c)
    return float(s[-1] / s[0])


@pytest.fixture(scope="module")
def at_the_default_rate() -> list[Factors]:
    return fitted(problems(30.0), lambda done: KronRule().precondition_lr)


def assert_triangular(q: Tensor) -> None:
    assert torch.equal(q, q.triu())
    assert (q.diagonal() > 0).all() and q.isfinite().all()
    assert condition(q @ q.T) > 2  # it has learnt something


def test_factors_stay_upper_triangular_with_a_positive_diagonal(at_the_default_rate: list[Factors]) -> None:
    at_the_largest_rate = fitted(problems(1e3), lambda done: 1.0, num_steps=200)
    for factors in (*at_the_default_rate, *at_the_largest_rate):
        for q in factors:
            assert_triangular(q)


def test_preconditioned_noise_is_nearly_white(at_the_default_rate: list[Factors]) -> None:
    """Measured on 12 problems of three shapes: distance from the identity, over its length, 1.77 -> 0.43 to 0.67."""
    for pair, factors in zip(problems(30.0), at_the_default_rate, strict=True):
        found = whitened(pair, factors)
        eye = torch.eye(len(found), dtype=found.dtype)
        assert float((found / found.diagonal().mean() - eye).norm() / eye.norm()) < 0.8


def test_preconditioned_noise_is_white_once_the_factors_have_come_to_rest() -> None:
    """Measured on 12 problems of three shapes: condition number 900 -> 1.9 to 2.9, mean eigenvalue 0.78 to 0.96."""
    pairs = problems(30.0)
    for pair, factors in zip(pairs, fitted(pairs, lambda done: 0.2 * (1 - done)), strict=True):
        found = whitened(pair, factors)
        assert condition(torch.kron(*pair)) > 800
        assert condition(found) < 4
        assert 0.7 < float(found.diagonal().mean()) < 1.1


def run(shapes: list[tuple[int, int]], order: list[int], seed: int = 0, num_steps: int = 8) -> list[Tensor]:
    """Weights of parameters that are handed over in some order, given back in the first one."""
    params = [nn.Parameter(noise(shape, i)) for i, shape in enumerate(shapes)]
    optimizer = Kron([params[i] for i in order], lr=0.1, seed=seed)
    for step in range(num_steps):
        for i, p in enumerate(params):
            p.grad = noise(tuple(p.shape), 100 * step + i)
        optimizer.step()
    return [p.detach() for p in params]


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not() -> None:
    first, again, other = (run([(6, 5), (4, 4)], [0, 1], seed) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert (a - c).abs().max() > 1e-4


def test_the_order_of_parameters_is_irrelevant() -> None:
    shapes = [(6, 5), (4, 4), (6, 5)]
    for a, b in zip(run(shapes, [0, 1, 2]), run(shapes, [2, 1, 0]), strict=True):
        assert torch.equal(a, b)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    first, state = run([(6, 5)], [0]), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(run([(6, 5)], [0])[0], first[0])
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


SCHEDULES = [
    {},
    {"update_flat_steps": 0},
    {"update_flat_steps": 250, "update_probability": 0.03},
    {"update_probability": 1.0},
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_refreshes_follow_the_schedule_at_every_step(schedule: dict) -> None:
    """As many as the documented shares add up to, rounded down, after each of 10000 steps."""
    rule = KronRule(**schedule)
    due, made = 0.0, 0
    for t in range(1, 10001):
        due += max(math.exp(-1e-3 * max(t - rule.update_flat_steps, 0)), rule.update_probability)
        made += rule.phase_at(t) == "refresh"
        assert due - 1 - 1e-9 < made < due + 1e-9


def test_factors_move_at_the_steps_of_the_schedule_alone() -> None:
    schedule = {"update_flat_steps": 3, "update_probability": 0.3}
    rule = KronRule(**schedule)
    w = nn.Parameter(noise((5, 4), 0))
    optimizer, before, moved = Kron([w], **schedule), torch.eye(5, dtype=torch.float64), []
    for t in range(1, 21):
        w.grad = noise((5, 4), t)
        optimizer.step()
        after = optimizer.state[w]["left"]
        moved.append(not torch.equal(before, after))
        before = after.clone()
    assert moved == [rule.phase_at(t) == "refresh" for t in range(1, 21)]
    assert moved[:3] == [True] * 3


def test_each_refresh_draws_a_probe_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from muonlab.optim import kron

    drawn, own = [], kron.normal_noise
    monkeypatch.setattr(kron, "normal_noise", lambda *args: drawn.append(own(*args)) or drawn[-1])
    w = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = kron.Kron([w])
    for _ in range(3):
        w.grad = torch.ones(4, 6)
        optimizer.step()
    assert len(drawn) == 3 and not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
