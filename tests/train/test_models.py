"""People's own models: weights in every usual wrapping, and what is said of them."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from muonlab.errors import UsageError
from muonlab.report.models import models_table
from muonlab.tasks.text import Text
from muonlab.train.models import features_of_models, load_weights

TASK = Text(width=16, depth=2, seq_len=32, eval_tokens=4096)


class Points:
    """A stack of two layers on points in the plane, all of one class."""

    tokens_per_sample = 1

    def build(self):
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluation(self):
        yield (torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(64).long()), 64


def written(found, width):
    console = Console(width=width, file=io.StringIO())
    for part in models_table(found):
        console.print(part)
    return console.file.getvalue()


def saved(path, change=lambda state: None):
    state = Points().build().state_dict()
    change(state)
    torch.save(state, path)
    return path


def weights(seed: int = 0):
    torch.manual_seed(seed)
    return TASK.build().state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "step": 3},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    ],
)
def test_weights_are_found_in_their_wrapping(tmp_path, wrap):
    torch.save(wrap(weights(1)), tmp_path / "a.pt")
    model = TASK.build()
    load_weights(model, tmp_path / "a.pt")
    assert all(torch.equal(tensor, weights(1)[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (b"text", "no file of torch's"),
        ([1, 2], "no state dict"),
        ({"a": torch.ones(1)}, "does not fit"),
        (None, "No such"),
    ],
)
def test_a_file_that_is_none_is_said_so(tmp_path, saved, message):
    path = tmp_path / "a.pt"
    if isinstance(saved, bytes):
        path.write_bytes(saved)
    elif saved is not None:
        torch.save(saved, path)
    with pytest.raises(UsageError, match=message):
        load_weights(TASK.build(), path)


def test_a_model_is_like_itself_and_less_like_another(tmp_path):
    for seed in (0, 1):
        torch.save(weights(seed), tmp_path / f"{seed}.pt")
    found = features_of_models(TASK, [tmp_path / f"{seed}.pt" for seed in (0, 0, 1)])
    assert [row["cka"] for row in found["cka"][:2]] == pytest.approx([1.0, 1.0])
    assert all(0 <= row["cka"] < 0.999 for row in found["cka"][2:]) and len(found["cka"]) == 4
    assert [row["layer"] for row in found["layers"]] == ["blocks.0", "blocks.1"] * 3
    assert {row["corruption"] for row in found["corruptions"]} == {"clean", *TASK.corruptions}
    only = features_of_models(TASK, [tmp_path / "0.pt"], ["blocks.1.mlp"])
    assert [row["layer"] for row in only["layers"]] == ["blocks.1.mlp"] and not only["cka"]
    names = [f"{tmp_path / '0.pt'}", f"{tmp_path / '0.pt'} (2)", f"{tmp_path / '1.pt'}"]
    clean = {row["checkpoint"]: row["loss"] for row in found["corruptions"] if row["corruption"] == "clean"}
    assert list(clean) == names and clean[names[0]] == clean[names[1]] != clean[names[2]]
    shown = written(found, 400)
    assert shown.count("0.pt (2)") == 2 and not found["notes"]


def test_of_one_class_there_are_ranks_and_likeness_and_a_line_that_says_so(tmp_path):
    found = features_of_models(Points(), [saved(tmp_path / "a.pt"), saved(tmp_path / "b.pt")])
    assert all(row["rank_effective"] > 1 and row["accuracy"] is None for row in found["layers"])
    assert all(row["cka"] is not None for row in found["cka"]) and len(found["cka"]) == 2
    assert found["notes"] == ["no probe: a probe needs at least two classes, got one in 64 rows"]
    assert "at least two classes" in written(found, 100)


def test_a_layer_that_gives_one_state_has_null_and_a_line(tmp_path):
    def zero(state):
        for tensor in state.values():
            tensor.zero_()

    found = features_of_models(Points(), [saved(tmp_path / "zero.pt", zero)])
    assert [row["layer"] for row in found["layers"]] == ["0", "2"]
    assert all(row[name] is None for row in found["layers"] for name in ("rank_effective", "margin_normalised"))
    assert sum("zero.pt: nothing is measured of" in note for note in found["notes"]) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["0.weight"].view(-1)[0].fill_(float("nan")), "a.pt: NaN in 0.weight"),
        (lambda state: state["2.bias"][0].fill_(float("inf")), "a.pt: infinity in 2.bias"),
        (lambda state: state.pop("0.bias"), "the file lacks 0.bias: name the task"),
        (lambda state: state.update(x=torch.ones(1), y=torch.ones(1)), "no place for x and 1 more: name the task"),
        (lambda state: state.update(x=state.pop("0.bias")), "lacks 0.bias, and the model has no place for x: name"),
        (lambda state: state.update({"0.bias": torch.ones(9)}), r"0.bias is \(9,\) in the file, .* --set task"),
    ],
)
def test_weights_that_are_not_the_models_are_told_apart(tmp_path, change, message):
    path = saved(tmp_path / "a.pt", change)
    with pytest.raises(UsageError, match=message):
        load_weights(Points().build(), path)


def test_half_a_file_is_damaged_and_an_object_is_more_than_tensors(tmp_path):
    path = saved(tmp_path / "a.pt")
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UsageError, match="is damaged"):
        load_weights(Points().build(), path)
    torch.save({"model": Points()}, path)
    with pytest.raises(UsageError, match="holds more than tensors: save"):
        load_weights(Points().build(), path)
