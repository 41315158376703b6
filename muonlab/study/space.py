"""What can be tuned: the rule's hyperparameters, which it declares itself, and the trainer's, declared here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from muonlab.errors import UsageError, unknown
from muonlab.optim import catalog
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.spec import SETTABLE, Schedule, Value

__all__ = [
    "DEFAULT", "PUBLISHED", "STARTS", "Start", "base_options", "check_names", "coordinates", "settable", "start",
    "starts", "trainer_space", "with_defaults",
]  # fmt: skip

WEN = "Wen et al. 2025 (2509.02046)"
PUBLISHED = f"{WEN}: best at 130M parameters and 1x Chinchilla, their smallest"
DEFAULT = "default of the class"
OURS = "ours, untuned"
AS_ADAMW, AS_MUON = f"{OURS}: as AdamW", f"{OURS}: as Muon"
MIDDLE = f"{OURS}: the middle of the grid"
SHORT = f"{OURS}: the default looks further back than a short run goes"

ADAMW = {"opt.lr": 0.008, "opt.weight_decay": 0.1, "opt.beta1": 0.9, "opt.beta2": 0.98}
MUON = {"opt.lr": 0.016, "opt.weight_decay": 0.1, "opt.momentum": 0.95, "aux.beta1": 0.8, "aux.beta2": 0.98}
LION = {"opt.lr": 0.002, "opt.weight_decay": 0.7, "opt.beta1": 0.9, "opt.beta2": 0.95}
LR_RATIO = {"aux.lr_ratio": 0.3}
LIKE_MUON = MUON | LR_RATIO
LIKE_ADAMW = MUON | {"opt.lr": 0.008, "aux.lr_ratio": 1.0}  # where an update is about as large as one of AdamW


def _only(values: Mapping[str, Value], *names: str) -> dict[str, Value]:
    return {name: values[name] for name in names}


# Where a tuning starts: optimizer -> who says so -> values. What is not named starts at the default of the class, eps
# among it: theirs, 1e-25 to 1e-7, goes with bf16 on TPUs. Warm-up, batch and clipping are the trainer's.
STARTS: Mapping[str, Mapping[str, Mapping[str, Value]]] = {
    "adamw": {PUBLISHED: ADAMW},
    "nadamw": {PUBLISHED: ADAMW | {"opt.beta1": 0.95}},
    "cautious": {PUBLISHED: ADAMW | {"opt.beta1": 0.95}},
    "adam_mini": {PUBLISHED: ADAMW},
    "mars": {PUBLISHED: ADAMW | {"opt.lr": 0.016, "opt.beta2": 0.95, "opt.gamma": 0.025}},
    "adopt": {AS_ADAMW: _only(ADAMW, "opt.lr", "opt.weight_decay", "opt.beta1"), SHORT: {"opt.beta2": 0.99}},
    "ademamix": {AS_ADAMW: ADAMW, SHORT: {"opt.beta3": 0.99}},
    "sophia": {
        PUBLISHED: {
            "opt.lr": 0.004, "opt.weight_decay": 0.0, "opt.beta1": 0.95, "opt.beta2": 0.9, "opt.gamma": 0.0125,
        },
    },
    "lion": {PUBLISHED: LION},
    "signum": {f"{OURS}: as Lion": _only(LION, "opt.lr", "opt.weight_decay"), AS_MUON: _only(MUON, "opt.momentum")},
    "sgd": {OURS: {"opt.lr": 0.2, "opt.momentum": 0.9, "opt.weight_decay": 0.0}},
    "muon": {PUBLISHED: MUON, f"{WEN}: in 17 of their 18 configurations; 0.2 at 130M and 1x": LR_RATIO},
    "normuon": {f"{AS_MUON}, in AdamW's units": LIKE_ADAMW},
    "adamuon": {f"{AS_MUON}, in AdamW's units": LIKE_ADAMW},
    "orthogonal_sgdm": {AS_MUON: LIKE_MUON},
    "shampoo": {AS_MUON: LIKE_MUON},
    "muon_hyperball": {
        MIDDLE: {"opt.lr": 0.016},
        AS_MUON: _only(LIKE_MUON, "opt.momentum", "aux.lr_ratio", "aux.beta1", "aux.beta2"),
    },
    "adam_hyperball": {
        MIDDLE: {"opt.lr": 0.016},
        AS_ADAMW: _only(ADAMW, "opt.beta1", "opt.beta2"),
        AS_MUON: _only(LIKE_MUON, "aux.lr_ratio", "aux.beta1", "aux.beta2"),
    },
    "scion": {
        PUBLISHED: {
            "opt.lr": 0.016, "opt.weight_decay": 0.1, "opt.momentum": 0.95, "aux.lr_ratio": 0.2, "aux.momentum": 0.95,
        },
    },
    "soap": {
        PUBLISHED: {
            "opt.lr": 0.016, "opt.weight_decay": 0.1, "opt.beta1": 0.95, "opt.beta2": 0.98, "opt.shampoo_beta": 0.95,
        },
        f"{WEN}: from 4x Chinchilla or 300M on; at 130M and 1x it is 1, a QR at every step": {
            "opt.precondition_frequency": 10,
        },
        f"{OURS}: as the matrices, for theirs has no companion": {
            "aux.lr_ratio": 1.0, "aux.beta1": 0.95, "aux.beta2": 0.98,
        },
    },
    "soap_muon": {AS_MUON: LIKE_MUON, f"{OURS}: as SOAP": {"opt.beta2": 0.98, "opt.shampoo_beta": 0.95}},
    "kron": {
        PUBLISHED: {
            "opt.lr": 0.002, "opt.weight_decay": 0.7, "opt.momentum": 0.95, "opt.precondition_lr": 0.2,
            "opt.update_probability": 0.05, "opt.update_flat_steps": 2000,
        },
        f"{OURS}: as AdamW alone, for theirs has no companion": {
            "aux.lr_ratio": 4.0, "aux.beta1": 0.9, "aux.beta2": 0.98,
        },
    },
}  # fmt: skip


class Start(NamedTuple):
    """Where the tuning of one hyperparameter starts, and who says so."""

    value: Value
    source: str


def starts(optimizer: catalog.Named) -> dict[str, Start]:
    """Every hyperparameter of an optimizer, with where its tuning starts.

    >>> starts("adamw")["opt.beta2"].value, starts("adamw")["opt.eps"]
    (0.98, Start(value=1e-08, source='default of the class'))
    """
    found = {h.name: Start(h.default, DEFAULT) for h in catalog.hyperparameters(optimizer)}
    for source, values in STARTS.get(catalog.get(optimizer).rule.name, {}).items():
        found |= {name: Start(value, source) for name, value in values.items()}
    return found


def start(optimizer: catalog.Named) -> dict[str, Value]:
    """Every hyperparameter of an optimizer at the value where its tuning starts."""
    return {name: found.value for name, found in starts(optimizer).items()}


def with_defaults(optimizer: catalog.Named, hyperparameters: Mapping[str, Value]) -> dict[str, Value]:
    """The hyperparameters, and what else the constructor takes at its default, if that is more than "not set".

    >>> found = with_defaults("muon", {"opt.lr": 0.02})
    >>> found["opt.lr"], found["opt.nesterov"], found["opt.momentum_form"]
    (0.02, True, 'ema')
    """
    cls = catalog.get(optimizer)
    defaults = {f"opt.{name}": value for name, value in catalog.rule_defaults(cls.rule).items()}
    defaults |= {name.replace("_", ".", 1): value for name, value in cls.aux_arguments.items()}
    missing = catalog.settable(cls) - set(hyperparameters)
    plain = {name: defaults[name] for name in sorted(missing) if defaults.get(name) is not None}
    return {**plain, **hyperparameters}


def trainer_space(base: RunSpec) -> tuple[Hyperparameter, ...]:
    """The trainer's coordinates around a run, with grids of our choice.

    The batch is swept over a factor of 16 around that of the run and no further: beyond it is a batch study.
    """
    batch, schedule = base.batch_tokens, base.schedule
    fractions = {"low": 0.0, "high": 1.0, "log": False, "unit": "fraction of the run", "source": "ours"}
    space = [
        Hyperparameter("schedule.warmup_fraction", schedule.warmup_fraction, (0.0, 0.05, 0.1, 0.2, 0.4), **fractions),
        Hyperparameter(
            "clip", base.clip, (0.0, 1.0, 2.0), low=0.0, unit="global gradient norm", source="Wen et al. 2025"
        ),
    ]
    if batch % 4 == 0 and base.num_steps >= 16:
        grid = tuple(batch * factor // 4 for factor in (1, 2, 4, 8, 16))
        space.append(
            Hyperparameter("batch_tokens", batch, grid, low=grid[0], high=grid[-1], unit="tokens", source="ours")
        )
    if schedule.kind == "wsd":
        grid = (0.2, 0.4, 0.6, 0.8, 1.0)
        space.append(Hyperparameter("schedule.decay_fraction", schedule.decay_fraction, grid, **fractions))
    return tuple(space)


def coordinates(base: RunSpec, names: Sequence[str], fixed: Collection[str] = ()) -> tuple[Hyperparameter, ...]:
    """The coordinates that `names` ask for, lr first, each starting where `base` stands.

    `all` means every one. A name that this optimizer does not have (opt.momentum for AdamW), or that is `fixed`, is
    left out.
    """
    cls = catalog.get(base.optimizer, base.optimizer_source)
    rule = [replace(h, default=base.hyperparameters.get(h.name, h.default)) for h in catalog.space(cls)]
    space = {h.name: h for h in (*rule, *trainer_space(base)) if h.grid and h.name not in fixed}
    chosen = list(space) if "all" in names else [name for name in dict.fromkeys(names) if name in space]
    if "opt.lr" not in chosen:
        raise UsageError("--tune must name opt.lr: an optimizer whose learning rate is not tuned can't be compared")
    chosen.sort(key=lambda name: name != "opt.lr")
    return tuple(space[name] for name in chosen)


def check_names(optimizers: Sequence[catalog.Named], base: RunSpec, names: Sequence[str]) -> None:
    """Raises   UsageError for a coordinate that no optimizer has"""
    valid = {h.name for optimizer in optimizers for h in catalog.space(optimizer)}
    valid |= {h.name for h in trainer_space(base)} | {"all"}
    for name in names:
        if name not in valid:
            raise unknown("coordinate to tune", name, valid)


def base_options(settings: Mapping[str, Value]) -> dict[str, Value]:
    """The task options that make the base model another, from the settings `base.*`.

    Raises   UsageError where they would have no effect, since no parametrization is named
    """
    found = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith("base.")}
    if found and settings.get("parametrization", "standard") == "standard":
        raise UsageError("base.* is the base model of a parametrization: add --set parametrization=spectral (or mup)")
    return found


def settable(optimizer: catalog.Named) -> frozenset[str]:
    """Every dotted name that a setting may have, except the options of the task and of the base model."""
    schedule = {f"schedule.{name}" for name in Schedule.__dataclass_fields__}
    return frozenset({*catalog.settable(optimizer), *schedule, *SETTABLE})
