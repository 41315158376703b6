"""The catalogue: optimizers by name, their search spaces, and how a study builds them from dotted names."""

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from muonlab import user_code
from muonlab.errors import UsageError, unknown
from muonlab.optim.adam import ADOPT, AdamMini, AdamW, AdEMAMix, CautiousAdamW, NAdamW
from muonlab.optim.engine import Engine
from muonlab.optim.groups import rule_defaults
from muonlab.optim.hyperball import AdamHyperball, MuonHyperball
from muonlab.optim.kron import Kron
from muonlab.optim.lion import Lion, Signum
from muonlab.optim.mars import MARS
from muonlab.optim.muon import Muon
from muonlab.optim.normuon import AdaMuon, NorMuon
from muonlab.optim.orthogonal_sgdm import OrthogonalSGDM
from muonlab.optim.own import check_rule, made_class, rehearse
from muonlab.optim.rule import Hyperparameter, Rule, declarations
from muonlab.optim.scion import Scion
from muonlab.optim.sgd import SGD
from muonlab.optim.shampoo import Shampoo
from muonlab.optim.soap import SOAP, SOAPMuon
from muonlab.optim.sophia import Sophia
from muonlab.roles import Role

__all__ = [
    "Named",
    "OptimizerInfo",
    "arguments",
    "build",
    "conventions",
    "get",
    "hyperparameters",
    "locate",
    "names",
    "numerics_version",
    "optimizer_class",
    "polar_description",
    "settable",
    "space",
]

CLASSES = (
    *(AdamW, NAdamW, CautiousAdamW, AdamMini, AdEMAMix, ADOPT, MARS, Sophia, Lion, Signum, SGD),
    *(Muon, NorMuon, AdaMuon, OrthogonalSGDM, Scion, MuonHyperball, AdamHyperball, SOAP, SOAPMuon, Shampoo, Kron),
)
CATALOG: dict[str, type[Engine]] = {cls.rule.name: cls for cls in CLASSES}
RULES = {name: cls.rule for name, cls in CATALOG.items()}
SPELLINGS = {spelling: name for name, cls in CATALOG.items() for spelling in (name, cls.__name__.lower())}
Named = str | type[Engine]  # what stands for an optimizer: the name of one of ours or of a user's, or its class

WEN = "Wen et al. 2025 (2509.02046), phase I"
LR_RATIO = Hyperparameter(
    "aux.lr_ratio", 0.3, (0.1, 0.2, 0.3, 0.6), low=0.0, unit="aux_lr / lr", source=f"{WEN}; 0.6 is ours"
)
ALIKE = replace(LR_RATIO, default=1.0, grid=(0.5, 1.0, 2.0), source="ours: their updates are about as large as AdamW's")
LR_RATIOS = {  # where it is not Muon's
    "scion": replace(LR_RATIO, default=0.2, grid=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), source=WEN),
    "kron": replace(LR_RATIO, default=4.0, grid=(1.0, 2.0, 4.0, 8.0), source="ours"),
    "soap": ALIKE,
    "normuon": ALIKE,
    "adamuon": ALIKE,
}
COMPANION_GRIDS = {"aux.beta1": (0.8, 0.9, 0.95, 0.98)}  # where it is not the grid of the companion alone


@dataclass(frozen=True, kw_only=True)
class OptimizerInfo:
    """What a run must remember of an optimizer so that a child process, or a later year, finds the same one.

    >>> locate("adam-mini").name, locate("muon").numerics
    ('adam_mini', 'muon:2+adamw:1')
    """

    name: str  # canonical: "muon", or "module:Class", or "stem:Class" of a file
    source: str  # absolute path of the user's file, "" otherwise
    numerics: str  # versions of rule and companion, after the SHA-256 of a user's source (not of what it imports)
    cls: type[Engine]

    @property
    def named(self) -> Named:
        """What the functions here take for it."""
        return self.cls if ":" in self.name else self.name


def names() -> tuple[str, ...]:
    """Every optimizer of ours, in alphabetical order.

    >>> names()[:3]
    ('adam_hyperball', 'adam_mini', 'adamuon')
    """
    return tuple(sorted(CATALOG))


def locate(name: str, source: str = "", *, others: Iterable[str] = ()) -> OptimizerInfo:
    """What `name` names: one of ours, `module:Class` or `path/to/file.py:Class`; `others` are valid, too, in messages.

    In a name of ours case does not matter, a hyphen may stand for an underscore, and its class will do. `source` is the
    file in which a canonical `stem:Class` was found before; it wins over an importable module. A user's optimizer takes
    a step here, so that what is wrong with it is found out.

    Raises   UsageError that names the nearest valid name, or what is wrong with the user's file or class
    """
    ours = _ours(name)
    if ours:
        return OptimizerInfo(name=ours, source="", numerics=_versions(CATALOG[ours]), cls=CATALOG[ours])
    found, cls = _find(name, source, others)
    rehearse(cls, found)
    return OptimizerInfo(name=found.name, source=found.source, numerics=_numerics(found, cls), cls=cls)


def get(optimizer: Named, source: str = "", *, numerics: str = "") -> type[Engine]:
    """The optimizer class of a name (see `locate`), or of itself. `numerics` is what it must have, if given.

    Raises   UsageError as `locate` does, and for a source that has changed

    >>> get("muon").__name__
    'Muon'
    """
    if not isinstance(optimizer, str):
        return optimizer
    if ours := _ours(optimizer):
        return CATALOG[ours]
    found, cls = _find(optimizer, source)
    if numerics and numerics != _numerics(found, cls):
        raise UsageError(f"{found.path or found.name} has changed since the study began: start it again")
    return cls


def numerics_version(name: str, source: str = "") -> str:
    """Changes whenever the same run would give other numbers.

    >>> numerics_version("muon")
    'muon:2+adamw:1'
    """
    ours = _ours(name)
    return _versions(CATALOG[ours]) if ours else _numerics(*_find(name, source))


def optimizer_class(rule: type[Rule] | type[Engine]) -> type[Engine]:
    """The optimizer class of a rule: ours, or one made for it, with AdamW as the companion of a rule for matrices.

    An optimizer class is its own.

    Raises   UsageError for a rule that lacks something, or has the name of one of ours

    >>> from muonlab.optim import MuonRule
    >>> optimizer_class(MuonRule).__name__
    'Muon'
    """
    for part in [rule] if issubclass(rule, Rule) else _rules(rule):
        check_rule(part, RULES)
    if not issubclass(rule, Rule):
        return rule
    return CATALOG[rule.name] if rule.name in CATALOG else made_class(rule)


def _ours(name: str) -> str:
    """The name in the catalogue, or ""."""
    return SPELLINGS.get(name.lower().replace("-", "_"), "")


def _find(name: str, source: str, others: Iterable[str] = ()) -> tuple[user_code.UserClass, type[Engine]]:
    if ":" not in name and not name.endswith(".py"):
        raise user_code.unknown_name("optimizer", name, [*CATALOG, *others])
    found = user_code.find(name, source, kind="optimizer")
    if not issubclass(found.cls, Rule | Engine) or found.cls is Engine:
        raise UsageError(f"{found.name} is no optimizer: it must be a subclass of Rule or Engine of muonlab.optim")
    with user_code.blamed(f"{found.name} makes no optimizer", found.path):
        cls = optimizer_class(found.cls)
        cls.rule.hyperparameters()
    return found, cls


def _numerics(found: user_code.UserClass, cls: type[Engine]) -> str:
    return f"{found.digest(found.cls, *_rules(cls))}+{_versions(cls)}"


def _versions(cls: type[Engine]) -> str:
    return "+".join(f"{rule.name}:{rule.numerics_version}" for rule in _rules(cls))


def _rules(cls: type[Engine]) -> list[type[Rule]]:
    return [rule for rule in (cls.rule, cls.companion) if rule]


def hyperparameters(optimizer: Named) -> tuple[Hyperparameter, ...]:
    """Every numeric hyperparameter of an optimizer under its dotted name, swept or not.

    >>> [h.name for h in hyperparameters("sgd")]
    ['opt.lr', 'opt.momentum', 'opt.dampening', 'opt.weight_decay']
    """
    cls = get(optimizer)
    found = cls.rule.hyperparameters()
    if cls.companion is None:
        return found
    companion = [
        replace(h, default=_companion_default(cls, h.name), grid=COMPANION_GRIDS.get(h.name, h.grid))
        for h in cls.companion.hyperparameters("aux")
        if h.name not in ("aux.lr", "aux.weight_decay")  # the one by its ratio, the other as the main rule's
    ]
    return (*found, _lr_ratio(cls), *companion)


def _lr_ratio(cls: type[Engine]) -> Hyperparameter:
    return LR_RATIOS.get(cls.rule.name, LR_RATIO)


def _companion_default(cls: type[Engine], key: str) -> Any:
    argument, part = _destinations(cls)[key]
    default = cls.aux_arguments[argument]
    return default if part is None else default[part]


def space(optimizer: Named) -> tuple[Hyperparameter, ...]:
    """What a study sweeps: the hyperparameters that have a grid.

    A default need not lie on its grid: defaults are those of the class (torch's), grids are the published ones. The one
    name without a counterpart in the constructor is `aux.lr_ratio`, which sets `aux_lr` to a multiple of `lr`.

    >>> [(h.name, h.default) for h in space("adamw")][:2]
    [('opt.lr', 0.001), ('opt.beta1', 0.9)]
    """
    return tuple(h for h in hyperparameters(optimizer) if h.grid)


def settable(optimizer: Named) -> frozenset[str]:
    """Every dotted name that `build` takes, numeric or not.

    >>> "opt.nesterov" in settable("muon"), "opt.nesterov" in settable("adamw")
    (True, False)
    """
    return frozenset(_destinations(get(optimizer)))


def build(
    optimizer: Named,
    named_params: nn.Module | Iterable[tuple[str, Tensor]],
    roles: Mapping[str, Role | str] | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Engine:
    """An optimizer from dotted names; what is not named has its default.

    The parameters are routed for every optimizer, so that vectors are exempt from weight decay in all of them alike.

    Raises   UsageError for an unknown name or a value that the optimizer cannot take; it names the key

    >>> build("muon", nn.Linear(4, 4), {"weight": "hidden"}, {"opt.lr": 0.02}).param_groups[1]["lr"]
    0.006
    """
    cls = get(optimizer)
    arguments = _arguments(cls, hyperparameters or {})
    if not isinstance(named_params, nn.Module):
        named_params = list(named_params)
    return cls(named_params, roles=roles or {}, **arguments)


def arguments(optimizer: Named, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a constructor is given for dotted names.

    Raises   UsageError as `build` does

    >>> arguments("muon", {"opt.lr": 0.02, "aux.beta1": 0.8})
    {'lr': 0.02, 'aux_betas': (0.8, 0.95), 'aux_lr': 0.006}
    """
    return _arguments(get(optimizer), hyperparameters)


def polar_description(optimizer: Named, hyperparameters: Mapping[str, Any] | None = None) -> str:
    """The polar factor that a run uses; empty for an optimizer without one.

    >>> polar_description("muon", {}), polar_description("adamw", {})
    ('newton_schulz:jordan:5:bfloat16', '')
    """
    cls = get(optimizer)
    arguments = _arguments(cls, hyperparameters or {})
    return cls.rule(**{key: value for key, value in arguments.items() if not key.startswith("aux_")}).describe_polar()


def conventions(optimizer: Named, hyperparameters: Mapping[str, Any] | None = None) -> dict[str, str]:
    """What must be said of an optimizer before its lr means anything: decay form, scale rule, polar factor.

    >>> conventions("muon")
    {'weight decay': 'decoupled', 'scale rule': 'original', 'polar factor': 'newton_schulz:jordan:5:bfloat16'}
    """
    cls = get(optimizer)
    arguments = {**rule_defaults(cls.rule), **_arguments(cls, hyperparameters or {})}
    sphere = cls.rule.application == "sphere"
    found = {"weight decay": "none: weights keep their norm" if sphere else arguments["decay"]}
    if "adjust_lr_fn" in arguments and not sphere:
        found["scale rule"] = str(arguments["adjust_lr_fn"] or "original")
    polar = polar_description(cls, hyperparameters)
    return found | ({"polar factor": polar} if polar else {})


def _arguments(cls: type[Engine], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted lab names -> constructor arguments, each value checked on its own so that the error names its key."""
    name = cls.rule.name
    known = _destinations(cls)
    arguments: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise unknown(f"hyperparameter of {name}", key, known)
        _check(cls, key, value)
        field, part = known[key]
        if part is None:
            arguments[field] = value
        else:
            current = arguments.get(field, cls.aux_arguments.get(field) or rule_defaults(cls.rule).get(field))
            arguments[field] = tuple(value if i == part else item for i, item in enumerate(current))
    if cls.companion is not None:
        ratio = arguments.pop("aux_lr", _lr_ratio(cls).default)
        arguments["aux_lr"] = ratio * arguments.get("lr", rule_defaults(cls.rule)["lr"])
    try:
        cls.rule(**{key: value for key, value in arguments.items() if not key.startswith("aux_")})
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {error}") from error
    return arguments


def _destinations(cls: type[Engine]) -> dict[str, tuple[str, int | None]]:
    """Dotted name -> constructor argument and position in it."""
    found: dict[str, tuple[str, int | None]] = {}
    sides = [("opt", "", cls.rule)] + ([("aux", "aux_", cls.companion)] if cls.companion else [])
    for prefix, start, rule in sides:
        for field, declaration in declarations(rule).items():
            if prefix == "aux" and start + field not in cls.aux_arguments:
                continue
            for i, part in enumerate(declaration.parts or (field,)):
                found[f"{prefix}.{part}"] = (start + field, i if declaration.parts else None)
    if cls.companion is not None:
        found[LR_RATIO.name] = found.pop("aux.lr")
    return found


def _check(cls: type[Engine], key: str, value: Any) -> None:
    prefix, leaf = key.split(".")
    rule = cls.rule if prefix == "opt" else cls.companion
    for field, declaration in declarations(rule).items():
        parts = declaration.parts or (field,)
        if ("lr" if key == LR_RATIO.name else leaf) not in parts:
            continue
        try:
            if declaration.parts:
                declaration.clean(field, (value,) * len(parts))
            else:
                declaration.clean(field, value)
        except (ValueError, TypeError) as error:
            number = isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isfinite(value)
            text = f"must be a finite number, got {value!r}" if number else str(error)
            got = "" if repr(value) in text else f", got {value!r}"
            raise UsageError(f"{key}: {text}{got}") from error
