"""Tasks in a file, as a user has them: one that trains, and ones that come to grief."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muonlab.records import RunSpec
from muonlab.tasks.catalog import locate

SOURCE = '''
import ctypes, os, pathlib, signal, sys, time
import torch


class Task:
    """Fits a line. `folder` may hold orders: a file named after a seed says how that seed's run shall end, and how
    often; it is only read where it exists, so that the same spec can fail now and succeed later."""

    tokens_per_sample = 1

    def __init__(self, folder="", width=3):
        self.folder, self.width = pathlib.Path(folder), width

    def build(self):
        return torch.nn.Sequential(torch.nn.Linear(self.width, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))

    def batch(self, seed, start, count):
        if start >= 8:
            self.obey(seed)
        generator = torch.Generator().manual_seed(1000 * seed + start)
        return torch.randn(count, self.width, generator=generator)

    def loss(self, model, batch):
        return ((model(batch) - batch.sum(1, keepdim=True)) ** 2).mean()

    def evaluation(self):
        yield torch.linspace(-1, 1, 5 * self.width).view(5, self.width), 5

    def obey(self, seed):
        order = self.folder / str(seed)
        if self.folder == pathlib.Path("") or not order.exists():
            return
        how, _, times = order.read_text().partition(" ")
        if times:
            order.write_text(f"{how} {int(times) - 1}") if int(times) > 1 else order.unlink()
        getattr(self, how)()

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def segfault(self):
        ctypes.string_at(0)

    def quit(self):
        os._exit(3)

    def leave(self):
        sys.exit(4)

    def interrupt(self):
        raise KeyboardInterrupt

    def error(self):
        raise RuntimeError("planned\\nsecond line")

    def memory(self):
        raise MemoryError

    def chatter(self):
        for _ in range(200):
            print("x" * 10_000)
            os.write(1, b"y" * 10_000)

    def usage(self):
        from muonlab.errors import UsageError
        raise UsageError("this can't be run")

    def slow(self):
        time.sleep(0.6)

    def orphan(self):
        if os.fork() == 0:  # keeps open whatever its parent has open
            time.sleep(20)
            os._exit(0)
        self.kill()

    def workers(self):
        from torch.utils.data import DataLoader
        assert [len(batch) for batch in DataLoader(range(10), 5, num_workers=1, generator=torch.Generator())] == [5, 5]

    def hang(self):
        time.sleep(1000)
'''


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "grief.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="session")
def make_spec(source: Path) -> Callable[..., RunSpec]:
    """A run of 8 steps of 4 samples."""
    info = locate(f"{source}:Task")

    def make(seed: int = 0, folder: Path | str = "", optimizer: str = "adamw", **values: Any) -> RunSpec:
        return RunSpec(
            task=info.name, source=info.source, numerics=info.numerics, task_options={"folder": str(folder)},
            optimizer=optimizer, hyperparameters={"opt.lr": 0.01}, horizon_tokens=32, batch_tokens=4, seed=seed,
            **values,
        )  # fmt: skip

    return make
