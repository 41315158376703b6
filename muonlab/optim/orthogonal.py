"""What every rule shares that orthogonalises: momentum, polar factor, and how long a step is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import momentum_
from muonlab.kernels.norms import update_scale
from muonlab.kernels.polar import DTYPES, JORDAN, METHODS, Coefficients, coefficients_for, polar_each, resolve
from muonlab.optim.hyperparameter import choice, hp, lr_hp, momentum_hp, weight_decay_hp
from muonlab.optim.rule import Rule

__all__ = ["OrthogonalRule", "check_scale"]

JORDAN_TRIPLE = JORDAN.steps[0]
MOMENTUM_FORMS = ("ema", "heavy_ball")
SPECTRAL_GRID = (0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
SPECTRAL_UNIT = "spectral norm per update, before the scale"


def _check_coefficients(value: Any) -> Any:
    """A registered record or its name -> name; one triple or a schedule of triples -> tuples of floats."""
    if isinstance(value, Coefficients):
        if coefficients_for(value.name, value.num_steps) != value:
            raise ValueError(f"{value.name} is not a registered record: write its steps")
        return value.name
    if isinstance(value, str):
        return value
    try:
        nested = [tuple(map(float, item)) if isinstance(item, tuple | list) else float(item) for item in value]
    except TypeError:
        raise TypeError(f"ns_coefficients must be (a, b, c), a schedule of such or a name, got {value!r}") from None
    except ValueError:
        raise ValueError(f"ns_coefficients must hold numbers, got {value!r}") from None
    return tuple(nested)


def check_scale(value: Any) -> Any:
    update_scale(1, 1, value)
    return value


def _check_dtype(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        value = str(value).removeprefix("torch.")
    return value if value is None else choice("polar_dtype", tuple(DTYPES))(value)


def _check_damping(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"damping must be a number from 0 to less than 1, got {value!r}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class OrthogonalRule(Rule):
    """Base of the rules that orthogonalise: their hyperparameters, momentum as `local`, and the polar factor.

    The first eight are those of torch.optim.Muon, in its order.
    """

    bundles: ClassVar[bool] = True
    step_unit: ClassVar[str] = "spectral norm"

    lr: float = lr_hp(1e-3, SPECTRAL_GRID, SPECTRAL_UNIT)
    weight_decay: float = weight_decay_hp(0.1)
    momentum: float = momentum_hp(0.95)
    nesterov: bool = hp(True, kind=bool)
    ns_coefficients: tuple | str = hp(JORDAN_TRIPLE, check=_check_coefficients)
    eps: float = hp(1e-7, low=0.0, fixed=True)
    ns_steps: int = hp(JORDAN.num_steps, kind=int, low=1, high=100, high_closed=False)
    adjust_lr_fn: Any = hp(None, check=check_scale)  # noqa: RUF009  # a name, or (fan_out, fan_in) -> scale
    momentum_form: str = hp("ema", check=choice("momentum_form", MOMENTUM_FORMS), keyword=True)
    polar: str = hp("newton_schulz", check=choice("polar method", METHODS), keyword=True)
    num_poles: int = hp(3, kind=int, low=1, high=4, keyword=True)
    polar_dtype: str | None = hp(None, check=_check_dtype, keyword=True)
    damping: float = hp(0.0, check=_check_damping, keyword=True)

    def validate(self) -> None:
        arguments = {
            "method": self.polar,
            "coefficients": coefficients_for(self.ns_coefficients, self.ns_steps),
            "num_poles": self.num_poles,
            "dtype": None if self.polar_dtype is None else DTYPES[self.polar_dtype],
            "damping": self.damping,
        }
        resolve(1, 1, **arguments, device_type="cpu")
        object.__setattr__(self, "_polar", arguments)

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        form = {"nesterov": self.nesterov, "form": self.momentum_form}
        return momentum_(state["momentum_buffer"], g, self.momentum, **form)

    def matrix_each(self, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> list[Tensor]:
        return self.polar_each(us)

    def matrix(self, u: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return self.matrix_each([u], [state], t)[0]

    def polar_each(self, us: Sequence[Tensor]) -> list[Tensor]:
        return polar_each(us, **self._polar, eps=self.eps)

    def matrix_dtype(self, shape: tuple[int, ...], dtype: torch.dtype, device_type: str) -> torch.dtype:
        if type(self).matrix_each is not OrthogonalRule.matrix_each:
            return dtype
        inner = resolve(*shape[-2:], **self._polar, device_type=device_type).dtype
        return inner if inner.itemsize < dtype.itemsize else dtype

    def scale(self, shape: tuple[int, ...]) -> float:
        return update_scale(*shape[-2:], self.adjust_lr_fn)

    def ceiling(self, shape: tuple[int, ...], device_type: str = "cpu") -> float:
        """No singular value of a direction of this shape is above it, but for rounding; inf where it is not known."""
        return resolve(*shape[-2:], **self._polar, device_type=device_type).ceiling

    def describe_polar(self, shape: tuple[int, ...] | None = None, device_type: str = "cpu") -> str:
        if self.polar == "auto" and shape is None:
            return "auto"
        return resolve(*(shape or (1, 1))[-2:], **self._polar, device_type=device_type).describe()
