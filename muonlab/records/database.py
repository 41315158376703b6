"""Where a store lives, how it is connected to, and every way that can fail, in words that say what to do."""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from muonlab.errors import UsageError

__all__ = ["Database", "Place", "StoreError", "locate"]


class StoreError(UsageError):
    """A store that cannot be opened, read or written; names it and says what to do."""


@dataclass(frozen=True)
class Place:
    """The address of a store: a SQLite file or a PostgreSQL database."""

    name: str  # for messages; never holds a password
    path: Path | None = None  # SQLite
    url: sa.URL | None = None  # PostgreSQL


def locate(url: str | os.PathLike[str]) -> Place:
    """Read a path, `sqlite:///file`, or `postgresql://user:password@host/database`.

    >>> locate("postgres://ann:secret@db.example/lab").name
    'postgresql://ann@db.example/lab'
    """
    text = os.fspath(url)
    if not text or "\0" in text:
        raise StoreError(f"a store needs a file name or a URL, got {text!r}")
    if "://" not in text:
        return _file(text)
    scheme, _, rest = text.partition("://")
    if scheme in ("sqlite", "sqlite+pysqlite"):
        if rest in ("", "/", "/:memory:"):
            raise StoreError(f"{text!r} names no file: a store in memory could not be shared by processes; give a path")
        if not rest.startswith("/"):
            raise StoreError(f"{text!r} has too few slashes: write sqlite:///relative.db or sqlite:////absolute.db")
        return _file(rest[1:].partition("?")[0])
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise StoreError(
            f"unsupported store {scheme}://: use a path, sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    try:
        parsed = sa.make_url(f"postgresql+psycopg://{rest}")
    except (ArgumentError, ValueError):
        raise StoreError("malformed store URL: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from None
    shown = sa.URL.create(
        "postgresql", parsed.username, host=parsed.host, port=parsed.port, database=parsed.database
    )  # neither the password nor the query, which may hold one too
    return Place(name=shown.render_as_string(), url=parsed)


def _file(text: str) -> Place:
    path = Path(text).expanduser()
    return Place(name=str(path), path=path)


class Database:
    """Transactions on a place, with every failure of the database or the disk turned into a StoreError.

    SQLite    a new connection per transaction: one that lives across a fork would break the file's locks
    PostgreSQL  a small pool, abandoned (not closed) when the process finds itself forked
    """

    def __init__(self, place: Place, *, read_only: bool = False, timeout: float = 10.0) -> None:
        self.place = place
        self.timeout = timeout  # seconds to wait for another process's lock, or for a server
        with self._in_words():
            obstacle = _check_file(place.path, read_only) if place.path else ""
        self.obstacle = "it was opened read-only" if read_only else obstacle  # why it cannot be written, "" if it can
        self.may_create = True  # until the schema is there: later a missing file is an error, not a new store
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._pid = os.getpid()
        self._engine = self._make_engine()

    @property
    def dialect(self) -> str:
        return "sqlite" if self.place.path else "postgresql"

    @contextmanager
    def begin(self, *, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction: committed at the end of the block, rolled back if it raises."""
        if write and self.obstacle:
            raise StoreError(f"store {self.place.name} cannot be written: {self.obstacle}")
        if self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        with self._in_words(), self._engine.connect() as connection:
            connection = connection.execution_options(muonlab_write=write)
            with connection.begin():
                yield connection

    def use_wal(self) -> None:
        """Let readers and one writer work side by side from now on; a property of the file, so once is enough.

        The switch itself does not honour the busy timeout, hence the loop.
        """
        deadline = time.monotonic() + self.timeout
        with self._in_words(), closing(self._connect_sqlite()) as raw:
            while True:
                try:
                    raw.execute("PRAGMA journal_mode=WAL")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                time.sleep(0.02)

    def back_up(self, suffix: str) -> Path:
        """Copy the committed state of a SQLite store to `<file><suffix>`, beside it; the copy is complete or absent."""
        target = Path(f"{self.place.path}{suffix}")
        partial = Path(f"{target}.part")
        with self._in_words():
            try:
                with closing(self._connect_sqlite()) as source, closing(sqlite3.connect(partial)) as copy:
                    source.backup(copy)
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def close(self) -> None:
        if self._pid == os.getpid():
            self._engine.dispose()
        if self._copy:
            self._copy.cleanup()
            self._copy = None

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error, OSError, OverflowError) as error:
            raise StoreError(explain(error, self.place, self.timeout)) from error

    def _make_engine(self) -> sa.Engine:
        if self.place.path:
            engine = sa.create_engine("sqlite://", creator=self._connect_sqlite, poolclass=NullPool)
            sa.event.listen(engine, "begin", _begin_sqlite)
            return engine
        assert self.place.url is not None
        wait = {} if "connect_timeout" in self.place.url.query else {"connect_timeout": max(2, round(self.timeout))}
        try:
            engine = sa.create_engine(
                self.place.url, connect_args=wait, pool_size=2, pool_pre_ping=True, pool_timeout=self.timeout
            )
        except ImportError:
            raise StoreError(
                f"store {self.place.name} needs the PostgreSQL driver: pip install 'muonlab[postgres]'"
            ) from None
        milliseconds = round(1000 * self.timeout)
        sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}"))
        return engine

    def _connect_sqlite(self) -> sqlite3.Connection:
        assert self.place.path is not None
        if not self.obstacle:
            return _open(self.place.path, "mode=rwc" if self.may_create else "mode=rw", self.timeout)
        try:
            raw = _open(self.place.path, "mode=ro", self.timeout)
            raw.execute("PRAGMA schema_version")
            return raw
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
        return self._connect_without_wal_files()

    def _connect_without_wal_files(self) -> sqlite3.Connection:
        """Read where SQLite may not create its `-wal` and `-shm` files.

        `immutable` ignores a log that was left behind, and with it committed rows: then a copy of both is read.
        """
        path = self.place.path
        assert path is not None
        log = Path(f"{path}-wal")
        if not (log.exists() and log.stat().st_size):
            return _open(path, "mode=ro&immutable=1", self.timeout)
        if self._copy is None:
            self._copy = tempfile.TemporaryDirectory(prefix="muonlab-store-")
            shutil.copyfile(path, Path(self._copy.name, "store.db"))
            shutil.copyfile(log, Path(self._copy.name, "store.db-wal"))
        return _open(Path(self._copy.name, "store.db"), "mode=rw", self.timeout)


def _open(path: Path, mode: str, timeout: float) -> sqlite3.Connection:
    # isolation_level=None: the driver must not begin transactions of its own, see _begin_sqlite
    uri = f"{path.absolute().as_uri()}?{mode}"
    return sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False)


def _begin_sqlite(connection: sa.Connection) -> None:
    """Take the write lock first: a read lock that is upgraded later fails at once when two processes try it."""
    write = connection.get_execution_options().get("muonlab_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _check_file(path: Path, read_only: bool) -> str:
    """Why the file cannot be written, "" if it can; StoreError if it cannot even be read."""
    parent = path.absolute().parent
    if not parent.is_dir():
        raise StoreError(
            f"directory {parent} of store {path} does not exist: create it (mkdir -p) or name another store"
        )
    if path.is_dir():
        raise StoreError(f"store {path} is a directory: name a file in it, such as {path / 'muonlab.db'}")
    if not path.exists():
        if read_only:
            raise StoreError(f"store {path} does not exist: run a study first, or name another store")
        if not os.access(parent, os.W_OK):
            raise StoreError(f"store {path} cannot be created: directory {parent} is read-only; name another store")
        return ""
    if not path.is_file():
        raise StoreError(f"store {path} is not a regular file: name another store")
    if not os.access(path, os.R_OK):
        raise StoreError(f"store {path} may not be read: check the permissions of the file")
    if not os.access(path, os.W_OK):
        return "the file is read-only; extend a copy of it elsewhere"
    return "" if os.access(parent, os.W_OK) else f"directory {parent} is read-only; extend a copy of it elsewhere"


SQLITE_REASONS = {
    "BUSY": "is locked by another process for more than {timeout:g} s: wait for it or stop it, then run this again",
    "LOCKED": "is locked by another process for more than {timeout:g} s: wait for it or stop it, then run this again",
    "FULL": "cannot grow: no space left on its disk ({free}); finished runs are kept: free some and run this again",
    "READONLY": "cannot be written: the file or its directory is read-only: extend a copy of it elsewhere",
    "CANTOPEN": "cannot be opened: it was moved or removed, or its directory may not be written",
    "CORRUPT": "is damaged; nothing was changed: restore a backup, or save what is left with `sqlite3 FILE .recover`",
    "NOTADB": "is not a SQLite database, or its header is damaged; nothing was changed: restore a backup",
    "IOERR": "failed on disk ({detail}; {free}): check disk, quota and file size limit; finished runs are kept",
}

POSTGRES_REASONS = (  # (SQLSTATE prefix, fragment of the message, what to say)
    ("28", "authentication failed", "refuses the user or password: check both in the URL ({detail})"),
    (
        "28",
        "no password supplied",
        "wants a password: write postgresql://USER:PASSWORD@HOST/DATABASE, or set PGPASSWORD",
    ),
    ("3D", 'database "', "does not exist: create it with `createdb` or correct the name ({detail})"),
    ("42501", "permission denied", "may not be changed by this user: {detail}"),
    ("25006", "read-only transaction", "cannot be written: the server is read-only"),
    ("55P03", "lock timeout", "is locked by another process for more than {timeout:g} s: run this again later"),
    ("53", "no space left", "cannot grow: {detail}; finished runs are kept"),
    ("", "connection", "cannot be reached: start the server, or check host and port ({detail})"),
)


def explain(error: Exception, place: Place, timeout: float) -> str:
    """One line for what went wrong with a place: its name, the reason, the remedy."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    detail = next((line.strip() for line in reversed(str(cause).splitlines()) if "failed:" in line), None)
    detail = detail.partition("failed: ")[2].rpartition("failed: ")[2] if detail else str(cause).partition("\n")[0]
    words = {"detail": detail, "timeout": timeout, "free": _free(place)}
    if isinstance(cause, sqlite3.Error):
        name = getattr(cause, "sqlite_errorname", "") or ""
        name = "SQLITE_CORRUPT" if "Could not decode" in str(cause) else name
        for part, reason in SQLITE_REASONS.items():
            if name.startswith(f"SQLITE_{part}"):
                return f"store {place.name} {reason.format(**words)}"
    elif isinstance(error, DBAPIError):
        state = getattr(cause, "sqlstate", None) or ""
        for prefix, fragment, reason in POSTGRES_REASONS:
            if (state and prefix and state.startswith(prefix)) or (not state and fragment in str(cause)):
                return f"store {place.name} {reason.format(**words)}"
    elif isinstance(cause, OSError):
        return f"store {place.name} cannot be used: {cause.strerror or cause}"
    return f"store {place.name} failed: {detail}"


def _free(place: Place) -> str:
    try:
        return f"{shutil.disk_usage(place.path.absolute().parent).free / 2**20:.0f} MiB free" if place.path else ""
    except OSError:
        return "free space unknown"
