"""Every printed number in a docstring of the package is what is really printed."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "muonlab"
NEEDS = {"muonlab.kernels.triton_symmetric": "triton"}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py" and "migrations" not in path.parts
)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not results.failed, f"{results.failed} of {results.attempted} examples of {name} print something else"
