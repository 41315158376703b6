"""Gradient noise: the published vector, planted noise in both geometries, and a probe that only looks."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.records.watch import NOISE, Watch
from muonlab.roles import Role
from muonlab.train.loop import train
from muonlab.train.noise import NoiseProbe, noise_estimates

SHAPE, SAMPLES, TOKENS = (24, 16), 32, 4


def test_the_published_vector() -> None:
    """McCandlish et al.'s estimator on figures of a note about it; 5 % in one of them moves the ratio fourfold."""
    square, trace = noise_estimates(32, 512, 4.1e-2, 2.8e-3)
    assert square == pytest.approx(2.533e-4, rel=1e-3) and trace == pytest.approx(1.304, rel=1e-3)
    assert trace / square == pytest.approx(5150, rel=1e-3)
    square, trace = noise_estimates(32, 512, 4.1e-2, 2.8e-3 * 1.2)
    assert trace / square < 5150 / 3


def probe(cost: float = 0.02, flops_per_token: float = 6 * math.prod(SHAPE)) -> tuple[NoiseProbe, nn.Parameter]:
    p = nn.Parameter(torch.zeros(SHAPE))
    optimizer = SimpleNamespace(param_groups=[{"params": [p], "role": Role.HIDDEN}])
    return NoiseProbe(optimizer, SAMPLES, TOKENS, flops_per_token, cost), p


def measured(gradient: torch.Tensor, sigma: float, num: int = 400) -> dict[str, float]:
    """Means over batches whose samples have Gaussian noise of that size in every element."""
    one, p = probe()
    generator, total = torch.Generator().manual_seed(0), dict.fromkeys(NOISE, 0.0)
    for _ in range(num):
        noise = sigma * torch.randn(SAMPLES, *SHAPE, generator=generator)
        p.grad = gradient + noise.mean(0)
        found = one.measure({p: gradient + noise[: one.small].mean(0)})
        total = {name: total[name] + found[name] / num for name in NOISE}
    return total


def test_planted_noise_is_found_in_sgds_geometry() -> None:
    gradient, sigma = torch.linspace(-1, 1, math.prod(SHAPE)).reshape(SHAPE), 3.0
    found = measured(gradient, sigma)
    trace = sigma**2 * math.prod(SHAPE) * TOKENS  # of a token: a sample's gradient is the mean of its tokens'
    assert found["noise.gradient_square"] == pytest.approx(float(gradient.square().sum()), rel=0.05)
    assert found["noise.trace"] == pytest.approx(trace, rel=0.05)


def test_planted_noise_is_found_in_muons_geometry() -> None:
    """The nuclear norm of Gaussian noise, and of a gradient that stands out of it."""
    generator = torch.Generator().manual_seed(1)
    gradient, sigma = 4.0 * torch.randn(SHAPE, generator=generator), 0.5
    found, scale = measured(gradient, sigma), math.sqrt(SHAPE[0] / SHAPE[1])
    noise = [torch.linalg.matrix_norm(torch.randn(SHAPE, generator=generator), "nuc") for _ in range(100)]
    expected = scale * sigma * float(torch.stack(noise).mean()) * math.sqrt(TOKENS)
    assert found["noise.nuclear"] == pytest.approx(expected, rel=0.03)
    whole = scale * float(torch.linalg.matrix_norm(gradient, "nuc"))
    assert found["noise.gradient_nuclear"] == pytest.approx(whole, rel=0.03)


def test_the_signal_holds_no_noise_times_itself() -> None:
    """Without a gradient it is 0 in the mean, where the nuclear norm of the batch's gradient is not."""
    found = measured(torch.zeros(SHAPE), 1.0)
    assert abs(found["noise.gradient_nuclear"]) < 0.02 * found["noise.nuclear"] / math.sqrt(SAMPLES * TOKENS)


def test_the_probe_costs_what_it_may() -> None:
    """Arithmetic of a probe: a small batch, and 2 polar factors of 6 steps at 6 n m^2 each."""
    for cost in (0.02, 0.5):
        one, _ = probe(cost)
        polar = 2 * 6 * 6 * SHAPE[0] * SHAPE[1] ** 2
        step = 6 * math.prod(SHAPE) * SAMPLES * TOKENS
        share = one.small / SAMPLES + polar / step
        assert share / one.every <= cost < share / (one.every - 1) if one.every > 1 else share <= cost
        assert [step for step in range(1, 2 * one.every + 1) if one.is_due(step)] == [one.every, 2 * one.every]


def test_a_batch_of_one_sample_is_never_measured(make_text) -> None:
    watch = Watch(noise_cost=0.5)
    found = train(make_text(batch_tokens=32, horizon_tokens=512), watch=watch)
    assert all(found.probes[name] == ((), ()) for name in NOISE)
    assert watch.seen_in(found)  # and not asked for again


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_measuring_changes_nothing(make_text, optimizer: str) -> None:
    spec = make_text(optimizer)
    plain, watched = train(spec), train(spec, watch=Watch(noise_cost=0.5))
    assert (plain.train_loss, plain.final_loss) == (watched.train_loss, watched.final_loss)
    assert all(len(watched.probes[name].values) > 3 for name in NOISE) and not plain.probes


def test_several_ranks_are_refused(make_text) -> None:
    from muonlab.train.ranks import Alone

    class Two(Alone):
        world_size = 2

    with pytest.raises(UsageError, match="one process"):
        train(make_text(), watch=Watch(noise_cost=0.5), ranks=Two())
