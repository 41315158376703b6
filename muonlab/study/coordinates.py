"""The coordinate check: a few steps at several widths, with predictions that are written down before any of them.

What is predicted is how |dW|_(RMS -> RMS) = |dW|_op sqrt(fan_in / fan_out) of a hidden matrix grows with the width n,
its aspect fan_out / fan_in constant, so that fan_in, fan_out ~ n and sqrt(fan_in / fan_out) ~ 1.

Orthogonalised updates dW = lr s(fan_out, fan_in) O have |O|_op = 1 at every width, so the power is that of lr s:

    scale             s                                power of n
    original          sqrt(max(1, fan_out / fan_in))   0
    spectral          sqrt(fan_out / fan_in)           0
    match_rms_adamw   0.2 sqrt(max(fan_out, fan_in))   1/2
    sqrt_max          sqrt(max(fan_out, fan_in))       1/2

Element-wise updates dW = lr U with entries of about 1 have |U|_F = sqrt(fan_out fan_in), and
|U|_F / sqrt(min(fan_out, fan_in)) <= |U|_op <= |U|_F: power 1 where U is of rank 1 (entries aligned with one pair of
vectors, the limit that muP is made for), 1/2 where its spectrum is flat (entries that know nothing of each other).
A batch lies between, so a range is predicted: it is what the norms allow, not what muP assumes.

The parametrization multiplies lr: "standard" by 1; "mup" by 1 / fan_in for every optimizer (Essential AI 2025,
2505.02222, after Adam's rule), which adds -1 to all of the above; "spectral" by what takes the power to 0: 1 / s for
what is orthogonalised, 1 / fan_in for what is element-wise (Qiu et al. 2025, 2512.05620), 0 in the aligned limit.

So Muon's update grows like n^(1/2) under match_rms_adamw, shrinks like n^(-1/2) with it under "mup" and like n^(-1)
with the other scales; that of AdamW shrinks like n^(-1/2) under "mup" and "spectral" where nothing is aligned.
Powers are of the limit: real widths add what momentum, iterations of the polar factor, and rounded shapes do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from muonlab.errors import UsageError, unknown
from muonlab.optim import catalog
from muonlab.optim.engine import Engine
from muonlab.records import RunSpec
from muonlab.records.coordinate_evidence import CoordinateEvidence, CoordinateRun, Prediction
from muonlab.records.spec import PARAMETRIZATIONS, Value
from muonlab.records.watch import Watch
from muonlab.study.config import ComparisonConfig, StudyConfig, validated
from muonlab.study.plan import MIN_STEPS, base_specs
from muonlab.study.price import Part, Price
from muonlab.study.protocol import Protocol
from muonlab.tasks import catalog as tasks

__all__ = ["STEPS", "CoordinatePlan", "check_coordinates", "parametrized", "plan_coordinates", "predict"]

STEPS = (1, 2, 4, 8)
CONSTANT = {"schedule.kind": "constant", "schedule.warmup_fraction": 0.0, "averaging": 0.0}  # whatever the config says
EVAL_TOKENS = 8192  # unless set: the final loss, which would take longer than the steps, plays no part
ALIGNED, FLAT = 1.0, 0.5  # power of the width of element-wise updates in the two limits
ORTHOGONAL = ("muon", "scion")  # whose direction has spectral norm 1 before the scale
ELEMENTWISE = ("adamw", "nadamw", "cautious", "adam_mini", "ademamix", "adopt", "lion", "signum")  # entries of about 1


@dataclass(frozen=True)
class CoordinatePlan:
    """A coordinate check ready to run."""

    bases: Mapping[str, RunSpec]  # at the width of the base model, in the standard parametrization
    parametrizations: tuple[str, ...]
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    predictions: tuple[Prediction, ...]

    @property
    def watch(self) -> Watch:
        """Of its own runs alone, so that a study may make others along with them."""
        keys = frozenset(spec.key for specs in self.cells().values() for spec in specs)
        return Watch(coordinates=frozenset(self.steps), runs=keys)

    def protocol(self, asked: Mapping[str, Any]) -> Protocol[CoordinateEvidence]:
        """The check, with what was asked for as its config."""
        return check_coordinates(self, asked)

    def specs(self, name: str, kind: str, width: int) -> list[RunSpec]:
        """A run per seed."""
        at = parametrized(self.bases[name], kind, width, self.widths[0])
        return [at.set({"seed": seed}) for seed in self.seeds]

    def cells(self) -> dict[tuple[str, str, int], list[RunSpec]]:
        """(optimizer, parametrization, width) -> a run per seed."""
        return {cell: self.specs(*cell) for cell in product(self.bases, self.parametrizations, self.widths)}

    def price(self) -> Price:
        """What it takes: runs that are the same in two parametrizations, those at the base width, are made once."""
        parts, seen = [], set()
        for own in self.cells().values():
            specs = [spec for spec in own if spec.key not in seen]
            seen |= {spec.key for spec in specs}
            tokens = float(sum(spec.horizon_tokens for spec in specs))
            parts += [Part(specs[0], tokens, tokens)] if specs else []
        return Price(len(seen), len(seen), tuple(parts))


def plan_coordinates(
    config: StudyConfig,
    *,
    widths: Sequence[int],
    parametrizations: Sequence[str] = ("standard",),
    num_seeds: int = 3,
    steps: Sequence[int] = STEPS,
) -> CoordinatePlan:
    """Check everything that can be checked before the first run, lay it out, and register what is predicted.

    lr is constant from the first step, the same at all widths: that of the config, else where a tuning starts. What the
    config says of schedule and averaging is for longer runs than these.

    Raises   UsageError for fewer than two widths, a parametrization that there is not, settings that the check makes
             itself, and for what `base_specs` refuses
    """
    widths, kinds = tuple(sorted(set(widths))), tuple(dict.fromkeys(parametrizations))
    if len(widths) < 2 or widths[0] < 1:
        raise UsageError("a coordinate check needs at least two widths of 1 or more, such as --widths 32,64,128,256")
    for kind in kinds:
        if kind not in PARAMETRIZATIONS:
            raise unknown("parametrization", kind, PARAMETRIZATIONS)
    if not kinds or num_seeds < 1:
        raise UsageError("a coordinate check needs a parametrization and a seed")
    steps = tuple(sorted(Watch(coordinates=frozenset(steps)).coordinates))
    if not steps:
        raise UsageError("a coordinate check needs steps to measure after, such as 1,2,4,8")
    bases = base_specs(_with_constant_lr(config, widths[0], max(MIN_STEPS, steps[-1])))
    return CoordinatePlan(
        bases=bases, parametrizations=kinds, widths=widths, steps=steps,
        seeds=tuple(range(config.first_seed, config.first_seed + num_seeds)),
        predictions=tuple(predict(name, base, kind) for name, base in bases.items() for kind in kinds),
    )  # fmt: skip


def _with_constant_lr(config: StudyConfig, width: int, num_steps: int) -> ComparisonConfig:
    taken = {"seed": "--seed", "task.width": "--widths", "parametrization": "--parametrizations"}
    for name, flag in taken.items():
        if name in config.settings:
            raise UsageError(f"a coordinate check sets {name} itself: use {flag}")
    shared = {name: getattr(config, name) for name in StudyConfig.model_fields}
    short = {"task.eval_tokens": EVAL_TOKENS} if "eval_tokens" in tasks.locate(config.task).options else {}
    settings = {**short, **config.settings, **CONSTANT, "task.width": width}
    return validated({**shared, "settings": settings, "horizon_tokens": num_steps * config.batch_tokens})


def parametrized(spec: RunSpec, kind: str, width: int, base_width: int) -> RunSpec:
    """The run at that width, its init and step sizes those of the base width in that parametrization."""
    base = {} if kind == "standard" else {"base.width": base_width}
    return spec.set({"task.width": width, "parametrization": kind, **base})


def check_coordinates(plan: CoordinatePlan, asked: Mapping[str, Any]) -> Protocol[CoordinateEvidence]:
    """All runs at once: nothing here is decided by what another gave."""
    cells = plan.cells()
    yield list({spec.key: spec for specs in cells.values() for spec in specs}.values())
    return CoordinateEvidence(
        task=next(iter(plan.bases.values())).task,
        optimizers={name: base.optimizer for name, base in plan.bases.items()},
        parametrizations=plan.parametrizations,
        widths=plan.widths,
        steps=plan.steps,
        seeds=plan.seeds,
        lr={name: float(base.get("opt.lr")) for name, base in plan.bases.items()},
        predictions=plan.predictions,
        runs=tuple(
            CoordinateRun(name=name, parametrization=kind, width=width, keys=tuple(spec.key for spec in specs))
            for (name, kind, width), specs in cells.items()
        ),
        config=asked,
    )


def predict(name: str, base: RunSpec, kind: str) -> Prediction:
    """What the head of this module derives, for one optimizer; nothing for a rule that it does not speak of.

    >>> run = RunSpec(task="text", optimizer="muon", horizon_tokens=8, batch_tokens=1)
    >>> [predict("muon", run, kind).low for kind in ("standard", "mup", "spectral")]
    [0.0, -1.0, 0.0]
    >>> predict("muon", run.set({"opt.adjust_lr_fn": "match_rms_adamw"}), "mup").high
    -0.5
    """
    cls = catalog.get(base.optimizer, base.optimizer_source)
    rule = cls.rule.name
    low, high, why = _powers(cls, base.hyperparameters)
    if low is None or high is None:
        return Prediction(name=name, parametrization=kind, low=None, high=None, reason=why)
    if kind == "mup":
        low, high, why = low - 1.0, high - 1.0, f"{why}; lr x 1 / fan_in: -1"
    elif kind == "spectral" and rule in ORTHOGONAL:
        low, high, why = 0.0, 0.0, f"{why}; lr x 1 / scale"
    elif kind == "spectral":
        low, high, why = low - 1.0, high - 1.0, f"{why}; lr x 1 / fan_in: -1"
    return Prediction(name=name, parametrization=kind, low=low, high=high, reason=why)


def _powers(cls: type[Engine], settings: Mapping[str, Value]) -> tuple[float | None, float | None, str]:
    """Power of the width of the update at a constant lr, from and to, and why."""
    name = cls.rule.name
    if name in ELEMENTWISE:
        return FLAT, ALIGNED, f"element-wise: {FLAT:g} (flat spectrum) to {ALIGNED:g} (rank 1)"
    if name not in ORTHOGONAL:
        return None, None, f"no prediction is registered for {name}"
    own = {key: v for key, v in catalog.arguments(cls, settings).items() if not key.startswith("aux_")}
    narrow, wide = (cls.rule(**own).scale((n, n)) for n in (64, 128))
    power = round(math.log2(wide / narrow), 6)
    scale = catalog.conventions(cls, settings)["scale rule"]
    return power, power, f"spectral norm 1 x scale {scale}: {power:g}"
