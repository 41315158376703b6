"""From a config to the runs of a batch study: batch sizes checked, the schedule made constant, every name checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from muonlab.errors import UsageError
from muonlab.records import RunSpec
from muonlab.records.evidence import BatchEvidence
from muonlab.records.watch import PROBE_COST, Watch
from muonlab.study.batch import LEAST_STEPS, BatchRules, batch_sweep
from muonlab.study.config import BatchConfig, ComparisonConfig, StudyConfig, validated
from muonlab.study.plan import OptimizersPlan, base_specs, check_cap, check_tunable, named, tuning_rules
from muonlab.study.price import Part, Price, num_configurations
from muonlab.study.protocol import Protocol
from muonlab.study.space import check_names, coordinates
from muonlab.tasks import catalog as tasks

__all__ = ["BatchPlan", "at_batch", "plan_batch"]

WATCH = Watch(curve_points=32, noise_cost=PROBE_COST)


@dataclass(frozen=True)
class BatchPlan(OptimizersPlan):
    """A batch study ready to run; its bases are at the reference batch and of the first length."""

    rules: BatchRules
    device_model: Mapping[str, Any]
    watch: ClassVar[Watch] = WATCH

    def protocol(self, asked: Mapping[str, Any]) -> Protocol[BatchEvidence]:
        """The study, with what was asked for as its config."""
        return batch_sweep(self.bases, self.spaces, self.rules, {**asked, "device_model": dict(self.device_model)})

    def price(self) -> Price:
        """What it takes if the first length suits every batch and no move is made, and what it can take at most."""
        rules, tuning, finals = self.rules, self.rules.tuning, len(self.rules.final_seeds)
        least_runs = most_runs = 0
        parts = []
        for name, space in self.spaces.items():
            full = min(tuning.max_runs, num_configurations(space) * tuning.first_seeds)
            num_retuned = sum(h.name in rules.retuned for h in space)
            search = min(tuning.max_runs, (1 + 2 * num_retuned) * tuning.first_seeds)
            least_runs += full + len(rules.batches) * (search + finals)
            most_runs += tuning.max_runs + len(rules.batches) * (tuning.max_runs + finals)
            for batch in rules.batches:
                again = (full, tuning.max_runs) if batch == rules.reference else (0, 0)
                horizon = max(self.bases[name].horizon_tokens, LEAST_STEPS * batch) // batch * batch
                spec = self.bases[name].set({"batch_tokens": batch, "horizon_tokens": horizon})
                most = (tuning.max_runs + finals) * rules.most_horizons + again[1]
                parts.append(Part(spec, (search + finals + again[0]) * horizon, most * horizon))
        return Price(least_runs, most_runs, tuple(parts))


def plan_batch(config: BatchConfig) -> BatchPlan:
    """Check everything that can be checked before the first run, and lay the study out.

    Raises   UsageError for what `plan_comparison` refuses, for fewer than three batch sizes, for one that is no
             multiple of a sample or too large for the length, and for a schedule that decays
    """
    batches = tuple(sorted(config.batches))
    if len(batches) < 3:
        raise UsageError("a batch study needs at least three batch sizes, such as --batches 1024,4096,16384")
    if twins := [batch for batch in batches if batches.count(batch) > 1]:
        raise UsageError(f"batch {twins[0]} is given twice in --batches: leave one out")
    for name, counts in (("batches", batches), ("devices", config.devices)):
        if min(counts, default=1) < 1:
            raise UsageError(f"{name} must be at least 1, got {min(counts)}")
    if any(not 0 < target < float("inf") for target in config.targets):
        raise UsageError("targets must be losses above 0, such as --targets 2.5,2.2")
    reference = config.reference or batches[(len(batches) - 1) // 2]
    if reference not in batches:
        raise UsageError(f"the reference batch {reference} must be one of --batches {','.join(map(str, batches))}")
    asked, found = named(at_batch(config, reference))
    bases = base_specs(asked)
    first = next(iter(bases.values()))
    _check_batches(batches, first, config.most_horizons)
    check_tunable(asked, found, first)
    unusual = set(config.retune) - set(BatchConfig.model_fields["retune"].default)
    check_names([info.cls for info in found.values()], first, [name for name in config.retune if name in unusual])
    tune = tuple(dict.fromkeys((*config.tune, *config.retune)))
    rules = BatchRules(
        baseline=asked.baseline, batches=batches, reference=reference, targets=tuple(config.targets),
        final_seeds=tuple(range(config.first_seed, config.first_seed + config.num_seeds)),
        tuning=tuning_rules(config), retuned=config.retune, most_horizons=config.most_horizons,
    )  # fmt: skip
    spaces = {name: coordinates(base, tune, config.fixed(name)) for name, base in bases.items()}
    check_cap(spaces, rules.tuning)
    model = {
        "devices": config.devices, "bandwidth": config.bandwidth, "latency_seconds": config.latency_seconds,
    }  # fmt: skip
    return BatchPlan(bases, spaces, rules, model)


def _check_batches(batches: Sequence[int], first: RunSpec, most_horizons: float) -> None:
    task = tasks.resolve(first.task, first.task_options, first.data, first.source)
    unit = task.tokens_per_sample
    for batch in batches:
        if batch % unit:
            nearest = max(unit, round(batch / unit) * unit)
            raise UsageError(f"batch {batch} must be a multiple of one sample, {unit} tokens: try {nearest}")
        if batch * LEAST_STEPS > first.horizon_tokens * most_horizons:
            raise UsageError(f"batch {batch} leaves fewer than {LEAST_STEPS} steps in the longest run: raise --tokens")
        if hasattr(task, "check"):
            task.check(batch // unit)


def at_batch(config: BatchConfig, batch: int) -> ComparisonConfig:
    """What a comparison at that batch would be asked as, with a constant lr and averaged weights."""
    kind = config.settings.get("schedule.kind", "constant")
    if kind != "constant":
        raise UsageError(f"time to a loss is read off a curve, so lr must not decay: leave schedule.kind {kind} out")
    if "seed" in config.settings:
        raise UsageError("a batch study runs several seeds: name the first with --seed, not with --set seed")
    shared = {name: getattr(config, name) for name in StudyConfig.model_fields}
    settings = {
        "schedule.warmup_fraction": 0.05, "averaging": 0.05, **config.settings, "schedule.kind": "constant",
    }  # fmt: skip
    return validated({**shared, "batch_tokens": batch, "settings": settings, "horizon_tokens": config.horizon_tokens})
