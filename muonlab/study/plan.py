"""From a config to the runs it is about: task found, data hashed, defaults filled in, every name checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from muonlab.errors import UsageError, unknown
from muonlab.optim import catalog
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec, Schedule
from muonlab.records.spec import Value
from muonlab.study.compare import SHORTEST_RATIO, ComparisonRules
from muonlab.study.config import ComparisonConfig
from muonlab.study.space import check_names, coordinates, settable, start
from muonlab.study.tune import EXHAUSTIVE_GRID, TuningRules
from muonlab.tasks import catalog as tasks
from muonlab.tasks.rehearsal import rehearse

__all__ = ["Plan", "base_specs", "plan_comparison"]

FIRST_TUNING_SEED = 1000  # added to the first seed: tuning seeds and final seeds never meet


@dataclass(frozen=True)
class Plan:
    """A comparison ready to run."""

    bases: Mapping[str, RunSpec]
    spaces: Mapping[str, Sequence[Hyperparameter]]
    rules: ComparisonRules
    fixed: Mapping[str, Mapping[str, Value]]  # what each variant sets and no tuning changes

    @property
    def conventions(self) -> dict[str, dict[str, str]]:
        """Per optimizer, what must be said before its learning rate means anything."""
        return {
            name: {**catalog.conventions(base.optimizer, base.hyperparameters), "schedule": base.schedule.kind}
            for name, base in self.bases.items()
        }

    def price(self, *, final_runs: bool = True) -> "Price":
        """What it takes if no move is made, no grid extended and no seed added, and what it can take at most.

        Without `final_runs`: the tuning at the main horizon alone.
        """
        tuning = self.rules.tuning
        horizon = next(iter(self.bases.values())).horizon_tokens
        finals = len(self.rules.final_seeds) if final_runs else 0
        ratios = self.rules.horizon_ratios if final_runs else ()
        least = most = 0
        least_tokens = most_tokens = 0.0
        for name, space in self.spaces.items():
            main = min(tuning.max_runs, _configurations(space) * tuning.first_seeds)
            others = [ratio for ratio in ratios if ratio != 1.0] if name == self.rules.baseline else []
            least += main + finals + len(others) * (3 * tuning.first_seeds + finals)
            least_tokens += (main + finals + sum(others) * (3 * tuning.first_seeds + finals)) * horizon
            extra = others + (_halvings(min([1.0, *others])) if final_runs else [])
            most += (1 + len(extra)) * (tuning.max_runs + finals)
            most_tokens += (1 + sum(extra)) * (tuning.max_runs + finals) * horizon
        return Price(least, most, least_tokens, most_tokens)


def _configurations(space: Sequence[Hyperparameter]) -> int:
    """How many a first pass over the first coordinate and a round without a move try."""
    sizes = [len({*h.grid, h.default}) for h in space]
    return sizes[0] + sum(size - 1 if size <= EXHAUSTIVE_GRID else 2 for size in sizes[1:])


def _halvings(ratio: float) -> list[float]:
    """The shorter horizons that bracketing may add to an optimizer whose shortest is `ratio`."""
    shorter = []
    while (ratio := ratio / 2) >= SHORTEST_RATIO:
        shorter.append(ratio)
    return shorter


@dataclass(frozen=True)
class Price:
    """Runs and tokens of a study that starts with an empty store."""

    least_runs: int
    most_runs: int
    least_tokens: float
    most_tokens: float

    @property
    def likely_tokens(self) -> float:
        """What progress is measured against: half as much again as the least, as the demo's noise makes it."""
        return min(1.5 * self.least_tokens, self.most_tokens)


def plan_comparison(config: ComparisonConfig) -> Plan:
    """Check everything that can be checked before the first run, and lay the study out.

    Raises   UsageError for an unknown task, optimizer or key, a value out of range, data that can't be read
    """
    if "seed" in config.settings:
        raise UsageError("a comparison runs several seeds: name the first with --seed, not with --set seed")
    bases = base_specs(config)
    first = bases[config.optimizers[0]]
    check_names([base.optimizer for base in bases.values()], first, config.tune)
    final = tuple(range(config.first_seed, config.first_seed + config.num_seeds))
    first_tuning = FIRST_TUNING_SEED + config.first_seed
    tuning = TuningRules(
        seeds=tuple(range(first_tuning, first_tuning + config.max_tuning_seeds)),
        first_seeds=config.tuning_seeds,
        max_runs=config.max_runs,
    )
    spaces = {name: coordinates(base, config.tune, config.fixed(name)) for name, base in bases.items()}
    _check_twins(bases, spaces)
    rules = ComparisonRules(
        baseline=config.baseline, final_seeds=final, horizon_ratios=config.horizon_ratios, tuning=tuning,
        margin_nats=config.margin_nats,
    )  # fmt: skip
    return Plan(bases, spaces, rules, {name: config.fixed(name) for name in bases if name in config.variants})


def base_specs(config: ComparisonConfig) -> dict[str, RunSpec]:
    """The run of each optimizer at the config's horizon, every hyperparameter at its default or as set."""
    _check_optimizers(config)
    _check_settings(config)
    info = tasks.locate(config.task)
    own = {name.partition(".")[2]: v for name, v in config.settings.items() if name.startswith("task.")}
    data = tuple(str(Path(path).absolute()) for path in config.data)
    task = tasks.resolve(info.name, own, data, info.source)
    if info.name not in tasks.TASKS:
        rehearse(task)
    defaults = {name: v for name, v in info.options.items() if _plain(v)}
    others = {name: v for name, v in config.settings.items() if not name.startswith(("task.", "opt.", "aux."))}
    specs = {}
    for name in config.optimizers:
        optimizer = config.optimizer(name)
        asked = {key: v for key, v in config.settings.items() if key in catalog.settable(optimizer)}
        hyperparameters = {**start(optimizer), **asked, **config.fixed(name)}
        specs[name] = RunSpec(
            task=info.name,
            source=info.source,
            task_options={**defaults, **own},
            data=data,
            data_fingerprint=tasks.fingerprint(task),
            numerics={**info.numerics, "rule": catalog.numerics_version(optimizer)},
            optimizer=optimizer,
            hyperparameters=hyperparameters,
            polar=catalog.polar_description(optimizer, hyperparameters),
            horizon_tokens=config.horizon_tokens,
            batch_tokens=config.batch_tokens,
            schedule=Schedule(),
            device=config.device,
            torch=version("torch"),
        ).set(others)
        _check_batch(specs[name], task)
        specs[name] = specs[name].set({"horizon_tokens": specs[name].num_steps * specs[name].batch_tokens})
    return specs


def _check_optimizers(config: ComparisonConfig) -> None:
    """Every name is the catalogue's or a variant's, and every variant sets what its optimizer has."""
    for name in config.variants:
        if name in catalog.names():
            raise UsageError(f"variant '{name}' has the name of an optimizer: give it another")
        valid = catalog.settable(config.optimizer(name))
        for key in config.fixed(name):
            if key not in valid:
                raise unknown(f"hyperparameter of {config.optimizer(name)} in variant '{name}'", key, valid)
            if key == "opt.lr":
                raise UsageError(f"variant '{name}' fixes opt.lr, which is tuned for every optimizer: leave it out")
    for name in config.optimizers:
        if name not in config.variants and name not in catalog.names():
            raise unknown("optimizer", name, [*catalog.names(), *config.variants])


def _check_twins(bases: Mapping[str, RunSpec], spaces: Mapping[str, Sequence[Hyperparameter]]) -> None:
    """Two names for the same runs would be compared with themselves."""
    seen: dict[tuple[str, ...], str] = {}
    for name, base in bases.items():
        twin = seen.setdefault((base.key, *(h.name for h in spaces[name])), name)
        if twin != name:
            raise UsageError(f"'{twin}' and '{name}' are the same runs under two names: leave one of them out")


def _check_settings(config: ComparisonConfig) -> None:
    valid = frozenset().union(*(settable(config.optimizer(name)) for name in config.optimizers))
    for name in config.settings:
        if not name.startswith("task.") and name not in valid:
            raise unknown("key", name, valid)


def _check_batch(spec: RunSpec, task: tasks.Task) -> None:
    unit = task.tokens_per_sample
    if spec.batch_tokens % unit:
        nearest = max(unit, round(spec.batch_tokens / unit) * unit)
        raise UsageError(
            f"batch_tokens {spec.batch_tokens} must be a multiple of one sample, {unit} tokens: try {nearest}"
        )
    if spec.num_steps < 8:
        raise UsageError(
            f"horizon_tokens {spec.horizon_tokens} is only {spec.num_steps} steps: raise it, or lower batch_tokens"
        )
    if hasattr(task, "check"):
        task.check(spec.batch_tokens // unit)


def _plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple | None)
