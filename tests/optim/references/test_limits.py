"""Where one rule has to become another, or something that is known."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from side_by_side import ANY_SHAPE, LR, SQUARE, Path, Problem, assert_same_path, ours, random_problem, some_basis
from torch import Tensor

from muonlab.optim import catalog, soap

EXACT = {"polar": "exact"}
each_decay = pytest.mark.parametrize("weight_decay", [0.0, 0.7])


def changed(problem: Problem, change: Callable[[Tensor], Tensor]) -> Problem:
    """Other gradients."""
    return Problem(problem.starts, [[change(g) for g in gs] for gs in problem.gradients])


def moves(problem: Problem, path: Path, lr: float = LR) -> list[list[Tensor]]:
    """What each step has subtracted, in units of the learning rate."""
    return [
        [(a - b) / lr for a, b in zip([w, *weights], weights, strict=False)]
        for w, weights in zip(problem.starts, path, strict=True)
    ]


# AdamW

ADAMW = {"betas": (0.8, 0.95), "eps": 1e-3}


def assert_adamw(problem: Problem, found: Path, tolerance: float = 1e-12, **arguments) -> None:
    reference = problem.path(lambda params: torch.optim.AdamW(params, **{"lr": LR, **ADAMW, **arguments}))
    assert_same_path(problem, found, reference, tolerance)


@each_decay
def test_ademamix_without_its_slow_average_is_adamw(weight_decay: float) -> None:
    problem = random_problem(ANY_SHAPE)
    arguments = {"betas": (0.8, 0.95, 0.99), "eps": 1e-3, "alpha": 0.0, "weight_decay": weight_decay}
    assert_adamw(problem, ours(problem, "ademamix", **arguments), weight_decay=weight_decay)


@each_decay
def test_mars_without_correction_is_adamw_on_small_gradients(weight_decay: float) -> None:
    problem = changed(random_problem(ANY_SHAPE), lambda g: g / (10 + g.norm()))
    found = ours(problem, "mars", gamma=0.0, weight_decay=weight_decay, **ADAMW)
    assert_adamw(problem, found, weight_decay=weight_decay)


def test_mars_without_correction_is_adamw_on_clipped_gradients() -> None:
    problem = random_problem(ANY_SHAPE)
    clipped = changed(problem, lambda g: g / g.norm().clamp(min=1.0))
    assert any(g.norm() > 1 for gs in problem.gradients for g in gs)
    assert_adamw(clipped, ours(problem, "mars", gamma=0.0, **ADAMW), weight_decay=0.0)


@each_decay
@pytest.mark.parametrize("momentum_decay", [None, 0.1])
def test_nadamw_without_momentum_is_adamw(momentum_decay: float | None, weight_decay: float) -> None:
    problem = random_problem(ANY_SHAPE)
    arguments = {**ADAMW, "betas": (0.0, 0.95), "weight_decay": weight_decay}
    assert_adamw(problem, ours(problem, "nadamw", momentum_decay=momentum_decay, **arguments), **arguments)


@each_decay
def test_cautious_is_adamw_while_every_sign_stays(weight_decay: float) -> None:
    problem = random_problem(ANY_SHAPE)
    signs = torch.arange(1000).remainder(3).sub(0.5).sign().double()
    problem = changed(problem, lambda g: g.abs() * signs[: g.numel()].reshape(g.shape))
    found = ours(problem, "cautious", weight_decay=weight_decay, **ADAMW)
    assert_adamw(problem, found, weight_decay=weight_decay)


@each_decay
def test_adam_mini_on_one_column_is_adamw(weight_decay: float) -> None:
    problem = random_problem(((7, 1), (1, 1), (12, 1)))
    found = ours(problem, "adam_mini", weight_decay=weight_decay, **ADAMW)
    assert_adamw(problem, found, weight_decay=weight_decay)


SOAP = {**ADAMW, "shampoo_beta": 0.9, "precondition_frequency": 2}


def after_the_first(problem: Problem, path: Path) -> tuple[Problem, Path]:
    """The same run from after the first step on, which SOAP spends on its bases."""
    start = [weights[0] for weights in path]
    return Problem(start, problem.after(1).gradients), [weights[1:] for weights in path]


@each_decay
def test_soap_in_the_identity_is_adamw(weight_decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soap, "eigenbasis", lambda a: torch.eye(a.shape[-1], dtype=a.dtype).expand_as(a))
    in_order = lambda a, q: (q, torch.arange(a.shape[-1]).expand(a.shape[:-1]))  # noqa: E731
    monkeypatch.setattr(soap, "power_iterated", in_order)
    problem = random_problem()
    found = ours(problem, "soap", weight_decay=weight_decay, **SOAP)
    for start, weights in zip(problem.starts, found, strict=True):
        torch.testing.assert_close(weights[0], start * (1 - LR * weight_decay), atol=1e-15, rtol=0)
    assert_adamw(*after_the_first(problem, found), weight_decay=weight_decay)


@each_decay
def test_soap_on_diagonal_gradients_is_adamw(weight_decay: float) -> None:
    """Its bases are permutations, of an order that changes; its second moment has to follow."""
    problem = changed(random_problem(SQUARE), lambda g: g.diagonal().diag())
    found = ours(problem, "soap", weight_decay=weight_decay, **SOAP)
    assert_adamw(*after_the_first(problem, found), 1e-10, weight_decay=weight_decay)


# Signs


def signs_of(problem: Problem, directions: Callable[[Sequence[Tensor]], list[Tensor]]) -> Path:
    def move(w: Tensor, gs: list[Tensor]):
        for u in directions(gs):
            w = w - LR * u.sign()
            yield w

    return problem.path_by(move)


def test_lion_that_does_not_look_back_is_the_sign_of_the_gradient() -> None:
    problem = random_problem(ANY_SHAPE)
    assert_same_path(problem, ours(problem, "lion", betas=(0.0, 0.9)), signs_of(problem, list), 1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_signum_is_the_sign_of_the_step_of_sgd(nesterov: bool) -> None:
    problem = random_problem(ANY_SHAPE)

    def sgd_steps(gs: list[Tensor]) -> list[Tensor]:
        one = Problem([torch.zeros_like(gs[0])], [gs])
        path = one.path(lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.8, nesterov=nesterov))
        return moves(one, path, lr=1.0)[0]

    found = ours(problem, "signum", momentum=0.8, nesterov=nesterov)
    assert_same_path(problem, found, signs_of(problem, sgd_steps), 1e-14)


def test_sophia_that_observes_nothing_is_signum() -> None:
    problem = random_problem(ANY_SHAPE)
    found = ours(problem, "sophia", betas=(0.8, 0.9))
    assert_same_path(problem, found, ours(problem, "signum", momentum=0.8), 1e-14)


# The polar factor


@each_decay
@pytest.mark.parametrize("polar", [EXACT, {"polar_dtype": "float64"}], ids=["exact", "newton_schulz"])
def test_without_momentum_orders_of_operations_are_muon(polar: dict, weight_decay: float) -> None:
    problem = random_problem()
    shared = {"momentum": 0.0, "weight_decay": weight_decay, **polar}
    for name, adjust in (("orthogonal_sgdm", "original"), ("scion", "spectral")):
        muon = ours(problem, "muon", adjust_lr_fn=adjust, **shared)
        assert_same_path(problem, ours(problem, name, **shared), muon, 1e-13)


def test_shampoo_without_memory_is_the_polar_factor() -> None:
    problem = random_problem()
    found = ours(problem, "shampoo", beta2=0.0, momentum=0.0, precondition_frequency=1, eps=1e-14)
    muon = ours(problem, "muon", momentum=0.0, adjust_lr_fn=lambda fan_out, fan_in: 1.0, **EXACT)
    assert_same_path(problem, found, muon, 1e-8)


WIDE = ((8, 8), (5, 12), (1, 6))


@each_decay
def test_normuon_is_muon_where_rows_have_equal_norm(weight_decay: float) -> None:
    """As those of an orthogonal factor have that is not taller than wide."""
    problem = random_problem(WIDE)
    shared = {"momentum": 0.8, "weight_decay": weight_decay, **EXACT}
    muon = ours(problem, "muon", adjust_lr_fn="match_rms_adamw", **shared)
    assert_same_path(problem, ours(problem, "normuon", beta2=0.7, **shared), muon, 1e-12)


def test_normuon_without_memory_gives_rows_equal_norm() -> None:
    problem = random_problem(((12, 5),))
    for u in moves(problem, ours(problem, "normuon", beta2=0.0, moment_eps=0.0, **EXACT))[0]:
        torch.testing.assert_close(u.norm(dim=1), torch.full((12,), 0.2 * 5**0.5, dtype=u.dtype), atol=1e-12, rtol=0)


def test_adamuon_without_memory_is_a_sign() -> None:
    problem = random_problem()
    found = ours(problem, "adamuon", beta2=0.0, moment_eps=0.0, polar_dtype="float64")
    for us in moves(problem, found):
        for u in us:
            torch.testing.assert_close(u.abs(), torch.full_like(u, 0.2), atol=1e-12, rtol=0)


def test_soap_muon_is_orthogonal_from_the_second_step_on() -> None:
    problem = random_problem()
    found = ours(problem, "soap_muon", adjust_lr_fn=lambda fan_out, fan_in: 1.0, **EXACT)
    for us in moves(problem, found):
        assert us[0].count_nonzero() == 0
        for u in us[1:]:
            torch.testing.assert_close(torch.linalg.svdvals(u), torch.ones(min(u.shape), dtype=u.dtype))


def test_kron_that_learns_nothing_is_sgd_on_gradients_of_equal_size() -> None:
    problem = random_problem()
    unit = changed(problem, lambda g: g / g.square().mean().sqrt())
    reference = unit.path(lambda params: torch.optim.SGD(params, lr=LR))
    assert_same_path(problem, ours(problem, "kron", momentum=0.0, precondition_lr=0.0), reference, 1e-12)


# The sphere


@pytest.mark.parametrize("name", ["muon_hyperball", "adam_hyperball"])
def test_on_the_sphere_a_learning_rate_is_the_tangent_of_an_angle(name: str) -> None:
    """Weight and direction are orthogonal: a multiple of 1, and what is skew and made of signs."""
    w, g = 3 * torch.eye(4, dtype=torch.float64), torch.ones(4, 4, dtype=torch.float64).triu(1)
    problem = Problem([w], [[g - g.T]])
    found = ours(problem, name, lr=0.5)[0][0]
    cosine = float((w * found).sum() / w.norm() / found.norm())
    assert math.acos(cosine) == pytest.approx(math.atan(0.5), rel=1e-12)
    assert float(found.norm()) == pytest.approx(6.0, rel=1e-14)


def test_on_the_sphere_every_part_has_a_radius() -> None:
    for name in ("muon_hyperball", "adam_hyperball"):
        problem = random_problem(((12, 5),))
        problem.starts[0][:4] *= 10
        for split in ((4, 4, 4), (4, 6, 2)):
            path = problem.path(
                lambda params, name=name, split=split: catalog.get(name)([{"params": params, "split_sizes": split}])
            )
            for part, start in zip(path[0][-1].split(split), problem.starts[0].split(split), strict=True):
                assert float(part.norm() / start.norm()) == pytest.approx(1, abs=1e-13)


# Fused projections and stacks of experts

PARTS = {
    "equal": ((12, 4), {"split_sizes": (4, 4, 4)}, (4, 4, 4)),
    "unequal": ((12, 4), {"split_sizes": (5, 6, 1)}, (5, 6, 1)),
    "experts": ((3, 4, 4), {"role": "expert"}, (1, 1, 1)),
    "tall-experts": ((3, 7, 4), {"role": "expert"}, (1, 1, 1)),
}
FINE = {"polar_dtype": "float64", "momentum": 0.8}
STATEFUL = {
    "adam_hyperball": {},
    "adamuon": FINE,
    "kron": {"momentum": 0.8},
    "muon": FINE,
    "muon_hyperball": FINE,
    "normuon": FINE,
    "orthogonal_sgdm": FINE,
    "scion": FINE,
    "shampoo": {"precondition_frequency": 3},
    "soap": {"precondition_frequency": 3},
    "soap_muon": {**FINE, "precondition_frequency": 3},
}


def parts_of(problem: Problem, rows: tuple[int, ...]) -> Problem:
    """The matrices that a single parameter is made of, as parameters."""
    (w,), (gs,) = problem.starts, problem.gradients
    apart = [[part.reshape(part.shape[-2:]) for part in x.split(rows)] for x in (w, *gs)]
    return Problem(apart[0], [[parts[i] for parts in apart[1:]] for i in range(len(rows))])


@pytest.mark.parametrize("shape,group,rows", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("name,arguments", STATEFUL.items(), ids=STATEFUL.keys())
def test_parts_of_a_parameter_are_matrices_of_their_own(
    name: str, arguments: dict, shape, group, rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bases of SOAP start from given ones: those of null spaces are up to rounding."""
    monkeypatch.setattr(soap, "eigenbasis", some_basis)
    sizes = torch.cat([torch.full((count,), 10.0**i) for i, count in enumerate(rows)]).double()
    problem = changed(random_problem((shape,)), lambda g: g * sizes.reshape(-1, *(1,) * (g.ndim - 1)))
    apart = parts_of(problem, rows)
    fused = problem.path(lambda params: catalog.get(name)([{"params": params, **group}], lr=LR, **arguments))
    alone = apart.path(lambda params: catalog.get(name)(params, lr=LR, **arguments))
    joined = [torch.cat([w.reshape(-1, *shape[1:]) for w in step]) for step in zip(*alone, strict=True)]
    assert_same_path(problem, fused, [joined], 1e-11)


def test_every_rule_for_matrices_has_a_row() -> None:
    assert set(STATEFUL) == {name for name in catalog.names() if catalog.get(name).rule.is_matrix_rule()}


@pytest.mark.parametrize("name", [name for name in catalog.names() if name not in STATEFUL])
def test_numbers_are_parameters_too(name: str) -> None:
    w = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    twin = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    for p in (w, twin):
        optimizer = catalog.get(name)([p], lr=LR)
        for g in (1.0, -0.5, 2.0):
            p.grad = torch.full_like(p, g)
            optimizer.step()
    assert w.item() == twin.item() != 2.0
