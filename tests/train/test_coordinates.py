"""The probe of the coordinate check: by hand on two matrices, and a run that does not know of it."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.records import Schedule
from muonlab.records.record import same_result
from muonlab.records.watch import CHANGE, UPDATE, Watch
from muonlab.train.checkpoint import Checkpoints
from muonlab.train.coordinates import ROWS, CoordinateProbe, shrink
from muonlab.train.loop import Interrupted, train
from muonlab.train.ranks import Alone

CONSTANT = Schedule(kind="constant", warmup_fraction=0.0)
WATCH = Watch(coordinates=frozenset({1, 2, 5, 8}))


class Two:
    """Two hidden matrices, by the task's own word."""

    tokens_per_sample = 1

    def build(self):
        return nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))

    def roles(self, model):
        return {name: "hidden" if p.ndim == 2 else "vector" for name, p in model.named_parameters()}

    def batch(self, seed, start, count):
        return torch.randn(count, 3, generator=torch.Generator().manual_seed(1000 * seed + start))

    def loss(self, model, batch):
        return model(batch).square().mean()

    def evaluation(self):
        yield torch.linspace(-1, 1, 15).view(5, 3), 5


class Steady(Two):
    """One matrix, and the same gradient at every step: 1/4 in each element."""

    def build(self):
        return nn.Sequential(nn.Linear(3, 4, bias=False))

    def batch(self, seed, start, count):
        return torch.ones(count, 3)

    def loss(self, model, batch):
        return model(batch).mean()


class Noisy(Two):
    """Dropout, running statistics, and draws from every global generator, in training and on held-out data."""

    def build(self):
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4), nn.Linear(4, 2))

    def loss(self, model, batch):
        noise = random.gauss(0, 1) + np.random.standard_normal() + torch.randn(())
        return ((model(batch) - noise) ** 2).mean()


def gain(update: Tensor) -> float:
    """The largest of RMS(update x) / RMS(x), by the eigenvalues of its square."""
    fan_out, fan_in = update.shape
    return math.sqrt(float(torch.linalg.eigvalsh(update.double().mT @ update.double())[-1]) * fan_in / fan_out)


@pytest.mark.parametrize("decay", ["decoupled", "independent"])
def test_the_first_step_by_hand(make_spec, decay: str) -> None:
    """Adam's is lr times the sign of the gradient; what decay takes of a weight besides is no part of the update."""
    lr, weight_decay, task = 0.02, 0.5, Two()
    settings = {"opt.decay": decay, "opt.weight_decay": weight_decay, "opt.eps": 1e-12}
    spec = make_spec(lr=lr, seed=3, clip=0.0, hyperparameters=settings, schedule=CONSTANT)
    probes = train(spec, task=task, watch=Watch(coordinates=frozenset({1}))).probes
    torch.manual_seed(3)
    model = task.build()
    task.loss(model, task.batch(3, 0, 4)).backward()
    left = 1 - (lr if decay == "decoupled" else 1.0) * weight_decay
    first, second = (module.weight.detach() for module in model)
    signs = [module.weight.grad.sign() for module in model]
    for i, sign in enumerate(signs):
        assert probes[f"{UPDATE}{i}.weight"] == ((1,), (pytest.approx(lr * gain(sign), rel=1e-5),))
    x, _ = next(task.evaluation())
    hidden = x @ (left * first - lr * signs[0]).mT
    changes = [hidden - x @ first.mT, hidden @ (left * second - lr * signs[1]).mT - x @ first.mT @ second.mT]
    for i, change in enumerate(changes):
        assert probes[f"{CHANGE}{i}"] == ((1,), (pytest.approx(float(change.square().mean().sqrt()), rel=1e-5),))
    assert len(probes) == 4


def test_updates_are_of_one_step_and_changes_since_the_first(make_spec) -> None:
    """Where every step is the same, changes add up and updates do not."""
    settings = {"opt.momentum": 0.0, "opt.weight_decay": 0.0}
    spec = make_spec(optimizer="sgd", lr=0.1, clip=0.0, hyperparameters=settings, schedule=CONSTANT)
    probes = train(spec, task=Steady(), watch=WATCH).probes
    steps, changes = probes[f"{CHANGE}0"]
    assert steps == (1, 2, 5, 8) and changes == pytest.approx([changes[0] * step for step in steps], rel=1e-4)
    assert probes[f"{UPDATE}0.weight"].values == pytest.approx([0.1 * gain(torch.full((4, 3), 0.25))] * 4, rel=1e-4)


def test_muons_update_is_lr_times_its_scale(make_text) -> None:
    """Of wide and of tall matrices, and of the companion nothing."""
    spec = make_text("muon", hyperparameters={"opt.lr": 0.01, "opt.polar": "exact", "opt.adjust_lr_fn": "spectral"})
    probes = train(spec.set({"schedule.kind": "constant"}), watch=Watch(coordinates=frozenset({8}))).probes
    updates = {name: series.values for name, series in probes.items() if name.startswith(UPDATE)}
    assert updates == {name: (pytest.approx(0.01, rel=1e-3),) for name in updates} and len(updates) == 7
    changed = {name.removeprefix(CHANGE) for name in probes if name.startswith(CHANGE)}
    assert {"embed", "head"} < changed and len(changed) == 9


def probe_of(p: nn.Parameter, model: nn.Module, look, **group) -> CoordinateProbe:
    whole = {"params": [p], "param_names": ["w"], "role": "hidden", "decay": "decoupled", "lr": 0.0, **group}
    return CoordinateProbe(model, SimpleNamespace(param_groups=[{"weight_decay": 0.0, **whole}]), look, {1})


def test_of_several_matrices_in_one_parameter_the_largest_counts() -> None:
    p, model = nn.Parameter(torch.zeros(6, 4)), nn.Module()
    probe = probe_of(p, model, lambda: None, split_sizes=(2, 2, 2))
    probe.keep(1)
    moved = (
        torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 2.0])[:, None, None]
    )
    p.data.copy_(moved.flatten(0, 1))
    assert probe.measure(1) == {f"{UPDATE}w": pytest.approx(max(map(gain, moved)), rel=1e-5)}
    assert probe.measure(2) == {}


def test_long_outputs_are_sampled_alike_each_time_and_leave_the_generator_alone() -> None:
    model = nn.Linear(2, 3, bias=False)
    x = torch.randn(4 * ROWS, 2, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    probe = probe_of(model.weight, model, lambda: model(x))
    probe.keep(1)
    assert probe.measure(1) == {f"{CHANGE}model": 0.0, f"{UPDATE}w": 0.0}
    assert probe.initial["model"].shape == (ROWS, 3) and torch.equal(torch.get_rng_state(), state)


def test_what_decay_leaves_follows_the_schedule() -> None:
    group = {"lr": 0.005, "peak_lr": 0.01, "weight_decay": 0.1}
    assert shrink({**group, "decay": "independent"}) == pytest.approx(0.95)
    assert shrink({**group, "decay": "decoupled"}) == pytest.approx(0.9995)
    assert shrink({**group, "decay": "coupled"}) == 1.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_measuring_changes_nothing(make_spec, optimizer: str) -> None:
    spec, evaluated = make_spec(optimizer=optimizer, seed=3), frozenset({2, 8})
    plain, watched = (train(spec, task=Noisy(), watch=Watch(evaluated, coordinates=c)) for c in ((), WATCH.coordinates))
    names = ("train_loss", "eval_loss", "final_loss")
    assert [getattr(plain, name) for name in names] == [getattr(watched, name) for name in names]
    assert not plain.probes and len(watched.probes) == 6 and WATCH.seen_in(watched) and not WATCH.seen_in(plain)
    assert all(value > 0 for series in watched.probes.values() for value in series.values)


def test_without_an_update_nothing_has_changed(make_spec) -> None:
    """Held-out passes draw the same random numbers and run without dropout."""
    spec = make_spec(optimizer="sgd", lr=0.0, hyperparameters={"opt.weight_decay": 0.0})

    class Still(Noisy):
        def build(self):
            return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    assert {value for series in train(spec, task=Still(), watch=WATCH).probes.values() for value in series.values} == {
        0
    }


@pytest.mark.parametrize("step", range(8))
def test_a_run_that_goes_on_measures_against_its_first_weights(make_spec, tmp_path, step: int) -> None:
    spec, asked = make_spec(seed=3), iter(range(100))
    checkpoints = Checkpoints(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(spec, task=Noisy(), watch=WATCH, checkpoints=checkpoints, should_stop=lambda: next(asked) == step)
    seen = []
    again = train(spec, task=Noisy(), watch=WATCH, checkpoints=checkpoints, on_step=seen.append)
    assert seen[0] == step + 1 and same_result(again, train(spec, task=Noisy(), watch=WATCH))


@pytest.mark.parametrize(("asked", "first"), [({1, 8}, 1), ({5, 8}, 4)])
def test_a_checkpoint_behind_what_is_asked_for_is_left(make_spec, tmp_path, asked: set[int], first: int) -> None:
    """Begun without the probe: from step 1 where that is wanted, and from the checkpoint where it is not."""
    spec, stops, checkpoints = make_spec(seed=3), iter(range(100)), Checkpoints(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(spec, task=Noisy(), checkpoints=checkpoints, should_stop=lambda: next(stops) == 3)
    seen, watch = [], Watch(coordinates=frozenset(asked))
    found = train(spec, task=Noisy(), watch=watch, checkpoints=checkpoints, on_step=seen.append)
    assert seen[0] == first and same_result(found, train(spec, task=Noisy(), watch=watch))


def test_a_run_that_diverges_keeps_what_was_measured(make_spec) -> None:
    class Explodes(Steady):
        def batch(self, seed, start, count):
            return torch.full((count, 3), math.inf if start >= 12 else 1.0)

    record = train(make_spec(optimizer="sgd"), task=Explodes(), watch=WATCH)
    assert record.outcome == "diverged" and record.probes[f"{CHANGE}0"].steps == (1, 2)


def test_several_ranks_are_refused(make_spec) -> None:
    class Several(Alone):
        world_size = 2

    with pytest.raises(UsageError, match="one process"):
        train(make_spec(), task=Two(), watch=WATCH, ranks=Several())


def test_no_held_out_data_is_one_line(make_spec) -> None:
    class Without(Two):
        def evaluation(self):
            return iter(())

    with pytest.raises(UsageError, match="held-out data"):
        train(make_spec(), task=Without(), watch=WATCH)
