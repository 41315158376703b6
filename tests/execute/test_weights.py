"""Runs that start from others: weights are kept when asked for, made again when gone, never missed in silence."""

from dataclasses import replace

import pytest

from muonlab.errors import UsageError
from muonlab.execute.executor import Observation, weights_file
from muonlab.execute.local import InlineExecutor, LocalExecutor
from muonlab.execute.runner import Runner
from muonlab.records import Record
from muonlab.records.record import same_result
from muonlab.records.watch import Watch


class Memory(dict):
    read_only = False

    def get(self, keys):
        return {key: self[key] for key in keys if key in self}

    def put(self, record, *, replace=False):
        self[record.key] = record
        return True


def runner(memory, folder, watch=Watch(), executor=InlineExecutor):  # noqa: B008
    seen = []
    made = Runner(memory, executor(artifacts=folder), Observation(watch), lambda r, executed: seen.append(r.key))
    return made, seen


def child_of(spec, **values):
    return replace(spec, init_from=spec.key, **values)


def test_weights_that_are_asked_for_at_once_cost_no_second_run(make_spec, tmp_path):
    parent, memory = make_spec(), Memory()
    run, _ = runner(memory, tmp_path, Watch(weights=True))
    run([parent])
    assert weights_file(tmp_path, parent.key).is_file()
    run([child_of(parent, seed=1)])
    assert run.num_executed == 2 and memory[child_of(parent, seed=1).key].inherited["own"] == []


@pytest.mark.parametrize(
    "executor",
    (InlineExecutor, lambda artifacts: LocalExecutor(workers=2, artifacts=artifacts)),
    ids=("inline", "local"),
)
def test_weights_that_nobody_kept_are_made_again_once_for_all_children(make_spec, tmp_path, caplog, executor):
    parent, memory = make_spec(optimizer="muon"), Memory()
    children = [child_of(parent, seed=seed) for seed in (1, 2)]
    runner(memory, tmp_path, executor=executor)[0]([parent])
    assert not weights_file(tmp_path, parent.key).exists()
    run, seen = runner(memory, tmp_path, executor=executor)
    first = run(children)
    assert seen.count(parent.key) == 1 and run.num_executed == 3 and "made again" in caplog.text
    weights_file(tmp_path, parent.key).unlink()
    again = runner(Memory({parent.key: memory[parent.key]}), tmp_path, executor=executor)[0](children)
    assert all(same_result(first[spec.key], again[spec.key]) for spec in children)


def test_those_of_a_grandparent_too(make_spec, tmp_path):
    first = make_spec()
    second = child_of(first, seed=1)
    third = child_of(second, seed=2)
    memory = Memory()
    run, seen = runner(memory, tmp_path)
    for spec in (first, second):
        run([spec])
    for file in (tmp_path / "weights").iterdir():
        file.unlink()
    del seen[:]
    run([third])
    assert seen == [first.key, second.key, third.key]


def test_a_child_is_not_its_parent_nor_a_run_from_nothing(make_spec, tmp_path):
    parent, memory = make_spec(), Memory()
    run, _ = runner(memory, tmp_path)
    run([parent])
    alone, child = make_spec(seed=1), child_of(parent, seed=1)
    records = run([alone, child])
    assert len({parent.key, alone.key, child.key}) == 3
    assert records[child.key].train_loss[0] != records[alone.key].train_loss[0]


def test_a_run_that_there_is_not_is_named(make_spec, tmp_path):
    orphan = replace(make_spec(), init_from="ab" * 32)
    with pytest.raises(UsageError, match="starts from the weights of abababababab, which is not in the store"):
        runner(Memory(), tmp_path)[0]([orphan])


def test_a_run_that_diverged_has_nothing_to_hand_on(make_spec, tmp_path):
    parent = make_spec()
    memory = Memory({parent.key: Record(spec=parent, outcome="diverged", diverged_step=1)})
    with pytest.raises(UsageError, match="which ended as diverged"):
        runner(memory, tmp_path)[0]([child_of(parent)])


def test_without_a_folder_there_is_no_place_for_weights(make_spec):
    parent, memory = make_spec(), Memory()
    run, _ = runner(memory, None)
    run([parent])
    with pytest.raises(UsageError, match="name a folder by --artifacts"):
        run([child_of(parent)])


def test_a_parent_that_fails_now_is_told(make_spec, tmp_path):
    parent, memory = make_spec(3, tmp_path), Memory()
    run, _ = runner(memory, tmp_path)
    run([parent])
    (tmp_path / "3").write_text("error")
    with pytest.raises(UsageError, match="made again for its weights, but RuntimeError: planned"):
        run([child_of(parent)])
