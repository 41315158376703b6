"""Store: the memo table. A run that is in it is never run again."""

from __future__ import annotations

import builtins
import json
import os
import string
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from muonlab.errors import UsageError
from muonlab.records.database import Database, StoreError, locate
from muonlab.records.record import Outcome, Record, json_text
from muonlab.records.schema import prepare, requests, runs, studies
from muonlab.records.spec import RunSpec

__all__ = ["RunRow", "SavedStudy", "Store", "StoreError", "StudyRow"]

CHUNK = 500  # keys per query; both databases take thousands
INSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@dataclass(frozen=True)
class RunRow:
    """What a listing shows of a run."""

    key: str
    task: str
    optimizer: str
    outcome: Outcome
    horizon_tokens: int
    seed: int
    final_loss: float | None
    wall_seconds: float
    created: str  # UTC, ISO 8601


@dataclass(frozen=True)
class StudyRow:
    """What a listing shows of a study."""

    key: str
    kind: str
    name: str
    created: str  # UTC, ISO 8601; when it was last saved


@dataclass(frozen=True)
class SavedStudy:
    """A study: what it asked (`config`), and what came out and which record played which part (`result`)."""

    key: str
    kind: str
    name: str
    created: str
    config: Mapping[str, Any]
    result: Any


class Store:
    """Records by key, in a SQLite file or a PostgreSQL database; safe for several processes, threads and forks.

    `url` is a path, `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE`. A missing file becomes a new
    store. Where the file cannot be written the store still reads, and only writing raises. SQLite needs a local
    disk; use PostgreSQL where several machines write.

    Raises   StoreError, one line that names the store and says what to do
    """

    def __init__(self, url: str | os.PathLike[str], *, read_only: bool = False, timeout: float = 10.0) -> None:
        self._database = Database(locate(url), read_only=read_only, timeout=timeout)
        prepare(self._database)

    @property
    def name(self) -> str:
        """The place, for messages: without a password."""
        return self._database.place.name

    @property
    def read_only(self) -> bool:
        return bool(self._database.obstacle)

    def get(self, keys: Iterable[str]) -> dict[str, Record]:
        """The records that are there, in the order of the keys.

        Raises   StoreError if a record no longer is what was written
        """
        wanted = builtins.list(dict.fromkeys(keys))
        found: dict[str, Record] = {}
        with self._database.begin() as connection:
            for chunk in _chunks(wanted):
                query = sa.select(runs.c.key, runs.c.checksum, runs.c.record).where(runs.c.key.in_(chunk))
                for key, checksum, text in connection.execute(query):
                    found[key] = self._decode(key, checksum, text)
        return {key: found[key] for key in wanted if key in found}

    def put(self, record: Record, *, replace: bool = False) -> bool:
        """Keep a record; whether it was written. The first result of a key stays, a failure gives way to anything.

        `replace` lets a result take the place of another (a re-run that observed more); a failure never does.
        """
        text = json_text(record.to_dict())
        spec = record.spec
        row = {
            "key": record.key,
            "task": spec.task,
            "optimizer": spec.optimizer,
            "outcome": record.outcome,
            "horizon_tokens": spec.horizon_tokens,
            "seed": spec.seed,
            "final_loss": record.final_loss,
            "wall_seconds": record.wall_seconds,
            "created": record.created or _now(),
            "checksum": zlib.crc32(text.encode()),
            "record": text,
        }
        with self._database.begin(write=True) as connection:
            return connection.execute(_upsert_run(self._database.dialect, replace), row).rowcount > 0

    def list(
        self,
        task: str | None = None,
        optimizer: str | None = None,
        outcome: Outcome | None = None,
        limit: int | None = None,
    ) -> builtins.list[RunRow]:
        """Rows of a listing, newest first; reads no record."""
        query = sa.select(*(column for column in runs.c if column.name not in ("checksum", "record")))
        for column, value in ((runs.c.task, task), (runs.c.optimizer, optimizer), (runs.c.outcome, outcome)):
            if value is not None:
                query = query.where(column == value)
        query = query.order_by(runs.c.created.desc(), runs.c.key).limit(limit)
        with self._database.begin() as connection:
            return [RunRow(*row) for row in connection.execute(query)]

    def find(self, prefix: str) -> Record:
        """The record whose key begins with `prefix`.

        Raises   UsageError if none or several do
        """
        key = self._key_of(runs, "run", prefix)
        record = self.get([key]).get(key)
        if record is None:
            raise UsageError(f"run {key[:12]} was removed from store {self.name} meanwhile")
        return record

    def remove(self, keys: Iterable[str]) -> int:
        """Forget runs, all or none; how many there were."""
        with self._database.begin(write=True) as connection:
            return sum(
                connection.execute(sa.delete(runs).where(runs.c.key.in_(chunk))).rowcount
                for chunk in _chunks(builtins.list(dict.fromkeys(keys)))
            )

    def count(self) -> int:
        """How many runs there are."""
        with self._database.begin() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(runs)) or 0

    def save_study(self, key: str, kind: str, name: str, config: Mapping[str, Any], result: Any) -> None:
        """Keep a study, over an earlier version of itself; it becomes the latest."""
        values = {
            "kind": kind,
            "name": name,
            "created": _now(),
            "config": json_text(config),
            "result": json_text(result),
        }
        insert = INSERT[self._database.dialect](studies).values(key=key, **values)
        with self._database.begin(write=True) as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=[studies.c.key], set_=values))

    def study(self, prefix: str = "latest") -> SavedStudy:
        """The study whose key begins with `prefix`, or the one that was saved last.

        Raises   UsageError if there is none, or several fit
        """
        query = sa.select(studies).order_by(studies.c.created.desc(), studies.c.key).limit(1)
        if prefix != "latest":
            query = query.where(studies.c.key == self._key_of(studies, "study", prefix))
        with self._database.begin() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise UsageError(self._no_study())
        try:
            return SavedStudy(**{**row, "config": json.loads(row["config"]), "result": json.loads(row["result"])})
        except ValueError:
            raise self._damaged("study", row["key"]) from None

    def _no_study(self) -> str:
        if runs := self.count():
            return f"store {self.name} holds no finished study ({runs} of its runs): the command that made them goes on"
        return f"store {self.name} holds no study yet: run one, such as `muonlab demo`"

    def studies(self) -> builtins.list[StudyRow]:
        """Rows of a listing, the latest first."""
        query = sa.select(studies.c.key, studies.c.kind, studies.c.name, studies.c.created)
        with self._database.begin() as connection:
            return [
                StudyRow(*row) for row in connection.execute(query.order_by(studies.c.created.desc(), studies.c.key))
            ]

    def request(self, specs: Iterable[RunSpec]) -> None:
        """Note runs that somebody else is asked to make, so that their results can be told by key."""
        rows = [{"key": spec.key, "created": _now(), "spec": json_text(spec.to_dict())} for spec in specs]
        with self._database.begin(write=True) as connection:
            for row in rows:
                insert = INSERT[self._database.dialect](requests).values(**row)
                connection.execute(insert.on_conflict_do_nothing(index_elements=[requests.c.key]))

    def requested(self, prefix: str) -> RunSpec:
        """The run that was asked for under a key that begins with `prefix`.

        Raises   UsageError if there is none, or several fit
        """
        query = sa.select(requests.c.spec).where(requests.c.key == self._key_of(requests, "request", prefix))
        with self._database.begin() as connection:
            return RunSpec.from_dict(json.loads(connection.scalars(query).one()))

    def check(self) -> builtins.list[str]:
        """Read everything; one line per thing that is wrong, none if all is well. Takes a while on a large store."""
        problems = []
        with self._database.begin() as connection:
            if self._database.dialect == "sqlite":
                lines = connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars()
                problems += [f"store {self.name}: {line}" for line in lines if line != "ok"]
            for row in connection.execution_options(yield_per=CHUNK).execute(sa.select(runs)):
                try:
                    self._decode(row.key, row.checksum, row.record)
                except UsageError as error:
                    problems.append(str(error))
        return problems

    def close(self) -> None:
        """Let go of connections; a SQLite store holds none between two calls."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, key: str, checksum: int, text: str) -> Record:
        if zlib.crc32(text.encode(errors="replace")) != checksum:
            raise self._damaged("run", key)
        record = Record.from_dict(json.loads(text))
        if record.key != key:
            raise self._damaged("run", key)
        return record

    def _damaged(self, kind: str, key: str) -> StoreError:
        return StoreError(
            f"{kind} {key[:12]} in store {self.name} is not what was written: the file was altered or the disk failed; "
            f"restore a backup, or `muonlab runs rm {key[:12]}` and run it again"
        )

    def _key_of(self, table: sa.Table, kind: str, prefix: str) -> str:
        """The only key that begins with `prefix`."""
        prefix = prefix.strip().lower()
        if not prefix or set(prefix) - set(string.hexdigits):
            raise UsageError(f"a {kind} is named by the first digits of its key (0-9, a-f), got {prefix!r}")
        query = sa.select(table.c.key).where(table.c.key.startswith(prefix)).order_by(table.c.key).limit(4)
        with self._database.begin() as connection:
            keys = connection.scalars(query).all()
        if not keys:
            where = "muonlab ask" if table is requests else "muonlab runs list"
            raise UsageError(f"no {kind} in store {self.name} begins with {prefix!r}: `{where}` shows what there is")
        if len(keys) > 1 and keys[0] != prefix:
            shown = ", ".join(key[:12] for key in keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise UsageError(f"{prefix!r} fits several {kind} keys ({shown}): give more digits")
        return keys[0]


@cache
def _upsert_run(dialect: str, replace: bool) -> sa.Executable:
    """Insert a row, or take the place of one that `Store.put` lets go; the rest of the statement is in the row."""
    insert = INSERT[dialect](runs)
    free = runs.c.outcome == "failed"
    if replace:
        free = sa.or_(free, insert.excluded.outcome != "failed")
    values = {column.name: insert.excluded[column.name] for column in runs.c if column.name != "key"}
    upsert = insert.on_conflict_do_update(index_elements=[runs.c.key], set_=values, where=free)
    return upsert.execution_options(preserve_rowcount=True)


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
