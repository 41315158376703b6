"""Results of studies in files of their own: evidence, and the records that it rests on."""

import gzip
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from muonlab.cli.arguments import values
from muonlab.records import Record
from muonlab.records.record import json_text
from muonlab.records.store import Store
from muonlab.study.config import StudyConfig, validated

__all__ = ["Results", "asked", "found_in", "latest", "read", "write"]


class Evidence(Protocol):
    """Which record of a study played which part."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any: ...
    def to_dict(self) -> dict[str, Any]: ...
    def record_keys(self) -> Collection[str]: ...


E, C = TypeVar("E", bound=Evidence), TypeVar("C", bound=StudyConfig)


@dataclass(frozen=True)
class Results(Generic[E]):
    """What is kept of a study."""

    created: str  # UTC, ISO 8601
    evidence: E
    records: Mapping[str, Record]

    @classmethod
    def of_store(cls, store: Store, key: str, kind: type[E]) -> "Results[E]":
        saved = store.study(key)
        evidence = kind.from_dict(saved.result)
        return cls(saved.created, evidence, store.get(evidence.record_keys()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], kind: type[E]) -> "Results[E]":
        records = {record.key: record for record in map(Record.from_dict, values["records"])}
        return cls(values["created"], kind.from_dict(values["evidence"]), records)

    def to_dict(self) -> dict[str, Any]:
        records = [record.to_dict() for record in self.records.values()]
        return {"created": self.created, "evidence": self.evidence.to_dict(), "records": records}

    def leaner(self, lean: Callable[[Record], Record]) -> "Results[E]":
        return replace(self, records={key: lean(record) for key, record in self.records.items()})

    @property
    def machine(self) -> str:
        """When and on what the runs were made."""
        run = next(iter(self.records.values()))
        cpu = run.environment.get("cpu", run.environment.get("machine"))
        return f"{self.created[:10]}, {cpu}, torch {run.spec.torch}, {run.spec.precision}"

    @property
    def num_params(self) -> int:
        """Of the model of its first run."""
        return sum(next(iter(self.records.values())).params.values())

    @property
    def time(self) -> str:
        """Of all steps, without evaluation."""
        minutes = sum((record.step_seconds or 0.0) * record.spec.num_steps for record in self.records.values()) / 60
        shared = next(iter(self.records.values())).spec.device != "cpu"
        return f"{minutes:.0f} minutes of " + ("runs that shared a GPU" if shared else "one core in all")


def asked(path: Path, task: str, kind: type[C]) -> C:
    """The config that a file of a study is, of a task; the device, which this machine may not have, is left open."""
    return validated({**values(path, {"device": "cpu"}, None, None, False), "task": task}, kind)


def found_in(store: Store, config: StudyConfig, kind: str) -> str | None:
    """The key of the latest study of that kind with that config, wherever its data lay and whatever it ran on."""
    wanted = config.model_dump(mode="json", exclude={"data", "device"})
    saved = (store.study(row.key) for row in store.studies() if row.kind == kind)
    return next((one.key for one in saved if wanted.items() <= one.config.items()), None)


def latest(store: Store, kind: str) -> str:
    """The key of the latest study of that kind; SystemExit where there is none."""
    for row in store.studies():
        if row.kind == kind:
            return row.key
    raise SystemExit(f"the store has no {kind} study")


def read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_bytes(gzip.compress(json_text(values).encode(), mtime=0))
