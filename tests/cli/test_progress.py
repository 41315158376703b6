"""What is said of a study that goes on: how far it is while that is known, and nothing made up beyond."""

import itertools

import pytest

from muonlab.cli import progress
from muonlab.cli.progress import Progress
from muonlab.records import Record, RunSpec


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock finds ten seconds gone, so that every second call may speak."""
    times = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))


def spoken(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def record(tokens: int) -> Record:
    spec = RunSpec(task="text", optimizer="muon", horizon_tokens=tokens, batch_tokens=100)
    return Record(spec=spec, outcome="ok", final_loss=2.0, tokens=tokens)


def test_what_is_left_is_told_from_the_tokens_that_were_trained(clock, capsys) -> None:
    with Progress(1000) as shown:
        shown.on_record(record(500), False)  # which took no time
        shown.on_tokens(250)
        shown.on_record(record(250), True)
        shown.on_tokens(0)
        shown.on_tokens(0)
    last = spoken(capsys)[-1]
    assert "2 runs, 75%, about" in last and float(last.split("about ")[1].split()[0]) < 100


@pytest.mark.parametrize(
    ("tokens", "said"), [(1005, "100%, about 0 s left"), (1500, "more than first estimated")], ids=["a little", "well"]
)
def test_beyond_the_estimate_no_end_is_foretold(clock, capsys, tokens, said) -> None:
    with Progress(1000) as shown:
        shown.on_tokens(tokens)
        shown.on_record(record(tokens), True)
        shown.on_tokens(0)
    assert spoken(capsys)[-1] == f"muonlab: 1 run, {said}"


def test_quiet_says_nothing(clock, capsys) -> None:
    with Progress(1000, quiet=True) as shown:
        for _ in range(9):
            shown.on_tokens(100)
    assert spoken(capsys) == []
