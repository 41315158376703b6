"""Features that transfer: each pretrained model is fine-tuned by each optimizer on a second task. Protocol and plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.evidence import Cell
from muonlab.records.features import FeatureTransfer, FineTuning
from muonlab.records.watch import Watch
from muonlab.study.config import ComparisonConfig, FeaturesConfig, StudyConfig, validated
from muonlab.study.plan import MIN_STEPS, base_specs
from muonlab.study.price import Part, num_configurations
from muonlab.study.protocol import Protocol, gather
from muonlab.study.space import coordinates
from muonlab.study.trials import FROM_NOTHING, Parents, seeded
from muonlab.study.tune import TuningRules, tune
from muonlab.tasks import catalog as tasks
from muonlab.tasks.rehearsal import rehearse
from muonlab.train.inherit import has_own_classes, inherit
from muonlab.train.linear_probe import can_be_probed, linear_probe

__all__ = ["Target", "feature_transfer", "named_with_data", "plan_feature_transfer"]

SHARE = 0.1  # of the tokens of pretraining, for fine-tuning where nothing else is asked for; ours


@dataclass(frozen=True)
class Target:
    """Where to: a run of every optimizer on the second task, and what is tuned of it, lr alone."""

    bases: Mapping[str, RunSpec]
    spaces: Mapping[str, Sequence[Hyperparameter]]
    rules: TuningRules
    fresh_head: bool  # the classes of the second task are its own
    probe: bool  # whether it has any

    @property
    def base(self) -> RunSpec:
        """Of any of them: task, data and length are the same."""
        return next(iter(self.bases.values()))

    def watch(self, pretraining: Watch, seeds: Sequence[int]) -> Watch:
        """Of the whole study: final runs of pretraining leave their weights, those of fine-tuning are looked at."""
        last = frozenset({self.base.num_steps})  # for what the task measures
        mine = frozenset({(self.base.task, self.base.data_fingerprint)})
        fine = Watch(eval_steps=last, probe=self.probe, seeds=frozenset(seeds), tasks=mine)
        return replace(fine, other=replace(pretraining, weights=True))

    def parts(self, pretrained: Mapping[str, RunSpec], num_seeds: int) -> list[tuple[int, int, Part]]:
        """What it takes beside the pretraining: least and most runs, and their tokens, those made again among them."""
        found, seeds = [], self.rules.first_seeds
        for base in pretrained.values():  # of tuning seeds, whose weights nobody kept; at most all that there are
            again = (seeds, seeds + num_seeds)
            found.append((*again, Part(base, *(count * base.horizon_tokens for count in again))))
        for name, base in self.bases.items():
            least = min(self.rules.max_runs, num_configurations(self.spaces[name]) * seeds)
            runs = [(len(pretrained) + 1) * (count + num_seeds) for count in (least, self.rules.max_runs)]
            found.append((*runs, Part(base, *(count * base.horizon_tokens for count in runs))))
        return found


def feature_transfer(
    pretrained: Mapping[str, RunSpec], target: Target, final_seeds: Sequence[int]
) -> Protocol[FeatureTransfer]:
    """Fine-tune what each of `pretrained`, a run with the settings as tuned, has learned; and what nothing has.

    1. For every pretraining x fine-tuning optimizer, and for fine-tuning from scratch, lr is swept by itself, on tuning
       seeds; what else the fine-tuning optimizer has stays as it was tuned for pretraining.
    2. Final runs on the final seeds. The run of a seed starts from the pretraining of that seed, also in 1.
    A pretraining that diverged on any seed is left out.
    """
    seeds = (*target.rules.seeds, *final_seeds)
    runs = {name: {seed: spec.set({"seed": seed}) for seed in seeds} for name, spec in pretrained.items()}
    records = yield [spec for by_seed in runs.values() for spec in by_seed.values()]
    parents: dict[str, Parents] = {
        name: {seed: spec.key for seed, spec in by_seed.items()}
        for name, by_seed in runs.items()
        if all(records[spec.key].outcome == "ok" for spec in by_seed.values())
    }
    parents[""] = FROM_NOTHING
    asked = {f"{origin} > {name}": (origin, name) for name in target.bases for origin in parents}
    cells = yield from gather(
        {
            both: _cell(target, name, pretrained[name], parents[origin], final_seeds)
            for both, (origin, name) in asked.items()
        }
    )
    tunings = tuple(FineTuning(pretraining=o, name=n, cell=cells[both]) for both, (o, n) in asked.items())
    return FeatureTransfer(task=target.base.task, horizon_tokens=target.base.horizon_tokens, tunings=tunings)


def _cell(target: Target, name: str, tuned: RunSpec, parents: Parents, final_seeds: Sequence[int]) -> Protocol[Cell]:
    own = {key: value for key, value in tuned.hyperparameters.items() if key != "opt.lr"}
    base = replace(target.bases[name].set(own), fresh_head=target.fresh_head and bool(parents))
    tuning = yield from tune(base, target.spaces[name], target.rules, parents=parents)
    specs = [seeded(base, tuning.best, seed, parents) for seed in final_seeds]
    yield specs
    settings = {**own, **tuning.best}
    return Cell(horizon_tokens=base.horizon_tokens, settings=settings, keys=tuple(s.key for s in specs), tuning=tuning)


def plan_feature_transfer(config: FeaturesConfig, pretrained: Mapping[str, RunSpec], rules: TuningRules) -> Target:
    """Check that the second task can take over the model of the first, and lay its runs out.

    Raises   UsageError for a second task that there is not, that is the first one, that shares no parameter with it, or
             has too few tokens to be fine-tuned on
    """
    first = next(iter(pretrained.values()))
    if tasks.is_external(config.transfer_to):
        raise UsageError(f"{config.transfer_to} is trained elsewhere: --transfer-to needs a task that is trained here")
    settings = _settings(config)
    fresh_head = _common(first, config, settings)
    tokens = config.transfer_tokens or int(first.horizon_tokens * SHARE)
    if tokens // config.batch_tokens < MIN_STEPS:
        raise UsageError(
            f"{tokens} tokens of fine-tuning are fewer than {MIN_STEPS} steps of {config.batch_tokens}: "
            "raise --transfer-tokens, or lower --batch-tokens"
        )
    shared = {name: getattr(config, name) for name in StudyConfig.model_fields if name not in ("task", "data")}
    asked = {
        **shared, "task": config.transfer_to, "data": config.transfer_data, "horizon_tokens": tokens,
        "settings": settings,
    }  # fmt: skip
    bases = base_specs(validated(asked, ComparisonConfig))
    base = next(iter(bases.values()))
    if (base.task, base.data_fingerprint) == (first.task, first.data_fingerprint):
        raise UsageError(f"--transfer-to {base.task} is the task itself on the same data: name another, or other data")
    probe = _can_be_probed(base)
    spaces = {name: coordinates(one, ("opt.lr",)) for name, one in bases.items()}
    few = replace(rules, seeds=rules.seeds[: rules.first_seeds])  # those that every pretraining was tuned on
    return Target(bases, spaces, few, fresh_head, probe)


def named_with_data(spec: RunSpec) -> str:
    """Task and files of a run, as an error names them.

    >>> named_with_data(RunSpec(task="text", data=("a.txt",), optimizer="muon", horizon_tokens=8, batch_tokens=1))
    'task text of a.txt'
    """
    return f"task {spec.task} of {', '.join(spec.data)}" if spec.data else f"task {spec.task}"


def _settings(config: FeaturesConfig) -> dict[str, object]:
    """What is set of the first task holds for the second, where that has it, and what is set of the second alone."""
    for name in config.transfer_settings:
        if not name.startswith("task."):
            raise UsageError(f"--transfer-set {name}: only options of the second task, task.*, can be set for it alone")
    options = tasks.locate(config.transfer_to).options
    found = {
        name: value
        for name, value in config.settings.items()
        if not name.startswith(("task.", "base.")) or name.partition(".")[2] in options
    }
    return {**found, **config.transfer_settings}


def _common(first: RunSpec, config: FeaturesConfig, settings: Mapping[str, object]) -> bool:
    """Whether the second task has classes of its own.

    Raises   UsageError where the two models have nothing in common, which no other length or batch would change
    """
    info = tasks.locate(config.transfer_to)
    options = {name.removeprefix("task."): v for name, v in settings.items() if name.startswith("task.")}
    data = tuple(str(Path(path).absolute()) for path in config.transfer_data)
    task: Any = tasks.resolve(info.name, options, data, info.source)
    if not tasks.is_ours(info.name):
        rehearse(task)
    source = tasks.resolve(first.task, first.task_options, first.data, first.source)
    model, fresh_head = task.build(), has_own_classes(task)
    inherit(model, source.build().state_dict(), tasks.roles_of(task, model), fresh_head)
    return fresh_head


def _can_be_probed(second: RunSpec) -> bool:
    task = tasks.resolve(second.task, second.task_options, second.data, second.source)
    if not can_be_probed(task):
        return False
    try:
        linear_probe(task, task.build())
    except UsageError as error:
        raise UsageError(f"{named_with_data(second)}: {error}") from None
    return True
