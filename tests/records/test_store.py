"""Store: one suite for both databases. What is in it stays, exactly once, and is found again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from muonlab.errors import UsageError
from muonlab.records import Store, StoreError, schema
from muonlab.records.schema import HEAD, metadata

WRITER = """
import sys
from muonlab.records import Record, RunSpec, Store
url, start, count, share = sys.argv[1], *map(int, sys.argv[2:5])
with Store(url) as store:
    for seed in range(start, start + count):
        spec = RunSpec(task="text", optimizer="adamw", horizon_tokens=512, batch_tokens=512, seed=seed)
        new = store.put(Record(spec=spec, outcome="ok", final_loss=1.0, wall_seconds=float(share)))
        print("new" if new else "old", spec.key, flush=True)
"""


def writer(url: str, start: int, count: int, share: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, url, str(start), str(count), str(share)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def store(store_url):
    with Store(store_url) as store:
        yield store


def test_put_get_and_what_is_missing(store, make):
    records = [make(seed) for seed in range(5)]
    assert [store.put(record) for record in records] == [True] * 5
    keys = [record.key for record in reversed(records)]
    found = store.get([keys[0], "0" * 64, *keys, keys[0]])
    assert found == {record.key: record for record in records}
    assert list(found) == keys
    assert (store.count(), store.get([]), store.get(["nonsense", "a'; --"])) == (5, {}, {})


def test_more_keys_than_a_query_takes(store, make):
    records = [make(seed) for seed in range(3)]
    for record in records:
        store.put(record)
    many = (f"{number:064x}" for number in range(70_000))
    assert len(store.get([*many, *(record.key for record in records)])) == 3


def test_text_of_any_kind(store, make):
    record = make(error="\0 \ud800 é 漢字 \"' %s :key\n", task="module:Straße'", outcome="failed")
    store.put(record)
    assert store.get([record.key]) == {record.key: record}
    assert store.list(task="module:Straße'")[0].key == record.key


@pytest.mark.parametrize(
    ("first", "second", "written"),
    [
        ("ok", "ok", False),
        ("ok", "diverged", False),
        ("ok", "failed", False),
        ("diverged", "ok", False),
        ("diverged", "failed", False),
        ("failed", "ok", True),
        ("failed", "diverged", True),
        ("failed", "failed", True),
    ],
)
def test_the_first_result_stays_and_a_failure_gives_way(store, make, first, second, written):
    one, two = make(outcome=first, attempts=1), make(outcome=second, attempts=2)
    assert store.put(one)
    assert store.put(two) is written
    assert store.get([one.key])[one.key] == (two if written else one)
    assert [row.outcome for row in store.list()] == [second if written else first]


def test_replace_takes_results_only(store, make):
    store.put(make(attempts=1))
    assert not store.put(make(outcome="failed"), replace=True)
    assert store.put(make(attempts=2, eval_steps=(4,), eval_loss=(3.0,)), replace=True)
    assert store.find(make().key).attempts == 2


def test_list_filters_and_shows_the_newest_first(store, make):
    for seed in range(4):
        store.put(make(seed, created=f"2026-01-0{seed + 1}T00:00:00+00:00", wall_seconds=1.5))
    store.put(make(9, optimizer="muon", task="digits", outcome="diverged", created="2025-01-01T00:00:00+00:00"))
    assert [row.seed for row in store.list()] == [3, 2, 1, 0, 9]
    assert [row.seed for row in store.list(limit=2)] == [3, 2]
    assert store.list(limit=0) == []
    for query in ({"task": "digits"}, {"optimizer": "muon"}, {"outcome": "diverged"}):
        (row,) = store.list(**query)
        assert (row.seed, row.final_loss, row.horizon_tokens) == (9, None, 4096)
    assert store.list(task="digits", optimizer="adamw") == []
    assert (store.list(limit=1)[0].final_loss, store.list(limit=1)[0].wall_seconds) == (make(3).final_loss, 1.5)


def test_find_by_prefix(store, make):
    records = [make(seed) for seed in range(40)]
    for record in records:
        store.put(record)
    key = records[7].key
    assert store.find(key) == store.find(key[:16].upper()) == records[7]
    common = next(digit for digit in "0123456789abcdef" if sum(r.key.startswith(digit) for r in records) > 1)
    with pytest.raises(UsageError, match=rf"'{common}' fits several run keys \({common}.*give more digits"):
        store.find(common)
    with pytest.raises(UsageError, match=r"no run in store .* begins with 'abcdef012345'"):
        store.find("abcdef012345")
    for bad in ("", "%", "_", "xyz"):
        with pytest.raises(UsageError, match="first digits of its key"):
            store.find(bad)


def test_remove(store, make):
    keys = [make(seed).key for seed in range(4)]
    for seed in range(4):
        store.put(make(seed))
    assert store.remove([keys[0], keys[1], keys[0], "0" * 64]) == 2
    assert store.remove(keys[:2]) == 0
    assert set(store.get(keys)) == set(keys[2:])


def test_studies(store, make):
    with pytest.raises(UsageError, match="holds no study yet"):
        store.study()
    store.put(make(0))
    with pytest.raises(UsageError, match="holds no finished study \\(1 of its runs\\)"):
        store.study()
    store.save_study("aa11", "tune", "first", {"task": "text"}, None)
    store.save_study("aa22", "compare", "second", {"lr": 0.1 + 0.2}, {"runs": ["k"], "loss": float("nan")})
    assert [row.name for row in store.studies()] == ["second", "first"]
    assert store.study().config == {"lr": 0.1 + 0.2}
    assert store.study("latest").result == {"runs": ["k"], "loss": None}
    store.save_study("aa11", "tune", "again", {"task": "digits"}, [1])
    first = store.study("aa1")
    assert (first.name, first.config, first.result, store.study().key) == ("again", {"task": "digits"}, [1], "aa11")
    assert len(store.studies()) == 2
    for prefix, words in (("aa", "fits several study keys"), ("bb", "no study"), ("last", "first digits")):
        with pytest.raises(UsageError, match=words):
            store.study(prefix)


def test_everything_is_there_when_opened_again(store_url, make):
    with Store(store_url) as store:
        store.put(make())
    with Store(store_url) as one, Store(store_url, read_only=True) as two:
        assert one.find(make().key) == two.find(make().key) == make()
        assert one.check() == two.check() == []
        assert (one.read_only, two.read_only) == (False, True)
        for write in (lambda: two.put(make(1)), lambda: two.remove(["a"]), lambda: two.save_study("a", "", "", {}, 1)):
            with pytest.raises(StoreError, match="cannot be written: it was opened read-only"):
                write()


def test_a_store_that_is_up_to_date_opens_without_alembic(store_url):
    Store(store_url).close()
    code = "import sys; from muonlab.records import Store; Store(sys.argv[1]).count(); print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, store_url], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_records_import_neither_sqlalchemy_nor_torch():
    code = "import sys, muonlab.records; print({'sqlalchemy', 'alembic', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_migrations_make_the_tables_that_the_code_declares(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    import muonlab.records

    with store._database.begin() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": "muonlab_version", "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []
    versions = Path(muonlab.records.__file__).parent.glob("migrations/versions/*.py")
    assert max(path.name[:4] for path in versions) == HEAD


def test_eight_processes_open_a_new_store_and_race(store_url):
    """Eight writers of the same 25 runs, on a store that none of them finds: every run once, no error."""
    children = [writer(store_url, 0, 25, share) for share in range(8)]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * 8, outputs
    lines = [line.split() for out, _ in outputs for line in out.splitlines()]
    written = [key for state, key in lines if state == "new"]
    assert (len(lines), len(written), len(set(written))) == (200, 25, 25)
    with Store(store_url) as store:
        assert (store.count(), set(store.get(written)), store.check()) == (25, set(written), [])


def test_a_store_that_appears_while_it_is_looked_for(store_url, monkeypatch):
    """Another process makes the tables between our two looks: they are a store, not somebody else's tables."""
    Store(store_url).close()
    looks = [lambda _: None]
    look = schema._version
    monkeypatch.setattr(schema, "_version", lambda connection: (looks.pop() if looks else look)(connection))
    with Store(store_url) as store:
        assert store.count() == 0 and not looks


def test_kill_loses_no_acknowledged_row(store_url):
    Store(store_url).close()
    acknowledged = set()
    for round_ in range(3):
        child = writer(store_url, 1000 * round_, 1000)
        for _ in range(5 + 7 * round_):
            acknowledged.add(child.stdout.readline().split()[1])
        child.kill()
        acknowledged |= {line.split()[1] for line in child.communicate()[0].splitlines() if len(line) == 69}
    assert len(acknowledged) >= 36
    with Store(store_url) as store:
        assert set(store.get(acknowledged)) == acknowledged
        assert store.check() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_parent_and_forked_child_write_side_by_side(store, make):
    store.put(make(0))
    child = os.fork()
    if child == 0:
        try:
            ok = all(store.put(make(seed)) for seed in range(100, 120)) and store.count() > 0
        finally:
            os._exit(0 if ok else 1)
    assert all(store.put(make(seed)) for seed in range(1, 20))
    assert os.waitpid(child, 0)[1] == 0
    assert store.count() == 40


def test_threads(store, make):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(store.put, [make(seed % 30) for seed in range(60)])) == 30
    assert store.count() == 30


def test_ten_thousand_rows_are_listed_at_once(tmp_path, make):
    """A listing never reads the records: they are 5 kB each."""
    import time

    with Store(tmp_path / "store.db") as store:
        template = make(train_steps=tuple(range(300)), train_loss=tuple(1 / (i + 3) for i in range(300)))
        store.put(template)
        with store._database.begin(write=True) as connection:
            row = dict(connection.execute(sa.text("SELECT * FROM runs")).mappings().one())
            columns = ", ".join(f":{name}" for name in row)
            many = [{**row, "key": f"{number:064x}", "seed": number} for number in range(10_000)]
            connection.execute(sa.text(f"INSERT INTO runs VALUES ({columns})"), many)
        start = time.perf_counter()
        assert len(store.list()) == 10_001
        assert time.perf_counter() - start < 1.0
        assert len(json.dumps(template.to_dict())) > 5000
