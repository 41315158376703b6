"""ask and tell: a study whose runs somebody else makes, from the first question to the verdict."""

import json
import math

import pytest

from muonlab.records import Record, Store

STUDY = """
task = "external:mine"
optimizers = ["adamw", "muon"]
tokens = 1_000_000
batch_tokens = 10_000
tune = ["opt.lr"]
seeds = 3
[settings]
task.width = 512
"""
LADDER = """
task = "external:mine"
ratios = [1.0, 2.0, 4.0]
batch_tokens = 10_000
tune = ["opt.lr"]
[sizes]
s = { task.params = 100_000 }
m = { task.params = 400_000 }
l = { task.params = 1_600_000 }
"""


def loss_of(run: dict) -> float:
    """A trainer on which Muon needs two thirds of the tokens."""
    speed, best = (1.5, 0.02) if run["optimizer"] == "muon" else (1.0, 0.008)
    noise = int(run["key"][:6], 16) / 16**6 - 0.5
    lr = run["hyperparameters"]["opt.lr"]
    return 2 + (speed * run["tokens"] / 1e6) ** -0.4 + 0.06 * math.log2(lr / best) ** 2 + 0.01 * noise


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def asked(program, study, store) -> dict:
    return program("ask", study, "--store", store, "--json").json


def test_a_whole_comparison_by_ask_and_tell(program, study, tmp_path) -> None:
    store = tmp_path / "s.db"
    rounds = 0
    while rounds < 40:
        document = asked(program, study, store)
        if document["done"]:
            break
        rounds += 1
        assert document["done"] is False and document["runs"]
        with Store(store) as opened:
            for run in document["runs"]:
                spec = opened.requested(run["key"])
                assert (spec.key, spec.num_steps, spec.seed) == (run["key"], run["num_steps"], run["seed"])
                opened.put(
                    Record(spec=spec, outcome="ok", final_loss=loss_of(run), tokens=run["tokens"], step_seconds=0.1)
                )
    assert 2 < rounds < 40
    assert document["verdict"].startswith("muon is better than tuned adamw: 1.")
    unknown = {check["name"]: check["detail"] for check in document["checks"] if check["ok"] is None}
    assert set(unknown) == {"same_conditions", "wall_clock"} and all("not checked" in said for said in unknown.values())
    assert document["speedup"]["muon"]["low"] < 1.5 < document["speedup"]["muon"]["high"]


def test_the_first_question_of_a_ladder(program, study, tmp_path) -> None:
    study.write_text(LADDER)
    runs = asked(program, study, tmp_path / "s.db")["runs"]
    assert {run["task_options"]["params"] for run in runs} == {100_000, 400_000}
    assert {run["tokens"] for run in runs} == {2_000_000, 4_000_000, 8_000_000}


def test_a_whole_ladder_by_ask_and_tell(program, study, tmp_path) -> None:
    store = tmp_path / "s.db"
    study.write_text(LADDER.replace("[sizes]", "max_runs = 30\n[sizes]"))
    for _ in range(40):
        document = asked(program, study, store)
        if document["done"]:
            break
        with Store(store) as opened:
            for run in document["runs"]:
                spec = opened.requested(run["key"])
                opened.put(Record(spec=spec, outcome="ok", final_loss=loss_of(run), tokens=run["tokens"]))
    assert document["done"] is True and len(document["rows"]) == 9 and document["report"] == "muonlab-ladder.html"
    assert (program.folder / "muonlab-ladder.html").is_file()


def test_a_result_is_told_once_by_the_beginning_of_its_key(program, study, tmp_path) -> None:
    store = tmp_path / "s.db"
    run = asked(program, study, store)["runs"][0]
    result = tmp_path / "r.json"
    result.write_text('{"loss": 3.25, "step_seconds": 0.5, "params": 1000}')
    told = program("tell", run["key"][:10], result, "--store", store)
    assert told.out == f"run {run['key'][:12]} is ok, loss 3.25\n"
    program("tell", run["key"][:10], result, "--store", store)
    assert run["key"] not in {one["key"] for one in asked(program, study, store)["runs"]}
    result.write_text('{"loss": 3.5}')
    again = program("tell", run["key"], result, "--store", store)
    assert "already has the outcome ok, loss 3.25" in again.said()
    with Store(store) as opened:
        record = opened.find(run["key"][:10])
    assert (record.final_loss, record.step_seconds, record.num_params) == (3.25, 0.5, 1000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "a result needs a finite loss"),
        ('{"loss": "low"}', "a result needs a finite loss"),
        ('{"outcome": "failed"}', "a result needs a finite loss"),
        ('{"outcome": "ok"}', "a result needs a finite loss"),
        ('{"los": 3.0}', "did you mean 'loss'"),
        ("[3.0]", "must be an object"),
        ("3,0", "is not JSON"),
        ('{"loss": 3.0, "wall_seconds": "long"}', "a result has numbers, got 'long' for wall_seconds"),
        ('{"loss": 3.0, "environment": "H100"}', 'must be an object such as {"machine": "8 x H100"}, got str'),
        ('{"loss": 3.0, "environment": [["a", 1]]}', "environment must be an object"),
        ('{"loss": 3.0, "step_seconds": -1}', "must be a number of at least 0"),
        ('{"loss": 3.0, "train_steps": [1, 2], "train_loss": [1]}', "must be lists of one length"),
    ],
)
def test_a_bad_result_changes_nothing(program, study, tmp_path, text, message) -> None:
    store, result = tmp_path / "s.db", tmp_path / "r.json"
    key = asked(program, study, store)["runs"][0]["key"]
    result.write_text(text)
    assert message in program("tell", key, result, "--store", store).said()
    with Store(store) as opened:
        assert opened.count() == 0


def test_a_result_that_is_not_there_is_said_with_what_to_give(program, study, tmp_path) -> None:
    store = tmp_path / "s.db"
    key = asked(program, study, store)["runs"][0]["key"]
    said = program("tell", key, tmp_path / "nowhere.json", "--store", store).said()
    assert "No such file or directory" in said and '{"loss": 3.21}' in said and "- for stdin" in said
    for words in (("tell",), ("tell", key), ("tell", key, "-", "--many", "-"), ("tell", key, "--many", "-")):
        assert "tell wants a KEY and its RESULT.json, or --many" in program(*words, "--store", store).said()


def test_what_a_trainer_has_to_know_is_all_said(program, study, tmp_path) -> None:
    store = tmp_path / "s.db"
    run = next(run for run in asked(program, study, store)["runs"] if run["optimizer"] == "muon")
    told = run["hyperparameters"]
    assert (told["opt.nesterov"], told["opt.momentum_form"], told["opt.momentum"]) == (True, "ema", 0.95)
    assert run["conventions"]["scale rule"] == "original" and run["conventions"]["polar factor"]
    text = " ".join(program("ask", study, "--store", store).out.split())
    for once in ("opt.nesterov true", "scale rule original", "batch_tokens 10000", "schedule.kind linear", "clip 1"):
        assert text.count(once) == 1, once
    assert text.count("opt.lr 0.004") > 1 and text.index("opt.nesterov") < text.index("opt.lr")


def lines_of(runs) -> list[str]:
    return [json.dumps({"key": run["key"][:12], "loss": loss_of(run), "step_seconds": 0.1}) for run in runs]


def test_many_results_are_told_at_once_and_may_be_told_again(program, study, tmp_path) -> None:
    store, results = tmp_path / "s.db", tmp_path / "results.jsonl"
    runs = asked(program, study, store)["runs"]
    lines = lines_of(runs)
    results.write_text("\n".join([*lines[:4], "", lines[3]]))
    assert program("tell", "--many", results, "--store", store).out == "4 results, 4 of them new\n"
    results.write_text("\n".join(lines) + "\n")
    for new in (len(runs) - 4, 0):
        told = program("tell", "--many", results, "--store", store)
        assert told.out == f"{len(runs)} results, {new} of them new\n"
    with Store(store) as opened:
        records = opened.get(run["key"] for run in runs)
    assert {run["key"]: records[run["key"]].final_loss for run in runs} == {run["key"]: loss_of(run) for run in runs}
    assert not {run["key"] for run in runs} & {run["key"] for run in asked(program, study, store)["runs"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"loss": 3.0}', "it lacks the key of its run"),
        ('{"key": 7, "loss": 3.0}', "it lacks the key of its run"),
        ('{"key": "ffffffffffff", "loss": 3.0}', "no request"),
        ('{"key": "KEY", "los": 3.0}', "did you mean 'loss'"),
        ('{"key": "KEY", "loss": 3.0', "it is not JSON"),
        ('["KEY", 3.0]', "it must be an object"),
        ('{"key": "KEY"}', "a result needs a finite loss"),
        ('{"key": "FIRST", "loss": 9.0}', "stands above with another result"),
        ('{"key": "TOLD", "loss": 9.0}', "already has the outcome ok"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_taken(program, study, tmp_path, line, message) -> None:
    store, results = tmp_path / "s.db", tmp_path / "results.jsonl"
    first, other, told, *_ = asked(program, study, store)["runs"]
    results.write_text(lines_of([told])[0])
    program("tell", "--many", results, "--store", store)
    line = line.replace("KEY", other["key"]).replace("FIRST", first["key"]).replace("TOLD", told["key"])
    results.write_text("\n".join([*lines_of([first]), line, *lines_of([other])]))
    said = program("tell", "--many", results, "--store", store).said()
    assert f"{results} line 2: " in said and message in said and "nothing was taken" in said
    with Store(store) as opened:
        assert opened.count() == 1


def test_divergence_is_a_result(program, study, tmp_path) -> None:
    store, result = tmp_path / "s.db", tmp_path / "r.json"
    key = asked(program, study, store)["runs"][0]["key"]
    for text in ('{"outcome": "diverged", "diverged_step": 7}', '{"loss": NaN}'):
        result.write_text(text)
        assert "is diverged" in program("tell", key, result, "--store", store).out


def test_what_was_not_asked_for_cannot_be_told(program, study, tmp_path) -> None:
    store, result = tmp_path / "s.db", tmp_path / "r.json"
    asked(program, study, store)
    result.write_text('{"loss": 3.0}')
    assert "no request" in program("tell", "0" * 64, result, "--store", store).said()


def test_an_external_task_is_not_trained_here(program, tmp_path) -> None:
    assert "muonlab ask" in program("train", "external:mine").said()
    assert "muonlab ask" in program("compare", "external:mine", "--tokens", "100000").said()


def test_the_kind_of_a_study_is_checked(program, study, tmp_path) -> None:
    study.write_text(f'kind = "lader"\n{STUDY}')
    assert "did you mean 'ladder'" in program("ask", study).said()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ratios = [1.0, 2.0, 4.0]", "tokens = 1_000_000", "a ladder has no one length: leave tokens out and give"),
        ("[1.0, 2.0, 4.0]", "[1.0, 2.0, 4.0, 2.0]", "ratio 2 is given twice"),
        ("100_000", "1_000", "size s at ratio 1 is 20,000 tokens, fewer than 8 steps of 10,000: raise the ratio, or"),
        ("ratios", 'optimizers = ["foo"]\nratios', "unknown optimizer 'foo'"),
    ],
)
def test_a_ladder_that_can_not_be_asked_for(program, study, old, new, message) -> None:
    study.write_text(LADDER.replace(old, new, 1))
    assert message in program("ask", study).said()


def test_an_unknown_optimizer_is_said_before_that_there_is_but_one(program, study) -> None:
    study.write_text(STUDY.replace('["adamw", "muon"]', '["foo"]'))
    assert "unknown optimizer 'foo' (valid: adam_hyperball, " in program("ask", study).said()
