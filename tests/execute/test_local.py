"""Runs in children: what they give, how they end, and that nothing of it harms the others or the driver."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from muonlab.errors import UsageError
from muonlab.execute import local
from muonlab.execute.executor import Observation
from muonlab.execute.local import InlineExecutor, LocalExecutor
from muonlab.records.record import same_result
from muonlab.records.watch import Watch
from muonlab.train.loop import train

ENDINGS = {  # how -> what the record says
    "kill": "killed by SIGKILL (out of memory?), 2 times",
    "orphan": "killed by SIGKILL (out of memory?), 2 times",
    "segfault": "killed by SIGSEGV, 2 times",
    "quit": "ended with exit code 3, 2 times",
    "leave": "ended with exit code 4, 2 times",
    "interrupt": "ended with exit code 1, 2 times",
    "error": "RuntimeError: planned",
    "memory": "MemoryError:",
}


def run(executor, specs, observation=None):
    return {record.spec.seed: record for record in executor.run(specs, observation or Observation())}


@pytest.fixture(scope="module")
def ended(make_spec, tmp_path_factory):
    """One call with a run of every ending and two that are fine, two at a time."""
    started = time.monotonic()
    folder = tmp_path_factory.mktemp("orders")
    for seed, how in enumerate(ENDINGS, 1):
        (folder / str(seed)).write_text(how)
    (folder / "50").write_text("kill 1")
    (folder / "51").write_text("chatter")
    (folder / "52").write_text("workers")
    specs = [make_spec(seed, folder) for seed in (0, *range(1, len(ENDINGS) + 1), 50, 51, 52, 99)]
    records = run(LocalExecutor(workers=2), specs)
    assert time.monotonic() - started < 35, "nobody waits for what a task leaves behind"
    for order in folder.iterdir():
        order.unlink()
    return records, {spec.seed: train(spec) for spec in specs}


def test_every_spec_gives_one_record(ended):
    records, quiet = ended
    assert records.keys() == quiet.keys()


@pytest.mark.parametrize("seed", (0, 99))
def test_other_runs_are_unharmed(ended, seed):
    records, quiet = ended
    assert same_result(records[seed], quiet[seed]) and records[seed].attempts == 1


@pytest.mark.parametrize(("seed", "how"), list(enumerate(ENDINGS, 1)))
def test_a_run_that_comes_to_grief_is_recorded_as_failed(ended, seed, how):
    record = ended[0][seed]
    assert record.outcome == "failed" and record.final_loss is None and record.created
    assert ENDINGS[how] in record.error.splitlines()[0]
    if how in ("error", "memory"):
        assert "Traceback" in record.error and "grief.py" in record.error and record.attempts == 1
    else:
        assert record.attempts == 2


def test_a_run_that_is_killed_once_is_run_again(ended):
    records, quiet = ended
    assert same_result(records[50], quiet[50]) and records[50].attempts == 2


def test_a_run_may_print_as_much_as_it_likes(ended):
    records, quiet = ended
    assert same_result(records[51], quiet[51])


def test_a_run_may_have_processes_of_its_own(ended):
    records, quiet = ended
    assert same_result(records[52], quiet[52]), records[52].error


def test_children_give_what_the_process_itself_gives(make_spec):
    specs = [make_spec(seed, optimizer=name) for seed in (1, 2) for name in ("adamw", "muon")]
    tokens, observation = [], Observation(Watch(frozenset({3, 8})))
    inline = {r.key: r for r in InlineExecutor().run(specs, observation)}
    watched = Observation(observation.watch, tokens.append)
    children = {r.key: r for r in LocalExecutor(workers=2, threads=2).run(specs, watched)}
    assert len(inline) == 4 and all(same_result(inline[key], children[key]) for key in inline)
    assert all(r.eval_steps == (3, 8) and r.environment["threads"] == 2 for r in children.values())
    assert sum(tokens) == sum(spec.horizon_tokens for spec in specs)
    assert not multiprocessing.active_children()


def test_inline_a_failure_is_a_record_too(make_spec, tmp_path):
    (tmp_path / "1").write_text("error 1")
    records = run(InlineExecutor(), [make_spec(seed, tmp_path) for seed in (0, 1)])
    assert records[0].outcome == "ok" and records[1].error.startswith("RuntimeError: planned\nTraceback")


@pytest.mark.parametrize("executor", (InlineExecutor(), LocalExecutor(workers=2)), ids=("inline", "local"))
def test_a_usage_error_in_a_run_is_one_here(make_spec, tmp_path, executor):
    (tmp_path / "1").write_text("usage")
    with pytest.raises(UsageError, match=r"^this can't be run$"):
        run(executor, [make_spec(seed, tmp_path) for seed in (1, 0)])
    assert not multiprocessing.active_children()


def test_a_spec_that_no_task_can_run_is_a_usage_error(make_spec):
    with pytest.raises(UsageError, match="unknown task option 'depth'"):
        run(LocalExecutor(workers=1), [make_spec().set({"task.depth": 3})])


def test_nothing_to_run_starts_nothing():
    assert list(LocalExecutor(workers=2).run([], Observation())) == []


@pytest.mark.parametrize("values", ({"workers": 0}, {"workers": 1, "threads": 0}))
def test_there_must_be_a_worker_and_a_thread(values):
    with pytest.raises(UsageError, match="at least 1"):
        LocalExecutor(**values)


def test_a_driver_that_stops_lets_its_runs_write_checkpoints(make_spec, tmp_path):
    """Also those whose steps take longer than the time between two progress reports."""
    (tmp_path / "0").write_text("slow")
    (tmp_path / "1").write_text("slow")
    specs = [make_spec(seed, tmp_path) for seed in (0, 1)]
    executor = LocalExecutor(workers=2, artifacts=tmp_path / "artifacts")
    first_report = iter([None])

    def stop(tokens):
        next(first_report, None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), closing(executor.run(specs, Observation(on_tokens=stop))) as records:
        list(records)
    assert not multiprocessing.active_children()
    for spec in specs:
        assert list((executor.artifacts / spec.key).glob("step-*.pt"))
        (tmp_path / str(spec.seed)).unlink()
    records = run(executor, specs)
    assert all(same_result(records[spec.seed], train(spec)) for spec in specs)
    assert not any(executor.artifacts.iterdir())


def test_a_run_that_does_not_end_by_itself_is_killed(make_spec, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.3)  # the driver's; the child has five seconds
    (tmp_path / "1").write_text("hang")
    started = time.monotonic()
    with closing(
        LocalExecutor(workers=2).run([make_spec(seed, tmp_path) for seed in (1, 0)], Observation())
    ) as records:
        assert next(records).spec.seed == 0
    assert not multiprocessing.active_children() and time.monotonic() - started < 20


DRIVER = """
import sys
from pathlib import Path
from muonlab.execute.executor import Observation
from muonlab.execute.local import LocalExecutor
from muonlab.records import RunSpec
from muonlab.records.watch import Watch
import json
specs = [RunSpec.from_dict(values) for values in json.loads(sys.argv[1])]
print("up", flush=True)
for record in LocalExecutor(workers=3, artifacts=Path(sys.argv[2])).run(specs, Observation()):
    print(record.outcome, flush=True)
"""


def descendants(pid: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see the processes")
def test_a_driver_that_is_killed_leaves_nobody_behind(make_spec, tmp_path):
    """Neither runs that go on step by step (they write a checkpoint first) nor one that hangs."""
    for seed, how in enumerate(("slow", "hang")):
        (tmp_path / str(seed)).write_text(how)
    specs = [make_spec(seed, tmp_path) for seed in (0, 1)]
    arguments = [json.dumps([spec.to_dict() for spec in specs]), str(tmp_path / "artifacts")]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while len(family := descendants(driver.pid)) < 4 and time.monotonic() < deadline:  # server, tracker, two runs
            time.sleep(0.05)
        assert len(family) == 4
        time.sleep(1.0)  # for the first steps
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    deadline = time.monotonic() + 20  # five for the run that hangs; the rest is for a busy machine
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in family if alive(pid)}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert list((tmp_path / "artifacts" / specs[0].key).glob("step-*.pt"))
    assert driver.stdout.read() == b"up\n"
