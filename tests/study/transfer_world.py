"""A world in which the best hyperparameters are known at every width, for the transfer study and for its reports."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.records.transfer_evidence import TransferEvidence
from muonlab.study.protocol import drive
from muonlab.study.transfer import Subject, TransferRules, transfer

WIDTHS, FINAL = (32, 64, 128, 256), 512
LR = Hyperparameter("opt.lr", 0.01, (0.005, 0.01, 0.02), low=0.0, low_closed=False)
DECAY = Hyperparameter("opt.weight_decay", 0.1, (0.0, 0.1, 0.2), low=0.0)
MOMENTUM = Hyperparameter("opt.momentum", 0.95, (0.9, 0.95), low=0.0, high=1.0, high_closed=False, log=False)
SPACE = (LR, DECAY, MOMENTUM)


@dataclass
class World:
    """loss = 2 + 40 / width + sum of curvature_i (x_i - x_i*(width))^2 / 2, with x*(n) = start + best - rate / n."""

    best: Sequence[float] = (0.5, -0.4, 0.3)  # at infinite width, from where tuning starts, in logarithms
    rate: Sequence[float] = (8.0, -4.0, 0.0)  # of the drift
    curvature: Sequence[float] = (0.08, 0.05, 0.04)  # nats
    noise: float = 0.0  # of one run, nats
    power: float = 0.0  # lr* also falls as width^-power
    diverges_above: float = math.inf  # lr times width / 32
    trial: int = 0
    records: dict[str, Record] = field(default_factory=dict)
    asked: list[RunSpec] = field(default_factory=list)

    def __call__(self, specs: Sequence[RunSpec]) -> dict[str, Record]:
        self.asked += specs
        made = {spec.key: self.record(spec) for spec in specs}
        self.records |= made
        return made

    def optimum(self, width: float) -> np.ndarray:
        """Logarithms of the best values, axis by axis, relative to where tuning starts."""
        found = np.array(self.best) - np.array(self.rate) / width
        found[0] -= self.power * math.log(width / WIDTHS[0])
        return found

    def regret(self, settings: Mapping[str, Any], width: float) -> float:
        """Nats above the least loss at a width."""
        away = np.array([place(h, settings) for h in SPACE]) - self.optimum(width)
        used = [h.name in settings for h in SPACE]
        return float((np.array(self.curvature) * away**2 / 2)[used].sum())

    def record(self, spec: RunSpec) -> Record:
        width = int(spec.get("task.width"))
        tokens = spec.horizon_tokens
        if spec.get("opt.lr") * width / WIDTHS[0] > self.diverges_above:
            return Record(spec=spec, outcome="diverged", diverged_step=3, tokens=tokens, flops=6.0 * width**2 * tokens)
        luck = float(np.random.default_rng([self.trial, *spec.key.encode()]).standard_normal())
        loss = 2.0 + 40.0 / width + self.regret(spec.hyperparameters, width) + self.noise * luck
        return Record(
            spec=spec, outcome="ok", final_loss=loss, tokens=tokens, flops=6.0 * width**2 * tokens,
            params={"hidden": width**2}, environment={"machine": "simulated"},
        )  # fmt: skip

    def study(self, names: Sequence[str] = ("adamw",), num_axes: int = 2, **changes: Any) -> TransferEvidence:
        """The whole study."""
        rules = TransferRules(**{"baseline": names[0], "widths": WIDTHS, "final_width": FINAL, **changes})
        return drive(transfer([subject(name, num_axes, rules) for name in names], rules), self)


def place(h: Hyperparameter, settings: Mapping[str, Any]) -> float:
    """Logarithm of a value over where tuning starts; 0 of what is not there."""
    value, start = settings.get(h.name, h.default), h.default
    return math.log(value / start) if h.log else math.log((1 - value) / (1 - start))


def subject(name: str, num_axes: int, rules: TransferRules) -> Subject:
    space = SPACE[:num_axes]
    widths = [*rules.widths, *([rules.final_width] if rules.final_width else [])]
    start = {h.name: h.default for h in space}
    specs = {
        n: RunSpec(
            task="made up", optimizer=name, horizon_tokens=65_536, batch_tokens=1024, hyperparameters=start,
            task_options={"width": n},
        )
        for n in widths
    }  # fmt: skip
    return Subject(name=name, optimizer=name, parametrization="standard", space=space, specs=specs)
