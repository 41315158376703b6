"""Rule: an optimizer's mathematics as a value. The engine does everything else."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from muonlab.errors import UsageError
from muonlab.kernels.bundle import Bundle, bundling_pays
from muonlab.optim.hyperparameter import Declaration, Hyperparameter, choice, hp

__all__ = ["DECAYS", "LEFT", "RADIUS", "RIGHT", "Hyperparameter", "Rule", "StateField", "declarations", "hp"]

DECAYS = ("decoupled", "independent", "coupled", "cautious")

Layout = Literal["param", "row", "block", "matrix", "scalar"]
Stage = Literal["local", "matrix", "finish", "apply"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class StateField:
    """One state tensor of a rule: its layout is all that sharding has to know.

    `param` has the shape of the parameter; `row` one number per row of a matrix (..., fan_out, 1); `block` one per
    block of equal size (num_blocks, 1): heads where a group names them, else rows, and a vector is one block; `matrix`
    says its own shape by `shape`; `scalar` has none. All but `param` are at least float32.

    `stage` is the one that reads and writes it ("apply": the engine). What `local` does not own belongs to a matrix: a
    parameter that is made of matrices of different shapes has it once for each, as "name", "name.1", ... `start` gives
    the first value, from the weight and the shape of the state; without it that is zero.
    """

    layout: Layout
    stage: Stage = "local"
    shape: Callable[[Shape], Shape] | None = None  # shape of the matrix view -> shape of the state
    start: Callable[[Tensor, Shape], Tensor] | None = None

    def __post_init__(self) -> None:
        for what, value, valid in (("layout", self.layout, get_args(Layout)), ("stage", self.stage, get_args(Stage))):
            if value not in valid:
                raise TypeError(f"unknown {what} {value!r} of a state tensor: use one of {', '.join(valid)}")
        if (self.shape is None) == (self.layout == "matrix"):
            raise TypeError(f"`shape` goes with the layout matrix, and only with it, not {self.layout!r}")

    def shape_for(self, param: Shape, matrix: Shape, num_blocks: int | None = None) -> Shape:
        """The shape of the state of a parameter, seen as a matrix (or stack of matrices) of shape `matrix`.

        >>> StateField("row").shape_for((64, 16, 3, 3), (64, 144)), StateField("block").shape_for((64, 16), (64, 16), 4)
        ((64, 1), (4, 1))
        """
        if self.layout == "param":
            return param
        if self.layout == "row":
            return (*matrix[:-1], 1)
        if self.layout == "block":
            return (math.prod(matrix[:-1]) if num_blocks is None else num_blocks, 1)
        return () if self.shape is None else self.shape(matrix)


def _frobenius(w: Tensor, shape: Shape) -> Tensor:
    norm = torch.linalg.vector_norm(w, dim=(-2, -1)).reshape(shape)
    if w.numel() and not norm.all():
        raise UsageError(
            "a matrix in it starts at zero, where a sphere has no radius: "
            "initialise it at random, or leave it to the companion, by its role"
        )
    return norm


def _left(matrix: Shape) -> Shape:
    return (*matrix[:-1], matrix[-2])


def _right(matrix: Shape) -> Shape:
    return (*matrix[:-2], matrix[-1], matrix[-1])


LEFT = StateField("matrix", "matrix", _left)  # (..., fan_out, fan_out)
RIGHT = StateField("matrix", "matrix", _right)  # (..., fan_in, fan_in)
RADIUS = StateField("matrix", "apply", lambda matrix: (*matrix[:-2], 1, 1), _frobenius)  # of the sphere of a weight


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of all rules: a frozen value whose fields are hyperparameters, with up to three pure stages.

    Every stage returns a direction. It writes nothing but `state`, returns none of the state's tensors, and knows
    neither learning rate nor weight decay, though both are declared with the rest: the engine applies them, in the
    form that `decay` names (lr is that of the step, lr_0 the one before any schedule):

        decoupled    w <- w - lr weight_decay w - lr u
        independent  w <- w - (lr / lr_0) weight_decay w - lr u
        coupled      the gradient becomes g + weight_decay w
        cautious     as decoupled, only where u and w have the same sign

    With `application = "sphere"` there is no decay: w keeps its Frobenius norm R, and lr is the tangent of an angle:

        w <- R normalised(w - lr R normalised(u))

    A rule is final: variants compose by calling kernels, and share hyperparameters through an abstract base, which has
    no `name`. `*_each` do the same for many tensors in fewer calls; a rule overrides them where that is faster. In a
    compiled step `t` and the hyperparameters that schedules change are 0-d float64 tensors, so a stage computes with
    them and never branches on them; what it may branch on is `phase`.
    """

    name: ClassVar[str] = ""
    numerics_version: ClassVar[str] = ""  # changes whenever the same inputs give other numbers
    source: ClassVar[str] = ""
    state: ClassVar[Mapping[str, StateField]] = {}
    step_count: ClassVar[Literal["required", "optional", "none"]] = "required"  # of a loaded state; none: t is unused
    unsaid: ClassVar[Mapping[str, Any]] = {}  # what a state dict means that does not say it, torch's own for one
    unsupported: ClassVar[tuple[str, ...]] = ("capturable", "differentiable")  # torch's switches that must stay off
    fused: ClassVar[Callable[..., None] | None] = None  # same numbers as `local` and its application, many at once
    application: ClassVar[Literal["additive", "sphere"]] = "additive"
    sees: ClassVar[Literal["elements", "rows", "whole"]] = "elements"  # the least of a parameter that `local` needs
    bundles: ClassVar[bool] = False  # `local` only uses what a Bundle has, so it may be given one
    step_unit: ClassVar[str] = "per element"  # of lr times scale, for people
    observes: ClassVar[str] = ""  # what `observe` wants, for people; empty: nothing
    phase: ClassVar[str] = ""  # of this step, see `phase_at`

    decay: str = hp("decoupled", check=choice("decay", DECAYS), keyword=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(issubclass(base, Rule) and base.name for base in cls.__bases__):
            raise TypeError(f"{cls.__name__}: a rule is final; compose kernels instead of subclassing a rule")
        if cls.name and (cls.application == "sphere") != ("radius" in cls.state):
            raise TypeError(f'{cls.__name__}: the state `radius` goes with the application "sphere"')

    def __post_init__(self) -> None:
        for name, declaration in declarations(type(self)).items():
            object.__setattr__(self, name, declaration.clean(name, getattr(self, name)))
        self.validate()

    def validate(self) -> None:
        """Checks that involve more than one hyperparameter."""

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        """Element-wise stage; runs on whatever part of the parameter is there."""
        raise NotImplementedError

    def matrix(self, u: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        """Stage that needs whole matrices (..., fan_out, fan_in)."""
        return u

    def finish(self, u: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        """Element- or row-wise stage after `matrix`; sees matrices too."""
        return u

    def matrix_dtype(self, shape: Shape, dtype: torch.dtype, device_type: str) -> torch.dtype:
        """The narrowest that is known to hold exactly what `matrix` returns, in `dtype`, for a matrix of that shape."""
        return dtype

    def local_each(
        self, gs: Sequence[Tensor], ws: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int
    ) -> list[Tensor]:
        """`local` of many parameters, in one go where the rule `bundles`."""
        if self.bundles and bundling_pays(gs):
            names = [name for name, field in self.active_state().items() if field.stage == "local"]
            state = {name: Bundle([state[name] for state in states]) for name in names}
            return self.local(Bundle(gs), Bundle(ws), state, t).tensors
        return [self.local(g, w, state, t) for g, w, state in zip(gs, ws, states, strict=True)]

    def matrix_each(self, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> list[Tensor]:
        """`matrix` of many stacks of matrices, each stack (..., fan_out, fan_in) of its own shape."""
        return [self.matrix(u, state, t) for u, state in zip(us, states, strict=True)]

    @classmethod
    def finishes(cls) -> bool:
        """Whether `finish` does anything."""
        return cls.finish is not Rule.finish

    def observe(self, g: Tensor, state: Mapping[str, Tensor], num_samples: float) -> None:
        """Take in what a rule `observes` beside the gradient; see `Engine.observe`."""
        raise NotImplementedError

    def wants_observation(self, t: int) -> bool:
        """Whether an observation is due before step number `t` (from 1)."""
        return False

    def phase_at(self, t: int) -> str:
        """What kind of step number `t` is, where steps differ: the first, or one that refreshes something.

        A stage reads it as `self.phase`. In a compiled step each phase is a graph of its own.
        """
        return ""

    def at(self, t: int) -> Self:
        """The same rule in the phase of step `t`."""
        phase = self.phase_at(t)
        return self if phase == self.phase else self._twin(phase=phase)

    def active_state(self) -> Mapping[str, StateField]:
        """The state tensors that these hyperparameters need."""
        return self.state

    def scale(self, shape: Shape) -> float:
        """Size of a step on a matrix of this shape, in units of the learning rate; the engine multiplies by it."""
        return 1.0

    def step_size(self, shape: Shape) -> tuple[float, str]:
        """How large a step on a matrix of this shape is, and in what unit, for people."""
        size = self.lr * self.scale(shape)
        return (math.atan(size), "radian") if self.application == "sphere" else (size, self.step_unit)

    def describe_polar(self, shape: Shape | None = None, device_type: str = "cpu") -> str:
        """Method, coefficients, steps and dtype of the polar factor (of a matrix of that shape); empty without one."""
        return ""

    def traced(self) -> Self:
        """The same rule with every hyperparameter that schedules change as a 0-d float64 tensor."""
        changed = {}
        for name, declaration in declarations(type(self)).items():
            if declaration.scheduled:
                value = getattr(self, name)
                parts = [torch.tensor(part, dtype=torch.float64) for part in (value if declaration.parts else (value,))]
                changed[name] = tuple(parts) if declaration.parts else parts[0]
        return self._twin(**changed)

    def _twin(self, **changed: Any) -> Self:
        """A copy with other attributes, not validated again."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, **changed)
        return twin

    @classmethod
    def label(cls) -> str:
        """What its optimizer is called."""
        return cls.__name__.removesuffix("Rule") or cls.__name__

    @classmethod
    def is_matrix_rule(cls) -> bool:
        """Whether it is for matrices alone."""
        return cls.matrix is not Rule.matrix or cls.application == "sphere"

    @classmethod
    def takes_splits(cls) -> bool:
        """Whether `split_sizes` and `num_heads` mean something to it."""
        return cls.is_matrix_rule() or any(field.layout == "block" for field in cls.state.values())

    @classmethod
    def from_group(cls, group: Mapping[str, Any]) -> Self:
        """The rule that a param group describes."""
        return cls(**{name: group[name] for name in declarations(cls)})

    @classmethod
    def hyperparameters(cls, prefix: str = "opt") -> tuple[Hyperparameter, ...]:
        """The numeric hyperparameters under their lab names, tuples taken apart."""
        found: list[Hyperparameter] = []
        for f in fields(cls):
            declaration = f.metadata["hp"]
            if declaration.check is None and declaration.kind is not bool:
                found += _lab_entries(f, declaration, prefix)
        return tuple(found)


def _lab_entries(f: Field, declaration: Declaration, prefix: str) -> list[Hyperparameter]:
    parts = declaration.parts or (f.name,)
    grids = declaration.grid if declaration.parts else (declaration.grid,)
    defaults = f.default if declaration.parts else (f.default,)
    shared = {
        name: getattr(declaration, name)
        for name in ("low", "high", "low_closed", "high_closed", "log", "unit", "source")
    }
    return [
        Hyperparameter(f"{prefix}.{part}", default, grid, **shared)
        for part, default, grid in zip(parts, defaults, grids or ((),) * len(parts), strict=True)
    ]


def declarations(rule: type[Rule]) -> dict[str, Declaration]:
    """Field name -> declaration, in the order of the signature."""
    return {f.name: f.metadata["hp"] for f in fields(rule)}
