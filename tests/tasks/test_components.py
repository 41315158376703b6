"""The components of classes: closed forms of the data, and of the first step."""

import math

import numpy as np
import pytest
import torch

from muonlab.errors import UsageError
from muonlab.records import RunSpec
from muonlab.records.spec import Schedule
from muonlab.records.watch import Watch
from muonlab.tasks.base import PublishesRoles, Task
from muonlab.tasks.catalog import resolve
from muonlab.tasks.components import KINDS, Components
from muonlab.tasks.rehearsal import rehearse
from muonlab.train.loop import train

each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_it_keeps_the_protocol(kind):
    task = resolve("components", {"kind": kind})
    assert isinstance(task, Task) and isinstance(task, PublishesRoles)
    rehearse(task)
    assert task.measures(task.build()) == {}


@each_kind
@pytest.mark.parametrize("aligned", [False, True])
def test_inner_products_do_not_depend_on_the_basis(kind, aligned):
    one, other = Components(kind=kind, aligned=aligned), Components(kind=kind, rotation=3)
    assert one.x @ one.x.T == pytest.approx(other.x @ other.x.T)
    assert one.weights.sum() == pytest.approx(1.0) and not np.allclose(one.x, other.x)


def test_the_data_are_what_is_said():
    task = Components(kind="frequency", num_classes=3, parts=2, dim=7)
    assert task.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.square(task.x).sum(1) == pytest.approx([1, 0.5] * 3)
    assert task.weights[0] / task.weights[4] == pytest.approx(3**1.5) and task.weights[0] == task.weights[1]
    assert len(set(Components(kind="symmetric").weights)) == 1


def test_classes_of_a_hierarchy_share_what_comes_before_they_part():
    task = Components(kind="hierarchy", num_classes=4, dim=6)
    first, second = 1.0, 2**-1.5
    gram = [[first + second, first, 0, 0], [first, first + second, 0, 0]]
    assert (task.x @ task.x.T)[:2] == pytest.approx(np.array(gram))


def test_the_first_gradient_of_symmetric_data_has_a_flat_spectrum_and_that_of_others_not():
    for kind, flat in (("symmetric", True), ("frequency", False)):
        task = Components(kind=kind)
        model = task.build()
        task.loss(model, task.batch(0, 0, 1)).backward()
        spectrum = torch.linalg.svdvals(model.weight.grad)[:15]
        assert bool(spectrum[0] < 1.001 * spectrum[-1]) is flat


def test_measures_of_known_weights():
    """W = the sum of the components of a class in its row: every sample's logit is its strength, others' are 0."""
    task = Components(kind="symmetric", num_classes=4, parts=2, dim=8)
    model = task.build()
    model.weight.data = torch.from_numpy(np.stack([task.x[2 * k] + task.x[2 * k + 1] * math.sqrt(2) for k in range(4)]))
    found = task.measures(model)
    assert found["components.margin_mean"] == pytest.approx((1 + 2**-0.5) / 2)
    assert found["components.margin_min"] == pytest.approx(2**-0.5)
    assert found["components.margin_min_over_norm"] == pytest.approx(0.5)
    assert found["components.rank_weight"] == pytest.approx(4.0) == found["components.rank_logits"]


def test_a_run_learns_it():
    spec = RunSpec(
        task="components", optimizer="sgd", horizon_tokens=60, batch_tokens=1,
        hyperparameters={"opt.lr": 1.0, "opt.momentum": 0.0}, schedule=Schedule(kind="constant", warmup_fraction=0.0),
    )  # fmt: skip
    record = train(spec, watch=Watch(eval_steps=frozenset({30, 60})))
    low, high = record.probes["components.margin_mean"].values
    assert record.eval_loss[1] < record.eval_loss[0] < math.log(16) and high > low


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "frequent"}, "did you mean 'frequency'"),
        ({"num_classes": 1}, "at least 2"),
        ({"dim": 40}, "at least 48"),
        ({"kind": "hierarchy", "num_classes": 12}, "power of two"),
        ({"aligned": 1}, "true or false"),
    ],
)
def test_what_cannot_be_made_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Components(**options)
