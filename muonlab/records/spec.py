"""RunSpec: everything that determines a run, and the key that identifies it."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from muonlab.errors import UsageError, unknown

__all__ = ["RunSpec", "Schedule", "Value", "canonical_json"]

Value = bool | int | float | str | tuple["Value", ...] | None

SCHEDULE_KINDS = ("constant", "linear", "cosine", "wsd")
PRECISIONS = ("fp32", "bf16")
PARAMETRIZATIONS = {"standard": 0, "mup": 1, "spectral": 1}  # kind -> version, raised when it gives other numbers


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Shape of the learning rate over a run, as fractions of the run and of the peak.

    `linear` and `cosine` decay from the end of the warmup to the end of the run; `wsd` (warmup, stable, decay)
    holds the peak and decays linearly over the last `decay_fraction`; `constant` never decays.
    """

    kind: str = "linear"
    warmup_fraction: float = 0.1  # of the run
    decay_fraction: float = 0.4  # of the run; only `wsd` reads it
    final_fraction: float = 0.0  # of the peak, reached at the end of the run

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULE_KINDS:
            raise unknown("schedule.kind", self.kind, SCHEDULE_KINDS)
        for name in ("warmup_fraction", "decay_fraction", "final_fraction"):
            value = _number(f"schedule.{name}", getattr(self, name))
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"schedule.{name} must lie in [0, 1], got {value}")
        if self.kind == "wsd" and self.warmup_fraction + self.decay_fraction > 1.0:
            raise UsageError("schedule.warmup_fraction + schedule.decay_fraction must not exceed 1")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run, fully determined; `key` is the SHA-256 of its canonical JSON.

    Two specs with one key are the same run: a study never runs a key twice. `source`, `optimizer_source` and `data` say
    *where* task, optimizer and data lie; what they *contain* is in `numerics` and `data_fingerprint`, so moving a file
    re-runs nothing. Nor does a parametrization that changes nothing: see `is_parametrized`.

    Raises   UsageError for a value no run can have (NaN, a batch longer than the run, an unknown kind)
    """

    task: str  # "text", or "module:Class" of a user's task
    optimizer: str  # "muon", or "module:Class" of a user's optimizer
    horizon_tokens: int  # length of the run; the schedule ends here
    batch_tokens: int
    seed: int = 0  # initialisation and data order
    task_options: Mapping[str, Value] = field(default_factory=dict)  # model shape, sequence length, ...
    hyperparameters: Mapping[str, Value] = field(default_factory=dict)  # "opt.lr", "aux.lr_ratio", ...
    polar: str = ""  # resolved method and coefficients of the polar factor, if the optimizer has one
    parametrization: str = "standard"  # how init and step sizes follow from those of the base model
    base: Mapping[str, Value] = field(default_factory=dict)  # task options in which the base model differs
    schedule: Schedule = field(default_factory=Schedule)
    averaging: float = 0.0  # evaluate the mean of the weights over about this last part of the run; 0 = the last ones
    clip: float = 1.0  # bound on the global gradient norm; 0 = none
    micro_batch_tokens: int = 0  # gradient accumulation; 0 = the whole batch at once
    precision: str = "fp32"
    compile: bool = False
    device: str = "cpu"  # device type
    torch: str = ""  # version
    numerics: Mapping[str, Value] = field(default_factory=dict)  # versions of task and rule, or hash of their source
    data_fingerprint: str = ""
    init_from: str = ""  # key of the record whose weights this run starts from
    fresh_head: bool = False  # with `init_from`: the head alone starts anew, as its classes are those of another task
    source: str = field(default="", metadata={"in_key": False})  # file of a user's task
    optimizer_source: str = field(default="", metadata={"in_key": False})  # file of a user's optimizer
    data: tuple[str, ...] = field(default=(), metadata={"in_key": False})  # paths of the data

    def __post_init__(self) -> None:
        for name, least in (("horizon_tokens", 1), ("batch_tokens", 1), ("micro_batch_tokens", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise UsageError(f"{name} must be a whole number, got {value!r}")
            if not least <= value < 2**63:
                raise UsageError(f"{name} must be at least {least} and below 2^63, got {value}")
        if self.batch_tokens > self.horizon_tokens:
            raise UsageError(
                f"batch_tokens {self.batch_tokens} exceeds horizon_tokens {self.horizon_tokens}: lower --batch-tokens "
                "or raise --tokens"
            )
        if self.micro_batch_tokens and self.batch_tokens % self.micro_batch_tokens:
            raise UsageError(
                f"micro_batch_tokens {self.micro_batch_tokens} must divide batch_tokens {self.batch_tokens}"
            )
        if _number("clip", self.clip) < 0:
            raise UsageError(f"clip must be 0 (none) or positive, got {self.clip}")
        if not 0 <= _number("averaging", self.averaging) < 1:
            raise UsageError(f"averaging must lie in [0, 1), got {self.averaging}")
        for name in ("compile", "fresh_head"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.parametrization not in PARAMETRIZATIONS:
            raise unknown("parametrization", self.parametrization, PARAMETRIZATIONS)
        for name in ("task_options", "base", "hyperparameters", "numerics"):
            clean = {key: _freeze(key, value) for key, value in sorted(getattr(self, name).items())}
            object.__setattr__(self, name, clean)

    @property
    def num_steps(self) -> int:
        return self.horizon_tokens // self.batch_tokens

    @property
    def is_parametrized(self) -> bool:
        """Whether the parametrization changes anything: it is not "standard", and the base model is another.

        A run that is its own base has the key of the standard one, whose record serves all kinds.
        """
        unlike = any(_canonical(self.task_options.get(name)) != _canonical(value) for name, value in self.base.items())
        return self.parametrization != "standard" and unlike

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON (fields at their default omitted, floats to 12 digits), 64 hex digits."""
        return hashlib.sha256(canonical_json(self.to_dict(in_key_only=True)).encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def get(self, name: str) -> Value:
        """The value of a dotted name: `opt.lr`, `aux.lr_ratio`, `task.width`, `base.width`, `schedule.kind`,
        `batch_tokens`.

        Raises   KeyError if the spec does not set it
        """
        group, dot, leaf = name.partition(".")
        if group in ("opt", "aux") and dot:
            return self.hyperparameters[name]
        if group == "task" and dot:
            return self.task_options[leaf]
        if group == "base" and dot:
            return self.base[leaf]
        if group == "schedule" and dot:
            return getattr(self.schedule, leaf)
        return getattr(self, name)

    def set(self, settings: Mapping[str, Value]) -> "RunSpec":
        """The same run with some dotted names changed.

        >>> spec = RunSpec(task="text", optimizer="adamw", horizon_tokens=4096, batch_tokens=512)
        >>> spec.set({"opt.lr": 0.01, "schedule.kind": "cosine"}).get("opt.lr")
        0.01
        """
        hyperparameters, options, base = dict(self.hyperparameters), dict(self.task_options), dict(self.base)
        schedule: dict[str, Any] = {}
        top: dict[str, Any] = {}
        for name, value in settings.items():
            group, dot, leaf = name.partition(".")
            if group in ("opt", "aux") and dot:
                hyperparameters[name] = value
            elif group == "task" and dot:
                options[leaf] = value
            elif group == "base" and dot:
                base[leaf] = value
            elif group == "schedule" and dot:
                if leaf not in {f.name for f in fields(Schedule)}:
                    raise unknown("key", name, [f"schedule.{f.name}" for f in fields(Schedule)])
                schedule[leaf] = value
            elif name in SETTABLE:
                top[name] = value
            else:
                raise unknown("key", name, SETTABLE)
        return replace(
            self,
            hyperparameters=hyperparameters,
            task_options=options,
            base=base,
            schedule=replace(self.schedule, **schedule),
            **top,
        )

    def to_dict(self, *, in_key_only: bool = False) -> dict[str, Any]:
        """Plain JSON values, fields at their default omitted."""
        values: dict[str, Any] = {}
        idle = () if self.is_parametrized else ("parametrization", "base")
        for f in fields(self):
            value = getattr(self, f.name)
            if in_key_only and (f.name in idle or not f.metadata.get("in_key", True)):
                continue
            if in_key_only and f.name == "parametrization":
                value = f"{value}:{PARAMETRIZATIONS[value]}"
            if isinstance(value, Schedule):
                default = Schedule()
                value = {g.name: getattr(value, g.name) for g in fields(Schedule)}
                value = {name: v for name, v in value.items() if v != getattr(default, name)}
            elif isinstance(value, Mapping):
                value = dict(value)  # a caller that edits the result must not edit the run
            if f.name in REQUIRED or value not in (f.default, {}, ()):
                values[f.name] = value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunSpec":
        """Inverse of `to_dict`, also after a trip through JSON.

        Raises   UsageError for a field that this version does not know, or that is missing or has the wrong type
        """
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown("field of a run", name, known)
        clean = dict(values)
        try:
            clean["schedule"] = Schedule(**clean.get("schedule", {}))
            clean["data"] = tuple(clean.get("data", ()))
            return cls(**clean)
        except (TypeError, AttributeError) as error:
            raise UsageError(f"not a run: {error}") from None


REQUIRED = ("task", "optimizer", "horizon_tokens", "batch_tokens")
SETTABLE = (
    *("horizon_tokens", "batch_tokens", "micro_batch_tokens", "seed", "parametrization"),
    *("averaging", "clip", "precision", "compile"),
)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, floats rounded to 12 significant digits and whole floats written as integers.

    >>> canonical_json({"b": 1.0, "a": 0.1 + 0.2})
    '{"a":0.3,"b":1}'
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        rounded = float(f"{value:.12g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


def _freeze(name: str, value: Any) -> Value:
    if isinstance(value, list | tuple):
        return tuple(_freeze(name, item) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(f"{name} must be a number, a string, a truth value or a list of them, got {value!r}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value!r}")
    return float(value)
