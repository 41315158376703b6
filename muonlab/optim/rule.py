"""Rule: an optimizer's mathematics as a value. The engine does everything else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from muonlab.optim.hyperparameter import Declaration, Hyperparameter, choice, hp

__all__ = ["DECAYS", "Hyperparameter", "Rule", "StateField", "declarations", "hp"]

DECAYS = ("decoupled", "independent", "coupled", "cautious")

Layout = Literal["param", "row", "block", "matrix", "scalar"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class StateField:
    """One state tensor of a rule: its layout is all that sharding has to know.

    `param` has the shape of the parameter; `row` one number per row (fan_out, 1); `scalar` none; `block` and `matrix`
    say theirs by `shape`. `stage` is the one stage that reads and writes it.
    """

    layout: Layout
    stage: Literal["local", "matrix", "finish"] = "local"
    shape: Callable[[Shape], Shape] | None = None  # shape of the matrix view -> shape of the state

    def __post_init__(self) -> None:
        if (self.shape is None) == (self.layout in ("block", "matrix")):
            raise TypeError(f"`shape` goes with the layouts block and matrix, and only with them, not {self.layout!r}")

    def shape_for(self, param: Shape, matrix: Shape) -> Shape:
        if self.layout == "param":
            return param
        if self.layout == "row":
            return (*matrix[:-1], 1)
        return () if self.shape is None else self.shape(matrix)


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

    A rule is final: variants compose by calling kernels. `*_each` do the same for many tensors in fewer calls; a rule
    overrides them where that is faster. In a compiled step the hyperparameters that schedules change are 0-d float64
    tensors, so a stage computes with them and never branches on them.
    """

    name: ClassVar[str] = ""
    numerics_version: ClassVar[str] = ""  # changes whenever the same inputs give other numbers
    source: ClassVar[str] = ""
    state: ClassVar[Mapping[str, StateField]] = {}
    step_count: ClassVar[Literal["required", "optional", "none"]] = "required"  # of a loaded state; none: t is unused
    unsaid: ClassVar[Mapping[str, Any]] = {}  # what a state dict means that does not say it, torch's own for one
    unsupported: ClassVar[tuple[str, ...]] = ("capturable", "differentiable")  # torch's switches that must stay off
    fused: ClassVar[Callable[..., None] | None] = None  # same numbers as `local` and its application, many at once

    decay: str = hp("decoupled", check=choice("decay", DECAYS), keyword=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if any(base is not Rule and issubclass(base, Rule) for base in cls.__bases__):
            raise TypeError(f"{cls.__name__}: a rule is final; compose kernels instead of subclassing a rule")

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

    def local_each(
        self, gs: Sequence[Tensor], ws: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int
    ) -> list[Tensor]:
        """`local` of many parameters."""
        return [self.local(g, w, state, t) for g, w, state in zip(gs, ws, states, strict=True)]

    def matrix_each(self, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> list[Tensor]:
        """`matrix` of many stacks of matrices, each stack (..., fan_out, fan_in) of its own shape."""
        return [self.matrix(u, state, t) for u, state in zip(us, states, strict=True)]

    def active_state(self) -> Mapping[str, StateField]:
        """The state tensors that these hyperparameters need."""
        return self.state

    def scale(self, shape: Shape) -> float:
        """Size of a step on a matrix of this shape, in units of the learning rate; the engine multiplies by it."""
        return 1.0

    def describe_polar(self, shape: Shape | None = None, device_type: str = "cpu") -> str:
        """Method, coefficients, steps and dtype of the polar factor (of a matrix of that shape); empty without one."""
        return ""

    def traced(self) -> Self:
        """The same rule with every hyperparameter that schedules change as a 0-d float64 tensor."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        for name, declaration in declarations(type(self)).items():
            if declaration.scheduled:
                value = getattr(self, name)
                parts = [torch.tensor(part, dtype=torch.float64) for part in (value if declaration.parts else (value,))]
                twin.__dict__[name] = tuple(parts) if declaration.parts else parts[0]
        return twin

    @classmethod
    def is_matrix_rule(cls) -> bool:
        return cls.matrix is not Rule.matrix

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
