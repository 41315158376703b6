"""transfer: one small study by the program itself, again without a run, as JSON, and as a report."""

import pytest


@pytest.fixture
def arguments(program, tiny) -> list[str]:
    sized = [word for name in tiny[1::2] if not name.startswith("task.width") for word in ("--set", name)]
    asked = ["transfer", "text", "--data", "text.txt", *sized, "--widths", "8,16,24", "--workers", "2", "--seeds", "2"]
    return [*asked, "--hyperparameters", "opt.lr", "--points", "5", "--tokens", "1024", "--batch-tokens", "64"]


def test_a_small_study_from_runs_to_report(program, arguments) -> None:
    arguments += ["--final", "32", "--survey"]
    price = program(*arguments, "--dry-run", "--json").json
    assert 0 < price["runs"]["least"] <= price["runs"]["most"]
    first = program(*arguments, "--json").json
    assert first["runs_executed"] > 20 and first["report"] == "muonlab-transfer.html"
    assert set(first["best"]) == set(first["drift"]) == set(first["slopes"]) == {"adamw", "muon"}
    assert first["best"]["muon"]["opt.lr"] == first["drift"]["muon"]["opt.lr"]["used"]
    assert [one["width"] for one in first["stages"] if one["arm"] == "adamw"] == [8, 16]
    assert 0 < first["cost_ratio"] < 1 and first["verdict"]
    again = program(*arguments, "--json").json
    assert again.pop("runs_executed") == 0 and first.pop("runs_executed")
    assert again == first
    shown = program("report", "--out", "again.html")
    assert shown.code == 0 and "Optimum by width" in shown.out and "Slope of log lr*" in shown.out
    assert first["verdict"] in (program.folder / "again.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--final"),
        (["--final", "16"], "no narrower"),
        (["--final", "32", "--parametrizations", "nup"], "did you mean 'mup'"),
        (["--final", "32", "--ratio", "1"], "ratio"),
    ],
)
def test_bad_input_is_one_line(program, arguments, more, said) -> None:
    assert said in program(*arguments, *more).said()
