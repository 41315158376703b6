"""The page and the tables of a study of features: every number is a field of the finding, and no study breaks them."""

import re
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from reading import CREATED, Page, check_figures, check_self_contained, numbers_of
from rich.console import Console
from test_browser import BROWSER, browse
from test_page import HOSTILE

sys.path.insert(0, str(Path(__file__).parents[1] / "study"))

from feature_world import World

from muonlab.analyze.features import FeaturesFinding
from muonlab.analyze.findings import Effect
from muonlab.report import features_page, page
from muonlab.report.features import features_table
from muonlab.study.features_fairness import conclude_features

STUDIES = {
    "classes": {},
    "two": {"names": ("adamw", "muon"), "num_seeds": 5},
    "tokens": {"classes": False, "noise": 1.0},
    "bare": {"corruptions": (), "grams": False},
    "lost": {"lost": True},
}


@cache
def finding_of(name: str) -> FeaturesFinding:
    world = World(**STUDIES[name])
    return conclude_features(world.study(), world.records)


@cache
def page_of(name: str) -> str:
    return features_page.render(finding_of(name), created=CREATED)


@pytest.mark.parametrize("name", STUDIES)
def test_every_number_is_a_field_of_the_finding(name: str) -> None:
    assert numbers_of(page_of(name), asdict(finding_of(name))).bare == []


def test_the_finding_is_all_there() -> None:
    finding, names = finding_of("classes"), {name for name, _, _ in Page(page_of("classes")).fields}
    for i, row in enumerate(finding.severities):
        if row.at == "loss" and row.severity:
            assert {f"severities[{i}].{part}" for part in ("rise", "baseline_rise", "accuracy")} <= names
        if not row.severity:
            assert f"severities[{i}].drop_effect.difference" in names
    for i, row in enumerate(finding.corruptions):
        assert (f"corruptions[{i}].baseline_accuracy" in names) == (row.at == "loss")
    for i, row in enumerate(finding.layers):
        assert (f"layers[{i}].effect.difference" in names) == ("no decay" not in row.at)
    for i in range(len(finding.cka)):
        assert {f"cka[{i}].{spread}.mean" for spread in features_page.SPREADS} <= names
    assert {f"claims[{i}].detail" for i in range(len(finding.claims))} <= names
    assert {f"errors[{i}].{end}" for i in range(len(finding.errors)) for end in ("ratio", "low", "high")} <= names
    assert {"verdict", "num_runs", "num_failed", "total_tokens", "fractions.muon.adamw"} <= names


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_is_asked_of_the_network(name: str) -> None:
    html = page_of(name)
    check_self_contained(html)
    check_figures(html)
    numbers = [int(n) for n in re.findall(r"<b>Table (\d+)\.", html)]
    assert numbers == list(range(1, len(numbers) + 1)) and html.count("<table") == html.count("<caption")


@dataclass(frozen=True)
class Row:
    """As `muonlab.analyze.feature_transfer` has them."""

    finetuning: str
    pretraining: str
    effect: Effect | None
    task: str = "second"
    tokens: int = 1280
    loss: float | None = 0.5
    accuracy: float | None = None
    lr: float | None = 0.25
    num_seeds: int = 3


def test_transfer_has_a_section_where_there_was_any() -> None:
    one = Effect(difference=-0.125, low=-0.25, high=None, size=2.0, p_value=0.04, num_pairs=3, judgement="lower")
    rows = (Row("linear probe", "adamw", None, lr=None), Row("sgd", "adamw", None), Row("sgd", "muon", one))
    finding = replace(finding_of("classes"), transfer=rows)
    shown = Page(features_page.render(finding, created=CREATED))
    names = {name: text for name, _, text in shown.fields}
    assert names["transfer[2].effect.difference"] == "−0.125" and names["transfer[2].loss"] == "0.5000"
    assert names["transfer[2].accuracy"] == "–" and shown.bare == []
    numbers = [int(n) for n in re.findall(r"Table (\d+)\.", shown.text)]
    assert numbers == list(range(1, len(numbers) + 1)) and "On a second task: second" in shown.text


def test_figures_say_what_they_show() -> None:
    html = page_of("classes")
    for text in ("Rise of the loss, nats of muon", "Accuracy of sgd", "Effective rank of muon", "CKA of the layers"):
        assert html.count(f'aria-label="{text}') >= 1, text
    assert "Accuracy of" not in page_of("tokens") and "The task has no corruptions" in page_of("bare")


def test_a_lost_run_withholds_all_claims() -> None:
    finding, shown = finding_of("lost"), Page(page_of("lost"))
    assert finding.verdict.startswith("Verdict withheld: complete is broken") and finding.verdict in shown.text
    assert {claim.held for claim in finding.claims} == {None}
    rows = (*finding.layers, *finding.corruptions, *finding.severities, *finding.errors)
    assert {row.effect.judgement for row in rows} == {"withheld"}
    assert {row.drop_effect.judgement for row in finding.severities} == {"withheld"}
    checks = {check.name: check for check in finding.checks}
    assert checks["matched_loss"].ok is False and "sgd at one loss: 2 of 3" in checks["matched_loss"].detail
    assert checks["tuning_effort"].ok and checks["interior"].ok


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("width", [80, 100])
def test_tables_fit_the_terminal(name: str, width: int) -> None:
    finding = finding_of(name)
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in features_table(finding):
        console.print(part)
    text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines())
    assert ("Accuracy on corrupted inputs" in text) == bool(finding.errors)
    assert ("Likeness (CKA)" in text) == bool(finding.cka) and "Fairness checks" in text


def test_the_line_above_the_verdict_speaks_of_the_same_loss() -> None:
    finding = finding_of("tokens")
    for held, told in (
        ({"loss": True}, "Some claims were resolved<"),
        ({"budget": False}, "Some claims were resolved, none at the same held-out loss"),
        ({}, "No claim was resolved"),
    ):
        claims = tuple(replace(claim, held=held.get(claim.at)) for claim in finding.claims)
        assert told in features_page.render(replace(finding, claims=claims), created=CREATED)


def test_a_hostile_name_is_text() -> None:
    world = World(("adamw", HOSTILE))
    html = features_page.render(conclude_features(world.study(), world.records), created=CREATED, command=HOSTILE)
    assert "<script" not in html and "<img" not in html and html.count("</style>") == html.count("<style>") == 1


def test_the_same_finding_gives_the_same_bytes() -> None:
    assert features_page.render(finding_of("two"), created=CREATED) == page_of("two")


@pytest.mark.skipif(BROWSER is None, reason="no browser found")
def test_a_browser_has_nothing_to_say(tmp_path) -> None:
    page.write(tmp_path / "report.html", page_of("classes"))
    result = browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", "--dump-dom")
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []
