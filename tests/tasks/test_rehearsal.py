"""What a task of the user's can do wrong, found before the first run."""

import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.tasks import catalog
from muonlab.tasks.rehearsal import rehearse


class Good:
    tokens_per_sample = 1

    def build(self):
        return nn.Linear(3, 1)

    def batch(self, seed, start, count):
        return {"x": torch.arange(3.0 * count).view(count, 3) + start, "note": "any"}

    def loss(self, model, batch):
        return model(batch["x"]).square().mean()

    def evaluation(self):
        yield self.batch(1, 0, 4), 4


def nothing():
    yield from ()


FAULTS = [
    ("build", lambda self: None, "build() must return a model with parameters to train, got a NoneType"),
    ("build", lambda self: nn.ReLU(), "build() must return a model with parameters to train, got a ReLU"),
    ("build", lambda self: 1 / 0, "build() of the task failed: ZeroDivisionError: division by zero"),
    (
        "batch",
        lambda self, seed, start, count: {"x": torch.rand(count, 3)},
        "batch() gave other data when called again",
    ),
    ("batch", lambda self, seed, start, count: {"x": torch.ones(count, 9)}, "loss() of the task failed: RuntimeError"),
    ("loss", lambda self, model, batch: model(batch["x"]), "loss() must return a tensor with one number, got a tensor"),
    ("loss", lambda self, model, batch: 0.5, "loss() must return a tensor with one number, got a float"),
    ("loss", lambda self, model, batch: model(batch["x"]).mean().detach(), "loss() returned a tensor without a grad"),
    ("evaluation", lambda self: None, "evaluation() of the task failed: TypeError"),
    ("evaluation", lambda self: nothing(), "evaluation() yields nothing"),
    ("evaluation", lambda self: iter([torch.ones(4)]), "evaluation() must yield (batch, weight)"),
    ("evaluation", lambda self: iter([(torch.rand(4), 4)]), "evaluation() gave other data when called again"),
]


def test_a_good_task_passes():
    rehearse(Good())
    rehearse(catalog.resolve("text", {"width": 16, "depth": 1, "seq_len": 16}))


@pytest.mark.parametrize(("method", "fault", "message"), FAULTS)
def test_every_fault_is_one_line(method, fault, message):
    with pytest.raises(UsageError) as caught:
        rehearse(type("Bad", (Good,), {method: fault})())
    assert message in str(caught.value) and "\n" not in str(caught.value)
