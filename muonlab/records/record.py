"""Record: what one run gave. Plain values only, so that analysis needs neither torch nor the model."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple, get_args

from muonlab.errors import UsageError, unknown
from muonlab.records.spec import RunSpec

__all__ = ["SCHEMA_VERSION", "Outcome", "Record", "Series", "json_text", "same_result"]

SCHEMA_VERSION = 1

Outcome = Literal["ok", "diverged", "failed"]


class Series(NamedTuple):
    """A quantity over a run; `values[i]` belongs to step `steps[i]`, or is the mean over the steps up to it."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of one RunSpec.

    `ok` and `diverged` are results and are never run again; `failed` (a crash, not a loss) is.
    Losses are nats per token, of images per image. `train_loss[i]` belongs to step `train_steps[i]`, counted from 1.
    """

    spec: RunSpec
    outcome: Outcome
    final_loss: float | None = None  # held-out split, after the last step; None unless `ok`
    train_steps: tuple[int, ...] = ()
    train_loss: tuple[float, ...] = ()
    eval_steps: tuple[int, ...] = ()  # steps at which the held-out loss was also taken, for curves only
    eval_loss: tuple[float, ...] = ()
    probes: Mapping[str, Series] = field(default_factory=dict)  # what else was measured during the run
    grams: Mapping[str, str] = field(default_factory=dict)  # of final hidden states by layer, as `pack_gram` has them
    diverged_step: int | None = None  # first step whose loss or gradient was not finite
    last_finite_loss: float | None = None  # training loss before that
    error: str = ""  # why it failed or diverged, one line first, then a traceback if there is one
    attempts: int = 1
    wall_seconds: float = 0.0  # training and evaluation, without process start
    step_seconds: float | None = None  # median over windows of ten steps
    eval_seconds: float = 0.0
    tokens: int = 0  # trained on
    flops: float = 0.0  # forward and backward, as the task counts them
    params: Mapping[str, int] = field(default_factory=dict)  # role -> number of parameters
    inherited: Mapping[str, Any] = field(
        default_factory=dict
    )  # with `init_from`: numbers loaded, of how many, the rest
    peak_bytes: int | None = None  # resident set of the process, or of the device
    environment: Mapping[str, Any] = field(default_factory=dict)  # machine, versions, threads
    created: str = ""  # UTC, ISO 8601

    @property
    def key(self) -> str:
        return self.spec.key

    @property
    def num_params(self) -> int:
        return sum(self.params.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values with `schema_version` and `key`."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "spec"}
        return {"schema_version": SCHEMA_VERSION, "key": self.key, "spec": self.spec.to_dict(), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        """Inverse of `to_dict`.

        Raises   UsageError if the values were written by a newer schema, miss a field, or do not match their key
        """
        if not isinstance(values, Mapping):
            raise UsageError(f"not a record: expected a JSON object, got {type(values).__name__}")
        clean = dict(values)
        version = clean.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise UsageError(f"record has schema_version {version!r}; this muonlab reads {SCHEMA_VERSION}: update it")
        key = clean.pop("key", None)
        try:
            clean["spec"] = RunSpec.from_dict(clean["spec"])
            for name in ("train", "eval"):
                clean[f"{name}_steps"], clean[f"{name}_loss"] = _curve(name, clean)
            clean["probes"] = {name: _series(name, value) for name, value in clean.get("probes", {}).items()}
            record = cls(**clean)
        except (TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"not a record: {error}") from None
        if key is not None and key != record.key:
            raise UsageError(
                f"record {str(key)[:12]} does not match its spec ({record.key[:12]}): the file was altered"
            )
        if record.outcome not in get_args(Outcome):
            raise unknown("outcome", record.outcome, get_args(Outcome))
        return record


def same_result(a: Record, b: Record) -> bool:
    """Whether two records of one spec tell the same story bit for bit; times and machines are not part of it."""
    times = {"wall_seconds", "step_seconds", "eval_seconds", "created"}
    ignored = times | {"peak_bytes", "environment", "attempts", "error", "spec"}
    left, right = asdict(a), asdict(b)
    return a.key == b.key and all(
        json_text(left[name]) == json_text(right[name]) for name in left if name not in ignored
    )


def json_text(value: Any) -> str:
    """Strict JSON, bit-exact for finite floats; NaN and infinities, which JSON lacks, become null.

    >>> json_text({"loss": [0.1, float("nan")]})
    '{"loss":[0.1,null]}'
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), separators=(",", ":"), allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _series(name: str, value: Any) -> Series:
    try:
        steps, values = value
        return Series(*_curve(name, {f"{name}_steps": steps, f"{name}_loss": values}))
    except (TypeError, ValueError):
        raise UsageError(f"not a record: probe {name} must be a list of steps and one of values") from None


def _curve(name: str, values: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps and losses of a curve that came from JSON, where a loss that was not finite is null."""
    steps, losses = values.get(f"{name}_steps", ()), values.get(f"{name}_loss", ())
    if not isinstance(steps, list | tuple) or not isinstance(losses, list | tuple) or len(steps) != len(losses):
        raise UsageError(f"not a record: {name}_steps and {name}_loss must be lists of one length")
    return tuple(steps), tuple(math.nan if loss is None else loss for loss in losses)
