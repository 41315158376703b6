"""The study of features: what optimizers leave in a model beside its loss. Protocol and plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.evidence import Arm, Cell
from muonlab.records.features import FeaturesEvidence
from muonlab.records.watch import Watch
from muonlab.study.config import ComparisonConfig, FeaturesConfig, StudyConfig, validated
from muonlab.study.feature_transfer import Target, feature_transfer, named_with_data, plan_feature_transfer
from muonlab.study.plan import OptimizersPlan, base_specs, check_cap, check_tunable, named, tuning_rules
from muonlab.study.price import Looks, Part, Price, num_configurations
from muonlab.study.protocol import Protocol, gather
from muonlab.study.space import coordinates
from muonlab.study.tune import TuningRules, tune
from muonlab.tasks import catalog as tasks
from muonlab.train.feature_probes import FeatureProbe

__all__ = ["FeaturesPlan", "features_study", "plan_features", "without_decay"]


def features_study(
    bases: Mapping[str, RunSpec],
    spaces: Mapping[str, Sequence[Hyperparameter]],
    baseline: str,
    final_seeds: Sequence[int],
    rules: TuningRules,
    config: Mapping[str, Any] | None = None,
) -> Protocol[FeaturesEvidence]:
    """Tune each optimizer as a comparison does, then lr again without any weight decay; final runs of both.

    Decay is what most plausibly makes weights, and with them hidden states, rich or poor whatever the optimizer is, and
    optimizers tune to different decays: hence the control.
    """
    arms = yield from gather({n: _arm(n, base, spaces[n], rules, final_seeds) for n, base in bases.items()})
    free = {name: without_decay(bases[name].set(arm.cells[0].settings)) for name, arm in arms.items()}
    controls = yield from gather({n: _arm(n, base, spaces[n][:1], rules, final_seeds) for n, base in free.items()})
    first = next(iter(bases.values()))
    return FeaturesEvidence(
        task=first.task,
        baseline=baseline,
        horizon_tokens=first.horizon_tokens,
        arms=arms,
        controls=controls,
        tuning_seeds=rules.seeds,
        final_seeds=tuple(final_seeds),
        max_runs=rules.max_runs,
        config=config or {},
    )


def without_decay(spec: RunSpec) -> RunSpec:
    """The same run with every weight decay 0."""
    return spec.set({name: 0.0 for name in spec.hyperparameters if name.endswith(".weight_decay")})


def _arm(
    name: str, base: RunSpec, space: Sequence[Hyperparameter], rules: TuningRules, seeds: Sequence[int]
) -> Protocol[Arm]:
    tuning = yield from tune(base, space, rules)
    specs = [base.set({**tuning.best, "seed": seed}) for seed in seeds]
    yield specs
    keys = tuple(spec.key for spec in specs)
    cell = Cell(horizon_tokens=base.horizon_tokens, settings=tuning.best, keys=keys, tuning=tuning)
    return Arm(name=name, optimizer=base.optimizer, cells=(cell,))


@dataclass(frozen=True)
class FeaturesPlan(OptimizersPlan):
    """A study of features ready to run."""

    baseline: str
    final_seeds: tuple[int, ...]
    tuning: TuningRules
    looks: int
    target: Target | None = None  # None: nothing is transferred

    @property
    def watch(self) -> Watch:  # type: ignore[override]
        """Of final runs alone: tuning is what a comparison does, and shares its runs."""
        watch = Watch(curve_points=self.looks, features=True, seeds=frozenset(self.final_seeds))
        return self.target.watch(watch, self.final_seeds) if self.target else watch

    def protocol(self, asked: Mapping[str, Any]) -> Protocol[FeaturesEvidence]:
        """The study, with what was asked for as its config."""
        found = yield from features_study(self.bases, self.spaces, self.baseline, self.final_seeds, self.tuning, asked)
        if self.target is None:
            return found
        tuned = {name: self.bases[name].set(arm.cells[0].settings) for name, arm in found.arms.items()}
        transfer = yield from feature_transfer(tuned, self.target, self.final_seeds)
        return replace(found, transfer=transfer)

    def price(self) -> Price:
        """What it takes if no move is made and no grid extended, and what it can take at most."""
        finals, cap, seeds = 2 * len(self.final_seeds), self.tuning.max_runs, self.tuning.first_seeds
        least = {n: finals + sum(min(cap, num_configurations(s) * seeds) for s in (space, space[:1]))
                 for n, space in self.spaces.items()}  # fmt: skip
        most = finals + 2 * cap
        parts = [
            (least[n], most, Part(b, least[n] * b.horizon_tokens, most * b.horizon_tokens))
            for n, b in self.bases.items()
        ]
        parts += self.target.parts(self.bases, len(self.final_seeds)) if self.target else []
        fewest, most_runs = (sum(part[i] for part in parts) for i in (0, 1))
        looks = Looks(next(iter(self.bases.values())), self.looks * finals * len(self.bases))
        return Price(fewest, most_runs, tuple(part for _, _, part in parts), looks=looks)


def plan_features(config: FeaturesConfig) -> FeaturesPlan:
    """Check everything that can be checked before the first run, and lay the study out.

    Raises   UsageError for what `plan_comparison` refuses, a model or labels that can't be probed, and what
             `plan_feature_transfer` refuses
    """
    if "seed" in config.settings:
        raise UsageError("a study of features runs several seeds: name the first with --seed, not with --set seed")
    shared = {name: getattr(config, name) for name in StudyConfig.model_fields}
    asked, found = named(validated({**shared, "horizon_tokens": config.horizon_tokens}, ComparisonConfig))
    bases = base_specs(asked)
    check_tunable(asked, found, next(iter(bases.values())))
    _check_probes(next(iter(bases.values())))
    spaces = {name: coordinates(base, asked.tune, asked.fixed(name)) for name, base in bases.items()}
    tuning = tuning_rules(config)
    check_cap(spaces, tuning)
    seeds = tuple(range(config.first_seed, config.first_seed + config.num_seeds))
    if not config.transfer_to:
        _refuse_transfer(config)
        return FeaturesPlan(bases, spaces, asked.baseline, seeds, tuning, config.looks)
    target = plan_feature_transfer(config, bases, tuning)
    return FeaturesPlan(bases, spaces, asked.baseline, seeds, tuning, config.looks, target)


def _check_probes(base: RunSpec) -> None:
    """What the first final run would find out, long after the tuning."""
    if tasks.is_external(base.task):
        return
    task = tasks.resolve(base.task, base.task_options, base.data, base.source)
    try:
        FeatureProbe(task, task.build())
    except UsageError as error:
        raise UsageError(f"{named_with_data(base)} can't be studied: {error}") from None


def _refuse_transfer(config: FeaturesConfig) -> None:
    """Raises   UsageError for what only has an effect where there is a second task"""
    for name in ("transfer_data", "transfer_tokens", "transfer_settings"):
        if getattr(config, name):
            raise UsageError(f"{name} is for a second task: name it with --transfer-to")
