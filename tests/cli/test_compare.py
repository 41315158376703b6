"""The main job from end to end: what it prints, what it keeps, and that it is never done twice."""

import json
import re
from pathlib import Path

from muonlab.records import Store

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"


def numbers(document):
    """All of a document but what says how it came about."""
    return {name: value for name, value in document.items() if name not in ("runs_executed", "report")}


def test_the_documented_keys_are_there(study):
    assert study.first.code == 0, study.first
    document = study.document
    assert isinstance(document["verdict"], str) and document["verdict"]
    assert document["runs_executed"] == document["num_runs"] > 30
    assert document["report"] == "first.html"
    assert document["optimizers"].keys() == {"adamw", "muon"} and document["speedup"].keys() == {"muon"}
    for name, found in document["optimizers"].items():
        assert found.keys() >= {"loss_mean", "loss_std", "num_seeds", "wall_seconds", "hyperparameters"}, name
        assert 0.5 < found["loss_mean"] < 5.6 and found["loss_std"] >= 0 and found["num_seeds"] == 2
        assert found["wall_seconds"] > 0 and found["hyperparameters"].keys() == {"opt.lr"}
    speedup = document["speedup"]["muon"]
    assert speedup.keys() >= {"tokens", "low", "high", "wall", "flag"}
    assert all(value is None or isinstance(value, int | float | str) for value in speedup.values())
    for check in document["checks"]:
        assert check.keys() >= {"name", "ok", "detail"} and isinstance(check["ok"], bool)


def test_only_the_document_is_on_stdout_and_no_noise_on_stderr(study):
    assert study.first.out == json.dumps(study.document, indent=2) + "\n"
    progress = r"muonlab: \d+ runs(, \d+ diverged)?, \d+%, about \d+ s left"
    assert all(re.fullmatch(progress, line) for line in study.first.err.splitlines())


def test_every_run_is_in_the_store_and_ok(study):
    with Store(study.program.folder / "muonlab.db", read_only=True) as store:
        rows = store.list()
        assert len(rows) == store.count() == study.document["num_runs"] and {row.outcome for row in rows} == {"ok"}
        assert len(store.studies()) == 1 and store.check() == []
    assert not (study.program.folder / "muonlab-artifacts").exists()  # short runs write no checkpoints


def test_the_report_is_written_and_asks_for_nothing_from_elsewhere(study):
    html = (study.program.folder / "first.html").read_text()
    assert html.lower().startswith("<!doctype html>")
    assert study.document["verdict"].split(" (")[0] in html
    assert not re.findall(r"(?:src|href)=[\"']https?:", html)


def test_the_same_command_again_runs_nothing_and_says_the_same(study):
    again = study.program(*study.arguments, "--json", "--out", "again.html")
    assert again.code == 0 and again.err == ""
    assert again.json["runs_executed"] == 0 and numbers(again.json) == numbers(study.document)


def test_workers_threads_and_progress_are_not_part_of_it(study):
    again = study.program(*study.arguments, "--workers", "1", "--threads", "2", "--no-progress", "--json")
    assert again.json["runs_executed"] == 0


def test_the_tables_say_it_too(study):
    shown = study.program(*study.arguments)
    assert shown.code == 0 and "0 runs executed. Report: muonlab-report.html" in shown.out
    words = " ".join(shown.out.split())
    assert study.document["verdict"].split()[0] in words and "adamw" in words and "muon" in words


def test_a_finished_study_is_shown_again_without_its_data(copied):
    (copied.program.folder / "text.txt").unlink()
    shown = copied.program("report", "--json", "--out", "shown.html")
    assert shown.code == 0 and shown.json["runs_executed"] == 0
    assert numbers(shown.json) == numbers(copied.document)
    with Store(copied.program.folder / "muonlab.db", read_only=True) as store:
        saved = store.study()
    assert copied.program("report", saved.key[:8], "--out", "again.html").code == 0
    first, again = ((copied.program.folder / name).read_text() for name in ("shown.html", "again.html"))
    assert first == again and saved.created in first and "compare text --data text.txt" in first


def test_a_study_that_lost_a_run_makes_it_again_and_only_that(copied):
    with Store(copied.program.folder / "muonlab.db") as store:
        key = store.list(optimizer="muon")[0].key
    assert copied.program("runs", "rm", key[:10]).code == 0
    said = copied.program("report").said()
    assert "1 runs of study" in said and "no longer in muonlab.db: run it again" in said
    again = copied.program(*copied.arguments, "--json")
    assert again.json["runs_executed"] == 1
    assert again.json["optimizers"]["muon"]["loss_mean"] == copied.document["optimizers"]["muon"]["loss_mean"]


def test_a_larger_study_runs_only_what_is_new(copied):
    more = copied.program(*copied.arguments, "--seeds", "3", "--json")
    assert more.code == 0 and 0 < more.json["runs_executed"] <= 8
    assert more.json["optimizers"]["muon"]["num_seeds"] == 3
    assert more.json["num_runs"] == copied.document["num_runs"] + more.json["runs_executed"]


def test_a_variant_is_compared_like_any_optimizer_and_named_in_a_file_too(copied):
    program, arguments = copied.program, [*copied.arguments, "--json"]
    named = ["--optimizers", "muon,muon-4", "--margin", "0.5"]
    done = program(*arguments, *named, "--variant", "muon-4=muon,opt.ns_steps=4", "--out", "flags.html")
    assert done.code == 0, done
    found = done.json
    assert found["optimizers"].keys() == {"muon", "muon-4"} and found["contrasts"].keys() == {"muon-4"}
    four = found["optimizers"]["muon-4"]
    assert (four["optimizer"], four["fixed"]) == ("muon", {"opt.ns_steps": 4})
    assert found["optimizers"]["muon"]["loss_mean"] == copied.document["optimizers"]["muon"]["loss_mean"]
    assert four["loss_mean"] != found["optimizers"]["muon"]["loss_mean"]
    paired = found["paired"]["muon-4"]
    assert paired["num_pairs"] == 2 and paired["margin_nats"] == 0.5 and paired["no_worse"] in (True, False, None)
    assert "muon with opt.ns_steps" in (program.folder / "flags.html").read_text()
    with Store(program.folder / "muonlab.db", read_only=True) as store:
        assert {row.optimizer for row in store.list()} == {"adamw", "muon"}  # a run knows nothing of names
        assert len(store.list(limit=1000)) == store.count()
        assert store.study().config["conventions"]["muon-4"]["polar factor"].split(":")[2] == "4"
    assert numbers(program("report", "--json").json) == numbers(found)
    text = (program.folder / "small.toml").read_text()
    table = '[variants.muon-4]\noptimizer = "muon"\nopt.ns_steps = 4\n'
    (program.folder / "small.toml").write_text(f'optimizers = ["muon", "muon-4"]\nmargin_nats = 0.5\n{text}{table}')
    again = program(*arguments)
    assert again.json["runs_executed"] == 0 and numbers(again.json) == numbers(found)
    with Store(program.folder / "muonlab.db", read_only=True) as store:
        assert len(store.studies()) == 2  # the same study, wherever it was written down
    tuned = program("tune", "text", *copied.arguments[2:], "--tune", "opt.lr", "--optimizer", "muon-4", "--json")
    assert tuned.code == 0 and tuned.json["best"] == four["hyperparameters"]


def test_moved_data_and_a_moved_store_re_run_nothing(copied):
    folder = copied.program.folder
    (folder / "elsewhere").mkdir()
    (folder / "text.txt").rename(folder / "elsewhere" / "renamed.md")
    (folder / "muonlab.db").rename(folder / "elsewhere" / "lab.sqlite")
    arguments = [{"text.txt": "elsewhere/renamed.md"}.get(word, word) for word in copied.arguments]
    again = copied.program(*arguments, "--store", "sqlite:///elsewhere/lab.sqlite", "--json")
    assert again.json["runs_executed"] == 0


def test_the_example_of_an_own_model_works(program):
    arguments = ("--config", "small.toml", "--tokens", "512", "--batch-tokens", "64", "--set", "task.width=8")
    done = program("compare", f"{EXAMPLE}:Task", *arguments, "--json")
    assert done.code == 0, done
    assert done.json["optimizers"]["muon"]["loss_mean"] < 2.5
    with Store(program.folder / "muonlab.db") as store:
        assert {row.task for row in store.list()} == {"own_model:Task"}
    again = program("compare", f"{EXAMPLE}:Task", *arguments, "--json")
    assert again.json["runs_executed"] == 0


def test_where_every_run_diverges_the_study_says_so(program, own):
    (program.folder / "nan").touch()
    done = program("compare", own, "--config", "small.toml", "--json")
    assert done.code == 0, done  # a diverged run is a result
    found = done.json["optimizers"]["muon"]
    assert found["loss_mean"] is None and found["num_diverged"] == 2
    assert done.json["speedup"]["muon"]["tokens"] is None
    assert (program.folder / "muonlab-report.html").exists()
    rows = program("runs", "list", "--json", "--limit", "1000").json["runs"]
    assert {row["outcome"] for row in rows} == {"diverged"} and {row["final_loss"] for row in rows} == {None}
    assert program("compare", own, "--config", "small.toml", "--json").json["runs_executed"] == 0


def test_failed_runs_are_exit_code_1_and_are_made_again(program, own):
    (program.folder / "0").write_text("error")  # seed 0 is a final seed
    done = program("compare", own, "--config", "small.toml", "--json")
    assert done.code == 1 and done.json["verdict"]  # stdout is JSON, whatever the task prints
    assert "imported\n" in done.err and "made\n" in done.err
    failed = program("runs", "list", "--outcome", "failed", "--json").json["runs"]
    assert len(failed) >= 4 and {row["seed"] for row in failed} == {0}
    shown = program("runs", "show", failed[0]["key"][:12])
    assert "RuntimeError: planned" in shown.out
    (program.folder / "0").unlink()
    again = program("compare", own, "--config", "small.toml", "--json")
    assert again.code == 0 and again.json["runs_executed"] >= len(failed)
    assert program("runs", "list", "--outcome", "failed", "--json").json["runs"] == []
