"""Ratios do not move when the machine does; every step gets its gradient; rounds are fair."""

import random

import pytest
import torch
from torch import nn

from muonlab.bench import timing
from muonlab.bench.timing import Spread, Stepper, forward_backward, interleave, ratios, spread


def test_ratios_do_not_see_how_fast_the_machine_is():
    """Planted: a machine whose speed changes tenfold from round to round."""
    draws = random.Random(0)
    speeds = [10 ** draws.uniform(-1, 1) for _ in range(9)]
    calls = {"slow": 0, "fast": 0}

    def timer(name, seconds):
        def once():
            calls[name] += 1
            return seconds * speeds[calls[name] - 1]

        return once

    rounds = interleave({"slow": timer("slow", 3.0), "fast": timer("fast", 1.0)}, 9)
    found = spread(ratios(rounds["slow"], rounds["fast"]))
    assert found.num_rounds == 9 and found.low == pytest.approx(3.0) and found.high == pytest.approx(3.0)
    seconds = spread(rounds["slow"])
    assert seconds.high > 1.5 * seconds.low  # which the times themselves do see


def test_each_round_is_in_an_order_of_its_own():
    log = []
    interleave({name: lambda name=name: log.append(name) or 1.0 for name in "abc"}, 12)
    orders = {tuple(log[i : i + 3]) for i in range(0, 36, 3)}
    assert all(sorted(order) == ["a", "b", "c"] for order in orders) and len(orders) > 2


def test_who_takes_too_long_sits_out(monkeypatch):
    monkeypatch.setattr(timing, "MAX_SECONDS", -1.0)
    rounds = interleave({"a": lambda: 1.0}, 5)
    assert rounds == {"a": [1.0, 1.0, 1.0, None, None]}
    assert ratios(rounds["a"], [2.0] * 5) == [0.5] * 3


def test_the_spread_of_one_round_is_that_round():
    assert spread([2.0]) == Spread(2.0, 2.0, 2.0, 1)


class Greedy(torch.optim.SGD):
    """Consumes its gradients, one way or the other."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["params"][0].grad.zero_()
            group["params"][1].grad = None


def test_every_step_gets_its_gradient():
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    gradients = [torch.ones(3), torch.ones(2)]
    stepper = Stepper(Greedy(weights, lr=1.0), weights, gradients, [torch.empty(3), torch.empty(2)], "cpu")
    assert stepper.seconds(4) > 0
    assert all((weight == -4.0).all() for weight in weights)
    assert all((gradient == 1.0).all() for gradient in gradients)


def test_forward_and_backward_pass_take_longer_for_more_tokens():
    few, many = (forward_backward([(64, 64)], tokens, "cpu") for tokens in (8, 8192))
    rounds = interleave({"few": few, "many": many}, 5)
    assert spread(ratios(rounds["many"], rounds["few"])).median > 2
