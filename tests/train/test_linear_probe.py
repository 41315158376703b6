"""A linear probe of the last layer: what it finds of features whose classes are known to lie apart, or not to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.records.record import same_result
from muonlab.records.watch import PROBED, Watch
from muonlab.tasks.text import Text
from muonlab.train.linear_probe import can_be_probed, linear_probe
from muonlab.train.loop import train

pytest.importorskip("sklearn")


class Clouds:
    """Three clouds of points in the plane, `apart` from each other; `shuffled` classes say nothing of them."""

    tokens_per_sample = 1

    def __init__(self, apart=10.0, shuffled=False, classes=3):
        self.apart, self.shuffled, self.classes = apart, shuffled, classes

    def build(self):
        layer = nn.Linear(2, 2, bias=False)
        nn.init.eye_(layer.weight)
        return nn.Sequential(layer)

    def batch(self, seed, start, count):
        generator = np.random.default_rng([seed, start, count])
        classes = torch.from_numpy(generator.integers(0, self.classes, count))
        places = torch.stack([classes.cos(), classes.sin()], 1) * self.apart
        if self.shuffled:
            classes = classes[torch.from_numpy(generator.permutation(count))]
        return places + torch.from_numpy(generator.standard_normal((count, 2))).float(), classes

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluation(self):
        yield self.batch(1, 0, 600), 600


def test_classes_that_lie_apart_are_told_apart():
    found = linear_probe(Clouds(), Clouds().build())
    assert set(found) == set(PROBED) and found["probe.accuracy"] == 1.0 and 0 < found["probe.loss"] < 0.1


def test_what_the_last_layer_has_lost_is_not_found_in_one_before():
    """On the second axis two of the three clouds lie on one another."""
    lossy = nn.Linear(2, 1, bias=False)
    lossy.weight.data = torch.tensor([[0.0, 1.0]])
    model = nn.Sequential(*Clouds().build(), lossy)
    assert 0.5 < linear_probe(Clouds(), model)["probe.accuracy"] < 0.9


def test_of_shuffled_classes_it_knows_nothing():
    found = linear_probe(Clouds(shuffled=True), Clouds().build())
    assert abs(found["probe.accuracy"] - 1 / 3) < 0.08 and abs(found["probe.loss"] - np.log(3)) < 0.05


def test_the_scale_of_the_features_does_not_matter_and_the_model_stays_as_it_was():
    model = Clouds(1.0).build().train()
    before = linear_probe(Clouds(1.0), model)
    model[0].weight.data *= 1000
    weight = model[0].weight.clone()
    after = linear_probe(Clouds(1.0), model)
    assert after == pytest.approx(before, rel=1e-3) and model.training and torch.equal(model[0].weight, weight)


def test_held_out_classes_that_were_never_seen_are_left_out():
    task = Clouds()
    task.evaluation = lambda: iter([(Clouds(classes=5).batch(1, 0, 600), 600)])
    found = linear_probe(task, task.build())
    assert found["probe.accuracy"] == 1.0 and np.isfinite(found["probe.loss"])


def test_one_class_is_no_problem_to_solve():
    with pytest.raises(UsageError, match="at least two classes"):
        linear_probe(Clouds(classes=1), Clouds().build())


def test_features_that_are_not_finite_are_an_error():
    model = Clouds().build()
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(UsageError, match="layer 0 gives states that are not finite"):
        linear_probe(Clouds(), model)


def test_text_is_probed_by_its_next_tokens():
    task = Text(width=16, depth=1, seq_len=32)
    torch.manual_seed(0)
    model = task.build()
    found = linear_probe(task, model)
    assert can_be_probed(task) and 1 / 16 < found["probe.accuracy"] < 1 and 0 < found["probe.loss"] < np.log(16)
    assert found == linear_probe(task, model)


def test_a_probe_changes_nothing_of_the_run(make_text):
    plain, probed = train(make_text()), train(make_text(), watch=Watch(probe=True))
    assert probed.final_loss == plain.final_loss and probed.probes["probe.loss"].steps == (0,)
    assert same_result(plain, replace(probed, probes={}))
    assert Watch(probe=True).seen_in(probed) and not Watch(probe=True).seen_in(plain)
