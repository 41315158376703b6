"""Made-up losses, and protocols run on them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from muonlab.analyze.findings import Comparison
from muonlab.execute.executor import Observation
from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Evidence
from muonlab.study.calibration import Landscape, Response
from muonlab.study.compare import ComparisonRules, compare
from muonlab.study.fairness import conclude
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules

LR = Hyperparameter("opt.lr", 0.008, (0.001, 0.002, 0.004, 0.008, 0.016, 0.032), low=0.0, low_closed=False)
WEIGHT_DECAY = Hyperparameter("opt.weight_decay", 0.1, (0.0, 0.1, 0.2), low=0.0)
HORIZON_TOKENS, BATCH_TOKENS = 98_304, 256


def make_spec(optimizer: str = "a", **values: Any) -> RunSpec:
    """A run on the made-up landscape; `seed` and dotted names through `set`."""
    start = {"opt.lr": LR.default, "opt.weight_decay": WEIGHT_DECAY.default}
    spec = RunSpec(
        task="landscape", optimizer=optimizer, horizon_tokens=HORIZON_TOKENS, batch_tokens=BATCH_TOKENS,
        hyperparameters=start,
    )  # fmt: skip
    return spec.set(values)


def normal(text: str) -> float:
    """A standard normal number that is a function of a key, as the noise of a run is."""
    return float(np.random.default_rng(list(text.encode())).standard_normal())


@dataclass
class Bench:
    """Runs specs by a formula: inf is a diverged run. Remembers what it was asked for."""

    loss: Callable[[RunSpec], float]
    batches: list[list[RunSpec]] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)

    def __call__(self, specs: Sequence[RunSpec]) -> dict[str, Record]:
        self.batches.append(list(specs))
        made = {spec.key: self.record(spec) for spec in specs}
        self.records.update(made)
        return made

    def record(self, spec: RunSpec) -> Record:
        loss = self.loss(spec)
        if math.isinf(loss):
            return Record(spec=spec, outcome="diverged", diverged_step=1)
        return Record(
            spec=spec, outcome="ok", final_loss=loss, tokens=spec.horizon_tokens, step_seconds=0.01,
            environment={"machine": "simulated"}, params={"hidden": 1},
        )  # fmt: skip

    @property
    def asked(self) -> list[RunSpec]:
        return [spec for batch in self.batches for spec in batch]


@dataclass
class Notebook:
    """A store in memory, as `Runner` needs it."""

    records: dict[str, Record] = field(default_factory=dict)
    read_only: bool = False

    def get(self, keys: Sequence[str]) -> dict[str, Record]:
        return {key: self.records[key] for key in keys if key in self.records}

    def put(self, record: Record, *, replace: bool = False) -> bool:
        new = record.key not in self.records
        if new or replace:
            self.records[record.key] = record
        return new


@dataclass
class Machine:
    """An executor that runs by `make`, counts, and is switched off before run number `dies_at`."""

    make: Callable[[RunSpec], Record]
    dies_at: float = math.inf
    executed: list[str] = field(default_factory=list)

    def run(self, specs: Sequence[RunSpec], observation: Observation):
        for spec in specs:
            if len(self.executed) >= self.dies_at:
                raise KeyboardInterrupt
            self.executed.append(spec.key)
            yield self.make(spec)


@dataclass(frozen=True)
class Studied:
    """A comparison on a made-up landscape, from runs to finding."""

    evidence: Evidence
    records: dict[str, Record]

    @property
    def finding(self) -> Comparison:
        return conclude(self.evidence, self.records)


def run_study(
    responses: dict[str, Response],
    *,
    tune: Sequence[Hyperparameter] = (LR,),
    make: Callable[[RunSpec], Record] | None = None,
    **rules: Any,
) -> Studied:
    """Compare the optimizers of `responses` with the first; `make` replaces what a run gives."""
    landscape = Landscape(responses)
    bench = Bench(lambda spec: 0.0)
    bench.record = make or landscape.record
    chosen = ComparisonRules(**{"baseline": "a", "tuning": TuningRules(max_runs=80), **rules})
    bases = {name: make_spec(name) for name in responses}
    return Studied(drive(compare(bases, dict.fromkeys(bases, tuple(tune)), chosen), bench), bench.records)


@pytest.fixture(scope="session")
def lr() -> Hyperparameter:
    return LR


@pytest.fixture(scope="session")
def weight_decay() -> Hyperparameter:
    return WEIGHT_DECAY


@pytest.fixture(scope="session")
def spec() -> Callable[..., RunSpec]:
    return make_spec


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    return Bench


@pytest.fixture(scope="session")
def machine() -> type[Machine]:
    return Machine


@pytest.fixture(scope="session")
def notebook() -> type[Notebook]:
    return Notebook


@pytest.fixture(scope="session")
def study() -> Callable[..., Studied]:
    return run_study


@pytest.fixture(scope="session")
def noise() -> Callable[[str], float]:
    return normal
