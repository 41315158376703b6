"""A study as the user asks for it: command line and TOML file become this, and nothing else does."""

import hashlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muonlab.errors import UsageError, unknown
from muonlab.records.spec import Value, canonical_json

__all__ = ["ComparisonConfig", "load_config", "parse_setting", "validated"]


class ComparisonConfig(BaseModel):
    """Everything that defines a comparison or a tuning. Where and how fast it runs is not part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    task: str = "text"
    data: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = Field(("adamw", "muon"), min_length=1)
    baseline: str = "adamw"
    horizon_tokens: int = Field(1_000_000, ge=1)
    batch_tokens: int = Field(4096, ge=1)
    tune: tuple[str, ...] = Field(("opt.lr", "opt.weight_decay"), min_length=1)
    horizon_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    num_seeds: int = Field(5, ge=2, le=100)
    first_seed: int = Field(0, ge=0)
    tuning_seeds: int = Field(3, ge=2, le=100)
    max_tuning_seeds: int = Field(8, ge=2, le=100)
    max_runs: int = Field(80, ge=1)
    device: str = "cpu"
    settings: dict[str, Any] = Field(default_factory=dict)  # dotted names, for every run of every optimizer

    @property
    def key(self) -> str:
        """Identifies the study in the store."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json")).encode()).hexdigest()


def validated(values: Mapping[str, Any]) -> ComparisonConfig:
    """The config, or one line that names the first value at fault.

    Raises   UsageError
    """
    for name in values:
        if name not in ComparisonConfig.model_fields:
            raise unknown("key", name, ComparisonConfig.model_fields)
    lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    try:
        config = ComparisonConfig(**{**values, **lists})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{where}: {first['msg'].lower()}, got {first['input']!r}") from None
    if config.baseline not in config.optimizers:
        raise UsageError(f"the baseline '{config.baseline}' must be one of --optimizers {','.join(config.optimizers)}")
    repeated = sorted({name for name in config.optimizers if config.optimizers.count(name) > 1})
    if repeated:
        raise UsageError(f"optimizer '{repeated[0]}' is named twice")
    if config.tuning_seeds > config.max_tuning_seeds:
        raise UsageError("tuning_seeds must not exceed max_tuning_seeds")
    return config


def load_config(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises   UsageError with line and column if it can't be read
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read config {path}: {reason}") from None


def parse_setting(text: str) -> tuple[str, Value]:
    """`a.b=v` as name and value; the value is read as TOML, and as a plain string where that fails.

    >>> parse_setting("opt.lr=1e-3"), parse_setting("schedule.kind=wsd")
    (('opt.lr', 0.001), ('schedule.kind', 'wsd'))

    Raises   UsageError if there is no '='
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UsageError(f"--set wants NAME=VALUE, got {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested TOML tables as dotted names.

    >>> flattened({"opt": {"lr": 0.01}, "clip": 1.0})
    {'opt.lr': 0.01, 'clip': 1.0}
    """
    flat: dict[str, Value] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = tuple(value) if isinstance(value, list | tuple) else value
    return flat
