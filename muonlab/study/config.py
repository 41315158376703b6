"""A study as the user asks for it: command line and TOML file become this, and nothing else does."""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muonlab.errors import UsageError, unknown
from muonlab.records.spec import Value, canonical_json

__all__ = [
    "BatchConfig", "ComparisonConfig", "FeaturesConfig", "LadderConfig", "StudyConfig", "TransferConfig", "flattened",
    "load_config",
    "parse_setting", "parse_variants", "validated",
]  # fmt: skip

LATER = (  # what there were studies before
    "variants", "margin_nats", "transfer_to", "transfer_data", "transfer_tokens", "transfer_settings",
)  # fmt: skip
VARIANT_NAME = re.compile(r"\w[\w.+-]*")
NEXT_SETTING = re.compile(r",(?=\s*[\w.]+\s*=)")  # a comma inside a list is followed by a value, not by NAME=


class StudyConfig(BaseModel):
    """What every study of optimizers has in common. Where and how fast it runs is not part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    task: str = "text"
    data: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = Field(("adamw", "muon"), min_length=1)
    baseline: str = "adamw"
    batch_tokens: int = Field(4096, ge=1)
    tune: tuple[str, ...] = Field(("opt.lr", "opt.weight_decay"), min_length=1)
    first_seed: int = Field(0, ge=0)
    tuning_seeds: int = Field(3, ge=2, le=100)
    max_tuning_seeds: int = Field(8, ge=2, le=100)
    max_runs: int = Field(80, ge=1)
    device: str = "cpu"
    settings: dict[str, Any] = Field(default_factory=dict)  # dotted names, for every run of every optimizer
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)  # name -> optimizer and dotted names it fixes

    @property
    def key(self) -> str:
        """Identifies the study in the store. What is not asked for is left out, as it was before one could ask."""
        values = self.model_dump(mode="json")
        values = {name: v for name, v in values.items() if name not in LATER or v}
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()

    def optimizer(self, name: str) -> str:
        """The optimizer that is called `name` here: that of a variant, else `name` itself."""
        return self.variants[name]["optimizer"] if name in self.variants else name

    def fixed(self, name: str) -> dict[str, Value]:
        """What a variant sets and no tuning changes; nothing for an optimizer of the catalogue."""
        return {key: value for key, value in self.variants.get(name, {}).items() if key != "optimizer"}


class ComparisonConfig(StudyConfig):
    """Everything that defines a comparison or a tuning."""

    horizon_tokens: int = Field(1_000_000, ge=1)
    horizon_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    num_seeds: int = Field(5, ge=2, le=100)
    margin_nats: float | None = Field(None, gt=0)  # a loss higher by no more than this counts as no worse


class LadderConfig(StudyConfig):
    """Everything that defines a ladder: sizes and ratios of tokens to parameters."""

    sizes: dict[str, dict[str, Any]] = Field(default_factory=dict)  # name -> options of the task
    ratios: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    tokens_per_param: float = Field(20.0, gt=0)  # at ratio 1 (Hoffmann et al. 2022)
    num_seeds: int = Field(3, ge=2, le=100)
    insensitive_nats: float = Field(6.4e-3, ge=0)


class BatchConfig(StudyConfig):
    """Everything that defines a batch study."""

    batches: tuple[int, ...] = ()  # tokens a step
    reference: int | None = None  # of them, at which tuning begins; None = the middle one
    targets: tuple[float, ...] = ()  # held-out losses; none = from the baseline's curve
    horizon_tokens: int = Field(1_000_000, ge=1)  # of the first runs
    most_horizons: float = Field(8.0, ge=1)  # the longest run, in lengths of the first
    tune: tuple[str, ...] = Field(("opt.lr", "opt.weight_decay"), min_length=1)  # at the reference, with `retune`
    retune: tuple[str, ...] = Field(("opt.lr", "opt.momentum", "opt.beta1"), min_length=1)  # at every batch size
    num_seeds: int = Field(3, ge=2, le=100)
    devices: tuple[int, ...] = (1, 2, 4, 8, 16, 32)  # of the model of the frontier
    bandwidth: float = Field(1e10, gt=0)  # bytes per second
    latency_seconds: float = Field(0.0, ge=0)


class FeaturesConfig(StudyConfig):
    """Everything that defines a study of features."""

    optimizers: tuple[str, ...] = Field(("muon", "adamw", "sgd"), min_length=2)
    horizon_tokens: int = Field(1_000_000, ge=1)
    num_seeds: int = Field(3, ge=3, le=100)
    looks: int = Field(10, ge=4, le=256)  # at each final run, evenly spaced in log tokens
    transfer_to: str = ""  # a second task, on which the models are fine-tuned; "" = none
    transfer_data: tuple[str, ...] = ()  # of that task
    transfer_tokens: int | None = Field(None, ge=1)  # of fine-tuning; None = a tenth of the pretraining
    transfer_settings: dict[str, Any] = Field(
        default_factory=dict
    )  # task.* of that task, over what is set of the first


class TransferConfig(StudyConfig):
    """Everything that defines a transfer study; `tune` names the axes of the meshes."""

    widths: tuple[int, ...] = ()
    final: int | None = None  # width; None: a survey alone
    parametrizations: tuple[str, ...] = ("standard",)
    horizon_tokens: int = Field(1_000_000, ge=1)
    points: int = Field(7, ge=3)  # of each axis at the first width
    ratio: float = Field(2.0, gt=1)  # between neighbours there
    survey: bool = False
    coordinates: bool = True  # the coordinate check first
    coordinate_widths: tuple[int, ...] = ()  # at which it is made besides `widths` and `final`
    num_seeds: int = Field(3, ge=2, le=100)
    tuning_seeds: int = Field(2, ge=2, le=100)
    max_runs: int = Field(2000, ge=1)  # of an arm, without the final ones


Config = TypeVar("Config", bound=StudyConfig)


def validated(values: Mapping[str, Any], kind: type[Config] = ComparisonConfig) -> Config:  # type: ignore[assignment]
    """The config, or one line that names the first value at fault.

    Raises   UsageError
    """
    if kind is LadderConfig and "horizon_tokens" in values:
        raise UsageError(
            "a ladder has no one length: leave tokens out and give ratios of tokens to parameters, "
            "such as ratios = [1.0, 2.0, 4.0]"
        )
    if kind is BatchConfig and "batch_tokens" in values:
        raise UsageError(
            "a batch study has no one batch: leave batch_tokens out and give batches = [1024, 4096, 16384]"
        )
    for name in values:
        if name not in kind.model_fields:
            raise unknown("key", name, kind.model_fields)
    values = {**_usual(values.get("task"), kind), **values}
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    if "sizes" in values:
        lists["sizes"] = _sizes(values["sizes"])
    variants = _variants(values.get("variants", {}))
    if variants and "optimizers" not in values:
        names = (*kind.model_fields["optimizers"].default, *variants)
        lists["optimizers"] = tuple(dict.fromkeys(names))
    try:
        config = kind(**{**values, **lists, "variants": variants})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "too_short":
            least, got = first["ctx"]["min_length"], ", ".join(map(str, first["input"])) or "none"
            raise UsageError(f"{where}: name {least} at least, got {got}") from None
        raise UsageError(f"{where}: {first['msg'].lower()}, got {first['input']!r}") from None
    if config.baseline not in config.optimizers:
        raise UsageError(f"the baseline '{config.baseline}' must be one of --optimizers {','.join(config.optimizers)}")
    repeated = sorted({name for name in config.optimizers if config.optimizers.count(name) > 1})
    if repeated:
        raise UsageError(f"optimizer '{repeated[0]}' is named twice")
    if config.tuning_seeds > config.max_tuning_seeds:
        raise UsageError("tuning_seeds must not exceed max_tuning_seeds")
    return config


def _usual(task: Any, kind: type[StudyConfig]) -> dict[str, int]:
    """What the task takes where nothing else is asked for, of what such a study has."""
    if not isinstance(task, str):
        return {}
    from muonlab.tasks.catalog import defaults_of

    refused = {"batch_tokens"} if kind is BatchConfig else set()
    return {name: value for name, value in defaults_of(task).items() if name in kind.model_fields.keys() - refused}


def _sizes(tables: Any) -> dict[str, dict[str, Value]]:
    """Tables of a study file as flat ones: what a size sets are options of the task."""
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise UsageError(f"sizes: must be tables such as [sizes.small] with task.width = 16 below, got {tables!r}")
    flat = {name: flattened(table) for name, table in tables.items()}
    for name, options in flat.items():
        if not options or not all(key.startswith("task.") for key in options):
            raise UsageError(f"size '{name}' must set options of the task and nothing else, such as task.width = 16")
    return flat


def _variants(tables: Any) -> dict[str, dict[str, Value]]:
    """Tables of a study file as flat ones, each with an optimizer and something that it sets."""
    if not isinstance(tables, Mapping):
        raise UsageError(f"variants: must be tables such as [variants.muon-4], got {tables!r}")
    for name, table in tables.items():
        if not VARIANT_NAME.fullmatch(name):
            raise UsageError(f"variant {name!r}: a name has letters, digits and _ . + - after the first")
        if not isinstance(table, Mapping) or not isinstance(table.get("optimizer"), str):
            raise UsageError(f"variant '{name}' names no optimizer: it needs optimizer = \"muon\" or another")
        if len(table) < 2 and ":" not in table["optimizer"]:  # of a user's own it is a name, and names may clash
            raise UsageError(f"variant '{name}' sets nothing: name {table['optimizer']} itself, or set one of its keys")
    return {name: flattened(table) for name, table in tables.items()}


def parse_variants(texts: Sequence[str]) -> dict[str, dict[str, Value]]:
    """Variants written `NAME=OPTIMIZER,KEY=VALUE,...` as the tables of a study file.

    A comma ends a value only where another KEY= follows, so that lists are written as they are.

    >>> parse_variants(["two=muon,opt.ns_coefficients=[[4, -7, 3], [3, -4, 2]],opt.ns_steps=2"])["two"]
    {'optimizer': 'muon', 'opt.ns_coefficients': [[4, -7, 3], [3, -4, 2]], 'opt.ns_steps': 2}

    Raises   UsageError for a text of another form, a name or a key given twice
    """
    found: dict[str, dict[str, Value]] = {}
    for text in texts:
        first, *settings = NEXT_SETTING.split(text)
        name, _, optimizer = (part.strip() for part in first.partition("="))
        if not name or not optimizer:
            raise UsageError(f"--variant wants NAME=OPTIMIZER,KEY=VALUE,..., got {text!r}")
        if name in found:
            raise UsageError(f"variant '{name}' is given twice")
        found[name] = {"optimizer": optimizer}
        for key, value in (parse_setting(setting, "--variant") for setting in settings):
            if key in found[name]:
                raise UsageError(f"variant '{name}' sets {key} twice")
            found[name][key] = value
    return found


def load_config(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises   UsageError with line and column if it can't be read
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read config {path}: {reason}") from None


def parse_setting(text: str, flag: str = "--set") -> tuple[str, Value]:
    """`a.b=v` as name and value; the value is read as TOML, and as a plain string where that fails.

    >>> parse_setting("opt.lr=1e-3"), parse_setting("schedule.kind=wsd")
    (('opt.lr', 0.001), ('schedule.kind', 'wsd'))

    Raises   UsageError if there is no '='
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise UsageError(f"{flag} wants NAME=VALUE, got {text!r}")
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
