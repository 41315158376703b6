"""Driving protocols, alone and several in step."""

import pytest

from muonlab.study.protocol import drive, gather, single


def counting(specs):
    """A protocol that asks for its runs one at a time and returns their losses."""
    losses = []
    for spec in specs:
        records = yield [spec]
        losses.append(records[spec.key].final_loss)
    return losses


def nothing():
    return "done"
    yield


@pytest.fixture
def by_seed(bench):
    return bench(lambda spec: float(spec.seed))


def test_drive_feeds_records_back_and_returns_the_result(by_seed, spec):
    assert drive(counting([spec(seed=3), spec(seed=1)]), by_seed) == [3.0, 1.0]
    assert [[s.seed for s in batch] for batch in by_seed.batches] == [[3], [1]]


def test_drive_of_a_protocol_that_wants_nothing(by_seed):
    assert drive(nothing(), by_seed) == "done" and by_seed.batches == []


def test_single_is_one_run(by_seed, spec):
    assert drive(single(spec(seed=5)), by_seed).final_loss == 5.0
    assert len(by_seed.asked) == 1


def test_gather_merges_requests_drops_doubles_and_keeps_the_order_of_its_protocols(by_seed, spec):
    specs = [spec(seed=n) for n in range(4)]
    protocols = {"z": counting([specs[0], specs[1], specs[2]]), "idle": nothing(), "a": counting([specs[1], specs[1]])}
    results = drive(gather(protocols), by_seed)
    assert list(results.items()) == [("z", [0.0, 1.0, 2.0]), ("idle", "done"), ("a", [1.0, 1.0])]
    assert [[s.seed for s in batch] for batch in by_seed.batches] == [[0, 1], [1], [2]]  # the second: both want run 1


def test_the_requests_of_a_gather_take_turns(by_seed, spec):
    def both(*seeds):
        yield [spec(seed=seed) for seed in seeds]

    drive(gather({"a": both(1, 2, 3), "b": both(4), "c": both(5, 1)}), by_seed)
    assert [s.seed for s in by_seed.asked] == [1, 4, 5, 2, 3]


def test_gather_gives_each_protocol_only_what_it_asked_for(by_seed, spec):
    seen = {}

    def nosy(name, seed):
        seen[name] = yield [spec(seed=seed)]

    drive(gather({"a": nosy("a", 1), "b": nosy("b", 2)}), by_seed)
    assert {name: [r.spec.seed for r in records.values()] for name, records in seen.items()} == {"a": [1], "b": [2]}


def test_gathers_nest(by_seed, spec):
    inner = gather({"x": counting([spec(seed=1), spec(seed=2)]), "y": single(spec(seed=2))})
    results = drive(gather({"inner": inner, "other": counting([spec(seed=2)])}), by_seed)
    assert results["inner"]["x"] == [1.0, 2.0] and results["inner"]["y"].final_loss == 2.0
    assert results["other"] == [2.0]
    assert [[s.seed for s in batch] for batch in by_seed.batches] == [[1, 2], [2]]


def test_a_protocol_in_a_gather_may_ask_for_nothing_in_between(by_seed, spec):
    def pausing():
        assert (yield []) == {}
        records = yield [spec(seed=7)]
        return [r.final_loss for r in records.values()]

    assert drive(gather({"a": pausing(), "b": counting([spec(seed=1)])}), by_seed) == {"a": [7.0], "b": [1.0]}


def test_gather_of_nothing(by_seed):
    assert drive(gather({}), by_seed) == {} and by_seed.batches == []


def test_an_error_in_one_protocol_ends_them_all(by_seed, spec):
    def failing():
        yield [spec(seed=1)]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        drive(gather({"good": counting([spec(seed=1), spec(seed=2)]), "bad": failing()}), by_seed)
