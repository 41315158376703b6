"""Files in and out: round trips, errors that name the line, and no half-written file."""

import csv
import io
import math
import os
import subprocess
import sys

import pytest

from muonlab.errors import UsageError
from muonlab.records import Store
from muonlab.records.importers import atomic_write, export_jsonl, import_jsonl
from muonlab.records.tables import export_csv, read_csv

HEAD = "optimizer,size,params,tokens,loss\n"


@pytest.fixture
def table(tmp_path):
    def write(text, name="runs.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# JSON lines


def test_jsonl_round_trip_from_store_to_store(tmp_path, make):
    own = {"optimizer": "own_rule:MyRule", "optimizer_source": "/home/ann/own_rule.py", "numerics": {"rule": "ab+a:1"}}
    records = [make(0), make(1, outcome="diverged", error="loss\nnan é \ud800"), make(2, outcome="failed", **own)]
    with Store(tmp_path / "a.db") as one, Store(tmp_path / "b.db") as two:
        for record in records:
            one.put(record)
        found = one.get(record.key for record in records)
        assert export_jsonl(found.values(), tmp_path / "runs.jsonl") == 3
        for record in import_jsonl(tmp_path / "runs.jsonl"):
            two.put(record)
        assert two.get(found) == found == {record.key: record for record in records}


def test_jsonl_of_nothing(tmp_path):
    assert export_jsonl([], tmp_path / "x") == 0
    assert import_jsonl(tmp_path / "x") == []


def test_jsonl_torn_last_line_is_left_out_with_a_warning(tmp_path, make, caplog):
    path = tmp_path / "runs.jsonl"
    export_jsonl([make(0), make(1)], path)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in (start + 1, start + 50, len(whole) - 2):
        caplog.clear()
        path.write_bytes(whole[:end])
        assert import_jsonl(path) == [make(0)]
        assert f"{path} line 2 is incomplete" in caplog.text
    path.write_bytes(whole[:-1])  # only the end of the line is missing
    assert import_jsonl(path) == [make(0), make(1)]
    path.write_bytes(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n\r\n"))  # what a Windows editor makes of it
    assert import_jsonl(path) == [make(0), make(1)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{torn", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("\ud800", "line 2 is not JSON"),
        ("[]", "line 2: not a record: expected a JSON object, got list"),
        ("{}", "line 2: record has schema_version None"),
        ('{"schema_version": 1}', "line 2: not a record: 'spec'"),
    ],
)
def test_jsonl_bad_line_is_named(tmp_path, make, line, words):
    path = tmp_path / "runs.jsonl"
    export_jsonl([make(0)], path)
    path.write_bytes(path.read_bytes() + line.encode(errors="surrogatepass") + b"\n" + path.read_bytes())
    with pytest.raises(UsageError, match=words) as caught:
        import_jsonl(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_jsonl_altered_record_and_file_of_another_kind(tmp_path, make, table):
    path = tmp_path / "runs.jsonl"
    export_jsonl([make(0)], path)
    path.write_text(path.read_text().replace('"opt.lr":0.003', '"opt.lr":0.03'))
    with pytest.raises(UsageError, match=r"line 1: record .* does not match its spec"):
        import_jsonl(path)
    with pytest.raises(UsageError, match="line 1 is not JSON"):
        import_jsonl(table("no newline, no record"))
    with pytest.raises(UsageError, match=r"cannot read .*absent: No such file"):
        import_jsonl(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        import_jsonl(tmp_path)


# CSV


def test_csv_of_records_is_read_back(tmp_path, make):
    evil = make(1, optimizer="=cmd|' /C calc'!A0", hyperparameters={"opt.note": "@sum", "opt.lr": 1e-5, "opt.k": -2})
    bad = make(2, optimizer="muon", outcome="diverged", diverged_step=3, train_loss=(1.0, 2.0, float("inf")))
    path = tmp_path / "runs.csv"
    assert export_csv([make(0), evil, bad], path) == 3
    with open(path, newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    assert "-2" in cells and "'@sum" in cells
    one, two, three = read_csv(path)
    assert (one["loss"], one["params"], one["tokens"], one["size"]) == (make(0).final_loss, 1200, 4096, "1200")
    assert (one["opt.lr"], one["opt.betas"], one["schedule.kind"]) == (0.003, "[0.9, 0.95]", "linear")
    assert (two["optimizer"], two["opt.note"], two["opt.lr"], two["opt.k"]) == ("=cmd|' /C calc'!A0", "@sum", 1e-5, -2)
    assert (three["loss"], three["outcome"], three["step"], three["key"]) == (None, "diverged", 3, bad.key)
    assert [row["line"] for row in (one, two, three)] == [2, 3, 4]


def test_csv_columns_can_be_mapped(table):
    path = table("Opt;N;D;val loss;size;loss\nadamw;1e6;2000000;3,1;s;9\n".replace("3,1", "3.1"))
    (row,) = read_csv(path, {"optimizer": "Opt", "params": "N", "tokens": "D", "loss": "val loss"})
    assert row == {"optimizer": "adamw", "params": 1e6, "tokens": 2000000, "loss": 3.1, "size": "s", "line": 2}


def test_csv_cells(table):
    text = HEAD.replace("loss", "loss,lr,note,") + "adamw,124M, 1e6 ,7,,.5,hé,\n\n , ,,,,,,\nmuon,2,3,4,NaN,inf,1_0,x\n"
    one, two = read_csv(table(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    known = {"optimizer": "adamw", "size": "124M", "params": 1e6, "tokens": 7, "loss": None}
    assert one == {**known, "lr": 0.5, "note": "hé", "line": 2}
    assert math.isnan(two["loss"]) and (two["lr"], two["note"], two["size"], two["line"]) == (math.inf, "1_0", "2", 5)


def test_csv_for_other_verbs(table):
    path = table("workload,time_to_target\nfastmri,inf\nogbg,12.5\n")
    rows = read_csv(path, required=("workload", "time_to_target"))
    assert [row["time_to_target"] for row in rows] == [float("inf"), 12.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty: its first line must name the columns"),
        ("\n\n", "is empty"),
        ("optimizer,size,params,tokens,val\n", "has no column 'loss' .*--column loss=NAME"),
        (HEAD.replace("size", "loss"), "two columns 'loss'"),
        (HEAD + "adamw,s,1,2,3\nmuon,s,1,2,x\n", "line 3: loss must be a number, got 'x'"),
        (HEAD + "adamw,s,1,2,3,1\n", "line 2 has 6 cells, the first line has 5"),
        (HEAD + "adamw\n", "line 2 has 1 cells"),
        (HEAD + 'adamw,"a\nb",1,2,3\nmuon,s,1_000,2,3\n', "line 4: params must be a number"),
        (HEAD + 'adamw,"s,1,2,3\n', "line 2 is not CSV"),
        (HEAD + "a" * 200_000, "is not CSV: field larger"),
        (HEAD.encode("utf-16"), "is not UTF-8"),
        (HEAD + "adamw,s,1,2,é\n".encode("latin-1").decode("latin-1"), "loss must be a number"),
    ],
)
def test_csv_that_cannot_be_read(table, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        read_csv(table(text))
    assert "\n" not in str(caught.value)


def test_csv_mapping_to_a_column_that_is_not_there(table):
    with pytest.raises(UsageError, match=r"unknown column of .*'los'.*did you mean 'loss'"):
        read_csv(table(HEAD), {"loss": "los"})


# Writing


def test_standard_output(capsys, make):
    assert export_jsonl([make(0)], "-") == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
    export_csv([make(0)], "-")
    assert len(list(csv.reader(io.StringIO(capsys.readouterr().out)))) == 2


def test_a_failed_export_leaves_the_earlier_file(tmp_path, make):
    path = tmp_path / "runs.jsonl"
    path.write_text("earlier")

    def records():
        yield make(0)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        export_jsonl(records(), path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("runs.jsonl", "earlier")]


def test_places_that_cannot_be_written(tmp_path, make):
    with pytest.raises(UsageError, match=r"cannot write .*: directory .*absent does not exist"):
        export_jsonl([make(0)], tmp_path / "absent" / "x")
    with pytest.raises(UsageError, match=r"cannot write .*: it is a directory"):
        export_csv([make(0)], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_device_is_written_to_not_replaced(make):
    with pytest.raises(UsageError, match="cannot write /dev/full: No space left"):
        export_jsonl([make(seed) for seed in range(3)], "/dev/full")
    assert not os.path.isfile("/dev/full")


def test_file_size_limit_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("earlier")
    code = (
        "import resource, sys\n"
        "from muonlab.records.importers import atomic_write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic_write(sys.argv[1]) as file: file.write('a' * 5000)\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("x", "earlier")]


def test_links_and_modes_are_kept(tmp_path):
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o666 & ~umask
