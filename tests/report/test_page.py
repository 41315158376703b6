"""The page: every number is a field of the finding, nothing leaves the file, no input breaks it."""

import itertools
import math
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from made_up import (
    contrast_of,
    losses_at,
    lost,
    make_crowd,
    make_finding,
    make_variants,
    optimizer,
    paired_of,
    speedup_of,
)
from reading import (
    CREATED,
    Page,
    check_figures,
    check_self_contained,
    drawn_elsewhere,
    numbers_of,
    other_lines,
    page_of,
)

from muonlab.analyze.findings import Check, LossesAt
from muonlab.errors import UsageError
from muonlab.report import page

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>{{ 7*7 }}</style>$\\frac{1}{2}$]]>--!>\x00\x1b[31m'


def rendered(finding, **options) -> str:
    return page.render(finding, created=CREATED, **options)


def make_lost():
    return lost(make_finding(), ["muon"])


@pytest.mark.parametrize("make", [make_finding, make_crowd, make_lost, make_variants])
def test_every_number_is_a_field_of_the_finding(make):
    shown = numbers_of(page_of(make), make().to_dict())
    assert len(shown.fields) > 60
    ours = [text for text in shown.bare if not re.fullmatch(r"1|\d+ of \d+", text)]
    assert ours == []  # but the baseline's own factor, and counts of runs


def test_the_finding_is_all_there(finding):
    names = {name for name, _, _ in Page(page_of(make_finding)).fields}
    for name, one in finding.optimizers.items():
        parts = ("loss_mean", "loss_std", "num_seeds", "wall_seconds", "step_seconds", "tuning_runs", "tuning_tokens")
        assert {f"optimizers.{name}.{part}" for part in parts} <= names
        assert {f"optimizers.{name}.hyperparameters['{key}']" for key in one.hyperparameters} <= names
        for i, at in enumerate(one.horizons):
            assert {f"optimizers.{name}.horizons[{i}].losses[{j}]" for j in range(len(at.losses))} <= names
    for part in ("tokens", "low", "high", "wall", "wall_low", "wall_high"):
        assert f"speedup.muon.{part}" in names
    parts = ("num_pairs", "difference_nats", "low", "high", "correlation", "tuning_nats", "bound_nats")
    assert {f"paired.muon.{part}" for part in parts} <= names
    assert {"contrasts.muon.difference_nats", "contrasts.muon.p_value", "verdict", "num_runs", "total_tokens"} <= names
    assert {f"checks[{i}].detail" for i in range(len(finding.checks))} <= names


def test_a_variant_says_what_it_sets_and_whether_the_margin_holds():
    shown = Page(page_of(make_variants))
    text = " ".join(shown.text.split())
    assert "muon-4 muon with opt.ns_steps 4" in text
    assert "two muon with opt.ns_coefficients ((4.0848, -6.8946, 2.927), (3.9505, -6.3029, 2.6377)), opt.ns_st" in text
    assert "the margin of 0.013 nats at 2.5 %" in text and "+0.0106 shown" in text and "+0.0206 not shown" in text
    assert "1 lost" in text and "no difference was resolved; a margin was shown to hold" in text
    assert "was shown to hold" not in Page(page_of(make_finding)).text
    assert {"optimizers['muon-4'].fixed['opt.ns_steps']", "paired['muon-4'].bound_nats"} <= {
        n for n, _, _ in shown.fields
    }


def test_no_margin_is_no_claim(finding):
    for paired in ({}, {"muon": paired_of(-0.08)}):
        text = Page(rendered(replace(finding, paired=paired, slices=(), curves=()))).text
        assert "No worse" not in text and "margin" not in text
        assert ("seed by seed:" in text) == bool(paired)
    held_back = replace(paired_of(-0.08, True), no_worse=None)
    assert "withheld" in Page(rendered(replace(finding, paired={"muon": held_back}, slices=(), curves=()))).text


def test_tables_are_numbered_in_their_order(finding):
    html = rendered(replace(finding, slices=(), curves=()), records_summary=[])
    numbers = [int(n) for n in re.findall(r"<b>Table (\d+)\.", html)]
    assert numbers == list(range(1, 11))
    assert [int(n) for n in re.findall(r'aria-label="Table (\d+)"', html)] == [1, 2, 3, 4, 6, 7, 10]
    assert "Table 5. Fairness" in html and "is in table 5." in html


def test_verdict_comes_first(finding):
    html = page_of(make_finding)
    body = html[html.index("<body>") :]
    assert body.index("<h1") < body.index(finding.verdict) < min(body.index(tag) for tag in ("<table", "<svg", "<h2"))
    assert len(re.findall("<h1", html)) == 1


def test_plain_words_name_both_token_counts():
    text = " ".join(Page(page_of(make_finding)).text.split())
    assert (
        "For the loss that muon reaches with 4.19M tokens, adamw needs about 5.89M (95 % interval 5.39M to 6.51M)"
        in text
    )


@pytest.mark.parametrize(
    ("speedup", "judgement", "words"),
    [
        (speedup_of(4.0, flag="censored", bound=">", high=None), "better", "adamw would need more than 16.8M tokens"),
        (speedup_of(0.25, flag="censored", bound="<", low=None), "worse", "adamw needs fewer than 1.05M tokens"),
        (speedup_of(1.02), "unresolved", "do not tell apart from no difference"),
        (speedup_of(None), "unresolved", "cannot be read off these runs"),
    ],
)
def test_plain_words_fit_the_result(speedup, judgement, words):
    finding = make_finding(
        slices=(), curves=(), speedup={"muon": speedup}, contrasts={"muon": contrast_of(-0.08, judgement)}
    )
    shown = Page(rendered(finding))
    assert words in " ".join(shown.text.split())
    if speedup.bound:
        assert f"{speedup.bound}\u202f{speedup.tokens:.2f}×" in shown.text


def test_withheld_verdict_claims_nothing(finding):
    verdict = "Verdict withheld: interior: on an edge of its grid: muon opt.lr = 0.16"
    broken = replace(finding.checks[6], ok=False, detail="on an edge of its grid: muon opt.lr = 0.16")
    checks = (*finding.checks[:6], broken, *finding.checks[7:])
    html = rendered(replace(finding, verdict=verdict, checks=checks))
    text = Page(html).text
    assert "support no claim" in text and "withholds the verdict" in text
    assert "better" not in text and "needs about" not in text
    assert html.index('class="banners"') < html.index("<table")


def test_every_broken_check_is_a_banner_and_every_check_is_listed(finding):
    checks = tuple(replace(check, ok=i % 2 == 0) for i, check in enumerate(finding.checks))
    html = rendered(replace(finding, checks=checks))
    banners = html[html.index('class="banners"') : html.index("</ul>")]
    assert [check.name for check in checks if not check.ok and check.name not in banners] == []
    table = html[html.index('class="checks"') :]
    assert all(f">{check.name}<" in table for check in checks)


def test_what_was_not_checked_is_neither_held_nor_a_banner(finding):
    unknown = Check(name="wall_clock", ok=None, detail="not checked: no machine")
    html = rendered(replace(finding, checks=(*finding.checks[:-1], unknown)))
    text = " ".join(Page(html).text.split())
    assert "0 broken, 1 not checked" in text and "wall_clock – not checked not checked: no machine" in text
    assert 'class="banners"' not in html and "too busy" not in text


def test_same_finding_same_bytes(finding):
    first = page_of(make_finding)
    assert rendered(finding) == first and drawn_elsewhere(make_finding, "page") == first.encode()
    assert other_lines(first, page.render(finding, created="2030-01-01")) == [
        f"  <p>Made by muonlab on <time>{CREATED}</time>. Losses are nats on held-out data, per token or per "
        "image; – means undefined.</p>"
    ]


def test_tables_need_no_torch():
    code = "import sys; from made_up import *; from muonlab.report import tables; "
    code += "tables.comparison_table(make_finding()); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize("make", [make_finding, make_crowd])
def test_self_contained_and_small(make):
    check_self_contained(page_of(make), 1_000_000)


def test_no_path_of_the_machine():
    assert not re.search(r"/(home|tmp|root|usr|work)/", page_of(make_finding))


def test_semantics(finding):
    html = page_of(make_finding)
    tags = Page(html).tags
    assert ("html", {"lang": "en"}) in tags
    assert any(attributes.get("name") == "viewport" for tag, attributes in tags if tag == "meta")
    tables = html.count("<table")
    assert tables == html.count("<caption") == html.count("<thead") >= 7
    assert check_figures(html) == (3 + len(finding.slices), 0)


def test_hostile_text_is_inert(finding):
    evil = optimizer(HOSTILE, 1.3, (4_194_304,), {"opt.lr": 0.1, HOSTILE: HOSTILE}, polar=HOSTILE)
    finding = replace(
        finding,
        task=HOSTILE,
        verdict=HOSTILE,
        baseline=HOSTILE,
        optimizers={HOSTILE: evil, "muon": finding.optimizers["muon"]},
        checks=(Check(name=HOSTILE, ok=False, detail=HOSTILE),),
        slices=tuple(replace(s, optimizer=HOSTILE, coordinate=HOSTILE, chosen=HOSTILE) for s in finding.slices),
        curves=tuple(replace(c, optimizer=HOSTILE) for c in finding.curves),
        environment={HOSTILE: HOSTILE},
        config={HOSTILE: [HOSTILE]},
    )
    runs = [dict.fromkeys(("key", "optimizer", "outcome", "created", "error"), HOSTILE)]
    html = rendered(finding, records_summary=runs, command=HOSTILE)
    assert "<script" not in html and "<img" not in html and "49" not in re.findall(r"alert\(2\)&gt;(..)", html)
    assert html.count("</style>") == html.count("<style>") == 1 and "<!--" not in html and "-->" not in html
    clean = Page(page_of(make_finding))
    assert {tag for tag, _ in Page(html).tags} <= {tag for tag, _ in clean.tags} | {"ul", "li", "pre", "code"}


def empty_losses(at: LossesAt) -> LossesAt:
    return replace(at, seeds=(), losses=(), keys=(), mean=None, low=None, high=None, hyperparameters={})


def hard_findings():
    finding = make_finding(slices=())
    yield "nothing", make_finding(
        verdict="", optimizers={}, speedup={}, contrasts={}, checks=(), slices=(), curves=(), law=None, num_runs=0,
        total_tokens=0, environment={}, config={},
    )  # fmt: skip
    yield "challenger diverged", lost(finding, ["muon"])
    yield "baseline diverged", lost(finding, ["adamw"])
    yield "all diverged", lost(finding, ["adamw", "muon"])
    crowd = replace(make_crowd(), slices=())
    yield "twelve", crowd
    yield "twelve, all diverged", lost(crowd, list(crowd.optimizers))
    one_seed = {
        name: replace(
            o, loss_std=None, num_seeds=1,
            horizons=tuple(
                replace(losses_at(name, at.horizon_tokens, 2.3, {}, (0,)), low=None, high=None) for at in o.horizons
            ),
        )
        for name, o in finding.optimizers.items()
    }  # fmt: skip
    bare = replace(contrast_of(-0.08, "unresolved"), low=None, high=None, p_value=None, resolvable_nats=None)
    yield "one seed, ties", replace(finding, optimizers=one_seed, contrasts={"muon": bare}, law=None)
    yield "no baseline", replace(finding, optimizers={"muon": finding.optimizers["muon"]}, law=None)
    yield "open interval", replace(finding, speedup={"muon": speedup_of(1.2, low=None, high=None, wall=None)})
    yield "far off", replace(finding, speedup={"muon": speedup_of(5e5)})
    yield (
        "not a number",
        replace(
            finding,
            speedup={"muon": speedup_of(math.nan)},
            law={**finding.law, "b": math.inf},
            curves=tuple(replace(c, loss=(math.nan,) * len(c.loss)) for c in finding.curves),
        ),
    )
    emptied = {n: replace(o, horizons=tuple(map(empty_losses, o.horizons))) for n, o in finding.optimizers.items()}
    yield "no runs", replace(finding, optimizers=emptied)


@pytest.mark.parametrize("finding", [pytest.param(f, id=name) for name, f in hard_findings()])
@pytest.mark.filterwarnings("error")
def test_a_report_comes_out_of_every_study(finding):
    html = rendered(finding)
    text = Page(html).text
    assert "<h1" in html and (finding.verdict or "No verdict was drawn") in text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)


def test_curves_with_gaps_and_early_ends(finding):
    first, *others = finding.curves
    half = len(first.tokens) // 2
    stopped = replace(first, tokens=first.tokens[:half], loss=(*first.loss[: half - 1], math.nan))
    short = replace(others[0], tokens=others[0].tokens[:2], loss=others[0].loss[:2])
    html = rendered(replace(finding, curves=(stopped, short, *others[1:])))
    assert not re.search(r"\bnan\b", html, re.IGNORECASE)


def test_all_runs_are_listed_when_given(finding):
    runs = [
        {"key": "ab" * 32, "optimizer": "muon", "outcome": "ok", "final_loss": 2.25, "horizon_tokens": 4096, "seed": 3},
        {"key": "cd" * 32, "optimizer": "adamw", "outcome": "failed", "final_loss": None, "error": "MemoryError\nmore"},
    ]
    text = Page(rendered(finding, records_summary=runs)).text
    assert "All runs" in text and "abababababab" in text and "2.2500" in text and "MemoryError" in text
    assert "more" not in text.split("All runs")[1]
    assert "All runs" not in Page(page_of(make_finding)).text


def test_ten_thousand_runs_stay_below_ten_megabytes(finding):
    row = {"key": "ab" * 32, "optimizer": "muon", "outcome": "ok", "final_loss": 2.25, "horizon_tokens": 4096}
    runs = [
        {**row, "seed": seed, "wall_seconds": 61.0, "created": "2026-01-01T00:00:00+00:00"} for seed in range(10_000)
    ]
    assert len(rendered(replace(finding, curves=(), slices=()), records_summary=runs)) < 10_000_000


def test_write_replaces_whole_files(tmp_path):
    target = tmp_path / "report.html"
    page.write(target, "one")
    page.write(str(target), "two \u2013 \ud800")
    assert target.read_text(encoding="utf-8") == "two – ?"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_write_follows_a_link(tmp_path):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    page.write(tmp_path / "link.html", "new")
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "real.html").read_text() == "new"


@pytest.mark.parametrize("name", ["missing/report.html", ".", "file/report.html"])
def test_write_refuses_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        page.write(tmp_path / name, "html")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_write_to_a_full_device():
    with pytest.raises(UsageError, match="/dev/full"):
        page.write("/dev/full", "html")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_write_leaves_no_half_file(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    page.write(target, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        page.write(target, "new")
    assert target.read_text() == "old" and len(list(itertools.chain(tmp_path.iterdir()))) == 1
