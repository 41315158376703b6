"""Every Python block of docs/own_optimizer.md runs, one after the other, and prints what the page says it prints."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

from muonlab.testing import optimizers, rules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own_optimizer.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:```\n(.*?)^```\n)?", PAGE, re.DOTALL | re.MULTILINE)


def test_the_python_of_the_page() -> None:
    assert len(BLOCKS) >= 6 and sum(bool(printed) for _, printed in BLOCKS) >= 4
    names: dict = {"__name__": __name__}
    for code, printed in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "docs/own_optimizer.md", "exec"), names)
        assert out.getvalue() == printed


def test_the_rule_of_the_page_is_that_of_the_example() -> None:
    code = (ROOT / "examples" / "own_rule.py").read_text()
    assert BLOCKS[0][0].partition('"normalised_sgd"')[2].strip() in code


def test_every_clause_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert {*rules.CLAUSES, *optimizers.CLAUSES} <= set(rows)


def test_the_study_file_of_the_page() -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert tomllib.loads(text)["variants"]["slow"]["opt"] == {"momentum": 0.95}
