"""Stopped and resumed is not interrupted at all: bit for bit, wherever it stopped, whatever befell the files."""

import hashlib
import io
import os
import pickle
import random
import resource

import numpy as np
import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.records.record import same_result
from muonlab.records.watch import Watch
from muonlab.train.checkpoint import KEEP, Checkpoints, restore_rng, rng_state
from muonlab.train.loop import Interrupted, train

NUM_STEPS = 8
EVAL_STEPS = (1, 4, 8)


class Noisy:
    """Dropout, running statistics, and draws from torch's, numpy's and Python's global generators at every step."""

    tokens_per_sample = 1

    def build(self):
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4))

    def batch(self, seed, start, count):
        generator = torch.Generator().manual_seed(1000 * seed + start)
        return torch.randn(count, 6, generator=generator)

    def loss(self, model, batch):
        noise = random.gauss(0, 1) + np.random.standard_normal() + torch.randn(())  # gauss and normal keep a spare
        return ((model(batch) - noise) ** 2).mean()

    def evaluation(self):
        yield torch.linspace(-1, 1, 30).view(5, 6), 5


def stops_at(step):
    """Asked before each step, like the trainer does."""
    asked = iter(range(10**9))
    return lambda: next(asked) == step


@pytest.fixture(scope="module", params=("adamw", "muon", "sgd"))
def whole(request, make_spec):
    """A spec and what it gives when nobody interrupts it."""
    spec = make_spec(NUM_STEPS, optimizer=request.param, seed=3)
    return spec, train(spec, task=Noisy(), watch=Watch(frozenset(EVAL_STEPS)))


@pytest.fixture
def adamw(make_spec):
    spec = make_spec(NUM_STEPS, seed=3)
    return spec, train(spec, task=Noisy(), watch=Watch(frozenset(EVAL_STEPS)))


def interrupt(spec, checkpoints, step, eval_steps=EVAL_STEPS):
    """Run `step` more steps."""
    with pytest.raises(Interrupted):
        train(
            spec, task=Noisy(), watch=Watch(frozenset(eval_steps)), checkpoints=checkpoints, should_stop=stops_at(step)
        )


def go_on(spec, checkpoints, eval_steps=EVAL_STEPS):
    seen = []
    record = train(spec, task=Noisy(), watch=Watch(frozenset(eval_steps)), checkpoints=checkpoints, on_step=seen.append)
    return record, seen


@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_resumed_at_any_step_it_is_the_same_run(whole, tmp_path, step):
    spec, expected = whole
    checkpoints = Checkpoints(tmp_path / "run")
    interrupt(spec, checkpoints, step)
    torch.manual_seed(99), np.random.seed(99), random.seed(99)  # another process
    record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected)
    assert seen == list(range(step + 1, NUM_STEPS + 1))
    assert not checkpoints.folder.exists()


def test_interrupted_again_and_again(whole, tmp_path):
    spec, expected = whole
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (2, 0, 1, 3):
        interrupt(spec, checkpoints, step)
    record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected) and seen == [7, 8]


def test_a_text_run_resumes_bitwise_too(make_text, tmp_path):
    spec, checkpoints = make_text("muon", horizon_tokens=2048, micro_batch_tokens=64), Checkpoints(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(spec, checkpoints=checkpoints, should_stop=stops_at(5))
    assert same_result(train(spec, checkpoints=checkpoints), train(spec))


def test_a_crash_in_the_last_evaluation_costs_only_the_steps_since_the_last_checkpoint(adamw, tmp_path):
    class Crashes(Noisy):
        def evaluation(self):
            raise RuntimeError("crash")

    spec, _ = adamw
    with pytest.raises(RuntimeError):
        train(spec, task=Crashes(), checkpoints=Checkpoints(tmp_path / "run", seconds=0.0))
    record, seen = go_on(spec, Checkpoints(tmp_path / "run"), eval_steps=())
    assert same_result(record, train(spec, task=Noisy())) and seen == [8]


def test_checkpoints_are_written_in_time_and_the_last_ones_kept(adamw, tmp_path):
    spec, _ = adamw
    folder, found = tmp_path / "run", []
    train(spec, task=Noisy(), checkpoints=Checkpoints(folder, seconds=0.0),
          on_step=lambda step: found.append(sorted(path.name for path in folder.glob("*"))))  # fmt: skip
    assert found[0] == [] and found[-1] == ["step-000000006.pt", "step-000000007.pt"] and KEEP == 2
    assert not folder.exists()
    train(
        spec,
        task=Noisy(),
        checkpoints=Checkpoints(folder, seconds=60.0),
        on_step=lambda s: found.append(folder.exists()),
    )
    assert not any(found[NUM_STEPS:])  # a short run writes none


def test_time_spent_before_the_interruption_counts(adamw, tmp_path):
    spec, _ = adamw
    interrupt(spec, checkpoints := Checkpoints(tmp_path / "run"), 4)
    path = next(checkpoints.folder.glob("*"))
    saved = checkpoints.newest()
    checkpoints.save(4, {**saved.values, "seconds": [1000.0, 100.0]}, saved.whole)
    assert path.exists()
    record, _ = go_on(spec, checkpoints)
    assert 1000 < record.wall_seconds < 1100 and 100 < record.eval_seconds < 200


def test_a_checkpoint_of_an_earlier_version_is_passed_over(adamw, tmp_path):
    spec, expected = adamw
    interrupt(spec, checkpoints := Checkpoints(tmp_path / "run"), 4)
    (path,) = checkpoints.folder.iterdir()
    saved = checkpoints.newest()
    buffer = io.BytesIO()
    torch.save({name: value for name, value in saved.values.items() if name != "format"}, buffer)
    path.write_bytes(sealed(buffer.getvalue()))
    with pytest.warns(UserWarning, match="has the format of another version"):
        record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected) and seen == list(range(1, NUM_STEPS + 1))


def test_an_evaluation_that_was_not_asked_for_then_is_not_missed(adamw, tmp_path):
    spec, expected = adamw
    interrupt(spec, checkpoints := Checkpoints(tmp_path / "run"), 5, eval_steps=())
    record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected) and seen == list(range(1, NUM_STEPS + 1))


def sealed(content):
    return hashlib.sha256(content).digest() + content


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


DAMAGE = {
    "empty": lambda b: b"",
    "cut": lambda b: b[: len(b) // 2],
    "last byte missing": lambda b: b[:-1],
    "longer": lambda b: b + b"\0",
    "zeros": lambda b: bytes(len(b)),
    "bit in the hash": lambda b: bytes([b[0] ^ 1]) + b[1:],
    "bit in the tensors": lambda b: b[: len(b) // 2] + bytes([b[len(b) // 2] ^ 4]) + b[len(b) // 2 + 1 :],
    "last bit": lambda b: b[:-1] + bytes([b[-1] ^ 128]),
    "text": lambda b: b"not a checkpoint",
    "sealed nothing": lambda b: sealed(b""),
    "sealed text": lambda b: sealed(b"not a checkpoint"),
    "sealed pickle": lambda b: sealed(pickle.dumps(Evil())),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(adamw, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    spec, expected = adamw
    checkpoints = Checkpoints(tmp_path / "run")
    interrupt(spec, checkpoints, 3)
    interrupt(spec, checkpoints, 2)
    older, newest = sorted(checkpoints.folder.glob("*"))
    newest.write_bytes(DAMAGE[how](newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"step-000000005\.pt .* using the one before it"):
        record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected) and seen == [4, 5, 6, 7, 8]
    assert older.name == "step-000000003.pt" and not (tmp_path / "evil-was-here").exists()


def test_where_all_are_damaged_the_run_starts_again(adamw, tmp_path):
    spec, expected = adamw
    checkpoints = Checkpoints(tmp_path / "run")
    interrupt(spec, checkpoints, 3)
    interrupt(spec, checkpoints, 2)
    for path in checkpoints.folder.glob("*"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected) and len(seen) == NUM_STEPS


def test_one_that_cannot_be_read_is_passed_over(adamw, tmp_path):
    spec, expected = adamw
    checkpoints = Checkpoints(tmp_path / "run")
    interrupt(spec, checkpoints, 3)
    (checkpoints.folder / "step-000000007.pt").mkdir()
    with pytest.warns(UserWarning, match=r"step-000000007\.pt can't be read"):
        record, _ = go_on(spec, checkpoints)
    assert same_result(record, expected)


def test_left_over_drafts_are_no_checkpoints(adamw, tmp_path):
    spec, expected = adamw
    checkpoints = Checkpoints(tmp_path / "run")
    interrupt(spec, checkpoints, 3)
    (checkpoints.folder / "step-000000006.4711.tmp").write_bytes(b"half")
    record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected) and seen[0] == 4 and not checkpoints.folder.exists()


def test_the_checkpoint_of_another_run_is_refused(make_spec, adamw, tmp_path):
    spec, _ = adamw
    interrupt(spec, checkpoints := Checkpoints(tmp_path / "run"), 3)
    other = make_spec(NUM_STEPS, seed=4)
    with pytest.raises(UsageError, match="belongs to another run"):
        train(other, task=Noisy(), checkpoints=checkpoints)
    assert len(list(checkpoints.folder.glob("*"))) == 1


def test_without_checkpoints_an_interruption_is_one_all_the_same(adamw):
    with pytest.raises(Interrupted):
        train(adamw[0], task=Noisy(), should_stop=stops_at(3))


def message(call):
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line(adamw, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        said = message(lambda: train(adamw[0], task=Noisy(), checkpoints=Checkpoints(folder, seconds=0.0)))  # noqa: B023
        assert said.startswith(f"cannot write checkpoint {folder}/step-000000001.pt: ")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_stays(adamw, tmp_path):
    spec, expected = adamw
    checkpoints = Checkpoints(tmp_path / "run")
    interrupt(spec, checkpoints, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # Python ignores the signal that comes with it
    try:
        said = message(lambda: train(spec, task=Noisy(), watch=Watch(frozenset(EVAL_STEPS)), checkpoints=checkpoints,
                                     should_stop=stops_at(2)))  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "step-000000005.pt: File too large" in said
    assert [path.name for path in checkpoints.folder.glob("*")] == ["step-000000003.pt"]
    record, seen = go_on(spec, checkpoints)
    assert same_result(record, expected) and seen[0] == 4


def test_the_state_of_the_generators_survives_a_safe_load():
    random.gauss(0, 1), np.random.standard_normal()
    state = rng_state("cpu")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    drawn = [f() for f in (random.random, np.random.random, lambda: torch.rand(()).item())]
    spares = random.gauss(0, 1), np.random.standard_normal()
    restore_rng(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    assert [f() for f in (random.random, np.random.random, lambda: torch.rand(()).item())] == drawn
    assert (random.gauss(0, 1), np.random.standard_normal()) == spares
