"""From a config to the runs it is about: task found, data hashed, defaults filled in, every name checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from muonlab.errors import UsageError, unknown
from muonlab.optim import catalog
from muonlab.optim.parametrization import check_rules
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec, Schedule
from muonlab.records.evidence import Evidence
from muonlab.records.spec import Value, canonical_json
from muonlab.records.watch import Watch
from muonlab.study.compare import SHORTEST_RATIO, ComparisonRules, compare
from muonlab.study.config import ComparisonConfig, StudyConfig
from muonlab.study.price import Part, Price, num_configurations
from muonlab.study.protocol import Protocol
from muonlab.study.space import base_options, check_names, coordinates, settable, start, starts
from muonlab.study.tune import TuningRules
from muonlab.tasks import catalog as tasks
from muonlab.tasks.rehearsal import rehearse
from muonlab.train.loop import check_observation

__all__ = [
    "OptimizersPlan",
    "Plan",
    "base_specs",
    "check_cap",
    "check_tunable",
    "conventions",
    "named",
    "plan_comparison",
    "starts_of",
    "tuning_rules",
]

MIN_STEPS = 8  # of a run
FIRST_TUNING_SEED = 1000  # added to the first seed: tuning seeds and final seeds never meet


@dataclass(frozen=True)
class OptimizersPlan:
    """What a study is about that has one run of each optimizer to begin with."""

    watch: ClassVar[Watch] = Watch()
    bases: Mapping[str, RunSpec]
    spaces: Mapping[str, Sequence[Hyperparameter]]

    @property
    def conventions(self) -> dict[str, dict[str, str]]:
        """Per optimizer, what must be said before its learning rate means anything; of a user's own, its source too."""
        return {name: conventions(base) for name, base in self.bases.items()}

    @property
    def starts(self) -> dict[str, dict[str, dict[str, Value]]]:
        """Per optimizer and tuned coordinate, where its tuning starts, and who says so."""
        return {name: starts_of(base, self.spaces[name]) for name, base in self.bases.items()}


@dataclass(frozen=True)
class Plan(OptimizersPlan):
    """A comparison ready to run."""

    rules: ComparisonRules
    fixed: Mapping[str, Mapping[str, Value]]  # what each variant sets and no tuning changes

    def protocol(self, asked: Mapping[str, Any]) -> Protocol[Evidence]:
        """The comparison, with what was asked for as its config."""
        return compare(self.bases, self.spaces, self.rules, asked, self.fixed)

    def price(self, *, final_runs: bool = True) -> Price:
        """What it takes if no move is made, no grid extended and no seed added, and what it can take at most.

        Without `final_runs`: the tuning at the main horizon alone.
        """
        tuning = self.rules.tuning
        horizon = next(iter(self.bases.values())).horizon_tokens
        finals = len(self.rules.final_seeds) if final_runs else 0
        ratios = self.rules.horizon_ratios if final_runs else ()
        least = most = 0
        parts = []
        for name, space in self.spaces.items():
            main = min(tuning.max_runs, num_configurations(space) * tuning.first_seeds)
            others = [ratio for ratio in ratios if ratio != 1.0] if name == self.rules.baseline else []
            least += main + finals + len(others) * (3 * tuning.first_seeds + finals)
            least_tokens = (main + finals + sum(others) * (3 * tuning.first_seeds + finals)) * horizon
            extra = others + (_halvings(min([1.0, *others])) if final_runs else [])
            most += (1 + len(extra)) * (tuning.max_runs + finals)
            parts.append(Part(self.bases[name], least_tokens, (1 + sum(extra)) * (tuning.max_runs + finals) * horizon))
        return Price(least, most, tuple(parts))


def conventions(base: RunSpec) -> dict[str, str]:
    """What must be said before a learning rate means anything; of a user's own optimizer, its source too."""
    cls = catalog.get(base.optimizer, base.optimizer_source)
    found = {**catalog.conventions(cls, base.hyperparameters), "schedule": base.schedule.kind}
    if base.is_parametrized:
        found["parametrization"] = f"{base.parametrization}, base {canonical_json(base.base)}"
    if ":" not in base.optimizer:
        return found
    digest = str(base.numerics["rule"]).partition("+")[0]
    return {**found, "source": f"{base.optimizer_source or base.optimizer}, SHA-256 {digest}"}


def starts_of(base: RunSpec, space: Sequence[Hyperparameter]) -> dict[str, dict[str, Value]]:
    """Where the tuning of each coordinate starts, and who says so."""
    declared = starts(catalog.get(base.optimizer, base.optimizer_source))
    found: dict[str, dict[str, Value]] = {}
    for coordinate in space:
        value = base.get(coordinate.name)
        known = declared.get(coordinate.name)
        source = "the trainer's default" if known is None else known.source if known.value == value else "as set"
        found[coordinate.name] = {"value": value, "source": source}
    return found


def _halvings(ratio: float) -> list[float]:
    """The shorter horizons that bracketing may add to an optimizer whose shortest is `ratio`."""
    shorter = []
    while (ratio := ratio / 2) >= SHORTEST_RATIO:
        shorter.append(ratio)
    return shorter


def plan_comparison(config: ComparisonConfig) -> Plan:
    """Check everything that can be checked before the first run, and lay the study out.

    Raises   UsageError for an unknown task, optimizer or key, a value out of range, data that can't be read
    """
    if "seed" in config.settings:
        raise UsageError("a comparison runs several seeds: name the first with --seed, not with --set seed")
    config, found = named(config)
    bases = _bases(config, found)
    check_tunable(config, found, bases[config.optimizers[0]])
    final = tuple(range(config.first_seed, config.first_seed + config.num_seeds))
    tuning = tuning_rules(config)
    spaces = {name: coordinates(base, config.tune, config.fixed(name)) for name, base in bases.items()}
    _check_twins(bases, spaces)
    check_cap(spaces, tuning)
    rules = ComparisonRules(
        baseline=config.baseline, final_seeds=final, horizon_ratios=config.horizon_ratios, tuning=tuning,
        margin_nats=config.margin_nats,
    )  # fmt: skip
    return Plan(bases, spaces, rules, {name: config.fixed(name) for name in bases if name in config.variants})


def check_tunable(config: StudyConfig, found: Mapping[str, catalog.OptimizerInfo], base: RunSpec) -> None:
    """Raises   UsageError for an optimizer without a grid for lr, or a coordinate that none of them has"""
    for info in found.values():
        if "opt.lr" not in {h.name for h in catalog.space(info.cls)}:
            raise UsageError(
                f"{info.name} declares no grid for lr, so it can't be tuned: "
                f"write one around its default, such as lr: float = hp(1e-3, grid=(5e-4, 1e-3, 2e-3, 4e-3), low=0.0)"
            )
    check_names([info.cls for info in found.values()], base, config.tune)


def check_cap(spaces: Mapping[str, Sequence[Hyperparameter]], tuning: TuningRules) -> None:
    """Raises   UsageError for a cap on runs that not even the first sweep of lr keeps to"""
    for name, space in spaces.items():
        least = len({*space[0].grid, space[0].default}) * tuning.first_seeds
        if least > tuning.max_runs:
            raise UsageError(
                f"max_runs {tuning.max_runs} is below the {least} runs of the first sweep of {name}'s lr: "
                "raise --max-runs"
            )


def tuning_rules(config: StudyConfig) -> TuningRules:
    """How every optimizer of a study is tuned."""
    first = FIRST_TUNING_SEED + config.first_seed
    return TuningRules(
        seeds=tuple(range(first, first + config.max_tuning_seeds)),
        first_seeds=config.tuning_seeds,
        max_runs=config.max_runs,
    )


def named(config: ComparisonConfig) -> tuple[ComparisonConfig, dict[str, catalog.OptimizerInfo]]:
    """The config with every optimizer under its canonical name, and what each that is compared stands for.

    A variant of the very name that is written wins over an optimizer that could be meant by it.

    Raises   UsageError for an optimizer that is not there, or stands there twice
    """
    of_variants = {name: _variant(config, name) for name in config.variants}
    found: dict[str, catalog.OptimizerInfo] = {}
    canonical: dict[str, str] = {}
    for written in config.optimizers:
        info = of_variants.get(written) or catalog.locate(written, others=config.variants)
        name = canonical[written] = written if written in of_variants else info.name
        if name in found and found[name].source != info.source:
            raise UsageError(f"two files give '{name}': let one be --variant other={written}")
        if name in found:
            raise UsageError(f"optimizer '{name}' is named twice")
        found[name] = info
    variants = {n: {**table, "optimizer": of_variants[n].name} for n, table in config.variants.items()}
    changes = {"optimizers": tuple(found), "baseline": canonical[config.baseline], "variants": variants}
    return config.model_copy(update=changes), found


def base_specs(config: ComparisonConfig) -> dict[str, RunSpec]:
    """The run of each optimizer at the config's horizon, every hyperparameter at its default or as set.

    Keys are canonical names, in the order of the config.
    """
    return _bases(*named(config))


def _bases(config: ComparisonConfig, found: Mapping[str, catalog.OptimizerInfo]) -> dict[str, RunSpec]:
    _check_settings(config, found)
    info = tasks.locate(config.task)
    external = tasks.is_external(info.name)
    own = {name.partition(".")[2]: v for name, v in config.settings.items() if name.startswith("task.")}
    data = tuple(str(Path(path).absolute()) for path in config.data)
    task = tasks.resolve(info.name, own, data, info.source)
    if base := base_options(config.settings):
        tasks.resolve(info.name, {**own, **base}, data, info.source)
    if not tasks.is_ours(info.name):
        rehearse(task)
    defaults = {} if external else {name: v for name, v in info.options.items() if _plain(v) and name not in info.later}
    others = {name: v for name, v in config.settings.items() if not name.startswith(("task.", "opt.", "aux."))}
    specs = {}
    for name, optimizer in found.items():
        if not external:
            check_observation(optimizer.cls, task)
        asked = {key: v for key, v in config.settings.items() if key in catalog.settable(optimizer.cls)}
        hyperparameters = {**start(optimizer.named), **asked, **config.fixed(name)}
        specs[name] = RunSpec(
            task=info.name,
            source=info.source,
            task_options={**defaults, **own},
            data=data,
            data_fingerprint=tasks.fingerprint(task),
            numerics={**info.numerics, "rule": optimizer.numerics},
            optimizer=optimizer.name,
            optimizer_source=optimizer.source,
            hyperparameters=hyperparameters,
            polar=catalog.polar_description(optimizer.cls, hyperparameters),
            horizon_tokens=config.horizon_tokens,
            batch_tokens=config.batch_tokens,
            schedule=Schedule(),
            device="external" if external else config.device,
            torch="" if external else version("torch"),
        ).set(others)
        if specs[name].is_parametrized:
            check_rules(specs[name].parametrization, optimizer.cls.rule, optimizer.cls.companion)
        _check_batch(specs[name], task)
        specs[name] = specs[name].set({"horizon_tokens": specs[name].num_steps * specs[name].batch_tokens})
    return specs


def _variant(config: ComparisonConfig, name: str) -> catalog.OptimizerInfo:
    """The optimizer of a variant, which sets what that has and has no name of ours."""
    if name.lower() in catalog.names():
        raise UsageError(f"variant '{name}' has the name of an optimizer: give it another")
    info = catalog.locate(config.optimizer(name))
    valid = catalog.settable(info.cls)
    for key in config.fixed(name):
        if key not in valid:
            raise unknown(f"hyperparameter of {info.name} in variant '{name}'", key, valid)
        if key == "opt.lr":
            raise UsageError(f"variant '{name}' fixes opt.lr, which is tuned for every optimizer: leave it out")
    return info


def _check_twins(bases: Mapping[str, RunSpec], spaces: Mapping[str, Sequence[Hyperparameter]]) -> None:
    """Two names for the same runs would be compared with themselves."""
    seen: dict[tuple[str, ...], str] = {}
    for name, base in bases.items():
        twin = seen.setdefault((base.key, *(h.name for h in spaces[name])), name)
        if twin != name:
            raise UsageError(f"'{twin}' and '{name}' are the same runs under two names: leave one of them out")


def _check_settings(config: ComparisonConfig, found: Mapping[str, catalog.OptimizerInfo]) -> None:
    valid = frozenset().union(*(settable(info.cls) for info in found.values()))
    for name in config.settings:
        if not name.startswith(("task.", "base.")) and name not in valid:
            raise unknown("key", name, valid)


def _check_batch(spec: RunSpec, task: tasks.Task) -> None:
    unit = task.tokens_per_sample
    if spec.batch_tokens % unit:
        nearest = max(unit, round(spec.batch_tokens / unit) * unit)
        raise UsageError(
            f"batch_tokens {spec.batch_tokens} must be a multiple of one sample, {unit} tokens: try {nearest}"
        )
    if spec.num_steps < MIN_STEPS:
        raise UsageError(
            f"horizon_tokens {spec.horizon_tokens} is only {spec.num_steps} steps: raise it (--tokens) to at least "
            f"{MIN_STEPS * spec.batch_tokens}, {MIN_STEPS} steps, or lower --batch-tokens"
        )
    if hasattr(task, "check"):
        task.check(spec.batch_tokens // unit)


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | None)
