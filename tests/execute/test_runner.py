"""The memo: what is run, what is not, and what is kept when something goes wrong."""

import pytest

from muonlab.errors import UsageError
from muonlab.execute.executor import Observation
from muonlab.execute.runner import Runner
from muonlab.records import Record, RunSpec, Store
from muonlab.records.watch import Watch


class Memory(dict):
    read_only = False

    def get(self, keys):
        return {key: self[key] for key in keys if key in self}

    def put(self, record, *, replace=False):
        self[record.key] = record
        self.replaced = replace
        return True


class Executor:
    """Gives records at once; `outcomes` by seed, `ok` otherwise; an exception among them is raised."""

    def __init__(self, **outcomes):
        self.outcomes = {int(name[1:]): value for name, value in outcomes.items()}
        self.seen, self.closed = [], 0

    def run(self, specs, observation):
        try:
            for spec in specs:
                self.seen.append(spec.seed)
                outcome = self.outcomes.get(spec.seed, "ok")
                if isinstance(outcome, BaseException):
                    raise outcome
                yield record(spec, outcome, tuple(sorted(observation.watch.eval_steps)))
        finally:
            self.closed += 1


def make_spec(seed):
    return RunSpec(task="text", optimizer="adamw", horizon_tokens=32, batch_tokens=4, seed=seed)


def record(spec, outcome="ok", eval_steps=()):
    loss = 1.0 + spec.seed if outcome == "ok" else None
    return Record(
        spec=spec, outcome=outcome, final_loss=loss, eval_steps=eval_steps, eval_loss=tuple(map(float, eval_steps))
    )


def specs(*seeds):
    return [make_spec(seed) for seed in seeds]


@pytest.fixture(params=("fake", "store"))
def memory(request, tmp_path):
    return Memory() if request.param == "fake" else Store(tmp_path / "store.db")


def test_nothing_is_run_twice(memory):
    executor, seen = Executor(), []
    runner = Runner(memory, executor, on_record=lambda r, executed: seen.append((r.spec.seed, executed)))
    first = runner(specs(0, 1, 1, 0))
    assert executor.seen == [0, 1] and {r.spec.seed for r in first.values()} == {0, 1}
    again = runner(specs(1, 2))
    assert executor.seen == [0, 1, 2] and again.keys() == {make_spec(1).key, make_spec(2).key}
    assert seen == [(0, True), (1, True), (1, False), (2, True)]
    assert (runner.num_executed, runner.num_failed) == (3, 0)
    other = Executor()
    assert Runner(memory, other)(specs(0, 1, 2)).keys() == {s.key for s in specs(0, 1, 2)} and not other.seen


def test_a_failure_is_tried_again_and_a_divergence_is_not(memory):
    executor = Executor(_0="failed", _1="diverged")
    runner = Runner(memory, executor)
    runner(specs(0, 1))
    assert (runner.num_executed, runner.num_failed) == (2, 1)
    executor.outcomes = {}
    records = runner(specs(0, 1))
    assert executor.seen == [0, 1, 0]
    assert [r.outcome for r in (records[s.key] for s in specs(0, 1))] == ["ok", "diverged"]
    assert memory.get([make_spec(0).key])[make_spec(0).key].outcome == "ok"


def test_a_second_failure_takes_the_place_of_the_first(memory):
    runner = Runner(memory, Executor(_0="failed"))
    runner(specs(0)), runner(specs(0))
    assert (runner.num_executed, runner.num_failed) == (2, 2)


def test_a_record_that_lacks_an_evaluation_is_made_again(memory):
    Runner(memory, Executor(_1="diverged"))(specs(0, 1))
    executor = Executor()
    watching = Runner(memory, executor, Observation(Watch(frozenset({2, 4}))))
    assert watching(specs(0, 1))[make_spec(0).key].eval_steps == (2, 4)
    assert executor.seen == [0]  # a diverged run has what it could have
    assert memory.get([make_spec(0).key])[make_spec(0).key].eval_steps == (2, 4)
    fewer = Runner(memory, executor, Observation(Watch(frozenset({4}))))
    assert fewer(specs(0))[make_spec(0).key].eval_steps == (2, 4) and executor.seen == [0]


def test_what_was_made_before_an_error_is_kept(memory):
    executor = Executor(_2=UsageError("no"))
    with pytest.raises(UsageError, match="no"):
        Runner(memory, executor)(specs(0, 1, 2, 3))
    assert len(memory.get([s.key for s in specs(0, 1, 2, 3)])) == 2 and executor.closed == 1


@pytest.mark.parametrize("error", (KeyboardInterrupt, SystemExit, OSError))
def test_the_executor_is_closed_whatever_happens_outside_of_it(error):
    executor = Executor()

    def fail(record, executed):
        raise error

    with pytest.raises(error) as caught:
        Runner(Memory(), executor, on_record=fail)(specs(0, 1))
    assert executor.closed == 1 and executor.seen == [0], caught


def test_a_memory_that_cannot_be_written_is_found_out_before_the_first_run(tmp_path):
    store = Store(tmp_path / "store.db")
    Runner(store, Executor())(specs(0))
    executor = Executor()
    with Store(tmp_path / "store.db", read_only=True) as reader:
        runner = Runner(reader, executor)
        with pytest.raises(UsageError, match="read-only and lacks 1 runs"):
            runner(specs(0, 1))
        assert executor.seen == [] and runner.num_executed == 0
        assert runner(specs(0)).keys() == {make_spec(0).key}  # what is there can still be had
