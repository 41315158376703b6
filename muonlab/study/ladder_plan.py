"""From a config to the runs of a ladder: sizes counted, lengths derived from them, every name checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from muonlab.errors import UsageError
from muonlab.optim import catalog
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.evidence import LadderEvidence
from muonlab.records.spec import Value
from muonlab.records.watch import Watch
from muonlab.roles import Role
from muonlab.study.config import ComparisonConfig, LadderConfig, StudyConfig, validated
from muonlab.study.ladder import LadderRules, Regime, ladder, phases
from muonlab.study.plan import MIN_STEPS, base_specs, check_tunable, conventions, named, starts_of, tuning_rules
from muonlab.study.price import Part, Price, num_configurations
from muonlab.study.protocol import Protocol
from muonlab.study.space import coordinates
from muonlab.tasks import catalog as tasks

__all__ = ["LadderPlan", "num_body_params", "parse_sizes", "plan_ladder"]

OUTSIDE = (Role.EMBEDDING, Role.HEAD)
WINDOW = 3  # values of a coordinate that a search around a start tries at least


@dataclass(frozen=True)
class LadderPlan:
    """A ladder ready to run."""

    watch: ClassVar[Watch] = Watch()
    bases: Mapping[str, Mapping[Regime, RunSpec]]  # optimizer -> regime -> run
    spaces: Mapping[str, Sequence[Hyperparameter]]
    sizes: Mapping[str, int]  # name -> parameters that are neither embedding nor head, ascending
    rules: LadderRules

    def protocol(self, asked: Mapping[str, Any]) -> Protocol[LadderEvidence]:
        """The ladder, with what was asked for as its config."""
        return ladder(self.bases, self.spaces, self.sizes, self.rules, asked)

    @property
    def conventions(self) -> dict[str, dict[str, str]]:
        """Per optimizer, what must be said before its learning rate means anything."""
        return {name: conventions(next(iter(regimes.values()))) for name, regimes in self.bases.items()}

    @property
    def starts(self) -> dict[str, dict[str, dict[str, Value]]]:
        """Per optimizer and tuned coordinate, where its tuning starts, and who says so."""
        firsts = {name: next(iter(regimes.values())) for name, regimes in self.bases.items()}
        return {name: starts_of(base, self.spaces[name]) for name, base in firsts.items()}

    def price(self) -> Price:
        """What it takes if lr alone is sensitive to scale and nothing is extended, and what it can take at most."""
        tuning, finals = self.rules.tuning, len(self.rules.final_seeds)
        ratios = sorted({regime.ratio for regime in next(iter(self.bases.values()))})
        parted = phases(list(self.sizes), ratios)
        least_runs = most_runs = 0
        parts = []
        for name, regimes in self.bases.items():
            controls = {Regime(size, ratios[0]): finals for size in self.sizes}
            controls[Regime(next(iter(self.sizes)), ratios[0])] += finals * (len(self.bases) - 1)
            full = min(tuning.max_runs, num_configurations(self.spaces[name]) * tuning.first_seeds)
            searched = dict.fromkeys(parted.first, full)
            searched |= dict.fromkeys((*parted.second, parted.third[0]), WINDOW * tuning.first_seeds)
            for size in self.sizes:
                least = most = 0.0
                for regime in (r for r in regimes if r.size == size):
                    again = finals * (2 if regime == parted.third[0] else 1) + controls.get(regime, 0)
                    runs = (searched.get(regime, 0) + again, (tuning.max_runs if regime in searched else 0) + again)
                    least_runs, most_runs = least_runs + runs[0], most_runs + runs[1]
                    least += runs[0] * regimes[regime].horizon_tokens
                    most += runs[1] * regimes[regime].horizon_tokens
                parts.append(Part(regimes[Regime(size, ratios[0])], least, most))
        return Price(least_runs, most_runs, tuple(parts))


def plan_ladder(config: LadderConfig) -> LadderPlan:
    """Check everything that can be checked before the first run, and lay the ladder out.

    Raises   UsageError for what `plan_comparison` refuses, for fewer than three sizes, for two of the same number of
             parameters, and for lengths that are too short
    """
    if len(config.sizes) < 3:
        raise UsageError("a ladder needs at least three sizes, such as --sizes 16x2,32x2,48x3")
    if len(set(config.ratios)) < 3 or min(config.ratios) <= 0:
        raise UsageError("a ladder needs at least three ratios above 0, such as --ratios 1,2,4")
    if repeated := [ratio for ratio in config.ratios if config.ratios.count(ratio) > 1]:
        raise UsageError(f"ratio {repeated[0]:g} is given twice: leave one out")
    counts = {name: num_body_params(config, options) for name, options in config.sizes.items()}
    sizes = dict(sorted(counts.items(), key=lambda item: item[1]))
    if twins := [(a, b) for a, b in zip(list(sizes), list(sizes)[1:], strict=False) if sizes[a] == sizes[b]]:
        raise UsageError(f"sizes {twins[0][0]} and {twins[0][1]} have the same number of parameters: leave one out")
    bases: dict[str, dict[Regime, RunSpec]] = {}
    spaces: dict[str, Sequence[Hyperparameter]] = {}
    ratios = tuple(sorted(config.ratios))
    for size, count in sizes.items():
        shortest = round(ratios[0] * count * config.tokens_per_param)
        _check_length(size, ratios[0], shortest, config.batch_tokens)
        asked = _at_size(config, config.sizes[size], shortest)
        for name, base in base_specs(asked).items():
            spaces.setdefault(name, coordinates(base, config.tune, config.fixed(name)))
            bases.setdefault(name, {}).update(
                (Regime(size, ratio), _at_length(base, ratio * count * config.tokens_per_param)) for ratio in ratios
            )
    asked, found = named(_at_size(config, next(iter(config.sizes.values())), config.batch_tokens))
    first = next(iter(bases.values()))
    check_tunable(asked, found, next(iter(first.values())))
    rules = LadderRules(
        baseline=asked.baseline,
        final_seeds=tuple(range(config.first_seed, config.first_seed + config.num_seeds)),
        tuning=tuning_rules(config),
        insensitive_nats=config.insensitive_nats,
        default_settings={name: _defaults(info.cls, config.fixed(name)) for name, info in found.items()},
    )
    return LadderPlan(bases, spaces, sizes, rules)


def parse_sizes(text: str) -> dict[str, dict[str, Value]]:
    """WIDTHxDEPTH, comma-separated, as options of a task that has a width and a depth; a depth may be left out.

    >>> parse_sizes("16x2,32")
    {'16x2': {'task.width': 16, 'task.depth': 2}, '32': {'task.width': 32}}

    Raises   UsageError for anything else: sizes of other tasks are tables of a study file
    """
    sizes: dict[str, dict[str, Value]] = {}
    for name in filter(None, (part.strip() for part in text.split(","))):
        numbers = name.split("x")
        if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
            raise UsageError(
                f"a size is WIDTHxDEPTH, such as 32x2, got {name!r}: other sizes go into a study file, as "
                f"[sizes.{name}] with task options below"
            )
        if name in sizes:
            raise UsageError(f"size {name} is given twice in --sizes: leave one out")
        options = zip(("task.width", "task.depth"), map(int, numbers), strict=False)
        sizes[name] = dict(options)
    return sizes


def num_body_params(config: LadderConfig, options: Mapping[str, Value]) -> int:
    """Parameters of a size that are neither embedding nor head, as they are counted for 20 tokens each.

    All of them where a task publishes no roles.
    """
    own = {**config.settings, **options}
    own = {name.removeprefix("task."): value for name, value in own.items() if name.startswith("task.")}
    import torch

    info = tasks.locate(config.task)
    task = tasks.resolve(info.name, own, tuple(config.data), info.source)
    if tasks.is_external(info.name):
        if task.params is None:
            raise UsageError("a size of an external task must say its parameters, such as task.params = 350_000_000")
        return int(task.params)
    with torch.random.fork_rng(devices=[]):
        model = task.build()
    roles = tasks.roles_of(task, model) or {}
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(count for name, count in counts.items() if roles.get(name) not in OUTSIDE) or sum(counts.values())


def _check_length(size: str, ratio: float, tokens: int, batch_tokens: int) -> None:
    if tokens // batch_tokens < MIN_STEPS:
        raise UsageError(
            f"size {size} at ratio {ratio:g} is {tokens:,} tokens, fewer than {MIN_STEPS} steps of {batch_tokens:,}: "
            "raise the ratio, or lower --batch-tokens"
        )


def _at_size(config: LadderConfig, options: Mapping[str, Value], horizon_tokens: int) -> ComparisonConfig:
    """What a comparison at that size and length would be asked as."""
    shared = {name: getattr(config, name) for name in StudyConfig.model_fields}
    settings = {**config.settings, **options}
    return validated({**shared, "settings": settings, "horizon_tokens": max(1, horizon_tokens)})


def _at_length(base: RunSpec, tokens: float) -> RunSpec:
    """The same run, of whole batches."""
    return base.set({"horizon_tokens": max(1, round(tokens / base.batch_tokens)) * base.batch_tokens})


def _defaults(cls: type, fixed: Mapping[str, Value]) -> dict[str, Value]:
    return {**{h.name: h.default for h in catalog.hyperparameters(cls)}, **fixed}
