"""Databases for the tests: every test that takes `store_url` runs on SQLite and on a real PostgreSQL server."""

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

PASSWORD = "p@ss word/%"  # every character that must be quoted in a URL
numbers = itertools.count()


def postgres_binaries() -> Path | None:
    """The directory of `initdb` and `pg_ctl`: on PATH, or where Debian keeps them."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """A throw-away server on a free loopback port; yields the URL of its `postgres` database.

    PostgreSQL refuses to run as root: then it runs as the user `postgres`.
    """
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server binaries (initdb, pg_ctl)")
    pytest.importorskip("psycopg")
    owner: dict[str, str] = {}
    folder = Path(tempfile.mkdtemp(prefix="muonlab-pg-"))  # not under pytest's own, which only its user may enter
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        owner = {"user": "postgres", "group": "postgres"}
        shutil.chown(folder, **owner)
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [str(binaries / program), "-D", str(data), *arguments]
        with open(folder / "output", "ab") as output:  # a pipe would stay open in the server
            subprocess.run(command, check=True, cwd=folder, stdout=output, stderr=output, timeout=60, **owner)

    try:
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        run("initdb", "-U", "lab", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8", "--locale=C", "-N")
        for attempt in range(3):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off -c max_connections=60"
            try:
                run("pg_ctl", "-w", "-t", "30", "-l", str(folder / "log"), "-o", options, "start")
                break
            except subprocess.CalledProcessError:  # somebody took the port meanwhile
                if attempt == 2:
                    raise
        yield f"postgresql://lab:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            run("pg_ctl", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A running server (one per worker process, started when first asked for)."""
    with postgres_server() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of a fresh database."""
    import psycopg

    name = f"lab_{next(numbers)}_{secrets.token_hex(3)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_url.removesuffix("postgres") + name
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a fresh store can be made."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    return request.getfixturevalue("postgres_database")


@pytest.fixture
def published() -> Callable[[str], Path]:
    """Where a file of published results lies; the test is skipped where it is not at hand."""

    def find(name: str) -> Path:
        path = Path(__file__).resolve().parents[2] / "shared" / "records" / name
        if not path.is_file():
            pytest.skip(f"the published results {name} are not at hand")
        return path

    return find
