"""features: one small study by the program itself, again without a run, and models that there are."""

import pytest

STUDY = """
horizon_tokens = 1024
batch_tokens = 128
tuning_seeds = 2
max_tuning_seeds = 2
max_runs = 14
tune = ["opt.lr"]
looks = 4
optimizers = ["muon", "adamw"]
"""


def test_a_small_study_from_runs_to_report(program, tiny) -> None:
    (program.folder / "features.toml").write_text(STUDY)
    arguments = ["features", "text", "--data", "text.txt", "--config", "features.toml", *tiny, "--workers", "2"]
    price = program(*arguments, "--dry-run", "--json").json
    first = program(*arguments, "--json").json
    assert '<table class="checks">' in (program.folder / first["report"]).read_text()
    assert {row["layer"] for row in first["cka"]} == {"blocks.0"} and not first["errors"] and first["verdict"]
    assert price["runs"]["least"] <= first["runs_executed"] <= price["runs"]["most"]
    assert price["looks"]["number"] == 4 * 2 * 3 * 2 and not price["is_done"]
    assert {row["layer"] for row in first["layers"]} == {"blocks.0"}
    assert first["baseline"] == "adamw" and {claim["optimizer"] for claim in first["claims"]} == {"muon"}
    assert {row["corruption"] for row in first["corruptions"]} == {"swap", "keyboard", "mask"}
    assert {claim["at"] for claim in first["claims"]} == {row["at"] for row in first["layers"]}
    assert {"claim", "held", "detail"} <= first["claims"][0].keys() and first["transfer"] == []
    again = program(*arguments, "--json").json
    assert again.pop("runs_executed") == 0 and first.pop("runs_executed") and again == first
    assert program(*arguments, "--dry-run", "--json").json["is_done"]
    priced = program(*arguments, "--dry-run").out
    assert "Of that, 48 looks" in priced and priced.startswith(
        "The store has this study: the command would run nothing."
    )
    shown = program("report").out
    assert "is it so here?" in shown and "Rise of the loss" in shown


def test_models_that_there_are(program, tiny) -> None:
    torch = pytest.importorskip("torch")
    from muonlab.tasks.text import Text

    options = {"width": 16, "depth": 1, "seq_len": 32, "eval_tokens": 2048}
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = Text(**options, data=(str(program.folder / "text.txt"),)).build()
        torch.save(model.state_dict(), program.folder / f"{seed}.pt")
    arguments = ["features", "text", "--data", "text.txt", *tiny, "--checkpoint", "0.pt", "--checkpoint", "1.pt"]
    found = program(*arguments, "--json").json
    assert [row["checkpoint"] for row in found["layers"]] == ["0.pt", "1.pt"] and len(found["cka"]) == 1
    assert "likeness" in program(*arguments).out
    refused = program(*arguments, "--seeds", "3")
    assert refused.code == 2 and "--seeds" in refused.err
    refused = program(*arguments, "--layers", "blocks.7")
    assert refused.code == 2 and "did you mean" in refused.err


def test_layers_are_named_of_models_alone(program, tiny) -> None:
    refused = program("features", "text", "--data", "text.txt", *tiny, "--layers", "blocks.0")
    assert refused.code == 2 and "--checkpoint" in refused.err
    assert "wants names of modules" in program("features", "text", "--layers", ",").said()
