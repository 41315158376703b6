"""The mean of the weights over the last part of a run, which is what a constant learning rate is evaluated by."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from muonlab.optim.sharding import local_of

__all__ = ["Average"]


class Average:
    """A running mean of a model's weights over about the last `fraction` of the steps so far, at any time.

    Math     mean_t = mean_{t-1} + (g + 1) / (t + g) (w_t - mean_{t-1}), g = 1 / fraction - 1: step s weighs about s^g,
             so that the last fraction has 0.63 to 0.67 of the weight.
             What it is over grows with the run, so that it depends neither on the horizon nor on the batch
    Units    means are kept in float32, or in float64 for weights in it. Buffers are those of the last weights
    Source   Shamir, Zhang 2013, "Stochastic gradient descent for non-smooth optimization", polynomial decay averaging
    Differs  from the exponential mean with a swept decay of Zhang et al. 2024 (2410.21676): one fraction serves every
             length and batch
    """

    def __init__(self, model: nn.Module, fraction: float) -> None:
        self.model, self.power = model, 1.0 / fraction - 1.0
        self.weights = dict(model.named_parameters())
        self.means = {name: _widened(p.detach()).clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Take in the weights after step `t`, counted from 1."""
        weights = [_widened(local_of(p.detach())) for p in self.weights.values()]
        means = [
            local_of(mean) for mean in self.means.values()
        ]  # with tensor parallelism, some are spread and some not
        torch._foreach_lerp_(means, weights, (self.power + 1.0) / (t + self.power))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the mean weights, and its own again afterwards."""
        own = {name: p.detach().clone() for name, p in self.weights.items()}
        self._put(self.means)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.weights.items():
            p.copy_(values[name])
        for module in self.model.modules():
            if hasattr(module, "reshard"):  # FSDP2 would go on with the weights that it gathered before
                module.reshard()


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
