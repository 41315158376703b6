"""Training spread over ranks is the training of one process: the same weights, the same decisions, the same state.

Every suite of sharded_scenarios.py is run once for a number of ranks, and its findings are looked at here. Those that
`make test` leaves to `make test-dist` have the marker `dist`.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

DEVICE = os.environ.get("MUONLAB_TEST_DEVICE", "cpu")
SCRIPT = Path(__file__).with_name("sharded_scenarios.py")
ROUNDING = 1e-4  # of the way that the weights have gone: reductions in another order, in float32
HALF_ROUNDING = 0.05  # the same of weights in bfloat16
LIMIT = 900  # seconds for a suite

pytestmark = pytest.mark.timeout(LIMIT + 60)


def scenarios() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sharded_scenarios", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCENARIOS = scenarios()
Found = list[dict[str, Any]]  # by rank: what a scenario returned, by its name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Found]:
    """Run a suite, unless it was run before, in the folder of all suites of its extent."""
    done: dict[tuple, Found] = {}
    folders = {quick: tmp_path_factory.mktemp("quick" if quick else "full") for quick in (True, False)}

    def run(suite: str, number: int, quick: bool, **environment: str) -> Found:
        if DEVICE == "cuda" and torch.cuda.device_count() < number:
            pytest.skip(f"needs {number} GPUs, there are {torch.cuda.device_count()}")
        key = (suite, number, quick, *environment.values())
        if key not in done:
            done[key] = launch(suite, number, quick, folders[quick], environment)
        return done[key]

    return run


def launch(suite: str, number: int, quick: bool, folder: Path, environment: dict[str, str]) -> Found:
    left = suite == "leave"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    arguments = [suite, "quick" if quick else "full"]
    (folder / f"rendezvous-{suite}-{number}").unlink(missing_ok=True)
    children = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments, str(rank), str(number), str(folder)],
            env=variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number)
    ]
    errors = []
    try:
        for child in children[:-1] if left else children:
            errors.append(child.communicate(timeout=LIMIT)[1])
    except subprocess.TimeoutExpired:
        errors.append("timed out")
    finally:
        for child in children:
            child.kill()
            child.wait()
    staying = range(number - 1 if left else number)
    files = [folder / f"{suite}-{number}-{rank}.pt" for rank in staying]
    assert all(file.exists() for file in files), "\n".join(error[-2000:] for error in errors)
    found = [torch.load(file, weights_only=False) for file in files]
    for file in files:
        file.unlink()
    return found


def cases(suite: str, *numbers: int) -> Iterator[Any]:
    """Number of ranks, extent and name of every scenario; what only the full extent has is marked `dist`."""
    for number in numbers:
        for name, _ in SCENARIOS.SUITES[suite](True, number):
            yield pytest.param(number, True, name, id=f"{number}-{name}")
        for name, _ in SCENARIOS.SUITES[suite](False, number):
            yield pytest.param(number, False, name, id=f"full-{number}-{name}", marks=pytest.mark.dist)


@pytest.mark.parametrize(("number", "quick", "name"), list(cases("spread", 4)))
def test_the_same_weights_as_one_process(run, number, quick, name):
    bound = HALF_ROUNDING if name.startswith("placed nearest") else ROUNDING
    assert max(rank[name] for rank in run("spread", number, quick)) < bound


@pytest.mark.dist
@pytest.mark.parametrize(("number", "name"), [(n, name) for n in (1, 2, 3) for name, _ in SCENARIOS.spread(False, n)])
def test_the_same_weights_on_any_number_of_ranks(run, number, name):
    assert max(rank[name] for rank in run("spread", number, False)) < ROUNDING


@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
@pytest.mark.parametrize("name", SCENARIOS.SAVED)
def test_a_state_dict_holds_everything(run, way, name):
    assert max(rank[f"reloaded {way} {name}"] for rank in run("conduct", 4, True)) < 1e-6


@pytest.mark.parametrize("name", ["compiled module", "lacking state"])
def test_what_is_not_as_usual(run, name):
    assert max(rank[name] for rank in run("conduct", 4, True)) < ROUNDING


@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
def test_all_ranks_skip_a_step_together(run, way):
    assert [rank[f"nonfinite {way}"] for rank in run("conduct", 4, True)] == [(True, 1)] * 4


@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
def test_a_gradient_that_is_missing_on_one_rank_is_an_error_on_all(run, way):
    for rank in run("conduct", 4, True):
        assert "blocks.1.down.weight has a gradient on some ranks and none on rank 2" in rank[f"missing {way}"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("settings", "lr of group 0 is 0.02 on rank 0 and 0.01 on rank 3"),
        ("versions", "version of muonlab is '0.1.0' on rank 0 and '0.0.1' on rank 1"),
        ("roles", "the param group of blocks.1.down.weight is 0 on rank 0 and 2 on rank 1"),
    ],
)
def test_ranks_that_would_make_another_step_are_an_error_on_all(run, name, told):
    for rank in run("conduct", 4, True):
        assert told in rank[name]


@pytest.mark.parametrize("way", ["fsdp", "hsdp", "tp", "fsdp_tp", "columns"])
def test_every_rank_has_what_its_box_says(run, way):
    assert all(rank[f"boxes {way}"] for rank in run("conduct", 4, True))


def test_two_exchanges_and_one_agreement_a_step(run):
    for rank in run("conduct", 4, True):
        counts = rank["collectives"]
        exchanges = sum(count for op, count in counts.items() if "alltoall" in op.replace("_", ""))
        assert (exchanges, sum(counts.values())) == (2, 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("way", "name", "times", "saved"),  # saved: where the polar factor is computed in half the bytes
    [
        ("fsdp", "Muon", 2 * 3 / 4, 3 / 8),  # there and back, less the quarter that stays
        ("hsdp", "Muon", 1 / 2 + 3 / 2, 3 / 4),  # there in one replica of two ranks, back to both
        ("fsdp", "MuonHyperball", 3 * 3 / 4, 0),  # gradient and weight there, weight back
        ("ddp", "Muon", 3, 0),  # the new weight to three others
    ],
)
def test_the_bytes_of_a_step(run, way, name, times, saved, dtype):
    if dtype == "bfloat16":
        times -= saved
    for rank in run("conduct", 4, True):
        sent, size = rank[f"bytes {way} {name} {dtype}"]
        assert sent == times * size


def test_diagnostics_are_those_of_one_process(run):
    for rank in run("conduct", 4, True):
        spread, alone = rank["diagnostics"]
        assert spread.keys() == alone.keys()
        assert spread == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize(("number", "quick", "name"), list(cases("resume", 1, 2, 3)))
def test_a_checkpoint_goes_on_with_other_ranks(run, number, quick, name):
    run("save", 4, quick)
    assert max(rank[name] for rank in run("resume", number, quick)) < ROUNDING


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_is_an_error_on_the_others(run, how):
    for rank in run("leave", 3, True, NUMBER=str(int(how))):
        message, seconds = rank["left"]
        assert message.startswith("another rank does not answer")
        assert seconds < 2 * SCENARIOS.SECONDS
