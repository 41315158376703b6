"""An optimizer in a file of the user's, on the command line: wherever the name of one of ours works."""

import shutil
from pathlib import Path

import pytest

from muonlab.records import Store
from muonlab.records.importers import import_jsonl

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_rule.py"
OWN = "own_rule:MyRule"
LOUD = 'import os\nprint("imported", flush=True)\nos.write(1, b"past Python")\n'


@pytest.fixture
def rule(program) -> Path:
    """The example in the folder of the program, printing when it is imported."""
    path = program.folder / "own_rule.py"
    path.write_text(EXAMPLE.read_text() + LOUD)
    return path


@pytest.fixture
def text_task(tiny) -> list[str]:
    return ["text", "--data", "text.txt", "--config", "small.toml", *tiny]


def numbers(document):
    return {name: value for name, value in document.items() if name not in ("runs_executed", "report")}


def test_it_is_compared_like_one_of_ours(program, rule, text_task):
    named = ["--optimizers", "adamw,own_rule.py:MyRule"]
    price = program("compare", *text_task, *named, "--dry-run", "--json")
    assert price.code == 0 and price.json["runs"]["least"] > 0
    done = program("compare", *text_task, *named, "--json")
    assert done.code == 0, done
    assert "imported" in done.err and "past Python" in done.err
    found = done.json
    assert found["optimizers"].keys() == {"adamw", OWN} and found["speedup"].keys() == {OWN}
    assert found["optimizers"][OWN]["optimizer"] == OWN and 0.5 < found["optimizers"][OWN]["loss_mean"] < 6
    html = (program.folder / "muonlab-report.html").read_text()
    assert OWN in html and str(rule) in html
    with Store(program.folder / "muonlab.db", read_only=True) as store:
        assert {row.optimizer for row in store.list(limit=1000)} == {"adamw", OWN} and store.check() == []
    listed = program("runs", "list", "--json", "--optimizer", OWN).json
    assert {run["optimizer"] for run in listed["runs"]} == {OWN}
    assert OWN in program("runs", "show", listed["runs"][0]["key"][:12]).out
    assert program("runs", "export", "runs.jsonl").code == 0
    specs = [record.spec for record in import_jsonl(program.folder / "runs.jsonl")]
    assert {spec.optimizer_source for spec in specs} == {"", str(rule)}

    (program.folder / "elsewhere").mkdir()
    shutil.move(rule, program.folder / "elsewhere" / "own_rule.py")
    assert numbers(program("report", "--json").json) == numbers(found)  # asks for no source
    named[-1] = "adamw,elsewhere/own_rule.py:MyRule"
    again = program("compare", *text_task, *named, "--json")
    assert again.json["runs_executed"] == 0 and numbers(again.json) == numbers(found)


def test_variants_and_studies_in_a_file_name_it_too(program, rule, text_task):
    study = (program.folder / "small.toml").read_text()
    table = '\n[variants.slow]\noptimizer = "own_rule.py:MyRule"\nopt.momentum = 0.95\n'
    (program.folder / "small.toml").write_text('optimizers = ["own_rule.py:MyRule", "slow"]\n' + study + table)
    done = program("compare", *text_task, "--json")
    assert done.code == 0, done
    assert done.json["optimizers"].keys() == {OWN, "slow"} and done.json["contrasts"].keys() == {"slow"}
    slow = done.json["optimizers"]["slow"]
    assert (slow["optimizer"], slow["fixed"]) == (OWN, {"opt.momentum": 0.95})
    (program.folder / "small.toml").write_text(study)
    flags = ["--optimizers", "own_rule.py:MyRule,slow", "--variant", "slow=own_rule.py:MyRule,opt.momentum=0.95"]
    again = program("compare", *text_task, *flags, "--json")
    assert again.json["runs_executed"] == 0 and numbers(again.json) == numbers(done.json)
    tuned = program("tune", *text_task, "--optimizer", "own_rule.py:MyRule", "--tune", "opt.lr", "--json")
    assert tuned.code == 0 and tuned.json["best"] == done.json["optimizers"][OWN]["hyperparameters"]
    table = program("tune", *text_task, "--optimizer", "own_rule.py:MyRule", "--tune", "opt.lr")
    assert table.code == 0 and f"{OWN} at " in table.out


def test_an_edit_is_another_run(program, rule, tiny):
    train = ["train", "text", "--data", "text.txt", "--tokens", "1024", "--batch-tokens", "128", *tiny, "--json"]
    train += ["--optimizer", "own_rule.py:MyRule"]
    first = program(*train).json
    assert first["outcome"] == "ok" and first["runs_executed"] == 1 and first["spec"]["optimizer"] == OWN
    assert program(*train).json["runs_executed"] == 0
    rule.write_text(rule.read_text().replace("return unit_rms(m)", "return -unit_rms(m)"))
    second = program(*train).json
    assert second["runs_executed"] == 1 and second["key"] != first["key"]
    assert second["final_loss"] > first["final_loss"]


def test_a_hyphen_may_stand_for_an_underscore(program, tiny):
    train = ["train", "text", "--data", "text.txt", "--tokens", "1024", "--batch-tokens", "128", *tiny, "--json"]
    first = program(*train, "--optimizer", "adam-mini").json
    assert first["spec"]["optimizer"] == "adam_mini"
    assert program(*train, "--optimizer", "adam_mini").json == {**first, "runs_executed": 0}


BAD = {
    "raises.py": "1 / 0\n",
    "syntax.py": "class R(\n",
    "nothing.py": "class R: pass\n",
    "undecorated.py": "from muonlab.optim import Rule, hp\nclass R(Rule):\n    name = 'r'\n    lr: float = hp(0.1)\n",
    "missing.py": (
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom muonlab.optim import Rule, hp\n"
        "@dataclass(frozen=True, kw_only=True)\nclass R(Rule):\n"
        "    name: ClassVar[str] = 'r'\n    weight_decay: float = hp(0.0)\n"
    ),
}
MISTAKES = {  # the optimizer: what the line says
    "nowhere.py:R": "no such file: {}/nowhere.py",
    "nowhere:R": "no module 'nowhere': a class in a file is path/to/file.py:Class",
    "own_rule.py": "optimizer 'own_rule.py' names no class: write own_rule.py:ClassName",
    "own_rule.py:MyRul": "did you mean 'MyRule'?",
    "own_rule.py:Rule": "Rule has no name, so it is only a base",
    "own_rule.py:ema_": "ema_ is not a class",
    "raises.py:R": "importing raises.py failed: {}/raises.py, line 1: ZeroDivisionError: division by zero",
    "syntax.py:R": "syntax.py, line 1: SyntaxError",
    "nothing.py:R": "nothing:R is no optimizer: it must be a subclass of Rule or Engine of muonlab.optim",
    "undecorated.py:R": "R is no dataclass: write @dataclass(frozen=True, kw_only=True) above the class",
    "missing.py:R": "R declares no lr",
    "myrule": "one of your own is path/to/file.py:Class or module:Class",
}


@pytest.fixture(scope="module")
def messy(tmp_path_factory, text):
    from program import Program

    folder = tmp_path_factory.mktemp("messy")
    (folder / "text.txt").write_text(text)
    (folder / "own_rule.py").write_text(EXAMPLE.read_text())
    for name, content in BAD.items():
        (folder / name).write_text(content)
    return Program(folder)


@pytest.mark.parametrize("optimizer", MISTAKES)
def test_a_mistake_is_one_line_and_makes_nothing(messy, optimizer):
    before = sorted(messy.folder.iterdir())
    train = messy("train", "text", "--data", "text.txt", "--optimizer", optimizer, "--json")
    assert MISTAKES[optimizer].format(messy.folder) in train.said()
    flags = ["--optimizers", f"adamw,{optimizer}", "--dry-run"]
    compare = messy("compare", "text", "--data", "text.txt", "--tokens", "4096", "--batch-tokens", "256", *flags)
    assert compare.said() == train.said()
    assert sorted(messy.folder.iterdir()) == before


def test_a_learning_rate_without_a_grid_is_one_line(messy):
    (messy.folder / "no_grid.py").write_text(EXAMPLE.read_text().replace("grid=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), ", ""))
    tune = messy("tune", "text", "--data", "text.txt", "--tokens", "4096", "--batch-tokens", "256",
                 "--optimizer", "no_grid.py:MyRule")  # fmt: skip
    assert "no_grid:MyRule declares no grid for lr, so it can't be tuned: write one" in tune.said()
