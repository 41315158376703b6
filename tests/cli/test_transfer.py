"""transfer: one small study by the program itself, again without a run, and as a report; another by ask and tell."""

import inspect
import json
import math

import pytest

from muonlab.cli.features import features
from muonlab.cli.transfer import transfer
from muonlab.records.store import Store


@pytest.fixture
def arguments(program, tiny) -> list[str]:
    sized = [word for name in tiny[1::2] if not name.startswith("task.width") for word in ("--set", name)]
    asked = ["transfer", "text", "--data", "text.txt", *sized, "--widths", "8,16,24", "--workers", "2", "--seeds", "2"]
    return [
        *asked,
        "--hyperparameters",
        "opt.lr",
        "--points",
        "3",
        "--ratio",
        "8",
        "--tokens",
        "1024",
        "--batch-tokens",
        "64",
    ]


def test_a_small_study_from_runs_to_report(program, arguments) -> None:
    """It makes the coordinate check, whose runs `train` finds."""
    whole = [*arguments, "--final", "24", "--survey"]
    price = program(*whole, "--dry-run", "--json").json
    first = program.start(*whole, "--json").wait(600).json
    assert price["runs"]["least"] <= first["num_runs"] <= price["runs"]["most"]
    assert first["runs_executed"] > 20 and first["report"] == "muonlab-transfer.html"
    assert set(first["best"]) == set(first["drift"]) == set(first["slopes"]) == {"adamw", "muon"}
    assert first["best"]["muon"]["opt.lr"] == first["drift"]["muon"]["opt.lr"]["used"]
    assert [one["width"] for one in first["stages"] if one["arm"] == "adamw"] == [8, 16, 24]
    assert first["cost_ratio"] > 0 and first["verdict"]
    check = first["coordinates"]
    assert check["widths"] == [8, 16, 24] and {one["name"] for one in check["checks"]} == {"adamw", "muon"}
    again = program(*whole, "--json").json
    assert again.pop("runs_executed") == 0 and first.pop("runs_executed")
    assert again == first
    shown = program("report", "--out", "again.html")
    assert shown.code == 0 and "Optimum by width" in shown.out and "Slope of log lr*" in shown.out
    assert "Coordinate check, widths 8 to 24, after 8 steps" in " ".join(shown.out.split())
    assert first["verdict"] in (program.folder / "again.html").read_text()
    _the_runs_of_the_check_are_those_of_train(program, arguments)


def _the_runs_of_the_check_are_those_of_train(program, arguments) -> None:
    sized = [word for name in arguments if "task." in name for word in ("--set", name)]
    flat = ["schedule.kind=constant", "schedule.warmup_fraction=0", "averaging=0", "task.width=24"]
    words = ["train", "text", "--data", "text.txt", "--optimizer", "muon", *sized, "--seed", "1", "--tokens", "512"]
    words += ["--batch-tokens", "64", "--coordinates", "1,2,4,8", *(w for name in flat for w in ("--set", name))]
    record = program(*words, "--json").json
    assert record["runs_executed"] == 0 and record["probes"]["change.head"][0] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--final"),
        (["--final", "16"], "no narrower"),
        (["--final", "32", "--parametrizations", "nup"], "did you mean 'mup'"),
        (["--final", "32", "--ratio", "1"], "ratio"),
        (["--final", "32", "--coordinate-widths", "4"], "narrower than the base model"),
        (["--final", "32", "--hyperparameters", "opt.lr,opt.lr"], "names opt.lr twice"),
        (["--final", "32", "--coordinate-widths", "48", "--no-coordinates"], "which --no-coordinates leaves out"),
    ],
)
def test_bad_input_is_one_line(program, arguments, more, said) -> None:
    assert said in program(*arguments, *more).said()


TASK = """
class Fixed:
    tokens_per_sample = 1

    def build(self): ...
    def batch(self, seed, start, stop): ...
    def loss(self, model, batch): ...
    def evaluation(self): ...
"""


def test_a_task_without_a_width_is_told_what_it_needs(program) -> None:
    (program.folder / "fixed.py").write_text(TASK)
    said = program("transfer", "fixed.py:Fixed", "--widths", "8,16,32", "--survey").said()
    assert "a transfer study needs a task with an option `width`" in said


def test_the_price_of_the_coordinate_check_is_told(program, arguments) -> None:
    words = (*arguments, "--final", "24", "--dry-run")
    shown, checked = program(*words, environment={"COLUMNS": "80"}).out, program(*words, "--json").json
    price = checked["coordinate_check"]
    assert f"the coordinate check: {price['runs']} runs, {price['tokens']:,} tokens, " in shown
    assert 0 < price["runs"] < checked["runs"]["least"]
    assert "coordinate_check" not in program(*words, "--no-coordinates", "--json").json


@pytest.mark.parametrize("verb", [transfer, features])
def test_help_is_not_ragged_at_80_columns(verb) -> None:
    first, *others = inspect.cleandoc(verb.__doc__).split("\n\n")
    assert first and max(len(line) for part in others for line in part.splitlines()) <= 78


STUDY = """
kind = "transfer"
task = "external:mine"
optimizers = ["adamw", "muon"]
parametrizations = ["standard", "mup"]
widths = [64, 128, 256]
final = 512
survey = true
hyperparameters = ["opt.lr"]
points = 7
coordinate_widths = [96]
tokens = 1_000_000
batch_tokens = 10_000
seeds = 2
"""


def told(run: dict) -> dict:
    """A trainer whose best lr falls as 1 / width where nothing is parametrized, and stays where it is with muP."""
    width, start = run["task_options"]["width"], 0.004 if run["optimizer"] == "adamw" else 0.02
    best = start if run["parametrization"] == "mup" else start * 64 / width
    noise = int(run["key"][:6], 16) / 16**6 - 0.5
    loss = 2 + 20 / width + 0.05 * math.log2(run["hyperparameters"]["opt.lr"] / best) ** 2 + 0.002 * noise
    return {"key": run["key"], "loss": loss, "flops": 6e6 * width**2}


def test_a_whole_study_by_ask_and_tell(program, tmp_path) -> None:
    study, results, store = tmp_path / "study.toml", tmp_path / "results.jsonl", tmp_path / "s.db"
    study.write_text(STUDY)
    rounds = 0
    while rounds < 40:
        document = program("ask", study, "--store", store, "--json").json
        if document["done"]:
            break
        rounds += 1
        for run in document["runs"]:
            base = {"width": 64} if run["parametrization"] == "mup" else {}
            assert run["base"] == base and (run["parametrization"], run["task_options"]["width"]) != ("mup", 64)
        results.write_text("\n".join(json.dumps(told(run)) for run in document["runs"]))
        program("tell", "--many", results, "--store", store)
    assert document["done"] and rounds > 2 and document["coordinates"] is None
    assert {name: one["verdict"] for name, one in document["slopes"].items()} == {
        "adamw standard": "falls", "muon standard": "falls", "adamw mup": "unresolved", "muon mup": "unresolved",
    }  # fmt: skip
    assert document["best"]["muon mup"]["opt.lr"] == pytest.approx(0.02, rel=0.1)
    assert 0 < document["cost_ratio"] < 1 and "Verdict withheld" not in document["verdict"]
    with Store(store, read_only=True) as opened:
        assert opened.count() == document["num_runs"]


def test_what_an_asked_run_is_in_words(program, tmp_path) -> None:
    """At the first width both parametrizations are one run; wider ones say which and by what base."""
    study, store = tmp_path / "study.toml", tmp_path / "s.db"
    study.write_text(STUDY.replace("final = 512\n", ""))
    shown = " ".join(program("ask", study, "--store", store, environment={"COLUMNS": "100"}).out.split())
    assert "parametrization mup" in shown and "base.width 64" in shown and "parametrization standard" in shown
