"""The program in a fresh folder, and one small study that most tests look at."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # program.py, which pytest's importlib mode does not find

from program import Finished, Program

TINY = {"task.width": 16, "task.depth": 1, "task.seq_len": 32, "task.eval_tokens": 2048}
STUDY = """
horizon_tokens = 1024
batch_tokens = 128
num_seeds = 2
tuning_seeds = 2
max_tuning_seeds = 2
max_runs = 16
tune = ["opt.lr"]
"""


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Settings that make the task `text` small."""
    return [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="session")
def text() -> str:
    """Eight thousand bytes of words."""
    words = ["ba", "be", "lo", "mi", "nu", "the", "of", "and", "or"]
    chosen = random.Random(0)
    return " ".join(chosen.choice(words) + chosen.choice(words) for _ in range(1700))[:8000]


def furnish(folder: Path, text: str) -> Program:
    (folder / "text.txt").write_text(text)
    (folder / "small.toml").write_text(STUDY)
    return Program(folder)


@pytest.fixture
def program(tmp_path: Path, text: str) -> Program:
    """`muonlab` in a folder that holds text.txt and small.toml."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return furnish(folder, text)


@dataclass(frozen=True)
class Study:
    """A comparison that was made by the installed program, with everything as a user has it."""

    program: Program
    arguments: list[str]
    first: Finished

    @property
    def document(self) -> Any:
        return self.first.json


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, text: str, tiny: list[str]) -> Study:
    """Made once, also where several workers share the tests: the first one makes it, the others wait."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, result = root / "study", root / "study.json"
    arguments = ["compare", "text", "--data", "text.txt", "--config", "small.toml", *tiny, "--workers", "2"]
    with open(root / "study.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            folder.mkdir()
            furnish(folder, text)
            command = [sys.executable, "-m", "muonlab", *arguments, "--json", "--out", "first.html"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250)
            result.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return Study(Program(folder), arguments, Finished(*json.loads(result.read_text())))


@pytest.fixture
def copied(study: Study, tmp_path: Path) -> Study:
    """The study in a folder of its own, to be damaged."""
    folder = tmp_path / "copy"
    shutil.copytree(study.program.folder, folder)
    return Study(Program(folder), study.arguments, study.first)


OWN_TASK = '''
import os, pathlib, time
import torch

print("imported", flush=True)


class Task:
    """Fits a line, and says so; a file named after a seed orders that seed's run about."""

    tokens_per_sample = 1

    def __init__(self, width=3, folder="."):
        print("made")
        self.width, self.folder = width, pathlib.Path(folder)

    def build(self):
        print("built")
        return torch.nn.Sequential(torch.nn.Linear(self.width, 4), torch.nn.Linear(4, 1))

    def batch(self, seed, start, count):
        order = self.folder / str(seed)
        if start and order.exists():
            getattr(self, order.read_text())()
        generator = torch.Generator().manual_seed(1000 * seed + start)
        return torch.randn(count, self.width, generator=generator)

    def loss(self, model, batch):
        print("loss")
        if (self.folder / "broken").exists():
            self.error()
        loss = ((model(batch) - batch.sum(1, keepdim=True)) ** 2).mean()
        if (self.folder / "inf").exists() and not torch.is_grad_enabled():
            return loss + float("inf")
        return loss * float("nan") if (self.folder / "nan").exists() else loss

    def evaluation(self):
        os.write(1, b"evaluated\\n")
        yield torch.linspace(-1, 1, 5 * self.width).view(5, self.width), 5

    def error(self):
        raise RuntimeError("planned")

    def hang(self):
        (self.folder / "hanging").touch()
        time.sleep(1000)

    def pause(self):
        (self.folder / "pausing").touch()
        time.sleep(0.2)
'''


@pytest.fixture
def own(program: Program) -> str:
    """A task of the user's that prints wherever it can."""
    (program.folder / "own.py").write_text(OWN_TASK)
    return "own.py:Task"
