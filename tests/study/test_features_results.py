"""The script that publishes studies of features: what it keeps of a store, and its pages."""

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from feature_world import World

from muonlab.records.store import Store

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def script(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDIES)
        module = importlib.import_module("features")
        patch.setattr(module, "results_of", lambda name: tmp_path / f"features_{name}.json.gz")
        patch.setattr(module, "DOCS", tmp_path)
        yield module


@pytest.fixture
def url(script, tmp_path):
    world = World()
    evidence = world.study()
    with Store(tmp_path / "features.db") as store:
        for record in world.records.values():
            store.put(record)
        asked = script.config_of("digits").model_dump(mode="json")
        store.save_study(
            "ab" * 32, "features", "digits", {**asked, "data": ["elsewhere"], "device": "cuda"}, evidence.to_dict()
        )
        store.save_study("ef" * 32, "features", "digits", {**asked, "num_seeds": 3}, {})
        store.save_study("cd" * 32, "batch", "digits", {}, {})
    return tmp_path / "features.db"


def test_what_was_kept_gives_the_same_finding(script, url) -> None:
    from muonlab.study.features_fairness import conclude_features

    script.keep(str(url))
    world = World()
    whole, (kept, results) = conclude_features(world.study(), world.records), script.kept("digits")
    assert kept.cka == whole.cka and kept.checks == whole.checks and kept.verdict == whole.verdict
    assert [replace(c, detail="") for c in kept.claims] == [replace(c, detail="") for c in whole.claims]
    assert kept.layers[0].value == pytest.approx(whole.layers[0].value, rel=1e-5)
    tuned = {key for arm in world.study().arms.values() for t in arm.cells[0].tuning.trials for key in t.keys}
    assert all(not results.records[key].probes and results.records[key].final_loss is not None for key in tuned)


@pytest.mark.parametrize("lost", [True, False])
def test_what_the_task_does_not_have_stays_said_where_the_verdict_is_withheld(lost) -> None:
    from muonlab.study.features_fairness import conclude_features

    world = World(corruptions=(), lost=lost)
    evidence = world.study()
    bare = {
        key: replace(run, probes={n: s for n, s in run.probes.items() if "margin" not in n})
        for key, run in world.records.items()
    }
    finding = conclude_features(evidence, bare)
    assert finding.verdict.startswith("Verdict withheld") == lost
    said = {claim.claim.split()[2]: claim.detail for claim in finding.claims if claim.optimizer == "muon"}
    assert said["normalised"] == "not measured: the task has no labels"
    assert said["rise"] == "not measured: the task has no corruptions"
    assert said["effective"].startswith("withheld" if lost else "resolved")


def test_a_page_refers_to_the_figures_that_there_are(script, url, tmp_path) -> None:
    script.keep(str(url))
    script.publish(["digits"])
    text = (tmp_path / "features_results_digits.md").read_text()
    named = set(re.findall(r"\((features_results_\w+\.svg)\)", text))
    assert named == {path.name for path in tmp_path.glob("*.svg")} and len(named) == 5
    for name in named:
        svg = (tmp_path / name).read_text()
        assert svg.startswith("<svg xmlns=") and svg.count("<svg") == svg.count("</svg>") >= 3
    assert "**What is claimed, of muon against tuned adamw" in text and "| matched_loss | ok |" in text


def test_the_overview_has_the_answers_of_every_study(script, url, tmp_path) -> None:
    script.keep(str(url))
    script.publish(["digits"])
    finding, text = script.kept("digits")[0], (tmp_path / "features_results.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    held = {(c.optimizer, c.claim, c.at): {True: "yes", False: "no", None: "open"}[c.held] for c in finding.claims}
    assert len(rows) == len({(who, what) for who, what, _ in held})
    muon = {what: said for (who, what, at), said in held.items() if (who, at) == ("muon", "loss")}
    assert muon and all(f"* {what}: {said} in 1 of 1 studies." in text for what, said in muon.items())
    broken = [check.name for check in finding.checks if check.ok is False]
    assert re.findall(r"The rule `(\w+)` is broken", text) == broken and re.search(r"\d+ steps of \d+ \w+; ", text)
    for who, what, said in rows:
        first, rest = said.split("; ")
        assert first == f"**{held[who, what, 'loss']}**" and rest.split(", ")[0] == held[who, what, "budget"]


def test_studies_of_another_config_are_not_kept(script, url, tmp_path) -> None:
    script.keep(str(url))
    assert [path.name for path in tmp_path.glob("*.gz")] == ["features_digits.json.gz"]


@pytest.mark.parametrize("name", ["digits", "text", "text_short", "text_wide", "fashion"])
def test_configs_are_sound(script, name) -> None:
    config = script.config_of(name)
    assert config.optimizers[:2] == ("muon", "adamw") and config.baseline == "adamw" and config.num_seeds >= 8
    assert (config.transfer_to == "digits") == (name == "fashion")
