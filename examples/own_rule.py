"""An optimizer of your own: copy this file, put in your mathematics, and name it `own_rule.py:MyRule` in any command.

    muonlab compare text --optimizers adamw,own_rule.py:MyRule --tokens 40960 --batch-tokens 1024

A rule is one value with the formula in it. Learning rate, weight decay, schedules, param groups, checkpoints, the
skipping of steps that are not finite and everything else belong to the engine. As it stands this one is normalised SGD
with momentum. `python own_rule.py` holds it to the contract of every optimizer here: see docs/own_optimizer.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from muonlab.kernels.moments import ema_
from muonlab.kernels.normalise import unit_rms
from muonlab.optim import Rule, StateField, hp


@dataclass(frozen=True, kw_only=True)
class MyRule(Rule):
    """Momentum, normalised: every parameter moves by the same amount, however large its gradient.

    Math     m <- momentum m + (1 - momentum) g;  u = m / rms(m), over all elements of a parameter
    Units    lr is the root mean square of an update
    Source   Cutkosky and Mehta 2020 (2002.03305), "Momentum Improves Normalized SGD"
    Differs  from the paper: each parameter is normalised by itself, and to unit RMS, so that one lr fits all shapes
    """

    name: ClassVar[str] = "normalised_sgd"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "Cutkosky and Mehta 2020 (2002.03305)"
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param")}  # starts at zero
    step_count: ClassVar[str] = "none"  # `local` does not use t
    sees: ClassVar[str] = "whole"  # it takes a norm over the whole parameter
    step_unit: ClassVar[str] = "RMS"  # of lr, in tables

    lr: float = hp(4e-3, grid=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), low=0.0, unit="RMS of an update", source="a guess")
    momentum: float = hp(0.9, grid=(0.8, 0.9, 0.95), low=0.0, high=1.0, high_closed=False, log=False, source="a guess")
    weight_decay: float = hp(0.0, grid=(0.0, 0.1, 0.2), low=0.0, unit="1/lr per step", source="a guess")

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        m = ema_(state["momentum_buffer"], g, self.momentum)
        return unit_rms(m)


if __name__ == "__main__":
    from muonlab.testing import check

    print(check(MyRule) or "every clause holds")
