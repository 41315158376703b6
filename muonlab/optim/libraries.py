"""Libraries: how each writes an optimizer checkpoint, as data. Read in their sources; `interchange.py` translates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from muonlab.kernels.polar import JORDAN

__all__ = ["LIBRARIES", "Dialect", "Library"]


def _same(names: str) -> dict[str, str]:
    return {name: name for name in names.split()}


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The words of one library for the param groups and the states of one rule."""

    settings: Mapping[str, str | tuple[str, ...]]  # ours -> theirs
    state: Mapping[str, str]  # ours -> theirs
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)  # of a setting of ours: ours -> theirs
    always: Mapping[str, Any] = field(default_factory=dict)  # ours, fixed in their code: what they compute with
    outside: tuple[str, ...] = ()  # ours, which they have, but not in a checkpoint
    fixed: Mapping[str, Any] = field(default_factory=dict)  # theirs only: the value at which it does nothing
    manner: Mapping[str, Any] = field(default_factory=dict)  # theirs only, how and not what: the value to write
    ignored: tuple[str, ...] = ()  # theirs only, neither read nor written
    schedule: Literal["any", "triple", "list"] = "any"  # form of ns_coefficients

    def read_value(self, name: str, value: Any, where: str) -> Any:
        """Their value of a setting of ours, in our words."""
        theirs = self.settings[name]
        if theirs == "adjust_lr_fn" and value is None:
            value = "original"  # torch's own word for its default
        if name not in self.values:
            return tuple(value) if isinstance(value, list) else value
        for ours, known in self.values[name].items():
            if known == value:
                return ours
        raise ValueError(f"{where} has {theirs}={value!r}, which muonlab does not know")

    def write_value(self, name: str, value: Any, library: str) -> Any:
        """Our value of a setting, in their words."""
        if name == "ns_coefficients" and self.schedule != "any":
            nested = not isinstance(value, str) and isinstance(value[0], tuple)
            if isinstance(value, str) or (nested and self.schedule == "triple"):
                raise ValueError(f"{library} has no counterpart of {name}={value!r}")
            return value if self.schedule == "triple" else list(value) if nested else [value]
        if name not in self.values:
            return value
        if value not in self.values[name]:
            raise ValueError(f"{library} has no counterpart of {name}={value!r}")
        return self.values[name][value]

    def keys(self) -> Iterable[str]:
        """Every key of theirs."""
        for theirs in self.settings.values():
            yield from (theirs,) if isinstance(theirs, str) else theirs
        yield from (*self.fixed, *self.manner, *self.ignored)


@dataclass(frozen=True, kw_only=True)
class Library:
    """One library: the dialects of both rules, and where a group says which of them it follows."""

    name: str
    dialects: Mapping[str, Dialect]
    flag: str = ""  # the key of a group that names its rule
    flags: Mapping[str, Any] = field(default_factory=dict)  # rule -> value of that key
    step: Literal["tensor", "number", "group"] = "tensor"  # AdamW's count: in the state, or once in the group
    counter: str = "step"  # its key in the state
    heavy_ball: bool = False  # momentum is a sum and not an average
    separate: bool = False  # AdamW is an optimizer of its own
    own: bool = False  # muonlab: it knows every setting, and keeps its own value of one that a checkpoint lacks

    def rule_of(self, group: Mapping[str, Any], where: str) -> str:
        if self.flag not in group:
            return "adamw" if "betas" in group else "muon"
        for rule, value in self.flags.items():
            if group[self.flag] == value:
                return rule
        raise ValueError(f"{where} has {self.flag}={group[self.flag]!r}, which is neither Muon nor AdamW")

    def describe_parts(self) -> str:
        return "two optimizers, Muon's and AdamW's" if self.separate else "one optimizer"


MUON = "lr weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn"
ADAMW = "lr betas eps weight_decay"
PLAIN = {"decay": "decoupled", "maximize": False}  # what a library does that offers nothing else
USUAL = {"momentum_form": "ema", "damping": 0.0}  # every momentum is read into this form; nobody else damps
SCALES = _same("original match_rms_adamw")
SPECTRAL = {"match_rms_adamw": "rms_norm", "spectral": "spectral_norm"}
DECAYS = {"decoupled": True, "coupled": False}
MOMENTUM = _same("momentum_buffer")
MOMENTS = _same("exp_avg exp_avg_sq")

SWITCHES = ("role", "foreach", "fused", "rounding", "num_skipped", "capturable", "differentiable")
MUONLAB = Library(
    name="muonlab",
    flag="algorithm",
    flags=_same("muon adamw"),
    own=True,
    dialects={
        "muon": Dialect(
            settings=_same(f"{MUON} decay maximize momentum_form damping"),
            state=MOMENTUM,
            fixed={"split_sizes": None, "num_heads": None, "transposed": False},
            ignored=(*SWITCHES, "polar", "num_poles", "polar_dtype"),
        ),
        "adamw": Dialect(
            settings=_same(f"{ADAMW} decay maximize"), state=MOMENTS, fixed={"amsgrad": False}, ignored=SWITCHES
        ),
    },
)

TORCH = Library(
    name="torch",
    separate=True,
    dialects={
        "muon": Dialect(
            settings=_same(MUON),
            state=MOMENTUM,
            values={"adjust_lr_fn": SCALES},
            always=PLAIN | USUAL,
            schedule="triple",
        ),
        "adamw": Dialect(
            settings=_same(f"{ADAMW} maximize"),
            state=MOMENTS,
            always={"decay": "decoupled"},
            fixed={"amsgrad": False, "decoupled_weight_decay": True},
            manner={"foreach": None, "capturable": False, "differentiable": False, "fused": None},
        ),
    },
)

KELLER_JORDAN = Library(
    name="keller_jordan",
    flag="use_muon",
    flags={"muon": True, "adamw": False},
    step="number",
    dialects={
        "muon": Dialect(
            settings=_same("lr weight_decay momentum"),
            state=MOMENTUM,
            always={
                **PLAIN,
                **USUAL,
                "nesterov": True,
                "ns_coefficients": JORDAN.steps[0],
                "ns_steps": JORDAN.num_steps,
                "adjust_lr_fn": "original",
            },
            outside=("eps",),
        ),
        "adamw": Dialect(settings=_same(ADAMW), state=MOMENTS, always=PLAIN),
    },
)

PYTORCH_OPTIMIZER = Library(
    name="pytorch_optimizer",
    flag="use_muon",
    flags={"muon": True, "adamw": False},
    step="group",
    dialects={
        "muon": Dialect(
            settings=_same("lr weight_decay momentum nesterov ns_steps")
            | {"ns_coefficients": "ns_coeffs", "adjust_lr_fn": "use_adjusted_lr", "decay": "weight_decouple"},
            state=MOMENTUM,
            values={"adjust_lr_fn": {"original": False, "match_rms_adamw": True}, "decay": DECAYS},
            always=USUAL,
            outside=("eps", "maximize"),
            fixed={"cautious": False},
            manner={"ns_method": "newton_schulz", "ns_reset_steps": (2,), "foreach": None},
            schedule="list",
        ),
        "adamw": Dialect(
            settings=_same(ADAMW) | {"decay": "weight_decouple"},
            state=MOMENTS,
            values={"decay": DECAYS},
            outside=("maximize",),
            fixed={"cautious": False},
            manner={"foreach": None},
        ),
    },
)

GRAM_NEWTON_SCHULZ = Library(
    name="gram_newton_schulz",
    separate=True,
    heavy_ball=True,
    dialects={
        "muon": Dialect(
            settings=_same("lr weight_decay momentum nesterov") | {"adjust_lr_fn": "adjust_lr"},
            state={"momentum_buffer": "momentum"},
            values={"adjust_lr_fn": SPECTRAL},
            always=PLAIN | USUAL,
            outside=("ns_coefficients", "ns_steps", "eps"),
            fixed={"param_split_fn": None, "param_recombine_fn": None},
        ),
        "adamw": TORCH.dialects["adamw"],
    },
)

DION = Library(
    name="dion",
    flag="algorithm",
    flags=_same("muon adamw"),
    step="group",
    counter="step_dev",
    heavy_ball=True,
    dialects={
        "muon": Dialect(
            settings=_same("lr weight_decay nesterov")
            | {"momentum": "mu", "eps": "epsilon", "adjust_lr_fn": "adjust_lr"},
            state={"momentum_buffer": "momentum"},
            values={"adjust_lr_fn": SPECTRAL},
            always=PLAIN | USUAL,
            outside=("ns_coefficients", "ns_steps"),
            fixed={"cautious_wd": False, "num_heads": None, "split_sizes": None},
            manner={"flatten": False, "beta1": 0.9, "beta2": 0.95},
        ),
        "adamw": Dialect(
            settings=_same("lr weight_decay") | {"betas": ("beta1", "beta2"), "eps": "epsilon"},
            state={"exp_avg": "momentum", "exp_avg_sq": "variance"},
            always=PLAIN,
            fixed={"cautious_wd": False},
            manner={"mu": 0.95, "nesterov": False, "flatten": False, "adjust_lr": "spectral_norm"},
        ),
    },
)

LIBRARIES = {
    library.name: library for library in (MUONLAB, TORCH, KELLER_JORDAN, PYTORCH_OPTIMIZER, GRAM_NEWTON_SCHULZ, DION)
}
