"""Every constant that the task states, measured on the task itself."""

import math

import numpy as np
import pytest
import torch

from muonlab.errors import UsageError
from muonlab.records import RunSpec
from muonlab.records.spec import Schedule
from muonlab.records.watch import Watch
from muonlab.tasks.base import PublishesRoles, Task
from muonlab.tasks.catalog import locate, resolve, roles_of
from muonlab.tasks.matrix import NOISES, Matrix
from muonlab.tasks.rehearsal import rehearse
from muonlab.train.loop import train

SHAPED = Matrix(rows=5, cols=9, rank=3, distance=2.0, smoothness=3.0, condition=16.0, sigma=0.7)
CURVED = Matrix(rows=5, cols=9, rank=3, distance=2.0, smoothness=3.0, condition=16.0, sigma=0.7, tail=0.3)
each = pytest.mark.parametrize("task", [SHAPED, CURVED], ids=["quadratic", "tail"])
each_noise = pytest.mark.parametrize("noise", NOISES)


def model_at(task: Matrix, w) -> torch.nn.Module:
    model = task.build().double()
    model.weight.data = torch.tensor(w, dtype=torch.float64)
    return model


def true_loss(task: Matrix, w) -> float:
    ((batch, weight),) = task.evaluation()
    assert weight == 1
    return task.loss(model_at(task, w), batch).item()


def test_it_keeps_the_protocol():
    assert isinstance(SHAPED, Task) and isinstance(SHAPED, PublishesRoles)
    rehearse(SHAPED)
    assert locate("matrix").numerics == {"task": "1"} and resolve("matrix", {"sigma": 2.0}) == Matrix(sigma=2.0)
    assert roles_of(SHAPED, SHAPED.build()) == {"weight": "hidden"}
    assert not SHAPED.build().weight.any()


@each_noise
@pytest.mark.parametrize("shape", [(2, 3), (8, 8), (9, 15)])  # less than a word of random bits, one, and three
def test_a_batch_is_a_slice_of_one_stream(noise, shape):
    task = Matrix(rows=shape[0], cols=shape[1], rank=2, noise=noise)
    whole = task.batch(3, 0, 40)
    assert whole.shape == (40, *shape) and whole.dtype == torch.float32
    assert torch.equal(task.batch(3, 5, 7), whole[5:12]) and torch.equal(task.batch(3, 39, 1), whole[39:])
    assert not torch.equal(task.batch(4, 0, 40), whole) and not torch.equal(whole[:20], whole[20:])


@each_noise
def test_noise_has_mean_zero_and_the_variance_that_is_said(noise):
    task, count = Matrix(rows=3, cols=7, rank=3, sigma=2.5, noise=noise), 40_000
    drawn = task.batch(0, 0, count).double()
    squares = drawn.square().sum((1, 2))
    error = 5 * squares.std() / math.sqrt(count) + 1e-5
    assert abs(squares.mean() - 2.5**2) < error
    assert drawn.mean(0).norm() < 5 * 2.5 / math.sqrt(count)
    means = drawn.reshape(-1, 16, 3, 7).mean(1)  # independent samples: a sixteenth
    assert means.square().sum((1, 2)).mean() == pytest.approx(2.5**2 / 16, rel=0.1)


def test_signs_have_the_variance_in_every_sample_and_are_uncorrelated():
    drawn = Matrix(rows=3, cols=7, rank=3, sigma=2.5).batch(0, 0, 20_000).flatten(1).double()
    assert drawn.square().sum(1).numpy() == pytest.approx(2.5**2, rel=1e-5)
    correlations = torch.corrcoef(drawn.T) - torch.eye(21)
    assert correlations.abs().max() < 6 / math.sqrt(20_000)


def test_most_skewed_samples_point_away_from_the_optimum():
    task = Matrix(sigma=3.0, noise="skewed")
    along = (task.batch(0, 0, 4096) * torch.tensor(task.direction)).sum((1, 2))
    values, counts = along.round(decimals=4).unique(return_counts=True)
    assert values.tolist() == pytest.approx([-3 * math.sqrt(15), 3 / math.sqrt(15)], rel=1e-3)
    assert counts[0] / 4096 == pytest.approx(1 / 16, rel=0.2)
    assert (-task.gradient(np.zeros((8, 8))) * task.direction).sum() > 0  # descent goes along it, the gradient against
    assert np.linalg.norm(task.direction) == pytest.approx(1.0)


@each
def test_a_sample_adds_its_noise_to_the_true_gradient(task):
    w = np.random.default_rng(0).normal(size=(5, 9))
    model, batch = model_at(task, w), task.batch(1, 2, 3)
    task.loss(model, batch.double()).backward()
    expected = task.gradient(w) + batch.double().mean(0).numpy()
    assert model.weight.grad.numpy() == pytest.approx(expected, rel=1e-9)


@each
def test_start_and_optimum_are_what_is_said(task):
    start, optimum = np.zeros((5, 9)), task.optimum
    assert true_loss(task, start) == pytest.approx(task.start_loss)
    assert true_loss(task, optimum) == 0 and not task.gradient(optimum).any()
    found = np.random.default_rng(0).normal(size=(20, 5, 9))
    assert all(true_loss(task, optimum + d) > 0 for d in found)  # f* = 0, and nowhere else
    assert np.linalg.svd(optimum)[1] == pytest.approx([2.0, 2.0, 2.0, 0.0, 0.0], abs=1e-12)
    assert task.start_norm == pytest.approx(np.linalg.norm(task.gradient(start)))
    assert task.start_nuclear == pytest.approx(np.linalg.svd(task.gradient(start))[1].sum())


@each
def test_smoothness_bounds_the_change_of_the_gradient_and_is_attained(task):
    generator = np.random.default_rng(0)
    for scale in (0.01, 1.0, 100.0):
        a, b = scale * generator.normal(size=(2, 5, 9))
        assert np.linalg.norm(task.gradient(a) - task.gradient(b)) <= 3.0 * np.linalg.norm(a - b)
    step = np.zeros((5, 9))
    step[0, 0] = 1e-4
    slope = (task.gradient(task.optimum + step) - task.gradient(task.optimum - step))[0, 0] / 2e-4
    assert slope == pytest.approx(3.0, rel=1e-6)
    assert task.curvature.max() / task.curvature.min() == pytest.approx(16.0)
    row = Matrix(rows=1, cols=9, rank=1, condition=16.0)
    assert row.curvature.max() / row.curvature.min() == pytest.approx(16.0)


def test_a_tail_makes_it_concave_far_out_and_nothing_near():
    w = CURVED.optimum + 1e-5
    assert CURVED.gradient(w) == pytest.approx(SHAPED.gradient(w), rel=1e-8)
    far = CURVED.optimum + 3.0
    assert (CURVED.gradient(far + 0.1) < CURVED.gradient(far)).all()


def test_measures_are_of_the_true_gradient():
    w = np.random.default_rng(1).normal(size=(5, 9))
    gradient = SHAPED.curvature * (w - SHAPED.optimum)
    assert SHAPED.measures(model_at(SHAPED, w)) == pytest.approx(
        {
            "matrix.gradient_nuclear": np.linalg.svd(gradient)[1].sum(),
            "matrix.gradient_norm": math.sqrt((gradient**2).sum()),
            "matrix.gradient_dot_weight": np.trace(gradient.T @ w),
            "matrix.weight_spectral": np.linalg.svd(w)[1].max(),
        }
    )


def test_a_run_records_what_is_measured_after_watched_steps():
    spec = RunSpec(
        task="matrix", optimizer="sgd", horizon_tokens=40, batch_tokens=4, task_options={"sigma": 0.0, "condition": 1},
        hyperparameters={"opt.lr": 0.5, "opt.weight_decay": 0.0}, schedule=Schedule(kind="constant", warmup_fraction=0),
        clip=0.0,
    )  # fmt: skip
    record = train(spec, watch=Watch(eval_steps=frozenset({1, 2, 10})))
    series = record.probes["matrix.gradient_nuclear"]
    assert series.steps == (1, 2, 10)
    assert series.values == pytest.approx([4 * 0.5**step for step in (1, 2, 10)], rel=1e-3)  # rank 4, halved by a step
    assert record.eval_loss == pytest.approx([2 * 0.25**step for step in (1, 2, 10)], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "task.rows must be a whole number of at least 1, got 0"),
        ({"rank": 9}, "task.rank must be at most 8, the shorter side, got 9"),
        ({"cols": "8"}, "task.cols must be a whole number of at least 1, got '8'"),
        ({"distance": 0}, "task.distance and task.smoothness must be above 0"),
        ({"condition": 0.5}, "task.condition must be a finite number of at least 1"),
        ({"sigma": -1}, "task.sigma must be a finite number of at least 0"),
        ({"tail": math.nan}, "task.tail must be a finite number of at least 0"),
        ({"noise": "sign"}, "did you mean 'signs'"),
    ],
)
def test_each_mistake_is_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        Matrix(**options)
    assert "\n" not in str(caught.value)
