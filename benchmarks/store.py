"""What the store costs per run: put and get of records with 200-point curves, on SQLite and on PostgreSQL.

    python benchmarks/store.py [--runs 200] [--directory DIR] [--postgres URL]

Prints one JSON document. SQLite writes to DIR, so its numbers are those of that disk (every put waits for it).
Without --postgres, a throw-away server is started if its binaries are installed; it waits for no disk (fsync=off).
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy

from muonlab.records import Record, RunSpec, Store


def make(seed: int, points: int = 200) -> Record:
    spec = RunSpec(
        task="text",
        optimizer="muon",
        horizon_tokens=2**20,
        batch_tokens=2**12,
        seed=seed,
        task_options={"width": 128, "depth": 4},
        hyperparameters={"opt.lr": 0.02, "opt.momentum": 0.95, "aux.lr_ratio": 0.3},
    )
    curve = tuple(4.0 / (step + 1) ** 0.1 for step in range(points))
    steps = tuple(range(1, points + 1))
    return Record(spec=spec, outcome="ok", final_loss=2.5, train_steps=steps, train_loss=curve, wall_seconds=12.5)


def median_ms(action: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times), 3)


def measure(url: str, runs: int) -> dict[str, float]:
    start = time.perf_counter()
    Store(url).close()
    create = time.perf_counter() - start
    records = [make(seed) for seed in range(runs)]
    keys = [record.key for record in records]
    with Store(url) as store:
        todo, wanted = iter(records), iter(keys)
        return {
            "create_ms": round(1e3 * create, 1),
            "put_ms": median_ms(lambda: store.put(next(todo)), runs),
            "put_again_ms": median_ms(lambda: store.put(records[0]), 50),
            "get_one_ms": median_ms(lambda: store.get([next(wanted)]), runs),
            "get_all_ms_per_run": round(median_ms(lambda: store.get(keys), 5) / runs, 3),
            "list_ms": median_ms(store.list, 20),
            "open_ms": median_ms(lambda: Store(url).close(), 20),
        }


@contextlib.contextmanager
def throw_away_server() -> Iterator[str | None]:
    path = Path(__file__).parent.parent / "tests" / "conftest.py"
    spec = importlib.util.spec_from_file_location("store_fixtures", path)
    assert spec is not None and spec.loader is not None
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    if fixtures.postgres_binaries() is None:
        yield None
    else:
        with fixtures.postgres_server() as url:
            yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--directory", type=Path, default=None, help="where the SQLite file is made")
    parser.add_argument("--postgres", help="an empty database")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        rows = {"sqlite": measure(f"{folder}/store.db", arguments.runs)}
    with contextlib.nullcontext(arguments.postgres) if arguments.postgres else throw_away_server() as url:
        if url:
            rows["postgresql"] = measure(url, arguments.runs)
    machine = {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
        "sqlite": sqlite3.sqlite_version,
    }
    size = len(json.dumps(make(0).to_dict()))
    print(json.dumps({"runs": arguments.runs, "record_bytes": size, "rows": rows, "machine": machine}, indent=2))


if __name__ == "__main__":
    main()
