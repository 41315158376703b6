"""Tasks and models that features can't be taken of: each is told why in one line."""

import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.tasks.text import Text
from muonlab.train.feature_probes import FeatureProbe, RankProbe
from muonlab.train.features import layers_of, sample_of

SMALL = Text(width=16, depth=1, seq_len=32, eval_tokens=4096)


class Labelled:
    """A stack of layers and whatever labels it is given."""

    tokens_per_sample = 1

    def __init__(self, found):
        self.found = found

    def build(self):
        return nn.Sequential(nn.Linear(4, 3))

    def labelled(self, count):
        return self.found


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.ones(4, 4), "got torch.float32"),
        (None, "got a NoneType"),
        ((torch.ones(4, 4), [0, 1, 0, 1]), "got a list for labels"),
        ((torch.ones(4, 4), torch.ones(4)), "for labels"),
        ((torch.ones(4, 4), torch.ones(4, 4, 4).long()), "for labels"),
    ],
)
def test_labels_that_are_no_pair_are_named_with_what_they_should_be(found, message):
    with pytest.raises(UsageError, match=message) as caught:
        sample_of(Labelled(found))
    assert "Labelled.labelled(count) must give (inputs, labels)" in str(caught.value)


def test_a_pair_with_no_labels_is_one():
    assert sample_of(Labelled([torch.ones(4, 4), None])).labels is None


def test_a_model_without_lists_says_what_can_be_done():
    with pytest.raises(UsageError, match=r"let build\(\) keep them in one, or .* --checkpoint FILE.pt --layers"):
        layers_of(nn.Linear(2, 2))


def test_an_output_that_is_no_states_is_found_before_the_run():
    class Cube(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x[..., None, None, None] * self.weight

    task = Labelled((torch.randn(8, 4), torch.arange(8) % 2))
    with pytest.raises(UsageError, match="hidden states are"):
        FeatureProbe(task, nn.Sequential(Cube()))


def test_ranks_are_taken_after_the_last_step_however_short_the_run():
    flops = SMALL.build().config.flops_per_token(32)
    probe = RankProbe(SMALL, SMALL.build(), 512, flops, 1e-4, 12)
    assert probe.every > 12 and [step for step in range(1, 13) if probe.is_due(step)] == [12]
