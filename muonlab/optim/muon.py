"""Muon: momentum, orthogonalised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from muonlab.kernels.moments import ema_each_, mix_each
from muonlab.kernels.norms import update_scale
from muonlab.kernels.polar import DTYPES, JORDAN, METHODS, Coefficients, coefficients_for, polar_each, resolve
from muonlab.optim.adam import AdamWRule
from muonlab.optim.engine import Engine
from muonlab.optim.hyperparameter import choice, hp
from muonlab.optim.rule import Rule, StateField

__all__ = ["Muon", "MuonRule"]

JORDAN_TRIPLE = JORDAN.steps[0]
WEN = "Wen et al. 2025 (2509.02046), phase I"
MOMENTUM_FORMS = ("ema", "heavy_ball")


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


def _check_scale(value: Any) -> Any:
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
class MuonRule(Rule):
    """Momentum whose singular values are pushed to 1: steepest descent under the spectral norm.

    Math     ema:        m <- momentum m + (1 - momentum) g;  u = g + momentum (m - g) if nesterov else m
             heavy_ball: m <- momentum m + g;                 u = g + momentum m if nesterov else m
             w <- w - lr scale polar(u), and weight decay
    Shapes   whole matrices (..., fan_out, fan_in)
    Units    lr x scale is the spectral norm of an update
    Source   Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"; the four variants with and
             without Nesterov and decay: Sato et al. 2025 (2507.01598)
    Differs  from Jordan's first code: momentum is an average, as in torch; both forms have the same direction while
             `momentum` is constant. From torch.optim.Muon: `eps` never shrinks a small gradient; never normalises a
             momentum buffer in place
    """

    name: ClassVar[str] = "muon"
    numerics_version: ClassVar[str] = "2"
    source: ClassVar[str] = 'Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"'
    state: ClassVar[Mapping[str, StateField]] = {"momentum_buffer": StateField("param")}
    step_count: ClassVar[str] = "none"
    unsaid: ClassVar[Mapping[str, Any]] = {"momentum_form": "ema"}

    lr: float = hp(
        1e-3,
        grid=(0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
        low=0.0,
        unit="spectral norm per update, before the scale",
        source=f"{WEN}, extended downwards by their optima at scale",
    )
    weight_decay: float = hp(0.1, grid=(0.0, 0.1, 0.2), low=0.0, unit="1/lr per step", source=WEN)
    momentum: float = hp(0.95, grid=(0.8, 0.9, 0.95, 0.98), low=0.0, high=1.0, high_closed=False, log=False, source=WEN)
    nesterov: bool = hp(True, kind=bool)
    ns_coefficients: tuple | str = hp(JORDAN_TRIPLE, check=_check_coefficients)
    eps: float = hp(1e-7, low=0.0, fixed=True)
    ns_steps: int = hp(JORDAN.num_steps, kind=int, low=1, high=100, high_closed=False)
    adjust_lr_fn: Any = hp(None, check=_check_scale)  # noqa: RUF009  # a name, or (fan_out, fan_in) -> scale
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

    def local_each(
        self, gs: Sequence[Tensor], ws: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int
    ) -> list[Tensor]:
        ms = [state["momentum_buffer"] for state in states]
        if self.momentum_form == "ema":
            ema_each_(ms, gs, self.momentum)
            return mix_each(gs, ms, self.momentum) if self.nesterov else [m.clone() for m in ms]
        torch._foreach_mul_(ms, self.momentum)
        torch._foreach_add_(ms, gs)
        if not self.nesterov:
            return [m.clone() for m in ms]
        return list(torch._foreach_add(gs, torch._foreach_mul(ms, self.momentum)))

    def local(self, g: Tensor, w: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return self.local_each([g], [w], [state], t)[0]

    def matrix_each(self, us: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]], t: int) -> list[Tensor]:
        return polar_each(us, **self._polar, eps=self.eps)

    def matrix(self, u: Tensor, state: Mapping[str, Tensor], t: int) -> Tensor:
        return self.matrix_each([u], [state], t)[0]

    def scale(self, shape: tuple[int, ...]) -> float:
        return update_scale(*shape[-2:], self.adjust_lr_fn)

    def describe_polar(self, shape: tuple[int, ...] | None = None, device_type: str = "cpu") -> str:
        if self.polar == "auto" and shape is None:
            return "auto"
        return resolve(*(shape or (1, 1))[-2:], **self._polar, device_type=device_type).describe()


class Muon(Engine):
    """Drop-in for torch.optim.Muon that also takes a whole model: matrices to Muon, everything else to AdamW.

    `lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn` are torch's. `aux_lr`,
    `aux_betas`, `aux_eps`, `aux_weight_decay` are AdamW's; None is the value of the main rule, and for the learning
    rate that is rarely right: AdamW wants some tenths of Muon's, unless `adjust_lr_fn` is "match_rms_adamw". `polar,
    num_poles, polar_dtype, damping` say how the polar factor is computed, `momentum_form` and `decay` which variant it
    is, `roles, split_sizes, num_heads` what parameters are, `rounding, skip_nonfinite, compile` how a step is made.

    Differs  from torch.optim.Muon: a module, or parameters that are not all matrices, are routed by kind (see
             `explain`); convolutions are flattened; skips a step whose gradients are not finite

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    >>> print(Muon(model, lr=0.02, aux_lr=0.003).explain())
    parameter  shape   role    rule   why                                   step size
    0.weight   32 x 8  hidden  muon   a matrix between hidden layers        0.04 spectral norm
    2.weight   4 x 32  head    adamw  last linear layer, outside any block  0.003 per element
    0.bias     32      vector  adamw  at most one dimension above one       0.003 per element
    2.bias     4       vector  adamw  at most one dimension above one       0.003 per element
    """

    rule = MuonRule
    companion = AdamWRule
