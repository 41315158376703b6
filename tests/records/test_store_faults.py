"""Store: everything that can go wrong gives one line that says what to do, and loses or overwrites nothing."""

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from muonlab.records import Store, StoreError
from muonlab.records.database import locate
from muonlab.records.schema import HEAD

HERE = Path(__file__).parent
OTHERS = "datname = current_database() AND pid <> pg_backend_pid()"
FILL = """
import resource, sys
from muonlab.records import Record, RunSpec, Store
path, limit = sys.argv[1], int(sys.argv[2])
store = Store(path)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
losses = tuple(1 / (i + 3) for i in range(500))
for seed in range(1000):
    spec = RunSpec(task="text", optimizer="adamw", horizon_tokens=512, batch_tokens=512, seed=seed)
    record = Record(spec=spec, outcome="ok", train_steps=tuple(range(500)), train_loss=losses)
    try:
        store.put(record)
    except ValueError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(spec.key, flush=True)
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(url, words: str, **options) -> None:
    """The store is refused with one line holding `words`, and no byte of an existing file changes."""
    path = Path(url) if "://" not in str(url) else None
    before = digest(path) if path and path.is_file() else None
    with pytest.raises(StoreError, match=words) as caught:
        Store(url, **options)
    assert "\n" not in str(caught.value)
    assert before is None or digest(path) == before
    assert path is None or before is not None or not path.is_file(), "a refused store must not be created"


@pytest.fixture(scope="module")
def template(tmp_path_factory, make):
    path = tmp_path_factory.mktemp("template") / "store.db"
    with Store(path) as store:
        for seed in range(40):
            store.put(make(seed))
    assert not Path(f"{path}-wal").exists()
    return path


@pytest.fixture
def full(tmp_path, template):
    """A closed store with 40 runs."""
    return Path(shutil.copy(template, tmp_path))


@pytest.fixture
def mount(tmp_path):
    """Mount a small tmpfs; only root can."""
    with contextlib.ExitStack() as stack:

        def mount_tmpfs(size: str) -> Path:
            if os.geteuid() != 0:
                pytest.skip("mounting needs root")
            folder = tmp_path / "mounted"
            folder.mkdir()
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True
            )
            if done.returncode:
                pytest.skip(f"mount: {done.stderr.decode().strip()}")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return folder

        yield mount_tmpfs


@pytest.fixture
def freeze(request):
    """Make a directory read-only: by permissions, or, as these do not bind root, on a read-only file system."""
    with contextlib.ExitStack() as stack:

        def freeze_folder(source: Path) -> Path:
            if os.geteuid() == 0:
                folder = request.getfixturevalue("mount")("8m")
                for file in source.glob("store.db*"):
                    shutil.copy(file, folder)
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
                return folder
            for file in source.iterdir():
                file.chmod(0o444)
            source.chmod(0o555)
            stack.callback(source.chmod, 0o755)
            return source

        yield freeze_folder


# Where a store cannot be


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "needs a file name or a URL"),
        ("a\0b", "needs a file name or a URL"),
        ("sqlite://", "could not be shared"),
        ("sqlite:///:memory:", "could not be shared"),
        ("sqlite://store.db", "too few slashes"),
        ("mysql://u:hush@h/d", "unsupported store mysql://: use a path"),
        ("postgresql+asyncpg://u:hush@h/d", "unsupported store postgresql\\+asyncpg"),
        ("postgresql://u:hush@h:port/d", "malformed store URL"),
    ],
)
def test_urls_that_name_no_store(url, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=words) as caught:
        Store(url)
    assert "hush" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_urls_that_name_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("a b%?#.db", "sqlite:///ü.db", f"sqlite:///{tmp_path}/c.db", f"sqlite+pysqlite:///{tmp_path}/d.db?x=1"):
        Store(url).close()
    assert {path.name for path in tmp_path.iterdir()} == {"a b%?#.db", "ü.db", "c.db", "d.db"}
    assert locate("postgres://u:p%40q@h:1/d?password=hush").name == "postgresql://u@h:1/d"


def test_places_where_no_file_can_be(tmp_path):
    refused(tmp_path / "absent" / "store.db", "directory .*absent .* does not exist: create it")
    refused(tmp_path, "is a directory: name a file in it")
    refused("/dev/null", "not a regular file")
    refused(tmp_path / "store.db", "does not exist: run a study first", read_only=True)
    with pytest.raises(StoreError, match="File name too long"):
        Store(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "store.db", "does not exist")


def test_an_empty_file_is_a_new_store(tmp_path, make):
    path = tmp_path / "store.db"
    path.touch()
    refused(path, "is empty and cannot be written", read_only=True)
    with Store(path) as store:
        assert store.put(make())


def test_a_file_that_vanishes_is_not_made_anew(full, make):
    with Store(full) as store:
        full.rename(full.with_name("moved.db"))
        for call in (store.count, lambda: store.put(make(99))):
            with pytest.raises(StoreError, match="moved or removed"):
                call()
    assert not full.exists()


# Damage


def test_files_that_are_no_database(tmp_path):
    for number, content in enumerate((b"hello", b"{}\n" * 5000, b"\0" * 8192, os.urandom(9000))):
        path = tmp_path / f"{number}.db"
        path.write_bytes(content)
        refused(path, "not a SQLite database|is damaged")


def test_zeroed_first_page_and_truncation(full):
    content = full.read_bytes()
    for damaged in (bytes(4096) + content[4096:], content[: len(content) // 2], content[:4096], content[:700]):
        full.write_bytes(damaged)
        refused(full, "not a SQLite database|is damaged")


def test_flipped_bytes_are_noticed_and_never_returned(full, make):
    """Wherever 64 bytes are inverted, each record is either as it was written or reported by an error."""
    content = full.read_bytes()
    truth = {make(seed).key: make(seed) for seed in range(40)}
    noticed = 0
    for start in range(200, len(content), 2731):
        full.write_bytes(
            content[:start] + bytes(255 - byte for byte in content[start : start + 64]) + content[start + 64 :]
        )
        try:
            with Store(full, read_only=True) as store:
                found = store.get(truth)
                missing = truth.keys() - found.keys()
                assert not missing or store.check()
                assert all(found[key] == truth[key] for key in found)
        except StoreError as error:
            noticed += 1
            assert "\n" not in str(error) and "store.db" in str(error)
    assert noticed > 5


def test_an_altered_record_is_refused_by_name(full, make):
    with contextlib.closing(sqlite3.connect(full)) as raw:
        raw.execute("UPDATE runs SET record = replace(record, '4.5', '1.5') WHERE key = ?", [make(3).key])
        raw.commit()
    with Store(full) as store:
        with pytest.raises(StoreError, match=f"run {make(3).key[:12]} in store .* is not what was written"):
            store.get([make(3).key])
        assert len(store.check()) == 1
        assert store.get([make(4).key]) and len(store.list()) == 40
        assert store.remove([make(3).key]) == 1 and store.put(make(3)) and store.check() == []


# Other people's files, other versions


def test_another_programs_database(tmp_path, postgres_database):
    import psycopg

    path = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.executescript("CREATE TABLE alembic_version (version_num TEXT); CREATE TABLE trials (id INTEGER)")
    refused(path, "not a muonlab store, it holds other tables \\(alembic_version, trials\\)")
    with psycopg.connect(postgres_database) as connection:
        connection.execute("CREATE TABLE trials (id int)")
    with Store(postgres_database) as store:  # a server's database may serve several programs
        assert store.count() == 0


def test_another_programs_tables_of_our_name(postgres_database):
    import psycopg

    with psycopg.connect(postgres_database) as connection:
        connection.execute("CREATE TABLE runs (id int)")
    refused(postgres_database, "not a muonlab store, it holds other tables \\(runs\\)")


def execute(url: str, statement: str) -> None:
    if "://" in url:
        import psycopg

        with psycopg.connect(url) as connection:
            connection.execute(statement)
        return
    with contextlib.closing(sqlite3.connect(url)) as raw, raw:
        raw.execute(statement)


def test_a_newer_schema_is_refused(store_url):
    Store(store_url).close()
    execute(store_url, "UPDATE muonlab_version SET version_num = '0999'")
    refused(store_url, "newer muonlab \\(schema 0999, .*: update muonlab")


@pytest.fixture
def old(tmp_path):
    """A store as the first schema wrote it, with one run."""
    path = tmp_path / "store.db"
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.executescript((HERE / "data" / "store_0001.sql").read_text())
    return path


def test_an_older_schema_is_upgraded_after_a_backup(old, caplog):
    with contextlib.closing(sqlite3.connect(old)) as raw:
        before = list(raw.iterdump())
    with Store(old) as store:
        assert [row.optimizer for row in store.list()] == ["muon"]
        assert store.find("5").final_loss == 1.25
        assert store.studies() == [] and store.check() == []
    (backup,) = old.parent.glob("store.db.0001-*.bak")
    assert str(backup) in caplog.text
    with contextlib.closing(sqlite3.connect(backup)) as raw:
        assert list(raw.iterdump()) == before
    Store(old).close()
    assert len(list(old.parent.iterdir())) == 2


def test_an_older_schema_is_not_upgraded_by_a_reader(old):
    refused(old, "has the old schema 0001 and cannot be written", read_only=True)


def test_an_interrupted_upgrade_leaves_the_old_store(old, monkeypatch):
    from alembic import command

    with monkeypatch.context() as patch:
        upgrade = command.upgrade

        def interrupted(*arguments):
            upgrade(*arguments)
            raise OSError(28, "No space left on device")

        patch.setattr(command, "upgrade", interrupted)
        with pytest.raises(StoreError, match="No space left"):
            Store(old)
    with contextlib.closing(sqlite3.connect(old)) as raw:
        assert raw.execute("SELECT version_num FROM muonlab_version").fetchall() == [("0001",)]
    with Store(old) as store:
        assert (store.count(), store.studies()) == (1, [])
    assert HEAD > "0001"


# Locks, space, permissions


def test_a_store_locked_by_another_process(full, make):
    with contextlib.closing(sqlite3.connect(full, isolation_level=None)) as raw, Store(full, timeout=0.2) as store:
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked by another process for more than 0.2 s: wait for it or stop it"):
            store.put(make(99))
        assert store.get([make(1).key]) and store.count() == 40  # readers are not held up
        raw.execute("COMMIT")
        assert store.put(make(99))


def test_a_table_locked_by_another_session(postgres_database, make):
    import psycopg

    with Store(postgres_database, timeout=0.2) as store, psycopg.connect(postgres_database) as other:
        other.execute("LOCK TABLE runs")
        with pytest.raises(StoreError, match="locked by another process"):
            store.put(make())
        other.rollback()
        assert store.put(make())


def fill(path: Path, limit: int = 0) -> tuple[set[str], str]:
    """Write until it fails: the keys that were acknowledged, and the complaint."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path), str(limit)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return set(done.stdout.split()), done.stderr.strip()


def test_disk_full(mount):
    folder = mount("1m")
    keys, complaint = fill(folder / "store.db")
    assert complaint.startswith("StoreError: store ") and "no space left on its disk" in complaint
    assert len(keys) > 10 and "\n" not in complaint
    with Store(folder / "store.db", read_only=True) as store:
        assert set(store.get(keys)) == keys and store.check() == []


def test_file_size_limit(tmp_path):
    keys, complaint = fill(tmp_path / "store.db", 400_000)
    assert complaint.startswith("StoreError: store ") and "file size limit" in complaint
    assert len(keys) > 5
    with Store(tmp_path / "store.db") as store:
        assert set(store.get(keys)) == keys and store.check() == []


def test_disk_full_during_an_upgrade(mount, old):
    folder = mount("256k")
    shutil.copy(old, folder)
    (folder / "filler").write_bytes(bytes(os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize))
    refused(folder / "store.db", "no space left|failed on disk|cannot be used")
    (folder / "filler").unlink()
    assert {path.name for path in folder.iterdir()} == {"store.db"}
    with Store(folder / "store.db") as store:
        assert store.count() == 1


def test_a_read_only_place_is_read(full, freeze, make):
    folder = freeze(full.parent)
    with Store(folder / "store.db") as store:
        assert store.read_only and store.count() == 40
        assert store.get([make(1).key])[make(1).key] == make(1)
        with pytest.raises(StoreError, match=r"store.db cannot be written: the file is read-only"):
            store.put(make(99))
    refused(folder / "new.db", "cannot be created: directory .* is read-only")
    assert {path.name for path in folder.iterdir()} == {"store.db"}


def test_a_read_only_place_with_a_log_left_behind(full, freeze, make):
    """A writer was killed before its last rows reached the main file: they are read nevertheless."""
    source = full.parent / "killed"
    source.mkdir()
    reader = sqlite3.connect(full)  # keeps the log from being folded into the file
    reader.execute("SELECT count(*) FROM runs").fetchone()
    with Store(full) as store:
        store.put(make(99))
        for suffix in ("", "-wal"):
            shutil.copy(f"{full}{suffix}", source / f"store.db{suffix}")
    reader.close()
    with contextlib.closing(sqlite3.connect(f"{(source / 'store.db').as_uri()}?immutable=1", uri=True)) as raw:
        assert raw.execute("SELECT count(*) FROM runs").fetchone() == (40,)
    folder = freeze(source)
    with Store(folder / "store.db") as store:
        assert (store.count(), store.get([make(99).key])[make(99).key]) == (41, make(99))


def test_a_log_left_behind_is_read_by_the_next_writer(tmp_path, make):
    """SIGKILL while a transaction is open: committed rows stay, the open one is gone."""
    path = tmp_path / "store.db"
    Store(path).close()
    code = (
        "import sqlite3, sys, time; raw = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "raw.execute('BEGIN IMMEDIATE'); raw.execute('DELETE FROM runs'); print('ready', flush=True); time.sleep(60)"
    )
    with Store(path, timeout=5) as store:
        store.put(make(1))
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert store.put(make(2)) and store.count() == 2 and store.check() == []


# PostgreSQL


def test_servers_that_do_not_let_us_in(postgres_url):
    base = postgres_url.rpartition("/")[0]
    user, _, host = base.partition("@")
    refused("postgresql://lab:hush@127.0.0.1:1/x", "postgresql://lab@127.0.0.1:1/x cannot be reached: start the server")
    refused(f"{base}/absent", "absent does not exist: create it with `createdb`")
    refused(f"postgresql://lab:hush@{host}/postgres", "refuses the user or password")
    refused(f"postgresql://nobody@{host}/postgres", "wants a password")
    for url in (f"postgresql://lab:hush@{host}/postgres", f"{user}@localhost:1/postgres"):
        with pytest.raises(StoreError) as caught:
            Store(url)
        assert "hush" not in str(caught.value) and "p@ss" not in str(caught.value)


def test_postgres_scheme_is_accepted(postgres_database, make):
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        with Store(postgres_database.replace("postgresql", scheme, 1)) as store:
            store.put(make())
            assert store.count() == 1
            assert store.name.startswith("postgresql://lab@127.0.0.1:")


def test_a_connection_that_the_server_drops_is_replaced(postgres_database, make):
    import psycopg

    with Store(postgres_database) as store:
        store.put(make(1))
        with psycopg.connect(postgres_database) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE " + OTHERS)
        assert store.put(make(2)) and store.count() == 2


def test_a_user_who_may_only_read(postgres_database, make):
    import psycopg

    with Store(postgres_database) as store:
        store.put(make(1))
    with psycopg.connect(postgres_database) as connection:
        connection.execute(
            "CREATE ROLE reader LOGIN PASSWORD 'x'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"
        )
    try:
        with Store("postgresql://reader:x@" + postgres_database.rpartition("@")[2]) as store:
            assert store.count() == 1
            with pytest.raises(StoreError, match="may not be changed by this user: permission denied for table runs"):
                store.put(make(2))
    finally:
        execute(postgres_database, "DROP OWNED BY reader; DROP ROLE reader")


def test_without_the_driver(tmp_path):
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from muonlab.records import Store, StoreError\n"
        "try: Store('postgresql://u:hush@h/d')\n"
        "except StoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "store postgresql://u@h/d needs the PostgreSQL driver: pip install 'muonlab[postgres]'\n"


def test_limits_of_this_process_are_as_before():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_schema_that_lacks_only_what_readers_do_without_is_read_as_it_is(tmp_path):
    path = tmp_path / "store.db"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("DROP TABLE requests")
        raw.execute("UPDATE muonlab_version SET version_num = '0002'")
    with Store(path, read_only=True) as store:
        assert store.list() == [] and store.studies() == []
    with contextlib.closing(sqlite3.connect(path)) as raw:
        assert raw.execute("SELECT version_num FROM muonlab_version").fetchone() == ("0002",)
    with Store(path) as store:
        store.request([])
