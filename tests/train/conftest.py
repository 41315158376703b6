"""One thread, and a run that takes milliseconds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from muonlab.records import RunSpec


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., RunSpec]:
    """A run of 8 steps of 4 samples, for tasks whose sample is one token; keywords change its fields."""

    def make(num_steps: int = 8, batch: int = 4, lr: float = 0.01, **values: Any) -> RunSpec:
        defaults = {"task": "toy", "optimizer": "adamw", "batch_tokens": batch, "horizon_tokens": batch * num_steps}
        settings = {"opt.lr": lr, **values.pop("hyperparameters", {})}
        return RunSpec(**{**defaults, "hyperparameters": settings, **values})

    return make


@pytest.fixture(scope="session")
def make_text() -> Callable[..., RunSpec]:
    """The task `text`, tiny: 16 steps of 8 sequences of 32 bytes."""

    def make(optimizer: str = "adamw", **values: Any) -> RunSpec:
        defaults = {"horizon_tokens": 4096, "batch_tokens": 256, "hyperparameters": {"opt.lr": 0.01}}
        options = {"width": 16, "depth": 1, "seq_len": 32, "eval_tokens": 2048, **values.pop("task_options", {})}
        return RunSpec(task="text", optimizer=optimizer, task_options=options, **{**defaults, **values})

    return make
