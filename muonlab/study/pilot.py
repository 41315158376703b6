"""The pilot: one small sweep of lr and a few seeds with gradient noise measured, to choose a batch size by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from muonlab.errors import UsageError
from muonlab.records import Record, RunSpec
from muonlab.records.spec import Value
from muonlab.records.watch import Watch
from muonlab.study.batch_plan import at_batch
from muonlab.study.config import BatchConfig
from muonlab.study.plan import FIRST_TUNING_SEED, OptimizersPlan, base_specs, check_tunable, named
from muonlab.study.price import Part, Price, num_configurations
from muonlab.study.protocol import Protocol, gather
from muonlab.study.space import coordinates
from muonlab.study.tune import TuningRules, tune
from muonlab.tasks import catalog as tasks

__all__ = ["Pilot", "PilotPlan", "plan_pilot"]

WATCH = Watch(noise_cost=0.5)  # that is what a pilot is for
PILOT_SHARE = 32  # of the budget is a pilot at most
PILOT_STEPS = 256  # that it takes at most; noise grows with tokens, so longer is better, but it is to be short
LEAST_STEPS = 32
SWEPT_SEEDS = 2  # for each lr
STEPS_BELOW, STEPS_ABOVE = 6, 6  # candidates are the pilot's batch times two to the power of -6 ... 6


@dataclass(frozen=True)
class Pilot:
    """What came of it, for one optimizer."""

    settings: Mapping[str, Value]
    runs: tuple[Record, ...]


@dataclass(frozen=True)
class PilotPlan(OptimizersPlan):
    """A pilot ready to run."""

    budget: int
    candidates: tuple[int, ...]
    seeds: tuple[int, ...]
    tuning: TuningRules
    watch: ClassVar[Watch] = WATCH

    def protocol(self) -> Protocol[dict[str, Pilot]]:
        """Every optimizer at once."""
        return gather({name: self._one(name) for name in self.bases})

    def _one(self, name: str) -> Protocol[Pilot]:
        tuning = yield from tune(self.bases[name], self.spaces[name], self.tuning)
        specs = [self.bases[name].set({**tuning.best, "seed": seed}) for seed in self.seeds]
        records = yield specs
        return Pilot(tuning.best, tuple(records[spec.key] for spec in specs))

    def price(self) -> Price:
        """If lr is not moved beyond its grid."""
        counts = {
            name: num_configurations(space) * SWEPT_SEEDS + len(self.seeds) for name, space in self.spaces.items()
        }
        most = self.tuning.max_runs + len(self.seeds)
        parts = [Part(b, counts[n] * b.horizon_tokens, most * b.horizon_tokens) for n, b in self.bases.items()]
        return Price(sum(counts.values()), most * len(parts), tuple(parts))


def plan_pilot(config: BatchConfig) -> PilotPlan:
    """Lay a pilot out for a budget of `horizon_tokens`, at the reference batch or, without one, at 4096 tokens.

    Raises   UsageError for what a batch study refuses, and for a budget that leaves no room for a pilot
    """
    batches = tuple(sorted(config.batches))
    batch = config.reference or (batches[(len(batches) - 1) // 2] if batches else 4096)
    steps = min(PILOT_STEPS, config.horizon_tokens // PILOT_SHARE // batch)
    if steps < LEAST_STEPS:
        least = LEAST_STEPS * PILOT_SHARE * batch
        raise UsageError(f"a pilot of {batch} tokens a step needs a budget of {least:,} tokens: raise --tokens")
    asked, found = named(at_batch(config.model_copy(update={"horizon_tokens": steps * batch}), batch))
    bases = base_specs(asked)
    check_tunable(asked, found, next(iter(bases.values())))
    first = FIRST_TUNING_SEED + config.first_seed
    tuning = TuningRules(seeds=tuple(range(first, first + 4)), first_seeds=SWEPT_SEEDS, max_runs=config.max_runs)
    return PilotPlan(
        bases={name: replace(base, averaging=0.0) for name, base in bases.items()},
        spaces={name: coordinates(base, ("opt.lr",), config.fixed(name)) for name, base in bases.items()},
        budget=config.horizon_tokens,
        candidates=batches or _candidates(batch, next(iter(bases.values()))),
        seeds=tuple(range(config.first_seed, config.first_seed + config.num_seeds)),
        tuning=tuning,
    )


def _candidates(batch: int, base: RunSpec) -> tuple[int, ...]:
    """Powers of two around the pilot's batch, of whole samples."""
    unit = tasks.resolve(base.task, base.task_options, base.data, base.source).tokens_per_sample
    around = (int(batch * 2.0**k) for k in range(-STEPS_BELOW, STEPS_ABOVE + 1))
    return tuple(b for b in around if b and b % unit == 0)
