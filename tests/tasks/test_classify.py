"""The tasks whose samples are images: the protocol, the stream, the losses; on digits and on images made here."""

import doctest
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from muonlab.errors import UsageError
from muonlab.records import RunSpec
from muonlab.records.watch import Watch
from muonlab.study.config import BatchConfig, LadderConfig, validated
from muonlab.study.plan import base_specs
from muonlab.tasks import classify
from muonlab.tasks.base import PublishesRoles, Task
from muonlab.tasks.catalog import TASKS, defaults_of, locate, resolve
from muonlab.tasks.classify import Digits, Images
from muonlab.tasks.rehearsal import rehearse
from muonlab.train.loop import train

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
SMALL = {"width": 8}


@pytest.fixture(scope="module")
def digits():
    return Digits(**SMALL)


def spec(**changes):
    values = {
        "task": "digits", "optimizer": "sgd", "horizon_tokens": 640, "batch_tokens": 64, "task_options": SMALL,
        "hyperparameters": {"opt.lr": 0.05},
    }  # fmt: skip
    return RunSpec(**{**values, **changes})


@pytest.fixture
def archive(tmp_path):
    """Images of 12 x 10 pixels in colour, four classes."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (40, 12, 10, 3), np.uint8), np.arange(40) % 4
    path = tmp_path / "own.npz"
    np.savez(path, x_train=pixels[:30], y_train=labels[:30], x_test=pixels[30:], y_test=labels[30:])
    return str(path)


@pytest.mark.parametrize("model", ["resnet", "vit", "cnn"])
def test_it_keeps_the_protocol(archive, model):
    for task in (Digits(model=model, **SMALL), Images(model=model, data=(archive,), shift=2, flip=True, **SMALL)):
        assert isinstance(task, Task) and isinstance(task, PublishesRoles) and task.tokens_per_sample == 1
        rehearse(task)


def test_every_data_set_is_a_task_of_its_own():
    found = {name: locate(name) for name in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "images")}
    assert all(info.numerics == {"task": "1"} and "width" in info.options for info in found.values())
    assert found.keys() <= TASKS.keys()
    assert resolve("digits", SMALL) == Digits(**SMALL)
    with pytest.raises(UsageError, match="task digits reads no data"):
        resolve("digits", {}, ("x",))


def test_a_batch_is_a_slice_of_one_stream(digits):
    for task in (digits, Digits(shift=2, flip=True, **SMALL)):
        images, classes = task.batch(3, 1290, 20)  # over the end of an epoch
        parts = [task.batch(3, 1290, 4), task.batch(3, 1294, 15), task.batch(3, 1309, 1)]
        assert torch.equal(images, torch.cat([part[0] for part in parts]))
        assert torch.equal(classes, torch.cat([part[1] for part in parts]))
        assert images.shape == (20, 1, 8, 8) and images.dtype == torch.float32 and classes.dtype == torch.int64
        assert images.min() == 0 and images.max() == 1


def test_an_epoch_is_the_training_set_and_no_image_is_held_out(digits):
    images, classes = digits.batch(1, 1297, 1297)
    assert classes.bincount().tolist() == np.bincount(digits.images.train.labels).tolist()
    rows = {row.numpy().tobytes() for row in images}
    assert rows == {row.numpy().tobytes() for row in digits.batch(0, 0, 1297)[0]}
    held = {row.numpy().tobytes() for (batch, _), _ in digits.evaluation() for row in batch}
    assert not rows & held


def test_evaluation_is_the_held_out_split_or_a_spread_of_it(digits):
    batches = list(digits.evaluation())
    assert [weight for _, weight in batches] == [250, 250]
    pixels = torch.cat([images for (images, _), _ in batches])
    assert torch.equal(pixels * 255, torch.from_numpy(digits.images.heldout.images).float())
    (((some, classes), weight),) = Digits(eval_images=50, **SMALL).evaluation()
    assert weight == 50 and torch.equal(some, pixels[::10])
    assert torch.equal(classes, torch.from_numpy(digits.images.heldout.labels[::10]))


def test_the_first_loss_is_that_of_a_uniform_guess(digits):
    torch.manual_seed(0)
    loss = digits.loss(digits.build(), digits.batch(0, 0, 64))
    assert loss.item() == pytest.approx(math.log(10), abs=0.1) and loss.dtype == torch.float32


def test_labels_are_smoothed_in_training_alone(digits):
    torch.manual_seed(0)
    model, batch, smooth = digits.build(), digits.batch(0, 0, 64), Digits(label_smoothing=0.2, **SMALL)
    logits = model(batch[0])
    uniform = -logits.log_softmax(-1).mean()
    wanted = 0.8 * F.cross_entropy(logits, batch[1]) + 0.2 * uniform
    assert smooth.loss(model, batch).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert smooth.loss(model.eval(), batch).item() == digits.loss(model, batch).item()


def test_curvature_is_seen_against_the_models_own_predictions(digits):
    torch.manual_seed(0)
    model, (images, classes) = digits.build(), digits.batch(0, 0, 64)
    model.head.bias.data[3] = 50.0  # certain of threes, whatever the labels say
    assert digits.curvature_loss(model, (images, classes)).item() == pytest.approx(0, abs=1e-3)
    assert digits.loss(model, (images, classes)).item() > 20


def test_accuracy_is_measured_and_leaves_the_model_as_it_was(digits):
    model = digits.build().train()
    model.head.weight.data.zero_()
    model.head.bias.data[7] = 1.0  # sevens, all of them
    share = (digits.images.heldout.labels == 7).mean()
    assert digits.measures(model) == {"heldout.accuracy": pytest.approx(share)} and model.training
    digits.measures(model.eval())
    assert not model.training


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 0.03), ("muon", 0.05), ("sophia", 0.01)])
def test_a_run_learns_and_records_its_accuracy(optimizer, lr):
    asked = spec(optimizer=optimizer, hyperparameters={"opt.lr": lr}, horizon_tokens=2560)
    record = train(asked, watch=Watch(eval_steps=frozenset({1, 40})))
    accuracy = record.probes["heldout.accuracy"]
    assert accuracy.steps == (1, 40) and accuracy.values[1] > 0.4 > 0.25 > accuracy.values[0]
    assert record.outcome == "ok" and record.final_loss == record.eval_loss[-1] < math.log(10) - 0.2
    assert record.tokens == 2560 and {"conv", "head", "vector"} == set(record.params)


def test_micro_batches_give_the_same_run():
    whole, parts = train(spec()), train(spec(micro_batch_tokens=16))
    assert parts.final_loss == pytest.approx(whole.final_loss, rel=1e-3)


def test_the_task_pickles_without_its_images(digits):
    digits.batch(0, 0, 1)
    content = pickle.dumps(digits)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content).batch(0, 0, 2)[0], digits.batch(0, 0, 2)[0])


def test_a_study_of_digits_takes_what_suits_digits():
    (base,) = base_specs(validated({"task": "digits", "optimizers": ["muon"], "baseline": "muon"})).values()
    usual = defaults_of("digits")
    assert base.batch_tokens == usual["batch_tokens"] < 1297 and base.horizon_tokens == usual["horizon_tokens"]
    assert base.data_fingerprint == Digits().fingerprint() and base.task_options["model"] == "resnet"
    assert validated({"task": "digits", "batch_tokens": 32}).batch_tokens == 32
    assert validated({"task": "text"}) == validated({}) and validated({"task": "mine.py:Task"}).batch_tokens == 4096
    assert validated({"task": "digits"}, BatchConfig).batch_tokens == validated({}, BatchConfig).batch_tokens
    assert validated({"task": "digits"}, LadderConfig).batch_tokens == usual["batch_tokens"]


def test_a_batch_larger_than_the_training_set_is_refused(digits):
    digits.check(1297)
    with pytest.raises(UsageError, match="a batch of 1298 images exceeds the 1297 to train on: lower --batch-tokens"):
        digits.check(1298)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "restnet"}, "unknown model 'restnet': did you mean 'resnet'"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"shift": -1}, "shift must be a whole number of at least 0"),
        ({"shift": 8}, "shift 8 moves an image of 8 pixels out of sight"),
        ({"flip": 1}, "flip must be true or false, got 1"),
        ({"label_smoothing": 1}, "label_smoothing must be a number from 0 to below 1"),
        ({"eval_images": 0.5}, "eval_images must be a whole number"),
        ({"patch_size": 2}, "patch_size is for model vit: leave it out for resnet"),
        ({"model": "vit", "patch_size": 3}, "patch_size 3 must divide 8 and 8 pixels"),
    ],
)
def test_each_mistake_is_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        Digits(**options)
    assert "\n" not in str(caught.value)


def test_doctests():
    assert doctest.testmod(classify).failed == 0


def test_enlarged_images_fit_the_model_of_larger_ones():
    large, small = Digits(size=28, width=4), Digits(width=4)
    assert large.build()(large.batch(0, 0, 2)[0]).shape == (2, 10) and large.config.image == (1, 28, 28)
    assert len(large.config.sizes) == 4 and len(small.config.sizes) == 2
    with pytest.raises(UsageError, match="size must be a whole number of at least 0"):
        Digits(size=1.5)


def test_a_run_that_enlarges_nothing_has_the_key_that_it_had_before_one_could():
    from muonlab.study.config import ComparisonConfig, validated
    from muonlab.study.plan import base_specs

    def options(**settings):
        asked = {"task": "digits", "optimizers": ("adamw",), "settings": settings}
        (made,) = base_specs(validated(asked, ComparisonConfig)).values()
        return made.task_options

    assert "size" not in options() and options()["shift"] == 0
    assert options(**{"task.size": 28})["size"] == 28
