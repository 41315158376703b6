"""From a config to the runs of a transfer study: every optimizer, parametrization and width checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muonlab.errors import UsageError, unknown
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.spec import PARAMETRIZATIONS
from muonlab.records.transfer_evidence import TransferEvidence
from muonlab.records.watch import Watch
from muonlab.study.config import ComparisonConfig, StudyConfig, TransferConfig, validated
from muonlab.study.coordinates import CoordinatePlan, plan_coordinates
from muonlab.study.plan import OptimizersPlan, base_specs, check_tunable, named, tuning_rules
from muonlab.study.price import Part, Price
from muonlab.study.protocol import Protocol
from muonlab.study.space import coordinates
from muonlab.study.telescoping import log_place
from muonlab.study.transfer import LR, Subject, TransferRules, transfer
from muonlab.tasks import catalog as tasks

__all__ = ["TransferPlan", "plan_transfer"]

MOST_AXES = 3  # of a mesh
WIDTH = "task.width"
VARIED = {WIDTH: "--widths", "base.width": "--widths", "parametrization": "--parametrizations", "seed": "--seed"}


@dataclass(frozen=True)
class TransferPlan(OptimizersPlan):
    """A transfer study ready to run; its bases are the runs at the first width."""

    subjects: tuple[Subject, ...]
    rules: TransferRules
    check: CoordinatePlan | None = None  # of coordinates, before anything is tuned

    @property
    def watch(self) -> Watch:
        """The runs of the coordinate check are looked at, those of the meshes are not."""
        return self.check.watch if self.check else Watch()

    def protocol(self, asked: Mapping[str, Any]) -> Protocol[TransferEvidence]:
        """The study, with what was asked for as its config."""
        coordinates = (yield from self.check.protocol({})) if self.check else None
        evidence = yield from transfer(self.subjects, self.rules, asked)
        return replace(evidence, coordinates=coordinates)

    def price(self) -> Price:
        """What it takes if no window is extended, and what it takes at most."""
        checked = self.check.price() if self.check else Price(0, 0, ())
        least_runs, most_runs, parts = checked.least_runs, checked.most_runs, list(checked.parts)
        for subject in self.subjects:
            counts = runs_of(subject, self.rules)
            least_runs += sum(least for least, _ in counts.values())
            most_runs += sum(most for _, most in counts.values())
            for width, (least, most) in counts.items():
                spec = subject.specs[width]
                parts.append(Part(spec, least * spec.horizon_tokens, most * spec.horizon_tokens))
        return Price(least_runs, most_runs, tuple(parts), checked if self.check else None)


def runs_of(subject: Subject, rules: TransferRules) -> dict[int, tuple[int, int]]:
    """Width -> runs without an extension, and with all of them."""
    counts: dict[int, tuple[int, int]] = {}

    def add(width: int, least: int, most: int) -> None:
        before = counts.get(width, (0, 0))
        counts[width] = (before[0] + least, before[1] + most)

    seeds, more = len(rules.seeds), rules.max_extensions
    if rules.final_width is not None:
        k = len(subject.space)
        for width, points in rules.stages(k):
            add(width, points**k * seeds, max(points**k * seeds, min(rules.max_runs, (points + more) ** k * seeds)))
        add(rules.final_width, len(rules.final_seeds), len(rules.final_seeds))
    for width in rules.widths if rules.survey else ():
        add(width, rules.points * seeds, (rules.points + more) * seeds)
    return counts


def plan_transfer(config: TransferConfig) -> TransferPlan:
    """Check everything that can be checked before the first run, and lay the study out.

    Raises   UsageError for what `plan_comparison` refuses, for too few widths, for a mesh without logarithms, with more
             than three axes or with more runs than the cap, and for a parametrization that there is not
    """
    _check(config)
    subjects: dict[str, dict[int, RunSpec]] = {}
    spaces: dict[str, tuple[Hyperparameter, ...]] = {}
    kinds: dict[str, tuple[str, str]] = {}
    asked, found = named(_at_width(config, config.widths[0], config.parametrizations[0]))
    for kind in config.parametrizations:
        for width, specs in _specs(config, kind).items():
            for name, spec in specs.items():
                label = _label(config, name, kind)
                kinds[label] = (name, kind)
                if width in (*config.widths, config.final):
                    subjects.setdefault(label, {})[width] = spec
    for label, specs in subjects.items():
        spaces[label] = _space(config, kinds[label][0], specs[config.widths[0]])
    bases = {label: specs[config.widths[0]] for label, specs in subjects.items()}
    check_tunable(asked, found, next(iter(bases.values())))
    tuning = tuning_rules(config)
    rules = TransferRules(
        baseline=_label(config, asked.baseline, config.parametrizations[0]), widths=config.widths,
        final_width=config.final, survey=config.survey, points=config.points, ratio=config.ratio,
        seeds=tuning.seeds[: tuning.first_seeds], max_runs=config.max_runs,
        final_seeds=tuple(range(config.first_seed, config.first_seed + config.num_seeds)),
    )  # fmt: skip
    arms = tuple(
        Subject(
            name=label, optimizer=bases[label].optimizer, parametrization=kinds[label][1], space=spaces[label],
            specs=specs,
        )
        for label, specs in subjects.items()
    )  # fmt: skip
    for arm in arms:
        runs = sum(least for least, _ in runs_of(arm, rules).values())
        if runs > rules.max_runs:
            raise UsageError(
                f"max_runs {rules.max_runs} is below the {runs} runs of {arm.name}: raise --max-runs, lower --points, "
                "or name fewer --hyperparameters"
            )
    return TransferPlan(bases, spaces, arms, rules, _coordinates(config))


def _specs(config: TransferConfig, kind: str) -> dict[int, dict[str, RunSpec]]:
    """Every width, those of the coordinate check too, with a run of every optimizer.

    Raises   UsageError that names all widths which cannot be, and the flags that they came from
    """
    flags = {
        "--widths": config.widths, "--final": (config.final,) if config.final else (),
        "--coordinate-widths": config.coordinate_widths,
    }  # fmt: skip
    found: dict[int, dict[str, RunSpec]] = {}
    errors: dict[int, str] = {}
    for width in sorted({width for widths in flags.values() for width in widths}):
        try:
            found[width] = base_specs(_at_width(config, width, kind))
        except UsageError as error:
            errors[width] = str(error)
    if not errors:
        return found
    first = next(iter(errors.values()))
    if "width" not in tasks.locate(config.task).options and not tasks.is_external(config.task):
        raise UsageError(f"a transfer study needs a task with an option `width`: {first}")
    if not found and len(set(errors.values())) == 1:
        raise UsageError(first)  # it has nothing to do with the width
    bad = {flag: [width for width in widths if width in errors] for flag, widths in flags.items()}
    raise UsageError(" ".join(f"{flag} {_list(widths)}" for flag, widths in bad.items() if widths) + f": {first}")


def _coordinates(config: TransferConfig) -> CoordinatePlan | None:
    """The coordinate check of the same optimizers, parametrizations and base width, on the seeds of the final runs."""
    if not config.coordinates:
        return None
    widths = {*config.widths, *config.coordinate_widths, *([config.final] if config.final else [])}
    return plan_coordinates(
        config, widths=sorted(widths), parametrizations=config.parametrizations, num_seeds=config.num_seeds
    )


def _check(config: TransferConfig) -> None:
    """What can be said of a config without its task."""
    widths, final = config.widths, config.final
    if narrow := [width for width in widths if width < 1]:
        raise UsageError(f"--widths must be 1 or more, got {_list(narrow)}")
    if len(widths) < 2 or list(widths) != sorted(set(widths)):
        raise UsageError(
            f"a transfer study needs two or more ascending widths, such as --widths 32,64,128; got {_list(widths)}"
        )
    if final is None and not config.survey:
        raise UsageError("say the width to tune for with --final, or survey lr at every width with --survey")
    if final is not None and final < widths[-1]:
        raise UsageError(f"--final {final} must be no narrower than the last of --widths {_list(widths)}")
    _check_coordinates(config)
    if config.survey and len(widths) < 3:
        raise UsageError("a survey needs at least three widths for a slope, such as --widths 32,64,128")
    for kind in config.parametrizations:
        if kind not in PARAMETRIZATIONS:
            raise unknown("parametrization", kind, PARAMETRIZATIONS)
    if not config.parametrizations or len(set(config.parametrizations)) < len(config.parametrizations):
        raise UsageError("name one or more --parametrizations, each once, such as standard,mup")
    for name, instead in VARIED.items():
        if name in config.settings:
            raise UsageError(f"{name} is what a transfer study varies: give it with {instead}, not with --set")
    if len(config.tune) > MOST_AXES:
        raise UsageError(f"a mesh has at most {MOST_AXES} axes, --hyperparameters names {len(config.tune)}")
    if repeated := [name for name in dict.fromkeys(config.tune) if config.tune.count(name) > 1]:
        raise UsageError(f"--hyperparameters names {', '.join(repeated)} twice: name each once")
    if LR not in config.tune:
        raise UsageError(f"--hyperparameters must name {LR}: whatever else is tuned, its best value follows lr")
    if others := [name for name in config.tune if not name.startswith(("opt.", "aux."))]:
        raise UsageError(f"--hyperparameters are those of an optimizer (opt., aux.), which {others[0]} is not")


def _check_coordinates(config: TransferConfig) -> None:
    further = config.coordinate_widths
    if further and not config.coordinates:
        raise UsageError(
            "--coordinate-widths are of the coordinate check, which --no-coordinates leaves out: give one of the two"
        )
    if narrow := [width for width in further if width < config.widths[0]]:
        raise UsageError(
            f"--coordinate-widths must be no narrower than the base model, the first of --widths "
            f"{_list(config.widths)}: leave out {_list(narrow)}"
        )


def _list(widths: Sequence[int]) -> str:
    return ",".join(map(str, widths)) or "none"


def _label(config: TransferConfig, name: str, kind: str) -> str:
    """What an arm is called: the optimizer, and its parametrization where that is not the standard of all."""
    return name if config.parametrizations == ("standard",) else f"{name} {kind}"


def _space(config: TransferConfig, name: str, base: RunSpec) -> tuple[Hyperparameter, ...]:
    """The axes that this optimizer has, each with a place to start from."""
    space = coordinates(base, config.tune, config.fixed(name))
    for h in space:
        log_place(h, h.default)
    return tuple(sorted(space, key=lambda h: h.name != LR))


def _at_width(config: TransferConfig, width: int, kind: str) -> ComparisonConfig:
    """What a comparison at that width would be asked as; the base model of a parametrization is that of the first."""
    shared = {name: getattr(config, name) for name in StudyConfig.model_fields}
    settings = {**config.settings, WIDTH: width}
    if kind != "standard":
        settings |= {"parametrization": kind, "base.width": config.widths[0]}
    return validated({**shared, "settings": settings, "horizon_tokens": config.horizon_tokens})
