"""Convergence bounds for Muon's four variants, and the critical batch sizes that follow from them.

A bound says how small a measure of stationarity is on average over K iterates with batch b. SFO = K b counts the
gradients of single samples (stochastic first-order oracle calls) until a target; the critical batch b* has the least.
"""

import math
from dataclasses import dataclass

from scipy.optimize import brentq

__all__ = ["Bound", "Derived", "TunedBound", "claimed_noise"]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """average over K iterates at batch b  <=  start / K + noise / b^power + floor.

    Math     a = target - floor:  K(b) = start / (a - noise / b^power), infinite up to b_min = (noise / a)^(1 / power)
             b* = ((1 + power) noise / a)^(1 / power),  K(b*) b* = start b* (1 + power) / (power a)
    Source   Sato et al. 2025 (2507.01598): the form with power 1 is claimed by versions 1 to 4, the one with power 1/2
             by version 5, both known to us second hand. The minima for any power are derived by us; for 1 and 1/2
             they are the published 2 Y / a and 9 Y^2 / (4 a^2)
    Differs  from version 5, which says that noise, floor and target cannot be observed, so that only
             9 Y^2 / (4 target^2), with floor 0, is left, as a lower bound on b*

    >>> fifth = Bound(start=100, noise=2, floor=0.2, power=0.5)
    >>> fifth.least_batch(1.2), fifth.critical_batch(1.2), round(fifth.least_samples(1.2), 6)
    (4.0, 9.0, 2700.0)
    >>> fifth.steps(1.2, 16), fifth.samples(1.2, 16), fifth.steps(1.2, 4)
    (200.0, 3200.0, inf)
    >>> first = Bound(start=100, noise=2, floor=0.2, power=1)
    >>> first.least_batch(1.2), first.critical_batch(1.2), first.least_samples(1.2)
    (2.0, 4.0, 800.0)
    """

    start: float  # X
    noise: float  # Y
    floor: float  # Z
    power: float

    def value(self, steps: float, batch: float) -> float:
        """The bound itself."""
        return self.start / steps + self.noise / batch**self.power + self.floor

    def steps(self, target: float, batch: float) -> float:
        """K(b): iterates until the bound is at the target; inf where it never is."""
        margin = target - self.floor - self.noise / batch**self.power
        return self.start / margin if margin > 0 else math.inf

    def samples(self, target: float, batch: float) -> float:
        """SFO(b) = K(b) b."""
        return self.steps(target, batch) * batch

    def least_batch(self, target: float) -> float:
        """b_min: no batch up to it gets there; inf if none at all does."""
        return self._batch(target, 1.0)

    def critical_batch(self, target: float) -> float:
        """b*: SFO falls up to it and rises beyond."""
        return self._batch(target, 1.0 + self.power)

    def least_samples(self, target: float) -> float:
        """SFO* = SFO(b*)."""
        return self.samples(target, self.critical_batch(target)) if target > self.floor else math.inf

    def _batch(self, target: float, factor: float) -> float:
        margin = target - self.floor
        return (factor * self.noise / margin) ** (1 / self.power) if margin > 0 else math.inf


def claimed_noise(*, momentum: float, nesterov: bool, weight_decay: float, sigma: float) -> float:
    """Y of the bound with power 1 that versions 1 to 4 of the paper claim.

    Math     Y = k sigma^2 / 2;  k = (2 momentum + 1)(1 - momentum) + weight_decay with Nesterov's look-ahead,
             2 (1 - momentum) + weight_decay without it
    Source   with look-ahead: Sato et al. 2025 (2507.01598, v1 to v4), known to us second hand; without it: inferred by
             us from how the two terms arise. The Y of version 5 is not known to us

    >>> [round(claimed_noise(momentum=0.9, nesterov=n, weight_decay=d, sigma=1), 3) for n in (0, 1) for d in (0, 0.5)]
    [0.1, 0.35, 0.14, 0.39]
    """
    ahead = 2 * momentum + 1 if nesterov else 2
    return (ahead * (1 - momentum) + weight_decay) * sigma**2 / 2


@dataclass(frozen=True, kw_only=True)
class Derived:
    """Our own bound for one variant of Muon on one problem: exact polar factor, momentum as an average from 0.

    It is on the mean of |grad f(W_t)|_*, with decay (decoupled) of the Frank-Wolfe gap |grad f|_* + weight_decay
    <grad f, W> over the matrices of spectral norm up to 1 / weight_decay, among which the start must be. With
    r = rank, D = f(W_0) - f*, k = beta with look-ahead and 1 without:

    Math     D / (lr K) + initial / K + noise / sqrt(b) + lr drift
             initial = 2 sqrt(r) |grad f(W_0)|_F k beta / (1 - beta)
             noise   = 2 sqrt(r) sigma c;  c^2 = (1 - beta) / (1 + beta), with look-ahead
                       beta^4 (1 - beta) / (1 + beta) + (1 - beta^2)^2
             drift   = L r / 2 + 2 L r k beta / (1 - beta), with decay 2 L r + 4 L r k beta / (1 - beta)
    Units    lr is the spectral norm of an update, any scale by shape included
    Source   derived by us, in the steps below; it is not the paper's
    Differs  from the paper: the noise is the exact variance of the averaged gradients, without a triangle inequality;
             weight decay does not enter it

    1. Smoothness and |O|_F^2 <= r: f falls by lr <grad f, O> - L lr^2 r / 2 at least, O the polar factor of C.
    2. <C, O> = |C|_* and |.|_* <= sqrt(r) |.|_F: <grad f, O> >= |grad f|_* - 2 sqrt(r) |grad f - C|_F.
    3. grad f - C consists of noise, of variance at most c^2 sigma^2 / b; of the start, which momentum forgets like
       beta^t; and of the way that W went meanwhile, at most lr sqrt(r) a step. Sum over t, divide by lr K.
    4. With decay the step is lr (O + weight_decay W), at most twice as long while |W|_2 <= 1 / weight_decay; and
       <grad f, O + weight_decay W> has the gap where step 2 has |grad f|_*.

    >>> plain = Derived(gap=1, start_norm=1, smoothness=1, sigma=4, rank=4, momentum=0.9)
    >>> ahead = Derived(gap=1, start_norm=1, smoothness=1, sigma=4, rank=4, momentum=0.9, nesterov=True)
    >>> round(plain.noise, 3), round(ahead.noise, 3), round(plain.drift, 1), round(ahead.drift, 1)
    (3.671, 4.252, 74.0, 66.8)
    >>> round(plain.fixed(0.005).critical_batch(1.0), 1), round(plain.tuned().critical_batch(1.0), 1)
    (76.4, 51.2)
    """

    gap: float  # D = f(W_0) - f*
    start_norm: float  # |grad f(W_0)|_F
    smoothness: float  # L, in the Frobenius norm
    sigma: float  # of a sample: E |g - grad f|_F^2 <= sigma^2
    rank: int  # the shorter side of the matrix
    momentum: float
    nesterov: bool = False
    weight_decay: float = 0.0

    @property
    def noise(self) -> float:
        beta = self.momentum
        variance = (1 - beta) / (1 + beta)
        if self.nesterov:
            variance = beta**4 * variance + (1 - beta**2) ** 2
        return 2 * math.sqrt(self.rank * variance) * self.sigma

    @property
    def drift(self) -> float:
        straight, lagging = (2, 4) if self.weight_decay else (0.5, 2)
        return self.smoothness * self.rank * (straight + lagging * self._memory)

    @property
    def initial(self) -> float:
        return 2 * math.sqrt(self.rank) * self.start_norm * self._memory

    @property
    def _memory(self) -> float:
        """Steps that the momentum lags behind."""
        return self.momentum / (1 - self.momentum) * (self.momentum if self.nesterov else 1.0)

    def fixed(self, lr: float) -> Bound:
        """At one learning rate for all batches: the floor grows with momentum, so b* may, too.

        Raises   ValueError if lr x weight_decay is beyond 1, where the weights are not bounded
        """
        if lr * self.weight_decay > 1:
            raise ValueError(f"lr x weight_decay is {lr * self.weight_decay:g}: the bound needs at most 1")
        return Bound(start=self.gap / lr + self.initial, noise=self.noise, floor=lr * self.drift, power=0.5)

    def tuned(self) -> "TunedBound":
        """At the learning rate that is best for each batch and target."""
        return TunedBound(gap=self.gap, initial=self.initial, noise=self.noise, drift=self.drift)


@dataclass(frozen=True, kw_only=True)
class TunedBound:
    """gap / (lr K) + initial / K + noise / sqrt(b) + lr drift, lr chosen anew for each batch so that K is least.

    Math     a = target - noise / sqrt(b):  K(b) = ((sqrt(gap drift) + sqrt(gap drift + initial a)) / a)^2
             lr = sqrt(gap / (K drift));  b* lies between 9 noise^2 / (4 target^2) and 4 noise^2 / target^2, which it is
             where `initial` is 0. As noise^2 falls with momentum like 1 - momentum, b* does
    Source   derived by us

    >>> tuned = TunedBound(gap=1, initial=0, noise=2, drift=25)
    >>> tuned.least_batch(1), round(tuned.critical_batch(1), 6), tuned.steps(1, 16), tuned.lr(1, 16)
    (4.0, 16.0, 400.0, 0.01)
    """

    gap: float
    initial: float
    noise: float
    drift: float

    def steps(self, target: float, batch: float) -> float:
        """K(b): iterates until the bound is at the target; inf where it never is."""
        margin = target - self.noise / math.sqrt(batch)
        return self._steps(margin) if margin > 0 else math.inf

    def samples(self, target: float, batch: float) -> float:
        """SFO(b) = K(b) b."""
        return self.steps(target, batch) * batch

    def lr(self, target: float, batch: float) -> float:
        """The learning rate that K(b) is for; 0 where K(b) is infinite."""
        return math.sqrt(self.gap / (self.steps(target, batch) * self.drift))

    def least_batch(self, target: float) -> float:
        """b_min: no batch up to it gets there, at any learning rate."""
        return (self.noise / target) ** 2

    def critical_batch(self, target: float) -> float:
        """b*: SFO falls up to it and rises beyond."""

        def slope(margin: float) -> float:  # of log SFO over the margin
            root = math.sqrt(self.gap * self.drift + self.initial * margin)
            gained = self.initial / (root * (math.sqrt(self.gap * self.drift) + root))
            return 2 / (target - margin) - 2 / margin + gained

        best = brentq(slope, target / 3, target / 2 * (1 + 1e-9))  # beyond rounding: it is target / 2 at initial = 0
        return (self.noise / (target - best)) ** 2

    def _steps(self, margin: float) -> float:
        root = math.sqrt(self.gap * self.drift)
        return ((root + math.sqrt(root**2 + self.initial * margin)) / margin) ** 2
