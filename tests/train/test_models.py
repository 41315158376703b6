"""People's own models: weights in every usual wrapping, and what is said of them."""

import pytest
import torch

from muonlab.errors import UsageError
from muonlab.tasks.text import Text
from muonlab.train.models import features_of_models, load_weights

TASK = Text(width=16, depth=2, seq_len=32, eval_tokens=4096)


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
