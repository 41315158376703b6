"""A ladder's report: written when the ladder ends, and drawn again from the store."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from muonlab.cli.show import show_finding
from muonlab.cli.studies import report
from muonlab.errors import UsageError
from muonlab.records.store import Store
from muonlab.study.fairness import conclude_ladder

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))

from test_ladder import World  # a ladder without a model


@pytest.fixture(scope="module")
def world() -> World:
    return World({"adamw": 1.0, "muon": 1.4})


@pytest.fixture(scope="module")
def evidence(world: World):
    return world.climb()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, world: World, evidence) -> Path:
    path = tmp_path_factory.mktemp("saved") / "runs.db"
    with Store(path) as opened:
        for key in evidence.record_keys():
            opened.put(world.records[key])
        opened.save_study("ab" * 32, "ladder", "made up", {"command": "muonlab ladder x"}, evidence.to_dict())
        opened.save_study("cd" * 32, "other", "made up", {}, {})
    return path


@pytest.fixture
def store(tmp_path: Path, saved: Path) -> str:
    """A copy, to be damaged."""
    return str(shutil.copy(saved, tmp_path / "runs.db"))


def test_the_page_is_written_and_named(tmp_path, world, evidence, capsys) -> None:
    finding, target = conclude_ladder(evidence, world.records), tmp_path / "ladder.html"
    show_finding("ladder", finding, 7, target, "2026-01-02", "muonlab ladder x", json=False)
    text = capsys.readouterr().out
    assert f"7 runs executed. Report: {target}" in text and "Speedup in tokens over tuned adamw" in text
    html = target.read_text()
    assert finding.verdict in html and '<pre class="command"><code>muonlab ladder x</code></pre>' in html


def test_json_names_the_report(tmp_path, world, evidence, capsys) -> None:
    target = tmp_path / "ladder.html"
    show_finding("ladder", conclude_ladder(evidence, world.records), 7, target, "", "", json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["report"] == str(target) and document["runs_executed"] == 7
    assert document["verdict"].startswith("muon against tuned adamw") and len(document["rows"]) == 9


def test_a_saved_ladder_is_shown_again(store, tmp_path, world, evidence, capsys) -> None:
    target = tmp_path / "again.html"
    report("ab", store=store, out=target, json=False)
    assert "0 runs executed" in capsys.readouterr().out
    finding = conclude_ladder(evidence, world.records)
    show_finding("ladder", finding, 0, tmp_path / "first.html", "", "muonlab ladder x", json=True)
    first, again = ((tmp_path / name).read_text().splitlines() for name in ("first.html", "again.html"))
    assert [a for a, b in zip(again, first, strict=True) if a != b and "<time>" not in a] == []


def test_a_study_of_another_kind_is_refused_in_words(store, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"study cdcdcdcdcdcd is of kind 'other': a report is of comparison or ladder"):
        report("cd", store=store, out=tmp_path / "x.html", json=False)


def test_runs_that_are_gone_are_missed(store, tmp_path, evidence) -> None:
    with Store(store) as opened:
        opened.remove(evidence.record_keys()[:2])
    with pytest.raises(UsageError, match=r"2 runs of study abababababab are no longer in"):
        report("ab", store=store, out=tmp_path / "x.html", json=False)
