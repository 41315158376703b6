"""One thread: these tensors are small, and a busy machine makes thread pools slow. And the ways to take a step."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # stepping and reference, which pytest's importlib mode does not find


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most tests here are not about observations, and feed none; that this is said has a test of its own."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:Sophia takes its first step"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU passes for a device whose results the host does not wait for."""
    from muonlab.optim import guard

    monkeypatch.setattr(guard, "SYNCHRONOUS_DEVICES", frozenset())


@pytest.fixture(params=["host", "flagged"])
def path(request: pytest.FixtureRequest) -> None:
    """The guard's decision is made on the host, or stays on the device."""
    if request.param == "flagged":
        request.getfixturevalue("no_waiting")
