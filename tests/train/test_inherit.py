"""Weights that are left for others, and taken over: what agrees is loaded, what does not is said."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.records.record import same_result
from muonlab.records.watch import Watch
from muonlab.train.checkpoint import Checkpoints
from muonlab.train.inherit import has_own_classes, head_of, inherit, keep_weights, weights_in
from muonlab.train.loop import Interrupted, train


class Net(nn.Module):
    """A stem, a layer with running statistics, and a head."""

    def __init__(self, inputs=3, classes=4):
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(inputs, 5), nn.BatchNorm1d(5), nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu())


@pytest.fixture
def parent(tmp_path):
    model = Net()
    for tensor in model.state_dict().values():
        tensor.fill_(7)
    keep_weights(tmp_path / "folder" / "parent.pt", model)
    return tmp_path / "folder" / "parent.pt"


def own(model):
    """Names of tensors that are not the parent's."""
    return {name for name, tensor in model.state_dict().items() if not bool((tensor == 7).all())}


def test_all_is_taken_over_where_all_agrees(parent):
    model = Net()
    assert inherit(model, weights_in(parent), None, fresh_head=False) == {"loaded": 54, "params": 54, "own": []}
    assert own(model) == set() and [path.name for path in parent.parent.iterdir()] == ["parent.pt"]


@pytest.mark.parametrize(
    ("shape", "fresh", "names"),
    [
        ((3, 6), False, {"head.weight", "head.bias"}),
        ((2, 4), False, {"stem.weight"}),
        ((3, 4), True, {"head.weight", "head.bias"}),
    ],
)
def test_the_rest_keeps_its_own_initialisation(parent, shape, fresh, names):
    model = Net(*shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told = inherit(model, weights_in(parent), None, fresh)
    assert own(model) == names == set(told["own"])
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in names)
    assert told["params"] - told["loaded"] == sum(before[name].numel() for name in names)


def test_nothing_in_common_is_an_error(parent):
    with pytest.raises(UsageError, match=r"no parameter of one name and shape in common.*--transfer-set"):
        inherit(nn.Sequential(nn.Linear(2, 2)), weights_in(parent), None, fresh_head=False)


def test_a_damaged_file_says_what_to_do(parent):
    content = bytearray(parent.read_bytes())
    content[len(content) // 2] ^= 1
    parent.write_bytes(content)
    with pytest.raises(UsageError, match=r"parent\.pt are damaged: remove the file"):
        weights_in(parent)
    with pytest.raises(UsageError, match="cannot read weights"):
        weights_in(parent.with_name("other.pt"))
    with pytest.raises(UsageError, match="cannot write weights"):
        keep_weights(parent / "inside.pt", Net())


def test_the_head_is_the_layer_that_gives_the_logits():
    from muonlab.tasks.classify import Digits
    from muonlab.tasks.text import Text

    digits, text = Digits(model="cnn", width=4), Text(width=16, depth=1, seq_len=32)
    assert head_of(digits.build(), digits.roles(digits.build())) == {"head.weight", "head.bias"}
    assert head_of(digits.build(), None) == {"head.weight", "head.bias"}
    assert has_own_classes(digits) and not has_own_classes(text)


def make_child(make_text, parent, **values):
    return replace(make_text(**values), init_from=parent.key)


@pytest.mark.parametrize("averaging", (0.0, 0.5))
def test_a_run_that_changes_nothing_has_its_parents_loss(make_text, tmp_path, averaging):
    """The weights that are left are those that the parent's final loss is of."""
    parent = make_text(averaging=averaging)
    record = train(parent, keep=tmp_path / "p.pt")
    idle = make_child(make_text, parent, optimizer="sgd", hyperparameters={"opt.lr": 0.0, "opt.weight_decay": 0.0})
    child = train(idle, initial=tmp_path / "p.pt")
    assert child.final_loss == record.final_loss and child.inherited["own"] == [] and not record.inherited
    assert train(replace(idle, init_from="")).final_loss > record.final_loss + 0.1


def test_keeping_weights_changes_nothing(make_text, tmp_path):
    assert same_result(train(make_text()), train(make_text(), keep=tmp_path / "p.pt"))


def test_a_diverged_run_leaves_none(make_text, tmp_path):
    record = train(make_text("sgd", hyperparameters={"opt.lr": 1e30}), keep=tmp_path / "p.pt")
    assert record.outcome == "diverged" and not (tmp_path / "p.pt").exists()


def test_a_child_that_was_interrupted_goes_on_to_the_same_end(make_text, tmp_path):
    train(make_text(), keep=tmp_path / "p.pt")
    child, asked = make_child(make_text, make_text(), optimizer="muon"), iter(range(100))
    watch = Watch(eval_steps=frozenset({16}), probe=True)
    whole = train(child, watch=watch, initial=tmp_path / "p.pt")
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1e9)
    with pytest.raises(Interrupted):
        train(child, watch=watch, initial=tmp_path / "p.pt", checkpoints=checkpoints,
              should_stop=lambda: next(asked) == 5)  # fmt: skip
    again = train(child, watch=watch, initial=tmp_path / "p.pt", checkpoints=checkpoints)
    assert same_result(whole, again) and len(again.probes["probe.loss"].steps) == 1


def test_without_the_weights_there_is_no_run(make_text):
    with pytest.raises(UsageError, match=r"starts from the weights of [0-9a-f]{12}, which were not given"):
        train(make_child(make_text, make_text()))
