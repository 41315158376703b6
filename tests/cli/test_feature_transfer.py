"""features --transfer-to: what it would take, a study from runs to report, and what is refused before any run."""

import numpy as np
import pytest

STUDY = """
optimizers = ["muon", "adamw"]
horizon_tokens = 512
batch_tokens = 64
tuning_seeds = 2
max_tuning_seeds = 2
max_runs = 14
tune = ["opt.lr"]
looks = 4
transfer_to = "digits"
transfer_tokens = 512
[settings]
task.model = "cnn"
task.width = 4
[transfer_settings]
task.size = 16
"""


@pytest.fixture
def arguments(program):
    """Pretraining on 16 x 16 pixels of made-up images."""
    generator = np.random.default_rng(0)
    shades = {name: generator.integers(0, 10, count) for name, count in (("train", 256), ("test", 64))}
    arrays = {f"y_{name}": classes for name, classes in shades.items()}
    for name, classes in shades.items():
        noise = generator.integers(0, 60, (len(classes), 16, 16))
        arrays[f"x_{name}"] = (noise + 19 * classes[:, None, None]).astype(np.uint8)
    np.savez(program.folder / "shades.npz", **arrays)
    (program.folder / "transfer.toml").write_text(STUDY)
    return ["features", "images", "--data", "shades.npz", "--config", "transfer.toml", "--workers", "2"]


@pytest.mark.slow
def test_a_small_study_from_runs_to_report(program, arguments) -> None:
    price = program(*arguments, "--dry-run", "--json").json
    first = program(*arguments, "--json").json
    assert price["runs"]["least"] <= first["runs_executed"] <= price["runs"]["most"]
    rows = first["transfer"]
    assert {row["finetuning"] for row in rows} == {"linear probe", "muon", "adamw"}
    assert {row["pretraining"] for row in rows} == {"muon", "adamw", "none (scratch)"}
    assert all(row["loss"] > 0 and 0 <= row["accuracy"] <= 1 and row["task"] == "digits" for row in rows)
    assert sum(claim["claim"].startswith("transfers better to digits") for claim in first["claims"]) == 3
    again = program(*arguments, "--json").json
    assert again.pop("runs_executed") == 0 and first.pop("runs_executed") and again == first
    assert "Transfer to digits" in program("report").out


def test_what_is_typed_wins_over_the_file(program, arguments) -> None:
    price = program(*arguments, "--dry-run", "--json").json
    longer = program(*arguments, "--dry-run", "--json", "--transfer-tokens", "1024").json
    assert longer["tokens"]["least"] > price["tokens"]["least"] and longer["runs"] == price["runs"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--transfer-to", "digit"], "unknown task 'digit'"),
        (["--transfer-set", "task.size=4"], "size 4 is below the 8 pixels"),
        (["--transfer-set", "opt.lr=4"], "--transfer-set opt.lr: only options of the second task"),
        (["--transfer-to", "text"], "unknown task option 'size'"),
        (["--checkpoint", "a.pt", "--transfer-to", "digits"], "for runs that muonlab makes"),
    ],
)
def test_what_cannot_be_transferred_is_refused(program, arguments, more, said) -> None:
    refused = program(*arguments, *more)
    assert refused.code == 2 and said in refused.err and "Traceback" not in refused.err
    assert not (program.folder / "muonlab.db").exists()
