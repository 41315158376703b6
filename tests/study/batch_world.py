"""A world in which tokens to a loss are known at every batch size, for the batch study and for its reports."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec, Schedule
from muonlab.records.evidence import BatchEvidence
from muonlab.records.record import Series
from muonlab.records.watch import NOISE
from muonlab.study.batch import BatchRules, batch_sweep
from muonlab.study.batch_plan import WATCH
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules

BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16_384)
REFERENCE, FIRST = 2048, 262_144
LR = Hyperparameter("opt.lr", 0.008, (0.002, 0.004, 0.008, 0.016, 0.032), low=0.0, low_closed=False)
MOMENTUM = Hyperparameter("opt.momentum", 0.9, (0.8, 0.9, 0.95), low=0.0, high=1.0, high_closed=False, log=False)
MODEL = {"devices": (1, 2, 4, 8), "bandwidth": 1e9, "latency_seconds": 1e-4}
FLOOR = 1.5


@dataclass
class World:
    """Runs specs by formula. tokens(batch) = T0 (1 + batch / doubling) / speed; lr has its best at sqrt(batch)."""

    speeds: Mapping[str, float] = field(default_factory=lambda: {"adamw": 1.0, "muon": 1.4})
    doubling: Mapping[str, float] = field(default_factory=lambda: {"adamw": 6000.0, "muon": 12_000.0})
    noise: float = 0.01  # of the logarithm of a run's tokens
    trial: int = 0
    unreachable: tuple[str, int] = ("", 0)  # an optimizer and a batch from which on its loss stays above 2.6
    records: dict[str, Record] = field(default_factory=dict)
    asked: list[RunSpec] = field(default_factory=list)

    def __call__(self, specs: Sequence[RunSpec]) -> dict[str, Record]:
        self.asked += specs
        made = {spec.key: self.record(spec) for spec in specs}
        self.records |= made
        return made

    def overhead(self, name: str, batch: int) -> float:
        """Tokens over those of a small batch with adamw."""
        return (1.0 + batch / self.doubling[name]) / self.speeds[name]

    def loss(self, spec: RunSpec, tokens: float, luck: float) -> float:
        name = spec.optimizer
        best = 0.01 * math.sqrt(spec.batch_tokens / 2048)
        wrong = 0.1 * math.log2(spec.get("opt.lr") / best) ** 2 + 20.0 * (spec.get("opt.momentum") - 0.9) ** 2
        effective = tokens / self.overhead(name, spec.batch_tokens) * math.exp(self.noise * luck - wrong)
        stuck = 1.1 if name == self.unreachable[0] and spec.batch_tokens >= self.unreachable[1] else 0.0
        return FLOOR + stuck + (effective / 2e4) ** -0.5

    def record(self, spec: RunSpec) -> Record:
        luck = float(np.random.default_rng([self.trial, *spec.key.encode()]).standard_normal())
        steps = tuple(sorted(WATCH.steps(spec)))
        losses = tuple(self.loss(spec, step * spec.batch_tokens, luck) for step in steps)
        scale = self.doubling[spec.optimizer]
        values = dict(zip(NOISE, (1.0, scale, 1.0, math.sqrt(scale)), strict=True))
        return Record(
            spec=spec, outcome="ok", final_loss=losses[-1], eval_steps=steps, eval_loss=losses,
            tokens=spec.horizon_tokens, step_seconds=0.01 + 2e-6 * spec.batch_tokens,
            environment={"machine": "simulated"}, params={"hidden": 1_000_000},
            probes={n: Series(steps, (v * math.exp(0.1 * luck),) * len(steps)) for n, v in values.items()},
        )  # fmt: skip

    def sweep(self, **changes: Any) -> BatchEvidence:
        """The whole study."""
        rules = {
            "baseline": "adamw", "batches": BATCHES, "reference": REFERENCE,
            "tuning": TuningRules(first_seeds=2), "final_seeds": (0, 1, 2), **changes,
        }  # fmt: skip
        spaces = dict.fromkeys(self.speeds, (LR, MOMENTUM))
        protocol = batch_sweep(bases(self.speeds), spaces, BatchRules(**rules), {"device_model": MODEL})
        return drive(protocol, self)


def bases(names: Sequence[str] | Mapping[str, Any]) -> dict[str, RunSpec]:
    start = {"opt.lr": LR.default, "opt.momentum": MOMENTUM.default, "opt.weight_decay": 0.1, "opt.beta2": 0.96}
    return {
        name: RunSpec(
            task="made up", optimizer=name, horizon_tokens=FIRST, batch_tokens=REFERENCE, hyperparameters=start,
            schedule=Schedule(kind="constant", warmup_fraction=0.05), averaging=0.05,
        )
        for name in names
    }  # fmt: skip
