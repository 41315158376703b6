"""Parametrizations as values: what a step is multiplied by when a model has grown from its base.

A model is compared with a small *base* of the same kind, for which the hyperparameters are right. Growth of a parameter
is its size over that of its counterpart: of its outputs (a, `fan_out`), of its inputs (b, `fan_in`), and of how many
there are (L, `depth`; above 1 only for what lies in residual blocks). An embedding has no inputs that grow, a head no
outputs, a vector one input: the size of a vocabulary changes nothing. Initial weights are those of `init_power`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from muonlab.errors import UsageError, unknown
from muonlab.optim.blocks import blocks_of
from muonlab.optim.rule import Rule, Shape, declarations
from muonlab.roles import Role

__all__ = [
    "KINDS", "LAWS", "Growth", "Law", "Parametrization", "check_kind", "check_rules", "init_power", "multipliers",
]  # fmt: skip

KINDS = ("standard", "mup", "spectral")
QIU = "Qiu et al. 2025 (2512.05620), table 1"
YANG = "Yang et al. 2022 (2203.03466), table 3"
LIKE_ADAM = f"ours: as Adam in {QIU}"
SPLITS = ("split_sizes", "num_heads")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How much larger a parameter is than its counterpart in the base model; 1 is no growth."""

    role: Role
    shape: Shape
    base_shape: Shape
    fan_out: float = 1.0
    fan_in: float = 1.0
    depth: float = 1.0  # how many more there are

    @property
    def width(self) -> float:
        """What decay takes for the growth of the model's width: that of the inputs, of the outputs where they are."""
        return self.fan_in if self.fan_in != 1.0 else self.fan_out

    @property
    def has_grown(self) -> bool:
        """Whether it is not the base's own in shape and number."""
        return self.depth != 1.0 or self.shape != self.base_shape

    def ratio(self, size: Callable[[Shape], float]) -> float:
        """A function of the shape over what it is for the base's."""
        return size(self.shape) / size(self.base_shape)


Multipliers = dict[str, float]


class Law(NamedTuple):
    """What a rule's learning rate and eps are multiplied by, and who says so."""

    of: Callable[[Any, Growth], Multipliers]
    source: str


def _element_wise(rule: Rule, g: Growth) -> Multipliers:
    return {"lr": 1 / g.fan_in, "eps": 1 / (g.depth * g.fan_out)}


def _of_gradient(rule: Rule, g: Growth) -> Multipliers:
    return {"lr": g.depth * g.fan_out / g.fan_in}


def _orthogonal(rule: Rule, g: Growth) -> Multipliers:
    """lr x scale, the spectral norm of a step, goes like sqrt(fan_out / fan_in), whatever the scale rule."""
    aspect = math.sqrt(g.fan_out / g.fan_in)
    return {"lr": aspect / g.ratio(rule.scale), "eps": 1 / (g.depth * aspect)}


def _two_sided(rule: Rule, g: Growth) -> Multipliers:
    aspect = math.sqrt(g.fan_out / g.fan_in)
    return {"lr": aspect, "eps": 1 / (g.depth * aspect)}


def _shampoo(rule: Rule, g: Growth) -> Multipliers:
    """Exponents that sum to 1/2, no blocks, and an eps that is relative already."""
    return {"lr": math.sqrt(g.fan_out / g.fan_in)}


def _adamuon(rule: Rule, g: Growth) -> Multipliers:
    """The root mean square of a step goes like 1 / fan_in, whatever the scale rule."""
    rms = g.ratio(lambda shape: rule.scale(shape) / math.sqrt(max(shape[-2:])))
    return {"lr": 1 / (g.fan_in * rms), "moment_eps": 1 / math.sqrt(g.fan_out * g.fan_in)}


def _normuon(rule: Rule, g: Growth) -> Multipliers:
    return {**_orthogonal(rule, g), "moment_eps": 1 / math.sqrt(g.fan_out * g.fan_in)}


def _soap_muon(rule: Rule, g: Growth) -> Multipliers:
    return {"lr": _orthogonal(rule, g)["lr"], "moment_eps": _two_sided(rule, g)["eps"]}


def _orthogonal_sphere(rule: Rule, g: Growth) -> Multipliers:
    """A step has spectral norm lr R / sqrt(min(fan_out, fan_in)), and R goes like sqrt(fan_out)."""
    shorter = g.ratio(lambda shape: min(shape[-2:]))
    return {"lr": math.sqrt(shorter / g.fan_in), "eps": _orthogonal(rule, g)["eps"]}


def _element_sphere(rule: Rule, g: Growth) -> Multipliers:
    """A step of low rank has spectral norm lr R, and R goes like sqrt(fan_out)."""
    return {"lr": 1 / math.sqrt(g.fan_in), "eps": _element_wise(rule, g)["eps"]}


LAWS: Mapping[str, Law] = {
    "adamw": Law(_element_wise, QIU),
    **dict.fromkeys(
        ("nadamw", "cautious", "adam_mini", "ademamix", "adopt", "mars", "sophia", "lion", "signum"),
        Law(_element_wise, LIKE_ADAM),
    ),
    "sgd": Law(_of_gradient, f"{YANG}; depth is ours"),
    "muon": Law(_orthogonal, QIU),
    "scion": Law(_orthogonal, "ours: as Muon, which it is but for the scale"),
    "orthogonal_sgdm": Law(_orthogonal, "ours: as Muon, an average of orthogonal matrices"),
    "soap_muon": Law(_soap_muon, "ours: the step of Muon, the second moment of SOAP"),
    "normuon": Law(_normuon, "ours: as Muon, a polar factor with rows of equal length"),
    "adamuon": Law(_adamuon, QIU),
    "shampoo": Law(_shampoo, QIU),
    "soap": Law(_two_sided, QIU),
    "muon_hyperball": Law(_orthogonal_sphere, "ours: from the spectral norm of a step"),
    "adam_hyperball": Law(_element_sphere, "ours: from the spectral norm of a step of low rank"),
}
MUP_ONLY = ("kron",)  # whose spectral norm nobody has told us


def check_kind(kind: str) -> None:
    """Raises   UsageError for a kind that does not exist"""
    if kind not in KINDS:
        raise unknown("parametrization", kind, KINDS)


def check_rules(kind: str, *rules: type[Rule] | None) -> None:
    """Raises   UsageError for a rule of which the kind says nothing"""
    check_kind(kind)
    known = {"standard": (), "mup": (*LAWS, *MUP_ONLY), "spectral": tuple(LAWS)}[kind]
    for rule in rules:
        if kind != "standard" and rule is not None and rule.name not in known:
            names = ", ".join(sorted(known))
            raise UsageError(f'the parametrization "{kind}" says nothing of {rule.name}, only of these: {names}')


def init_power(role: Role) -> float:
    """The power of the growth of fan_in with which the root mean square of initial weights goes.

    >>> init_power(Role.HIDDEN), init_power(Role.HEAD), init_power(Role.EMBEDDING)
    (-0.5, -1.0, 0.0)
    """
    if role is Role.HEAD:
        return -1.0
    return 0.0 if role in (Role.EMBEDDING, Role.VECTOR) else -0.5


def multipliers(kind: str, rule: Rule, growth: Growth) -> Multipliers:
    """What to multiply hyperparameters of a rule by for a parameter of that growth; what is not named stays.

    Math     mup       lr 1 / b; of SGD a / b. Nothing else
             spectral  lr and eps by the law of the rule (LAWS). What decay takes in a step goes like 1 / width, so
                       weight_decay 1 / (width x that of lr), or 1 / width where it is independent
    Source   mup: Essential AI 2025 (2505.02222), Adam's rule for Muon's matrices too; SGD: Yang et al. 2022, table 3.
             spectral: see LAWS; decay: Qiu et al. 2025, who found it near the best at 20 tokens per parameter
    Differs  from Essential AI's table, which is Yang's table 9: embeddings and vectors have a multiplier sqrt(fan_out)
             there, with lr fan_out^(-1/2) and initial variance 1 / fan_out; a head 1 / sqrt(fan_in), with lr
             fan_in^(-1/2) and variance 1 / fan_in. A multiplier c, variance s^2 and Adam's lr e are the same function
             as no multiplier, (c s)^2 and c e (eps 0, no decay): that is Yang's table 3, in the form used here

    >>> from muonlab.optim import AdamWRule, MuonRule
    >>> wide = Growth(role=Role.HIDDEN, shape=(64, 64), base_shape=(16, 16), fan_out=4.0, fan_in=4.0)
    >>> multipliers("mup", MuonRule(), wide), multipliers("spectral", MuonRule(), wide)
    ({'lr': 0.25}, {'weight_decay': 0.25})
    >>> multipliers("spectral", AdamWRule(), wide)
    {'lr': 0.25, 'eps': 0.25}
    """
    check_rules(kind, type(rule))
    if kind == "standard":
        return {}
    if kind == "mup":
        found = {"lr": (growth.fan_out if rule.name == "sgd" else 1.0) / growth.fan_in}
    else:
        found = LAWS[rule.name].of(rule, growth)
        if rule.application == "additive":
            found["weight_decay"] = _decay(rule, growth, found["lr"])
    known = declarations(type(rule))
    return {key: value for key, value in found.items() if key in known and not math.isclose(value, 1.0, rel_tol=1e-12)}


def _decay(rule: Rule, growth: Growth, lr: float) -> float:
    if rule.decay == "coupled" and rule.name != "sgd" and rule.weight_decay:
        raise UsageError(f'"spectral" does not say how decay in the gradient of {rule.name} grows: decay="decoupled"')
    return 1 / growth.width if rule.decay == "independent" else 1 / (growth.width * lr)


@dataclass(frozen=True)
class Parametrization:
    """What `parametrize` found out of a model and leaves on it: a kind, and the growth of every parameter by name."""

    kind: str
    growths: Mapping[str, Growth]
    outputs: Mapping[str, float]  # module -> what its output (of a tied head: its input) is multiplied by

    def multipliers(self, name: str, role: Role, rule: Rule, split: Mapping[str, Any]) -> Multipliers:
        """Of one parameter in an optimizer's group; `split` has its `split_sizes`, `num_heads`, `transposed`.

        Raises   UsageError if the parameter is not known, has another role here, or parts that need different steps
        """
        if name not in self.growths:
            raise UsageError(f"{name} was not there when the model was parametrized: parametrize the finished model")
        growth = self.growths[name]
        if growth.role is not role:
            raise UsageError(f"{name} is {role} here and {growth.role} to parametrize: give both the same roles")
        if not rule.is_matrix_rule():
            return multipliers(self.kind, rule, growth)
        first, *others = [multipliers(self.kind, rule, part) for part in _parts(name, growth, split)]
        keys = set(first).union(*others)
        if any(not math.isclose(other.get(key, 1.0), first.get(key, 1.0)) for other in others for key in keys):
            raise UsageError(f"the parts of {name} grow differently: make each a parameter of its own")
        return first

    def __str__(self) -> str:
        """One line per parameter that has grown, and per module that is scaled."""
        rows = [("parameter", "role", "fan_out", "fan_in", "number")]
        for name, g in self.growths.items():
            if (grown := (g.fan_out, g.fan_in, g.depth)) != (1.0, 1.0, 1.0):
                rows.append((name, str(g.role), *(f"x {factor:.4g}" for factor in grown)))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if len(rows) == 1:
            lines = [f"{self.kind}: no width or depth has grown, so nothing is multiplied"]
        if self.kind == "standard":
            lines = ["standard: the model is left as it is"]
        lines += [f"{name} as a module: x {factor:.4g}" for name, factor in self.outputs.items()]
        return "\n".join([*lines, *self._vocabularies()])

    def _vocabularies(self) -> list[str]:
        """Heads with more outputs than in the base, for which nothing is done."""
        heads = {name: g.ratio(math.prod) / g.fan_in for name, g in self.growths.items() if g.role is Role.HEAD}
        said = "outputs count as a vocabulary and are not scaled"
        return [f"{name}: its x {more:.4g} {said}" for name, more in heads.items() if not math.isclose(more, 1.0)]


def _parts(name: str, growth: Growth, split: Mapping[str, Any]) -> list[Growth]:
    """The growth of each matrix of a parameter; parts and heads of the base are taken to be of the same proportions."""
    told = {"role": growth.role.value, **split}
    blocks = blocks_of(growth.shape, told)
    if not split.get("split_sizes") and not split.get("num_heads"):
        before = blocks_of(growth.base_shape, told)
        return [replace(growth, shape=blocks[0].shape, base_shape=before[0].shape)]
    of_base = blocks_of(growth.base_shape, {**told, **_base_split(name, growth, split)})
    rows, base_rows = sum(block.rows for block in blocks), sum(block.rows for block in of_base)
    parts = []
    for block, old in zip(blocks, of_base, strict=True):
        share, base_share = block.shape[-2] / rows, old.shape[-2] / base_rows
        fan_out = growth.fan_out * share / base_share
        parts.append(replace(growth, shape=block.shape, base_shape=old.shape, fan_out=fan_out))
    return parts


def _base_split(name: str, growth: Growth, split: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of the base in proportion, heads as wide as they are in the model."""
    axis = 1 if split.get("transposed") else 0
    rows, base_rows = growth.shape[axis], growth.base_shape[axis]
    sizes, told = split.get("split_sizes") or (rows,), split.get("num_heads")
    heads = tuple(told) if isinstance(told, tuple | list) else (told or 1,) * len(sizes)
    base_sizes = [size * base_rows / rows for size in sizes]
    base_heads = [count * base_rows / rows for count in heads] if told else [1.0]
    if not all(value.is_integer() for value in (*base_sizes, *base_heads)):
        raise UsageError(
            f"{name}: its parts and heads do not fit the {base_rows} rows of the base: choose another base"
        )
    found = {"split_sizes": tuple(map(int, base_sizes))}
    return {**found, "num_heads": tuple(map(int, base_heads))} if told else found
