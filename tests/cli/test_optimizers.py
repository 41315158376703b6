"""`muonlab optimizers`: the document, what is measured in it, the tables, and what is mistyped."""

from math import prod
from pathlib import Path

import pytest

from muonlab.optim import catalog
from muonlab.study.space import start, starts

KEYS = {
    "name", "class", "source", "summary", "companion", "state_bytes_per_parameter", "hyperparameters",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from program import Program

    path = tmp_path_factory.mktemp("optimizers") / "folder"
    path.mkdir()
    return Program(path)


@pytest.fixture(scope="module")
def document(folder):
    done = folder("optimizers", "--json")
    assert (done.code, done.err) == (0, ""), done
    return done.json


def test_every_optimizer_is_listed_with_all_that_can_be_tuned(document):
    assert [one["name"] for one in document] == list(catalog.names()) and len(document) >= 22
    for one in document:
        cls, begin = catalog.get(one["name"]), starts(one["name"])
        assert one.keys() >= KEYS and one["source"] and one["summary"] == cls.rule.__doc__.splitlines()[0]
        assert one["companion"] == (cls.companion.name if cls.companion else None)
        assert one["class"] == f"muonlab.optim.{cls.__name__}"
        known = catalog.hyperparameters(one["name"])
        assert [h["name"] for h in one["hyperparameters"]] == [h.name for h in known]
        for shown, h in zip(one["hyperparameters"], known, strict=True):
            assert (shown["default"], tuple(shown["grid"]), shown["unit"]) == (h.default, h.grid, h.unit)
            assert (shown["start"], shown["start_source"]) == begin[h.name]
            assert bool(shown["grid"]) == bool(shown["grid_source"])


def test_the_state_is_what_the_rules_declare(document):
    for one in document:
        settings = {k.removeprefix("opt."): v for k, v in start(one["name"]).items()}
        rule = catalog.get(one["name"]).rule
        rule = rule(momentum=settings["momentum"]) if one["name"] == "sgd" else rule()
        shape = (256, 256)
        declared = sum(prod(field.shape_for(shape, shape)) for field in rule.active_state().values())
        assert one["state_bytes_per_parameter"] == pytest.approx(4 * declared / prod(shape), abs=1e-3), one["name"]


def test_the_page_says_what_is_measured(document):
    page = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
    rows = [line.replace(r"\|", "").split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    told = {tuple(row[0].replace("`", "").split()): tuple(cell.strip(" `") for cell in row[2:4]) for row in rows}
    measured = {}
    for one in document:
        size, companion = f"{one['state_bytes_per_parameter']:.3g}", one["companion"] or ""
        measured[one["name"], one["class"].rpartition(".")[2]] = (size, companion)
    assert told == measured


def test_what_an_optimizer_does_differently_is_told(document):
    told = {one["name"]: " ".join(one["differs"]) for one in document}
    assert "from torch.optim.AdamW: no `amsgrad`" in told["adamw"] and "Source" not in told["muon"]
    for one in document:
        cls = catalog.get(one["name"])
        assert bool(told[one["name"]]) == any("\n    Differs " in found.__doc__ for found in (cls.rule, cls))


def test_one_by_name_is_a_list_of_one(folder, document):
    assert folder("optimizers", "soap", "--json").json == [one for one in document if one["name"] == "soap"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(folder, document, width):
    done = folder("optimizers", environment={"COLUMNS": str(width)})
    assert (done.code, done.err) == (0, "") and max(map(len, done.out.splitlines())) <= width
    rows = [line.split() for line in done.out.splitlines() if line[:1].isalpha()]
    for one in document:
        state, companion = f"{one['state_bytes_per_parameter']:.3g}", one["companion"] or "-"
        assert [one["name"], state, companion] in [row[:3] for row in rows]
        assert one["source"].split()[0] in done.out


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["muon", "soap", "sgd"])
def test_one_in_full(folder, document, name, width):
    done = folder("optimizers", name, environment={"COLUMNS": str(width)})
    assert (done.code, done.err) == (0, "") and max(map(len, done.out.splitlines())) <= width
    one = next(one for one in document if one["name"] == name)
    lines = [line.split() for line in done.out.splitlines() if line.strip()]
    rows = {words[0]: words for words in reversed(lines)}  # the first that begins with a name is its own
    said = " ".join(done.out.split())
    for h in one["hyperparameters"]:
        assert list(map(float, rows[h["name"]][1:3])) == pytest.approx([h["default"], h["start"]])
    assert "Wen et al. 2025" in said or name == "sgd"
    assert said.startswith(f"{name}: {one['summary']}") and "differs from" in said and "opt.decay" in said


def test_a_mistyped_name_is_one_line(folder):
    said = folder("optimizers", "muno").said()
    assert said.startswith("unknown optimizer 'muno': did you mean 'muon'?")
    assert "unknown optimizer" in folder("optimizers", "muno", "--json").said()
    assert folder("optimizers", "").said().startswith("unknown optimizer ''")


OWN = '''
from dataclasses import dataclass
from typing import ClassVar
from muonlab.optim import Rule, hp

print("imported")

@dataclass(frozen=True, kw_only=True)
class Plain(Rule):
    """The gradient.

    Math     m <- g, which is said here at such great length that it
             takes-two-lines
             u = m
    """

    name: ClassVar[str] = "plain"
    lr: float = hp(0.1, grid=(0.05, 0.1, 0.2), low=0.0)
    weight_decay: float = hp(0.0, low=0.0)

    def local(self, g, w, state, t):
        return g.clone()
'''


def test_one_of_a_users_own(folder):
    (folder.folder / "own.py").write_text(OWN)
    done = folder("optimizers", "own.py:Plain", "--json")
    assert done.code == 0 and "imported" in done.err, done
    (one,) = done.json
    assert (one["name"], one["summary"], one["state_bytes_per_parameter"]) == ("own:Plain", "The gradient.", 0)
    assert one["update"] == "m <- g, which is said here at such great length that it takes-two-lines\nu = m"
    assert [h["start"] for h in one["hyperparameters"]] == [0.1, 0.0]
    shown = folder("optimizers", "own.py:Plain")
    assert shown.code == 0 and "opt.lr" in shown.out and "imported" not in shown.out
    assert "starts" in shown.out and "grids" not in shown.out  # nobody is named as the source of one


@pytest.mark.parametrize("written", ["adam-mini", "Adam_Mini", "AdamMini"])
def test_a_name_may_be_written_otherwise(folder, document, written):
    assert folder("optimizers", written, "--json").json == [one for one in document if one["name"] == "adam_mini"]
