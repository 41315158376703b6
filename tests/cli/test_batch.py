"""batch: one small study by the program itself, again without a run, as JSON, as a report, and predicted."""

import json

import pytest

BATCH = """
optimizers = ["adamw", "muon"]
batches = [64, 128, 256]
tokens = 4096
seeds = 2
tune = ["opt.lr"]
retune = ["opt.lr"]
tuning_seeds = 2
max_tuning_seeds = 2
max_runs = 12
most_horizons = 2.0
"""
EXTERNAL = """
task = "external:mine"
batches = [10_000, 20_000, 40_000, 80_000]
targets = [3.0, 2.6]
tokens = 1_000_000
tune = ["opt.lr"]
retune = ["opt.lr"]
"""


@pytest.fixture
def arguments(program, tiny):
    (program.folder / "batch.toml").write_text(BATCH)
    return ["batch", "text", "--data", "text.txt", "--config", "batch.toml", *tiny, "--workers", "2"]


def test_a_small_study_from_runs_to_report(program, arguments) -> None:
    price = program(*arguments, "--dry-run", "--json").json
    assert 0 < price["runs"]["least"] <= price["runs"]["most"]
    first = program(*arguments, "--json").json
    assert first["runs_executed"] > 20 and first["report"] == "muonlab-batch.html"
    assert len(first["token_ratio"]) == 3 * len(first["targets"])
    assert {"batch_tokens", "target", "ratio", "low", "high"} <= first["token_ratio"][0].keys()
    assert set(first["critical_batch"]) == {"adamw", "muon"}
    assert {"overhead", "sfo", "noise_scale"} <= first["critical_batch"]["muon"].keys()
    assert isinstance(first["frontier"], list) and first["verdict"]
    for one in first["times"]:
        assert (one["tokens"] is None) == (one["flag"] == "unreached")
    again = program(*arguments, "--json").json
    assert again.pop("runs_executed") == 0 and first.pop("runs_executed")
    assert again == first
    shown = program("report", "--out", "again.html")
    assert shown.code == 0 and first["verdict"].split(".")[0] in " ".join(shown.out.split())
    html = (program.folder / "again.html").read_text()
    assert first["verdict"] in html


def test_a_batch_is_predicted_from_a_pilot(program, tiny) -> None:
    arguments = ["batch", "text", "--data", "text.txt", "--predict", *tiny, "--batches", "64,128,256", "--tokens"]
    arguments += ["150000", "--seeds", "2", "--workers", "2", "--max-runs", "20"]
    assert program(*arguments, "--dry-run").code == 0
    found = program(*arguments, "--json").json["predict"]
    for name in ("adamw", "muon"):
        one = found[name]
        assert one["budget_tokens"] == 150_000 and one["pilot_batch"] == 128 and one["pilot_tokens"] < 150_000 / 16
        assert [c["batch_tokens"] for c in one["candidates"]] == [64, 128, 256]
        scale = one["noise_scale"]["value"]
        for candidate in one["candidates"]:
            more = None if scale is None else 150_000 * (1 + candidate["batch_tokens"] / scale)
            assert candidate["tokens"] == (more if more is None else pytest.approx(more))
    text = program(*arguments).out
    assert "adamw" in text and "noise scale" in text


def curve(run: dict) -> tuple[list[float], float]:
    """A trainer on which Muon needs half of the tokens; the larger the batch, the more they both need."""
    tokens = [step * run["batch_tokens"] for step in run["eval_steps"]]
    speed = 2.0 if run["optimizer"] == "muon" else 1.0
    luck = 1 + 0.02 * (int(run["key"][:6], 16) / 16**6 - 0.5)
    wrong = abs(run["hyperparameters"]["opt.lr"] / (0.01 * (run["batch_tokens"] / 20_000) ** 0.5) - 1)
    loss = [2 + luck * (speed * t / (1 + run["batch_tokens"] / 50_000) / 1e5) ** -0.5 + 0.02 * wrong for t in tokens]
    return loss, loss[-1]


def test_a_whole_batch_study_by_ask_and_tell(program) -> None:
    (program.folder / "mine.toml").write_text(EXTERNAL)
    for _ in range(40):
        document = program("ask", "mine.toml", "--json").json
        if document["done"]:
            break
        assert all(run["averaging"] == 0.05 and run["schedule"]["kind"] == "constant" for run in document["runs"])
        lines = []
        for run in document["runs"]:
            losses, last = curve(run)
            told = {"key": run["key"], "loss": last, "eval_steps": run["eval_steps"], "eval_loss": losses}
            lines.append(json.dumps({**told, "step_seconds": 0.1, "params": 1000}))
        (program.folder / "results.jsonl").write_text("\n".join(lines))
        assert program("tell", "--many", "results.jsonl").code == 0
    ratios = [one["ratio"] for one in document["token_ratio"]]
    assert document["done"] is True and len(ratios) == 8 and all(1.7 < ratio < 2.3 for ratio in ratios)
    assert document["critical_batch"]["muon"]["noise_scale"]["flag"] == "undefined"  # nobody measured it


def test_a_run_that_was_told_without_a_curve_is_asked_for_again(program) -> None:
    (program.folder / "mine.toml").write_text(EXTERNAL)
    run = program("ask", "mine.toml", "--json").json["runs"][0]
    losses, last = curve(run)
    for told in ({"loss": last}, {"loss": last, "eval_steps": run["eval_steps"], "eval_loss": losses}):
        asked = {one["key"] for one in program("ask", "mine.toml", "--json").json["runs"]}
        assert run["key"] in asked
        (program.folder / "r.json").write_text(json.dumps(told))
        assert program("tell", run["key"], "r.json").code == 0
    assert run["key"] not in {one["key"] for one in program("ask", "mine.toml", "--json").json["runs"]}


def test_a_curve_at_other_steps_is_said_to_lack_some_and_a_longer_one_takes_its_place(program) -> None:
    (program.folder / "mine.toml").write_text(EXTERNAL)
    run = program("ask", "mine.toml", "--json").json["runs"][0]
    losses, last = curve(run)
    full = {"loss": last, "eval_steps": run["eval_steps"], "eval_loss": losses}
    short = {**full, "eval_steps": run["eval_steps"][1:], "eval_loss": losses[1:]}
    (program.folder / "r.json").write_text(json.dumps(short))
    assert program("tell", run["key"], "r.json").code == 0
    lacking = f"run {run['key'][:12]} was told without its loss after steps {run['eval_steps'][0]}: tell it again"
    assert lacking in program("ask", "mine.toml").out
    (program.folder / "r.json").write_text(json.dumps({**full, "eval_loss": [*losses[:-2], 9.0, losses[-1]]}))
    assert "has another curve" in program("tell", run["key"], "r.json").said()
    (program.folder / "r.json").write_text(json.dumps(full))
    assert program("tell", run["key"], "r.json").code == 0
    assert lacking not in program("ask", "mine.toml").out
