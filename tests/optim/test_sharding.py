"""Training spread over ranks is the training of one process: the same weights, the same decisions, the same state."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).with_name("sharded_training.py")
ROUNDING = 1e-4  # of the way that the weights have gone: reductions in another order, in float32


def training() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("sharded_training", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TRAINING = training()
INVARIANCE = [f"{way} {name}" for way in TRAINING.WAYS for name in TRAINING.OPTIMIZERS]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What every rank found, after one run of all scenarios."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    children = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in range(TRAINING.WORLD)
    ]
    errors = []
    for child in children:
        try:
            errors.append(child.communicate(timeout=240)[1].decode())
        except subprocess.TimeoutExpired:
            child.kill()
            errors.append("timed out")
    assert all(child.returncode == 0 for child in children), "\n".join(error[-2000:] for error in errors)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(TRAINING.WORLD)]


@pytest.mark.parametrize("scenario", INVARIANCE)
def test_the_same_weights_as_one_process(ranks, scenario):
    assert max(rank[scenario] for rank in ranks) < ROUNDING


@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
@pytest.mark.parametrize("name", ["Muon", "SOAP", "NorMuon"])
def test_a_state_dict_holds_everything(ranks, way, name):
    assert max(rank[f"resume {way} {name}"] for rank in ranks) < 1e-6


@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
def test_all_ranks_skip_a_step_together(ranks, way):
    assert [rank[f"nonfinite {way}"] for rank in ranks] == [(True, 1)] * len(ranks)


@pytest.mark.parametrize("way", ["ddp", "fsdp", "hsdp"])
def test_a_gradient_that_is_missing_on_one_rank_is_an_error_on_all(ranks, way):
    for rank in ranks:
        assert "blocks.1.down.weight has a gradient on some ranks and none on rank 2" in rank[f"missing {way}"]


def test_two_exchanges_and_one_agreement_a_step(ranks):
    for rank in ranks:
        counts = rank["collectives"]
        exchanges = sum(count for op, count in counts.items() if "alltoall" in op.replace("_", ""))
        assert (exchanges, sum(counts.values())) == (2, 3)
