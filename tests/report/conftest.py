"""The finding that most tests start from."""

import sys
from pathlib import Path

import pytest

from muonlab.analyze.findings import Comparison

sys.path.insert(0, str(Path(__file__).parent))  # made_up and reading, which pytest's importlib mode does not find


@pytest.fixture
def finding() -> Comparison:
    from made_up import make_finding

    return make_finding()
