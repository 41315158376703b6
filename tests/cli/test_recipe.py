"""recipe: as a user types it."""

import re
import shlex

import pytest

import muonlab
from muonlab.records import Record, RunSpec
from muonlab.records.store import Store


@pytest.fixture
def store(program):
    """Tuned runs of a small model, of two tasks."""
    with Store(program.folder / "own.db") as opened:
        for task, best in (("text", 0.032), ("other", 0.004)):
            for tokens in (10_000, 40_000):
                for lr in (0.004, 0.008, 0.016, 0.032, 0.064):
                    spec = RunSpec(
                        task=task, optimizer="muon", horizon_tokens=tokens, batch_tokens=128,
                        hyperparameters={"opt.lr": lr, "opt.ns_steps": 5},
                    )  # fmt: skip
                    loss = 3.0 + abs(lr - best)
                    opened.put(Record(spec=spec, outcome="ok", final_loss=loss, params={"hidden": 2000, "head": 500}))
    return "own.db"


def test_json(program) -> None:
    document = program("recipe", "muon", "--params", "350M", "--tokens", "7e9", "--json").json
    assert {"value", "low", "high", "source"} <= set(document["hyperparameters"]["opt.lr"])
    assert document["extrapolation"] == {"params": 1, "tokens": 1, "tokens_per_param": 1}
    assert document["params"] == 350e6 and document["own"] is None
    assert document["cost"]["flops"] == 6 * 6 * 350e6 * 7e9
    assert document["published"]["laws"]["opt.lr"]["held_out"]["num_cells"] == 4
    assert document["constructor"].startswith("muonlab.Muon(model, lr=0.00")


def test_the_table(program) -> None:
    done = program("recipe", "scion", "--params", "350M", "--tokens", "7B", environment={"COLUMNS": "120"})
    assert done.code == 0 and done.err == ""
    texts = ("opt.lr", "Extrapolation: none, inside", "To check: 6 runs", 'adjust_lr_fn="original"', "muonlab train")
    for text in texts:
        assert text in done.out, text
    names = [line.split()[0] for line in done.out.splitlines() if re.match(r"(opt|aux|schedule)\.", line)]
    assert names[0] == "opt.lr"
    groups = [name.partition(".")[0] for name in names]
    assert groups == sorted(groups, key=("opt", "aux", "schedule").index)


@pytest.mark.parametrize("optimizer", ["adamw", "adam-mini", "kron", "mars", "scion", "soap", "sophia", "Muon"])
def test_the_constructor_can_be_pasted(program, optimizer) -> None:
    import torch

    document = program("recipe", optimizer, "--params", "1B", "--tokens", "20B", "--json").json
    model = torch.nn.Sequential(torch.nn.Embedding(4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    made = eval(document["constructor"], {"muonlab": muonlab, "model": model})
    settings = document["hyperparameters"]
    assert made.param_groups[0]["lr"] == settings["opt.lr"]["value"]
    assert made.param_groups[0]["weight_decay"] == settings["opt.weight_decay"]["value"]


def test_the_command_can_be_pasted(program, tiny, store) -> None:
    asked = ("--params", "2000", "--tokens", "1024", "--batch", "128")
    document = program("recipe", "muon", *asked, "--store", store, "--task", "text", "--json").json
    line = next(line for line in document["command"].splitlines() if "muonlab train" in line)
    words = shlex.split(line.replace("$lr", "0.01").replace("$seed", "0"))[1:]
    done = program(*words, *tiny, "--data", "text.txt", "--store", "runs.db", "--json", "--no-progress")
    assert done.code == 0 and done.json["outcome"] == "ok"
    published = program("recipe", "muon", *asked, "--json").json["command"]
    line = next(line for line in published.splitlines() if "muonlab train" in line)
    words = shlex.split(line.replace("$lr", "0.01").replace("$seed", "0").replace("TASK", "text"))[1:]
    done = program(*words, *tiny, "--data", "text.txt", "--store", "runs.db", "--json", "--no-progress")
    assert done.code == 0 and done.json["spec"]["schedule"]["kind"] == "wsd"


def test_runs_of_ones_own(program, store) -> None:
    asked = ("recipe", "muon", "--params", "3k", "--tokens", "20k", "--store", store)
    assert "several tasks (other, text): choose one with --task" in program(*asked).said()
    document = program(*asked, "--task", "text", "--json").json
    assert document["source"] == "your runs of text" and document["hyperparameters"]["opt.lr"]["value"] == 0.032
    assert document["extrapolation"]["params"] == 1.5 and "muonlab train text" in document["command"]
    assert "ns_steps" not in document["constructor"]  # the default, and nothing that is tuned
    done = program(*asked, "--task", "other", environment={"COLUMNS": "120"})
    assert "your runs" in done.out and "Beside it: Wen et al. 2025" in done.out
    asked = ("recipe", "muon", "--params", "1B", "--tokens", "20B", "--store", store, "--task", "text", "--json")
    far = program(*asked).json
    assert "Wen" in far["source"] and far["own"]["hyperparameters"]["opt.lr"]["value"] == 0.032


def test_what_it_refuses(program, store) -> None:
    place = ("--params", "1B", "--tokens", "20B")
    assert "did you mean 'muon'" in program("recipe", "muno", *place).said()
    assert "the published sweep covers adam_mini" in program("recipe", "normuon", *place).said()
    said = program("recipe", "muon", "--params", "big", "--tokens", "1B").said()
    assert "--params wants a number of at least 1" in said
    assert "there is no store none.db" in program("recipe", "muon", *place, "--store", "none.db").said()
    assert "no cell of adamw on text" in program("recipe", "adamw", *place, "--store", store, "--task", "text").said()
