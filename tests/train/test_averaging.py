"""Averaged weights: which mean they are, that they only observe, and that a run that was stopped goes on with them."""

import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.records.watch import Watch
from muonlab.train.averaging import Average
from muonlab.train.checkpoint import Checkpoints
from muonlab.train.loop import Interrupted, train


def moved(fraction: float, values: list[float], dtype: torch.dtype = torch.float64) -> float:
    """The mean of a single weight that takes these values, step by step."""
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    average = Average(model, fraction)
    for t, value in enumerate(values, 1):
        nn.init.constant_(model.weight, value)
        average.update(t)
    return average.means["weight"].item()


def test_step_s_weighs_as_a_power_of_s() -> None:
    """g = 1 makes weights of (s + g)! / s!, that is s itself: 1 2 3 4."""
    values = [3.0, -1.0, 5.0, 2.0]
    expected = sum(s * value for s, value in enumerate(values, 1)) / 10
    assert moved(0.5, values) == pytest.approx(expected, rel=1e-12)


def test_the_mean_is_over_about_the_last_fraction() -> None:
    """Of a weight that is its own step number; and of one that jumps where the last fraction begins."""
    for fraction in (0.05, 0.2):
        assert moved(fraction, [float(s) for s in range(1, 2001)]) == pytest.approx(2000 / (1 + fraction), rel=0.002)
        jump = [float(s > 2000 * (1 - fraction)) for s in range(1, 2001)]
        assert moved(fraction, jump) == pytest.approx(1 - (1 - fraction) ** (1 / fraction), rel=0.01)


def test_low_precision_is_averaged_in_float32() -> None:
    assert moved(0.5, [1.0, 1.0078125, 1.0], torch.bfloat16) == pytest.approx((1 + 2 * 1.0078125 + 3) / 6, rel=1e-6)


def test_the_model_has_its_own_weights_again() -> None:
    model = nn.Linear(3, 2)
    average, own = Average(model, 0.5), model.weight.detach().clone()
    nn.init.zeros_(average.means["weight"])
    with pytest.raises(KeyError), average.in_place():
        assert not model.weight.any()
        raise KeyError
    assert torch.equal(model.weight, own)


def test_averaging_changes_what_is_evaluated_and_nothing_else(make_text) -> None:
    plain, averaged = (train(make_text(averaging=part), watch=Watch(curve_points=4)) for part in (0.0, 0.3))
    assert plain.train_loss == averaged.train_loss
    assert plain.final_loss != averaged.final_loss and plain.key != averaged.key
    assert averaged.eval_loss[-1] == averaged.final_loss  # the last point of a curve is the end of the run


@pytest.mark.parametrize("step", [3, 11])
def test_a_stopped_run_goes_on_with_its_mean(make_text, tmp_path, step: int) -> None:
    spec, watch, asked = make_text(averaging=0.2), Watch(curve_points=6, noise_cost=0.5), iter(range(100))
    whole = train(spec, watch=watch)
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(spec, watch=watch, checkpoints=checkpoints, should_stop=lambda: next(asked) == step)
    rest = train(spec, watch=watch, checkpoints=checkpoints)
    assert (rest.final_loss, rest.eval_loss, rest.probes) == (whole.final_loss, whole.eval_loss, whole.probes)
    assert whole.probes["noise.trace"].steps


def test_a_checkpoint_without_noise_is_not_gone_on_from(make_text, tmp_path) -> None:
    spec, asked, seen = make_text(), iter(range(100)), []
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(spec, checkpoints=checkpoints, should_stop=lambda: next(asked) == 8)
    found = train(spec, watch=Watch(noise_cost=0.5), checkpoints=checkpoints, on_step=seen.append)
    assert len(seen) == spec.num_steps and found.probes["noise.trace"].values


@pytest.mark.parametrize("part", [1.0, -0.1, "a lot"])
def test_a_part_that_is_none_is_refused(make_text, part) -> None:
    with pytest.raises(UsageError, match="averaging must"):
        make_text(averaging=part)
