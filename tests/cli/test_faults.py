"""Killed, interrupted, out of disk, locked out: finished runs are kept, and the same command goes on from there."""

import contextlib
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from program import until

from muonlab.records import Store, StoreError
from muonlab.records.record import same_result

FINISHED = "what the store holds is kept, and the same command goes on from there"


def count(folder, name="muonlab.db"):
    """Runs in a store that may not be there yet."""
    path = folder / name
    try:
        with Store(path, read_only=True) as store:
            return store.count()
    except StoreError:
        return 0


def records(folder, name="muonlab.db"):
    with Store(folder / name, read_only=True) as store:
        return store.get([row.key for row in store.list()])


def assert_same_runs(folder, study):
    """The store in `folder` holds what an uninterrupted study gave, bit for bit; only the data lie elsewhere."""
    ours, expected = records(folder), records(study.program.folder)
    assert ours.keys() == expected.keys()
    assert all(same_result(replace(ours[key], spec=expected[key].spec), expected[key]) for key in expected)


def forget(path):
    """Take one optimizer's runs out of a store, and the room that they had; how many there were."""
    with Store(path) as store:
        removed = store.remove([row.key for row in store.list(optimizer="muon")])
    with contextlib.closing(sqlite3.connect(path)) as raw:
        raw.execute("VACUUM")
    return removed


def losses(document):
    return {name: (found["loss_mean"], found["loss_std"]) for name, found in document["optimizers"].items()}


def test_killed_at_three_instants_it_gives_what_it_would_have_given(program, study):
    seed = random.randrange(2**32)
    instants = random.Random(seed)
    for _ in range(3):
        before = count(program.folder)
        call = program.start(*study.arguments, "--json")
        until(lambda: count(program.folder) > before)  # noqa: B023
        time.sleep(0.3 * instants.random())
        call.kill(signal.SIGKILL)
        assert call.wait().code not in (0, 1, 2)
    kept = count(program.folder)
    done = program(*study.arguments, "--json")
    assert done.code == 0 and kept + done.json["runs_executed"] == study.document["num_runs"], f"random.Random({seed})"
    assert losses(done.json) == losses(study.document) and done.json["verdict"] == study.document["verdict"]
    assert_same_runs(program.folder, study)


def test_interrupted_by_the_keyboard(program, study):
    """Ctrl-C goes to the whole process group; here while the server of the runs still imports torch."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "muonlab", *study.arguments, "--json"],
        cwd=program.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    until((program.folder / "muonlab.db").exists)
    time.sleep(0.2)
    os.killpg(driver.pid, signal.SIGINT)
    out, err = driver.communicate(timeout=30)
    assert (driver.returncode, out, err) == (130, "", f"muonlab: interrupted; {FINISHED}\n")
    assert count(program.folder) == 0


def test_terminated(program, study):
    call = program.start(*study.arguments, "--json")
    until(lambda: count(program.folder) > 2)
    call.kill(signal.SIGTERM)
    assert call.wait().said(143) == f"terminated; {FINISHED}"
    assert count(program.folder) > 2
    with Store(program.folder / "muonlab.db") as store:
        assert store.check() == []


def test_a_second_ctrl_c_does_not_wait(program, own):
    (program.folder / "0").write_text("hang")
    call = program.start(
        "train", own, "--tokens", "64", "--batch-tokens", "4", "--set", f"task.folder={program.folder}"
    )
    until((program.folder / "hanging").exists)
    time.sleep(0.3)  # a driver that is slower than its run does not yet know that it has one
    call.kill(signal.SIGINT)
    time.sleep(0.5)
    started = time.monotonic()
    assert call.process.exitcode is None  # it gives the run time for a checkpoint
    call.kill(signal.SIGINT)
    done = call.wait(10)
    assert done.code == 130 and "Traceback" not in done.err and time.monotonic() - started < 3


def test_an_interrupted_run_goes_on_from_its_checkpoint(program, own):
    arguments = ["train", own, "--tokens", "64", "--batch-tokens", "4", "--json", "--artifacts", "saved", "--seed", "5"]
    arguments += ["--set", f"task.folder={program.folder}"]
    (program.folder / "5").write_text("pause")
    call = program.start(*arguments)
    until((program.folder / "pausing").exists)
    time.sleep(0.3)
    call.kill(signal.SIGINT)
    assert call.wait().code == 130
    (checkpoint,) = (program.folder / "saved").glob("*/step-*.pt")
    assert count(program.folder) == 0
    (program.folder / "5").unlink()
    resumed = program(*arguments)
    assert resumed.code == 0 and not checkpoint.exists()
    whole = program(*arguments, "--store", "other.db")
    assert whole.json["runs_executed"] == 1
    for name in ("train_loss", "final_loss"):
        assert resumed.json[name] == whole.json[name]


@contextlib.contextmanager
def mounted(folder, options):
    """A small disk of its own; skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_no_finished_run(copied):
    with mounted(copied.program.folder / "disk", "size=4m") as disk:
        store = shutil.copy(copied.program.folder / "muonlab.db", disk / "lab.db")
        removed = forget(store)
        before = count(disk, "lab.db")
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 40_000))
        said = copied.program(*copied.arguments, "--store", "disk/lab.db").said()
        assert said.startswith("store disk/lab.db cannot grow: no space left on its disk") and "are kept" in said
        kept = count(disk, "lab.db")
        assert before < kept < before + removed
        (disk / "ballast").unlink()
        done = copied.program(*copied.arguments, "--store", "disk/lab.db", "--json")
        assert done.json["runs_executed"] == before + removed - kept


def test_a_limit_on_the_size_of_files_is_one_line(copied):
    store = copied.program.folder / "muonlab.db"
    removed = forget(store)
    before = count(copied.program.folder)
    said = copied.program(*copied.arguments, file_bytes=store.stat().st_size + 8_000).said()
    assert said.startswith("store muonlab.db failed on disk (") and "finished runs are kept" in said
    kept = count(copied.program.folder)
    assert before < kept < before + removed
    assert copied.program(*copied.arguments, "--json").json["runs_executed"] == before + removed - kept


def test_a_report_that_does_not_fit_is_one_line_and_can_be_had_later(copied):
    for path in copied.program.folder.glob("*.html"):
        path.unlink()
    said = copied.program(*copied.arguments, "--json", "--out", "/dev/full").said()
    assert said == "cannot write report '/dev/full': No space left on device"
    said = copied.program("report", "--out", "new.html", file_bytes=60_000).said()
    assert said == "cannot write report 'new.html': File too large"
    assert not list(copied.program.folder.glob("*.html")) and not list(copied.program.folder.glob(".*"))
    assert copied.program("report", "--out", "new.html").code == 0


def test_stdout_on_a_full_disk_is_one_line(study):
    for arguments in (["runs", "list"], ["runs", "list", "--json"], ["doctor"]):
        assert study.program(*arguments, out=Path("/dev/full")).said() == "No space left on device"


@contextlib.contextmanager
def read_only(folder):
    """`folder` on which nothing can be written, also not by root."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    content = folder.with_name(f"{folder.name}-content")
    folder.rename(content)
    with mounted(folder, "size=8m"):
        shutil.copytree(content, folder, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield


def test_in_a_read_only_folder_what_is_there_can_be_had_and_nothing_is_begun(copied, tmp_path):
    program, outside = copied.program, tmp_path / "report.html"
    with read_only(program.folder):
        again = program(*copied.arguments, "--json", "--out", outside)
        assert again.code == 0 and again.json["runs_executed"] == 0
        assert program("report", "--json", "--out", outside).code == 0
        assert program("runs", "list").code == 0 and "read-only" in program("doctor").out
        said = program(*copied.arguments, "--seeds", "5", "--out", outside).said()
        assert "the store is read-only and lacks" in said and "--store" in said
        assert program(*copied.arguments).said() == "cannot write report muonlab-report.html: the folder is read-only"
        said = program(*copied.arguments, "--store", "new.db", "--out", outside).said()
        assert "store new.db cannot be created: directory" in said and "is read-only" in said
        key = program("runs", "list", "--json", "--limit", "1").json["runs"][0]["key"]
        assert "cannot be written" in program("runs", "rm", key).said()
        assert program("runs", "list", "--json").json["total"] == copied.document["num_runs"]


def test_a_store_that_somebody_else_writes_is_waited_for_and_then_left_alone(copied):
    folder = copied.program.folder
    with contextlib.closing(sqlite3.connect(folder / "muonlab.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert copied.program("runs", "list", "--json", lock_seconds=0.2).json["total"] == copied.document["num_runs"]
        said = copied.program(*copied.arguments, "--seeds", "3", "--json", lock_seconds=0.2).said()
        assert said.startswith("store muonlab.db is locked by another process for more than 0.2 s")
        other.execute("ROLLBACK")
    done = copied.program(*copied.arguments, "--seeds", "3", "--json", lock_seconds=0.2)
    assert done.code == 0 and done.json["runs_executed"] > 0


@pytest.mark.parametrize("how", ("cut", "zeros", "foreign", "empty row"))
def test_a_damaged_store_is_refused_and_not_touched(copied, how):
    path = copied.program.folder / "muonlab.db"
    for extra in ("-wal", "-shm"):
        Path(f"{path}{extra}").unlink(missing_ok=True)
    content = path.read_bytes()
    if how == "foreign":
        path.unlink()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE customers (name TEXT)")
    elif how == "empty row":
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("UPDATE runs SET record = ''")
            other.commit()
    else:
        path.write_bytes(content[:10_000] if how == "cut" else bytes(4096) + content[4096:])
    before = path.read_bytes()
    said = copied.program(*copied.arguments, "--json").said()
    assert "muonlab.db" in said
    assert "muonlab.db" in copied.program("report").said()
    assert path.read_bytes() == before


def test_when_nobody_reads_on_it_ends_quietly(study):
    for arguments in (["runs", "list", "--json"], ["--help"]):
        command = [sys.executable, "-m", "muonlab", *arguments]
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, cwd=study.program.folder, text=True, timeout=60
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")
    closed = 'exec "$@" >&- 2>&-'
    command = ["sh", "-c", closed, "sh", sys.executable, "-m", "muonlab", "runs", "list", "--json"]
    assert subprocess.run(command, cwd=study.program.folder, timeout=60).returncode == 0


def test_a_bare_environment_is_enough(study, tmp_path):
    """No HOME, no TERM, the C locale, no terminal."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "LANG": "C", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "muonlab", "report", "--out", str(tmp_path / "report.html")]
    done = subprocess.run(
        command, env=environment, cwd=study.program.folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout and "adamw" in done.stdout.decode()


def test_colour_is_for_terminals_that_want_it(study):
    assert "\x1b" not in study.program("runs", "list", environment={"TERM": "xterm-256color"}).out
    assert "\x1b" not in study.program("runs", "list", environment={"NO_COLOR": "1", "COLUMNS": "40"}).out


def test_a_home_that_cannot_be_written_is_no_obstacle(study, tmp_path):
    done = study.program(
        "report", "--out", tmp_path / "r.html", environment={"HOME": "/dev/null", "TMPDIR": "/dev/null"}
    )
    assert (done.code, done.err) == (0, "")


def test_the_limit_of_this_process_is_untouched():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.getrlimit(resource.RLIMIT_FSIZE)[1]
