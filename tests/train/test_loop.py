"""One run: what is trained, what is recorded, and that nothing else has an influence."""

import math
import random
import shutil
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.records import Record, Schedule
from muonlab.records.record import same_result
from muonlab.records.watch import Watch
from muonlab.tasks.text import Text
from muonlab.train.curves import CURVE_POINTS
from muonlab.train.loop import train
from muonlab.train.schedules import lr_factor, progress_at

OPTIMIZERS = ("adamw", "muon", "sgd")
PLAIN_SGD = {"optimizer": "sgd", "hyperparameters": {"opt.momentum": 0.0, "opt.weight_decay": 0.0}}


class Weight(nn.Module):
    def __init__(self, start=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start]))

    def forward(self):
        return self.w.sum()


class Slope:
    """Its loss is its weight: the gradient is always 1, and the held-out loss shows the weight."""

    tokens_per_sample = 1

    def __init__(self, slope=1.0):
        self.slope, self.slices = slope, []

    def build(self):
        self.model = Weight()
        return self.model

    def batch(self, seed, start, count):
        self.slices.append((seed, start, count))
        return torch.arange(start, start + count)

    def loss(self, model, batch):
        return self.slope * model()

    def evaluation(self):
        yield torch.zeros(1), 1


class Noisy(Slope):
    """Draws from every global generator, in training and in evaluation."""

    def build(self):
        self.model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4))
        return self.model

    def batch(self, seed, start, count):
        return torch.stack([torch.randn(6, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])

    def loss(self, model, batch):
        noise = random.random() + np.random.random() + torch.rand(()).item()
        return ((model(batch) - noise) ** 2).mean()

    def evaluation(self):
        for i in range(3):
            yield torch.full((5, 6), 0.1 * i), 5


class Fails(Slope):
    """Becomes something else at one step; keeps what the weights were before each step."""

    def __init__(self, step, how, parts=1):
        super().__init__()
        self.when, self.how, self.parts, self.calls, self.before = step, how, parts, 0, []

    def loss(self, model, batch):
        if not torch.is_grad_enabled():
            return model()
        step, part = divmod(self.calls, self.parts)
        self.calls += 1
        if part == 0:
            self.before.append(model.w.item())
        if step + 1 < self.when or part != self.parts - 1:
            return model() + 7.0
        return self.how(model())


HOWS = {
    "nan": (lambda w: w * math.nan, "loss not finite at step"),
    "inf": (lambda w: w + math.inf, "loss not finite at step"),
    "inf gradient": (lambda w: torch.sqrt(w - w.detach()) + 1.0, "gradient norm not finite at step"),
    "nan gradient": (lambda w: torch.sqrt((w - w.detach()) ** 2), "gradient norm not finite at step"),
}


def without_curve(record: Record) -> Record:
    return replace(record, eval_steps=(), eval_loss=())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_spec_twice_is_the_same_record_and_another_seed_is_not(make_text, optimizer):
    spec = make_text(optimizer, horizon_tokens=2048)
    torch.manual_seed(1)  # what was drawn before has no influence
    first = train(spec)
    np.random.random(5), random.random()
    assert same_result(first, train(spec))
    assert not same_result(first, train(make_text(optimizer, horizon_tokens=2048, seed=1)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_brings_the_loss_down(make_text, optimizer):
    lr = {"adamw": 0.01, "muon": 0.02, "sgd": 1.0}[optimizer]
    record = train(make_text(optimizer, hyperparameters={"opt.lr": lr}, horizon_tokens=8192))
    assert record.outcome == "ok" and record.final_loss < math.log(256) - 0.5
    assert np.mean(record.train_loss[-4:]) < np.mean(record.train_loss[:4]) - 0.5


def test_gradient_accumulation_is_the_whole_batch_to_rounding(make_text):
    settings = {"opt.lr": 0.5, "opt.momentum": 0.9}
    whole = train(make_text("sgd", hyperparameters=settings))
    parts = train(make_text("sgd", hyperparameters=settings, micro_batch_tokens=64))
    assert parts.final_loss == pytest.approx(whole.final_loss, rel=2e-6)
    assert parts.train_loss == pytest.approx(whole.train_loss, rel=2e-6)
    assert parts.tokens == whole.tokens and parts.flops == whole.flops


@pytest.mark.parametrize("micro", (0, 2, 4))
def test_batches_are_consecutive_slices_of_the_stream(make_spec, micro):
    task = Slope()
    train(make_spec(3, micro_batch_tokens=micro, seed=5), task=task)
    step = micro or 4
    assert task.slices == [(5, start, step) for start in range(0, 12, step)]


def test_bf16_trains_and_is_not_fp32(make_text):
    full, half = train(make_text()), train(make_text(precision="bf16"))
    assert half.outcome == "ok" and half.final_loss != full.final_loss
    assert half.final_loss == pytest.approx(full.final_loss, rel=0.02)


@pytest.mark.parametrize("kind", ("constant", "linear", "cosine", "wsd"))
def test_the_learning_rate_follows_the_schedule(make_spec, kind):
    schedule = Schedule(kind=kind, warmup_fraction=0.25, decay_fraction=0.5, final_fraction=0.1)
    record = train(make_spec(16, lr=0.5, schedule=schedule, **PLAIN_SGD), task=Slope())
    moved = sum(0.5 * lr_factor(schedule, progress_at(step, 16)) for step in range(1, 17))
    assert record.final_loss == pytest.approx(-moved, rel=1e-6)


@pytest.mark.parametrize(("clip", "speed"), [(0.0, 40.0), (1.0, 1.0), (10.0, 10.0), (100.0, 40.0)])
def test_clip_bounds_the_gradient_norm_and_zero_is_no_bound(make_spec, clip, speed):
    spec = make_spec(lr=0.01, clip=clip, schedule=Schedule(kind="constant", warmup_fraction=0.0), **PLAIN_SGD)
    assert train(spec, task=Slope(40.0)).final_loss == pytest.approx(40.0 * -0.01 * 8 * speed, rel=1e-5)


@pytest.mark.parametrize("parts", (1, 2))
@pytest.mark.parametrize("step", (1, 4, 8))
@pytest.mark.parametrize("how", HOWS)
def test_divergence_is_recorded_before_the_update(make_spec, how, step, parts):
    replacement, reason = HOWS[how]
    task = Fails(step, replacement, parts)
    record = train(make_spec(micro_batch_tokens=4 // parts, **PLAIN_SGD), task=task, watch=Watch(frozenset({2, 4, 8})))
    assert (record.outcome, record.diverged_step, record.final_loss) == ("diverged", step, None)
    assert record.error == f"{reason} {step}"
    assert record.tokens == 4 * (step - 1) and record.flops == 6.0 * record.tokens
    assert record.train_steps == tuple(range(1, step)) and all(map(math.isfinite, record.train_loss))
    assert record.last_finite_loss == (record.train_loss[-1] if step > 1 else None)
    assert task.model.w.item() == task.before[-1] and len(task.before) == step
    assert record.eval_steps == tuple(s for s in (2, 4, 8) if s < step)


def test_a_held_out_loss_that_is_not_finite_is_a_divergence_too(make_spec):
    class Overflows(Slope):
        def evaluation(self):
            yield torch.zeros(1), 1
            yield torch.full((1,), math.inf), 1

        def loss(self, model, batch):
            return model() + (batch.sum() if not torch.is_grad_enabled() else 0)

    record = train(make_spec(), task=Overflows(), watch=Watch(frozenset({2})))
    assert (record.outcome, record.diverged_step, record.final_loss) == ("diverged", 8, None)
    assert record.tokens == 32 and record.last_finite_loss == record.train_loss[-1] and "held-out" in record.error
    assert record.eval_loss == (math.inf,)


def test_a_learning_rate_that_is_far_too_high_diverges(make_text):
    record = train(make_text("sgd", hyperparameters={"opt.lr": 1e30}, clip=0.0))
    assert record.outcome == "diverged" and 1 < record.diverged_step <= 16 and math.isfinite(record.last_finite_loss)


def test_evaluation_is_the_weighted_mean_over_exactly_the_held_out_batches(make_spec):
    class Weighted(Slope):
        seen = ()

        def loss(self, model, batch):
            if torch.is_grad_enabled():
                assert model.training
                return model()
            assert not model.training
            self.seen += (batch.item(),)
            return batch.double().sum()

        def evaluation(self):
            yield torch.tensor(2.0), 3
            yield torch.tensor(10.0), 1

    task = Weighted()
    assert train(make_spec(), task=task).final_loss == 4.0
    assert task.seen == (2.0, 10.0)


def test_the_whole_held_out_split_of_a_text_counts(make_text, tmp_path):
    (tmp_path / "text.txt").write_bytes(bytes(range(32, 127)) * 40)
    data = (str(tmp_path / "text.txt"),)
    spec = make_text(task_options={"eval_tokens": 0}, data=data)
    targets = []

    class Counts(Text):
        def loss(self, model, batch):
            if not torch.is_grad_enabled():
                targets.append(batch[:, 1:].numel())
            return super().loss(model, batch)

    task = Counts(**spec.task_options, data=data)
    train(spec, task=task)
    held = sum(len(shard.tokens) for shard in task.corpus.heldout)
    assert sum(targets) == (held - 1) // 32 * 32 and held == 380


def test_a_task_that_holds_nothing_out_is_refused(make_spec):
    class Empty(Slope):
        def evaluation(self):
            return ()

    with pytest.raises(UsageError, match="no held-out data"):
        train(make_spec(), task=Empty())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_evaluations_on_the_way_change_nothing_else(make_spec, optimizer):
    spec = make_spec(optimizer=optimizer)
    plain, watched = train(spec, task=Noisy()), train(spec, task=Noisy(), watch=Watch(frozenset(range(1, 9))))
    assert watched.eval_steps == tuple(range(1, 9)) and len(watched.eval_loss) == 8
    assert plain.eval_steps == ()
    assert same_result(without_curve(plain), without_curve(watched))


def test_what_a_text_run_cost(make_text):
    spec = make_text(horizon_tokens=4096 + 255)  # the rest of a batch is not trained on
    task = Text(**spec.task_options)
    record = train(spec)
    assert record.tokens == 4096 and len(record.train_steps) == 16
    model = task.build()
    assert record.flops == task.flops_per_token(model) * 4096
    assert record.params == {str(role): count for role, count in model.num_params().items()}
    assert record.num_params == sum(p.numel() for p in model.parameters())
    assert 0 < record.step_seconds < record.wall_seconds and 0 < record.eval_seconds < record.wall_seconds
    assert record.peak_bytes > 2**20 and record.environment["torch"] == torch.__version__
    assert record.environment["threads"] == 1 and record.created.endswith("+00:00")


def test_a_task_that_says_nothing_of_flops_and_roles_gets_estimates(make_spec):
    record = train(make_spec(), task=Noisy())
    assert record.params == {"hidden": 6 * 8, "vector": 8 + 8 + 8 + 4, "head": 8 * 4}
    assert record.flops == 6.0 * 108 * 32


def test_a_long_curve_is_averaged_down(make_spec):
    num_steps = 2 * CURVE_POINTS + 10
    record = train(
        make_spec(num_steps, schedule=Schedule(kind="constant", warmup_fraction=0), **PLAIN_SGD), task=Slope()
    )
    assert len(record.train_steps) == len(record.train_loss) <= CURVE_POINTS
    assert record.train_steps[-1] == num_steps and record.train_steps[:2] == (3, 6)
    assert record.train_loss[0] == pytest.approx(-0.01) and record.train_loss[1] == pytest.approx(-0.04)


def test_batches_may_be_nested(make_spec):
    class Pair(NamedTuple):
        first: torch.Tensor
        second: dict

    class Nested(Slope):
        def batch(self, seed, start, count):
            return Pair(torch.ones(count), {"list": [torch.ones(count), "a word"]})

        def loss(self, model, batch):
            if torch.is_grad_enabled():
                assert isinstance(batch, Pair) and batch.second["list"][1] == "a word"
            return model()

    assert train(make_spec(), task=Nested()).outcome == "ok"


def test_frozen_parameters_stay(make_spec):
    class Frozen(Noisy):
        def build(self):
            model = super().build()
            model[0].requires_grad_(False)
            self.before = model[0].weight.clone()
            return model

    task = Frozen()
    record = train(make_spec(lr=0.1), task=task)
    assert torch.equal(task.model[0].weight, task.before) and record.outcome == "ok"


def test_steps_are_reported_one_by_one(make_spec):
    seen = []
    train(make_spec(5), task=Slope(), on_step=seen.append)
    assert seen == [1, 2, 3, 4, 5]


def test_batches_that_are_no_whole_samples_are_refused(make_text):
    for values, what in ({"batch_tokens": 250}, "multiple of 32"), ({"micro_batch_tokens": 16}, "one sample, 32"):
        with pytest.raises(UsageError, match=what):
            train(make_text(**values))


def test_a_batch_larger_than_the_data_is_refused(make_text, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"ab" * 500)
    with pytest.raises(UsageError, match="exceeds the training split of 900"):
        train(make_text(data=(str(tmp_path / "text.txt"),), batch_tokens=1024))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("optimizer", ("adamw", "muon"))
def test_a_compiled_run_is_the_same_run_to_rounding(make_text, optimizer):
    plain, compiled = train(make_text(optimizer)), train(make_text(optimizer, compile=True))
    assert compiled.outcome == "ok" and compiled.final_loss == pytest.approx(plain.final_loss, rel=5e-3)
    assert compiled.train_loss == pytest.approx(plain.train_loss, rel=5e-3)
    assert plain.key != compiled.key
