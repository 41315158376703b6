"""What the tests of hosts share: a training script loaded as a module, or run by several processes."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def load() -> Callable[[str], ModuleType]:
    """A script of this folder by its name, as a module."""

    def loaded(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., str]:
    """Run a script on two processes, in a folder; what it printed."""

    def run(script: Path, folder: Path, *, processes: int = 2) -> str:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [*(command if processes > 1 else command[:1]), str(script)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def found_by_ranks(torchrun, tmp_path_factory) -> Callable[[str], list[dict[str, Any]]]:
    """What each rank of a script of this folder found, which it leaves in rank0.pt and rank1.pt."""

    def ranks(name: str) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp(name)
        torchrun(HERE / f"{name}.py", folder)
        return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]

    return ranks


def _script_of(request: pytest.FixtureRequest) -> str:
    return Path(request.module.__file__).stem.removeprefix("test_") + "_training"


@pytest.fixture(scope="module")
def training(request, load) -> ModuleType:
    """The script of a test module."""
    return load(_script_of(request))


@pytest.fixture(scope="module")
def ranks(request, found_by_ranks) -> list[dict[str, Any]]:
    """What each rank of it found."""
    return found_by_ranks(_script_of(request))
