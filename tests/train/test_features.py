"""Hidden states by layer, probes on them, and what of it a run takes down."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.records.watch import CLEAN, Watch
from muonlab.tasks.text import Text
from muonlab.train.corrupted import scores_under_corruption
from muonlab.train.feature_probes import RankProbe
from muonlab.train.features import (
    Sample,
    fit_probe,
    hidden_states,
    layers_of,
    measured_layers,
    sample_of,
)
from muonlab.train.loop import train

WATCH = Watch(curve_points=3, rank_cost=0.5, features=True)


class Classifier:
    """Two classes on either side of a border, seen by a stack of layers; a corruption that adds as much as it says."""

    tokens_per_sample = 1

    @property
    def corruptions(self):
        return {"shifted": lambda x, severity, seed: x + severity}

    def build(self):
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 2))

    def batch(self, seed, start, count):
        x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed * 1000 + start))
        return x, (x[:, 0] > 0).long()

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluation(self):
        for start in (0, 100):
            yield self.batch(7, start, 100), 100


def separated(num: int, gap: float, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Classes at the corners of a simplex, `gap` of their own deviation apart."""
    y = np.arange(num) % classes
    noise = np.random.default_rng(0).standard_normal((num, classes + 1))
    return np.eye(classes, classes + 1)[y] * gap + noise, y


def test_a_probe_finds_what_is_there_and_nothing_else():
    far, near = (fit_probe(*separated(600, gap)) for gap in (12.0, 1.0))
    assert far.accuracy == 1.0 and far.margin_low > 0 and far.margin_normalised > near.margin_normalised
    x, y = separated(600, 0.0)
    assert fit_probe(x, y).accuracy == pytest.approx(1 / 3, abs=0.09)
    assert 0.4 < near.accuracy < 0.9 and near.margin_low < 0 < far.margin


def test_a_probe_does_not_see_scale_and_shift():
    x, y = separated(200, 2.0)
    assert fit_probe(1e3 * x - 50.0, 10 + y) == pytest.approx(fit_probe(x, y), rel=1e-3)


def test_two_classes_are_probed_as_more_are():
    """The sign of the margin says whether the class is found, for either class."""
    x, y = separated(400, 3.0, classes=2)
    found = fit_probe(x, y)
    assert found.accuracy > 0.9 and found.margin > 0 and 0 < found.margin_normalised < 1
    assert fit_probe(x, 1 - y) == pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((8, 2)), np.arange(8) % 2, "constant"),
        (np.full((8, 2), np.nan), np.arange(8) % 2, "NaN"),
        (np.eye(8), np.zeros(8, int), "two classes"),
        (np.eye(8), np.arange(8), "twice as many rows"),
        (np.eye(8), np.array([0] * 7 + [1]), "two rows of every class"),
    ],
)
def test_what_cannot_be_probed_is_refused(x, y, message):
    with pytest.raises(UsageError, match=message):
        fit_probe(x, y)


def test_layers_are_the_elements_of_lists_or_of_the_outermost_stacks():
    class Net(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(2, 2))
            self.blocks = kind([nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)])

    assert list(layers_of(Net(nn.ModuleList))) == ["blocks.0", "blocks.1"]
    assert list(layers_of(Net(lambda blocks: nn.Sequential(*blocks)))) == ["stem.0", "blocks.0", "blocks.1"]
    assert list(layers_of(Classifier().build())) == ["0", "2", "3"]  # what has no parameters is no layer
    assert list(layers_of(Classifier().build(), ["1"])) == ["1"]
    with pytest.raises(UsageError, match=r"did you mean '2\.0'"):
        layers_of(Classifier().build(), ["2.00"])
    with pytest.raises(UsageError, match="--layers"):
        layers_of(nn.Linear(2, 2))


def test_states_are_those_of_the_layer_and_leave_the_model_alone():
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.9)).train()
    x = torch.randn(10, 3)
    found = hidden_states(model, Sample(x, None), ["0", "1"])
    assert found["0"] == pytest.approx(model[0](x).detach().numpy()) and (found["1"] == found["0"]).all()
    assert model.training and not model[0]._forward_hooks


def test_positions_and_pixels_are_averaged_or_picked():
    x, labels = torch.randn(6, 4, 3), torch.full((6, 4), -1)
    labels[2, 1], labels[5, 0] = 0, 1
    model = nn.Sequential(nn.Linear(3, 3))
    picked, mean = (hidden_states(model, Sample(x, y))["0"] for y in (labels, None))
    out = model(x).detach()
    assert picked == pytest.approx(out[labels >= 0].numpy()) and mean == pytest.approx(out.mean(1).numpy())
    images = nn.Sequential(nn.Conv2d(1, 2, 1))
    pixels = torch.randn(6, 1, 4, 4)
    assert hidden_states(images, Sample(pixels, None))["0"].shape == (6, 2)
    with pytest.raises(UsageError, match=r"\(6, 4\) labels"):
        hidden_states(images, Sample(pixels, labels))


def test_a_layer_that_is_never_called_is_an_error_where_it_was_asked_for():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

        def forward(self, x):
            return self.layers[0](x)

    sample = Sample(torch.randn(6, 3), None)
    assert list(hidden_states(Spare(), sample)) == ["layers.0"]
    with pytest.raises(UsageError, match=r"layers\.1 is never called"):
        hidden_states(Spare(), sample, ["layers.0", "layers.1"])


def test_a_collapsed_layer_has_no_measures():
    found = measured_layers({"dead": np.ones((20, 3)), "alive": separated(20, 1.0)[0]}, torch.arange(20) % 2)
    assert found["dead"] == {} and set(found["alive"]) > {"accuracy", "margin_normalised", "rank_effective"}


def test_a_probe_is_tried_on_rows_that_it_has_not_seen():
    """Labels that have nothing to do with features are learned by heart, and not found in other rows."""
    generator = np.random.default_rng(0)
    found = fit_probe(generator.standard_normal((200, 150)), generator.integers(0, 2, 200))
    assert 0.3 < found.accuracy < 0.7 and found.margin < 1


def test_tokens_are_labelled_by_what_comes_next():
    task = Text(width=16, depth=1, seq_len=32, eval_tokens=4096)
    inputs, labels = task.labelled(200)
    assert inputs.shape == labels.shape == (25, 32) and set(labels.unique().tolist()) <= set(range(-1, 16))
    places = (labels >= 0).nonzero()
    assert 80 < len(places) <= 200 and set(places[:, 1].tolist()) == set(range(0, 32, 4))
    following = {}
    for b, t in places[places[:, 1] < 31].tolist():
        following.setdefault(int(labels[b, t]), set()).add(int(inputs[b, t + 1]))
    assert all(len(tokens) == 1 for tokens in following.values())


def test_where_no_token_is_common_nothing_is_labelled():
    _, labels = Text(width=16, depth=1, seq_len=8, eval_tokens=4096).labelled(1)
    assert labels.shape == (1, 8) and (labels == -1).all()


def test_a_corruption_changes_inputs_alone_and_what_is_clean_is_the_loss():
    task = Classifier()
    model = task.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model[0].weight[0, 0] = model[2][0].weight[0, 0] = 2.0
        model[3].weight[:, 0] = torch.tensor([-2.0, 2.0])
    found = scores_under_corruption(task, model, 100)
    clean = float(task.loss(model, next(iter(task.evaluation()))[0]).detach())
    assert found["clean", 0].loss == pytest.approx(clean) and found["clean", 0].accuracy == 1.0
    rising = [found["shifted", severity].loss for severity in (1, 2, 3, 4, 5)]
    assert clean < rising[0] < rising[-1] and len(found) == 6
    x, classes = task.batch(7, 0, 100)  # shifted by 5 all are called the second class, where it is not further away
    assert found["shifted", 5].accuracy == pytest.approx(float(((x[:, 0] + 5 > 0).long() == classes).double().mean()))


def test_accuracy_is_of_inputs_with_a_class_each():
    class Pairs(Classifier):
        def loss(self, model, batch):
            return (model(batch[0])[:, 0] - batch[1]).square().mean()

        def evaluation(self):
            for (x, y), weight in super().evaluation():
                yield (x, y.float()), weight

    task = Pairs()
    found = scores_under_corruption(task, task.build())
    assert all(score.accuracy is None and np.isfinite(score.loss) for score in found.values())


@pytest.fixture
def classified(make_spec, monkeypatch):
    monkeypatch.setattr("muonlab.tasks.catalog.resolve", lambda *arguments: Classifier())
    return make_spec(num_steps=16, batch=8)


def test_watching_changes_nothing_and_takes_everything_down(make_text):
    spec = make_text("muon")
    plain, watched = train(spec), train(spec, watch=WATCH)
    assert (plain.train_loss, plain.final_loss) == (watched.train_loss, watched.final_loss)
    steps = tuple(sorted(WATCH.steps(spec)))
    assert watched.probes["features.blocks.0.rank_effective"].steps == steps == watched.probes[CLEAN].steps
    assert len(watched.probes["rank.blocks.0"].values) > 0
    assert WATCH.seen_in(watched) and not WATCH.seen_in(plain)
    assert not plain.grams and set(watched.grams) == {"blocks.0"}
    assert not WATCH.seen_in(replace(watched, grams={}))  # a record from before there were any


def test_a_classifier_of_ones_own_needs_no_method(classified):
    found = train(classified, watch=WATCH).probes
    assert found["corrupted.shifted.5"].values[-1] > found[CLEAN].values[-1]
    assert found["accuracy.shifted.5"].values[-1] < found["accuracy.clean.0"].values[-1]
    assert 0 <= found["features.2.accuracy"].values[-1] <= 1


def test_only_the_runs_of_some_seeds_are_looked_at(make_text):
    watch = Watch(curve_points=3, features=True, seeds=frozenset({0}))
    other = train(make_text(seed=1), watch=watch)
    assert not other.probes and not other.eval_steps and watch.seen_in(other)
    assert watch.of(make_text(seed=0)) == watch and not watch.seen_in(train(make_text(seed=0)))


def test_ranks_cost_what_they_may():
    task = Text(width=16, depth=1, seq_len=32, eval_tokens=4096)
    model = task.build()
    flops = model.config.flops_per_token(32)
    often, seldom, larger = (
        RankProbe(task, model, batch, flops, cost) for batch, cost in ((512, 0.01), (512, 1e-4), (1024, 1e-4))
    )
    assert seldom.every == pytest.approx(100 * often.every, rel=0.05) == 2 * larger.every - 1
    forward = 16 * 32 / 3 / 512  # of the arithmetic of a step; the singular values come on top
    assert forward < seldom.every * 1e-4 and [seldom.is_due(k * seldom.every) for k in (1, 2)] == [True, True]
    assert set(often.measure()) == {"rank.blocks.0"}


def test_a_task_without_labels_says_what_it_needs():
    class Odd(Classifier):
        def evaluation(self):
            yield {"x": torch.ones(3, 4)}, 3

    with pytest.raises(UsageError, match="labelled"):
        sample_of(Odd())


def test_several_ranks_are_refused(make_text):
    from muonlab.train.ranks import Alone

    class Two(Alone):
        world_size = 2

    with pytest.raises(UsageError, match="one process"):
        train(make_text(), watch=WATCH, ranks=Two())
