"""The verbs other than `compare`: what each prints, on stdout and nothing else there."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import muonlab
from muonlab.cli.laboratory import Laboratory
from muonlab.records import Store
from muonlab.records.importers import import_jsonl
from muonlab.records.record import same_result

VERBS = ("demo", "compare", "tune", "train", "report", "runs", "bench", "optimizers", "doctor")
RUNS = ("list", "show", "export", "import", "rm")
HELP = """
import contextlib, io, json, sys
from muonlab.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["muonlab", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as end:
            heavy = [name for name in ("torch", "numpy", "sqlalchemy") if name in sys.modules]
            found.append([end.code, out.getvalue(), heavy])
print(json.dumps(found))
"""


def test_help_is_instant_and_complete():
    """No verb's help imports what takes long."""
    asked = [
        ["--help"],
        ["-h"],
        ["--version"],
        *([verb, "--help"] for verb in VERBS),
        *(["runs", v, "-h"] for v in RUNS),
    ]
    done = subprocess.run([sys.executable, "-c", HELP, json.dumps(asked)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = dict(zip(map(" ".join, asked), json.loads(done.stdout), strict=True))
    assert all(code == 0 and heavy == [] for code, _, heavy in found.values()), found
    texts = {name: text for name, (_, text, _) in found.items()}
    assert all(verb in texts["--help"] for verb in VERBS) and texts["--help"] == texts["-h"]
    assert all(verb in texts["runs --help"] for verb in RUNS)
    assert texts["--version"] == f"muonlab {muonlab.__version__}\n"
    assert all("Usage: muonlab" in text for name, text in texts.items() if name != "--version")


@pytest.fixture
def train(program, tiny):
    return ["train", "text", "--data", "text.txt", "--tokens", "2048", "--batch-tokens", "128", *tiny]


def test_train_makes_one_run_and_keeps_it(program, train):
    first = program(*train, "--json")
    assert (first.code, first.err) == (0, "")
    record = first.json
    assert record["outcome"] == "ok" and record["runs_executed"] == 1 and record["spec"]["optimizer"] == "muon"
    assert record["tokens"] == 2048 and len(record["train_loss"]) == 16 and record["eval_steps"] == []
    again = program(*train, "--json").json
    assert again == {**record, "runs_executed": 0}
    shown = program("runs", "show", record["key"][:9], "--json").json
    assert shown == {name: value for name, value in record.items() if name != "runs_executed"}
    assert record["key"][:12] in program("runs", "show", record["key"][:9]).out
    assert record["key"][:12] in program("runs", "list").out


def test_train_watches_without_changing_the_run(program, train):
    plain = program(*train, "--json").json
    watched = program(*train, "--eval-every", "5", "--json").json
    assert watched["runs_executed"] == 1 and watched["eval_steps"] == [5, 10, 15] and len(watched["eval_loss"]) == 3
    assert watched["final_loss"] == plain["final_loss"] and watched["key"] == plain["key"]
    assert program(*train, "--eval-every", "10", "--json").json["runs_executed"] == 0
    assert program(*train, "--json").json["eval_steps"] == [5, 10, 15]


def test_train_takes_settings_and_they_win_over_flags(program, train):
    settings = {"opt.lr": "0.003", "seed": "7", "precision": "bf16", "schedule.kind": "wsd", "clip": "0.5"}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    spec = program(*train, "--seed", "1", "--precision", "fp32", *words, "--set", "batch_tokens=256", "--json").json[
        "spec"
    ]
    assert (spec["seed"], spec["precision"], spec["clip"], spec["batch_tokens"]) == (7, "bf16", 0.5, 256)
    assert spec["hyperparameters"]["opt.lr"] == 0.003 and spec["schedule"] == {"kind": "wsd"}


def test_other_data_is_another_run(program, train):
    first = program(*train, "--json").json
    path = program.folder / "text.txt"
    path.write_text(path.read_text() + "!")
    second = program(*train, "--json").json
    assert second["runs_executed"] == 1 and second["key"] != first["key"]


def test_a_diverged_run_is_a_result(program, own):
    (program.folder / "nan").touch()
    done = program("train", own, "--tokens", "64", "--batch-tokens", "4", "--json")
    assert done.code == 0 and done.json["outcome"] == "diverged" and done.json["diverged_step"] == 1
    assert done.json["final_loss"] is None and done.json["last_finite_loss"] is None
    shown = program("train", own, "--tokens", "64", "--batch-tokens", "4")
    assert shown.code == 0 and "diverged" in shown.out and "Traceback" not in shown.out + shown.err


def test_a_number_that_is_none_is_null(program, own):
    (program.folder / "inf").touch()
    done = program("train", own, "--tokens", "64", "--batch-tokens", "4", "--eval-every", "8", "--json")
    assert done.code == 0 and done.json["outcome"] == "diverged"
    assert done.json["eval_steps"] == [8, 16] and done.json["eval_loss"] == [None, None]
    assert program("runs", "show", done.json["key"][:12], "--json").json["eval_loss"] == [None, None]


def test_a_failed_run_is_exit_code_1(program, own):
    (program.folder / "0").write_text("error")
    done = program("train", own, "--tokens", "64", "--batch-tokens", "4", "--json")
    assert done.code == 1 and done.json["outcome"] == "failed" and "planned" in done.json["error"]
    (program.folder / "0").unlink()
    assert program("train", own, "--tokens", "64", "--batch-tokens", "4", "--json").json["outcome"] == "ok"


def test_tune_says_where_it_ended_and_why(program, tiny):
    arguments = ["tune", "text", "--optimizer", "sgd", "--data", "text.txt", "--config", "small.toml", *tiny]
    arguments += ["--tune", "opt.lr"]
    done = program(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    result = done.json
    assert result["best"].keys() == {"opt.lr"} and result["num_runs"] >= 12
    assert isinstance(result["loss"], float) and isinstance(result["converged"], bool)
    for move in result["trajectory"]:
        assert move.keys() >= {"coordinate", "old", "new", "gain", "accepted", "reason"}
    with Store(program.folder / "muonlab.db") as store:
        assert store.count() == result["num_runs"]
    shown = program(*arguments)
    assert shown.code == 0 and "opt.lr" in shown.out


@pytest.mark.parametrize("verb", ("compare", "tune", "demo"))
def test_a_dry_run_runs_nothing(program, tiny, verb):
    arguments = {
        "compare": ["text", "--config", "small.toml", "--data", "text.txt", *tiny],
        "tune": ["text", "--optimizer", "muon", "--config", "small.toml", "--data", "text.txt", *tiny],
        "demo": [],
    }[verb]
    before = sorted(program.folder.iterdir())
    done = program(verb, *arguments, "--dry-run", "--json", "--workers", "3")
    assert (done.code, done.err) == (0, "")
    price = done.json
    assert price.keys() >= {"runs", "tokens", "seconds"} and price["workers"] == 3
    for name in ("runs", "tokens", "seconds"):
        assert 0 < price[name]["least"] <= price[name]["most"]
    assert sorted(program.folder.iterdir()) == before


def test_a_price_counts_on_no_more_cores_than_there_are():
    cores = os.cpu_count()
    assert Laboratory("x.db", workers=99 * cores).num_at_once == cores
    assert Laboratory("x.db", workers=cores, threads=cores).num_at_once == 1 == Laboratory("x.db", 1).num_at_once
    assert Laboratory("x.db", workers=99, device="cuda").num_at_once == 99


def test_a_dry_run_of_a_task_that_fails_is_one_line(program, own):
    done = program("compare", own, "--config", "small.toml", "--dry-run", "--json")
    assert done.code == 0 and done.json["runs"]  # stdout is JSON, whatever the task prints
    (program.folder / "broken").touch()
    done = program("compare", own, "--config", "small.toml", "--dry-run")
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("muonlab: ") and "failed: RuntimeError: planned" in last


def test_runs_go_out_and_come_in_again(study, tmp_path):
    program, count = study.program, study.document["num_runs"]
    for name in ("runs.jsonl", "runs.csv"):
        done = program("runs", "export", tmp_path / name)
        assert (done.code, done.out, done.err) == (0, f"{count} runs written to {tmp_path / name}\n", "")
    with open(tmp_path / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count and rows[0].keys() >= {"optimizer", "size", "params", "tokens", "loss"}
    assert program("runs", "export", tmp_path / "muon.jsonl", "--optimizer", "muon").code == 0
    assert {r.spec.optimizer for r in import_jsonl(tmp_path / "muon.jsonl")} == {"muon"}
    for expected in (count, 0):
        done = program("runs", "import", tmp_path / "runs.jsonl", "--store", tmp_path / "other.db")
        assert done.out == f"{expected} of {count} runs added to {tmp_path / 'other.db'}\n"
    with Store(program.folder / "muonlab.db") as first, Store(tmp_path / "other.db") as other:
        keys = [row.key for row in first.list()]
        ours, theirs = first.get(keys), other.get(keys)
        assert all(same_result(ours[key], theirs[key]) for key in keys)


def test_runs_are_listed_by_what_they_are(study):
    listed = study.program("runs", "list", "--json", "--optimizer", "muon", "--limit", "5").json
    assert len(listed["runs"]) == 5 and listed["total"] == study.document["num_runs"]
    assert {run["optimizer"] for run in listed["runs"]} == {"muon"}
    assert study.program("runs", "list", "--json", "--task", "vision").json["runs"] == []
    table = study.program("runs", "list", "--limit", "3").out
    assert f"3 of {study.document['num_runs']} runs in muonlab.db" in table


def test_looking_makes_no_store(study, program):
    for arguments in (["list"], ["show", "ab"], ["export", "x.csv"], ["rm", "ab"]):
        assert "there is no store muonlab.db" in program("runs", *arguments).said()
    assert "does not exist" in program("report").said()
    assert program("doctor").code == 0
    assert not (program.folder / "muonlab.db").exists()


def test_the_store_may_be_named_by_the_environment(study, program):
    store = {"MUONLAB_STORE": str(study.program.folder / "muonlab.db")}
    assert program("runs", "list", "--json", environment=store).json["total"] == study.document["num_runs"]


def test_doctor_knows_the_store_and_the_machine(study):
    done = study.program("doctor", "--json")
    assert (done.code, done.err, done.json["ok"]) == (0, "", True)
    checks = {check["name"]: check for check in done.json["checks"]}
    assert f"{study.document['num_runs']} runs, 1 studies" in checks["store"]["detail"]
    assert checks.keys() >= {"torch", "devices", "text"} and all(check["ok"] for check in checks.values())


def test_doctor_says_what_is_broken(program):
    Path(program.folder, "muonlab.db").write_bytes(b"no database" * 1000)
    done = program("doctor")
    assert done.code == 1 and "BROKEN  store" in done.out
    assert program("doctor", "--json").json["ok"] is False
