"""The tables of a store, and how a store reaches this version of them."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from muonlab.records.database import Database, StoreError

__all__ = ["HEAD", "prepare", "requests", "runs", "studies"]

HEAD = "0003"  # the newest file in migrations/versions; its names are numbers, so that they can be compared
READABLE = "0002"  # from here on, what later versions add can be done without by who only reads
VERSION_TABLE = "muonlab_version"
LOCK = 0x6D756F6E  # PostgreSQL advisory lock, held while the schema is made

log = logging.getLogger(__name__)
metadata = sa.MetaData()

# `record` comes last: SQLite would otherwise have to read through it to reach a column behind it.
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("optimizer", sa.Text, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("horizon_tokens", sa.BigInteger, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("final_loss", sa.Double),
    sa.Column("wall_seconds", sa.Double, nullable=False),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("checksum", sa.BigInteger, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("config", sa.Text, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("created", sa.String(40), nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
)


def prepare(database: Database) -> None:
    """Make a new store, upgrade an old one (after a backup beside it), refuse a newer one or somebody else's file.

    A store that is up to date costs one query; only the other cases import alembic.
    """
    name = database.place.name
    with database.begin() as connection:
        version = _version(connection)
        strangers = _strangers(connection) if version is None else set()
        if strangers:
            version = _version(connection)  # another process may just have made them
    if version is None and strangers:
        shown = ", ".join(sorted(strangers)[:4])
        raise StoreError(f"{name} is not a muonlab store, it holds other tables ({shown}): name another store")
    if version is not None and version > HEAD:
        raise StoreError(
            f"store {name} was written by a newer muonlab (schema {version}, this one reads {HEAD}): update muonlab"
        )
    if version != HEAD:
        if database.obstacle and version is not None and version >= READABLE:
            return
        if database.obstacle:
            state = "is empty" if version is None else f"has the old schema {version}"
            raise StoreError(f"store {name} {state} and cannot be written: {database.obstacle}")
        _migrate(database)
    database.may_create = False


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}"))


def _strangers(connection: sa.Connection) -> set[str]:
    """Tables that a new store would collide with; a PostgreSQL database may well serve others too."""
    tables = set(sa.inspect(connection).get_table_names())
    return tables if connection.dialect.name == "sqlite" else tables & {*metadata.tables, VERSION_TABLE}


def _migrate(database: Database) -> None:
    """Bring the schema to HEAD in one transaction; of several processes the first does it, the others find it done."""
    from alembic import command  # 0.2 s, and hardly ever needed
    from alembic.config import Config

    if database.dialect == "sqlite":
        database.use_wal()
    with database.begin(write=True) as connection:
        if database.dialect == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        version = _version(connection)
        if version == HEAD:
            return
        if version is not None and database.dialect == "sqlite":
            backup = database.back_up(f".{version}-{datetime.now(UTC):%Y%m%dT%H%M%S}.bak")
            log.warning("store %s: upgrading from schema %s; backup in %s", database.place.name, version, backup)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.attributes.update(connection=connection, version_table=VERSION_TABLE)
        command.upgrade(config, HEAD)
