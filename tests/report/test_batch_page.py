"""The page of a batch study: every number is a field of the finding, nothing leaves the file, no study breaks it."""

import math
import re
from dataclasses import replace
from functools import cache

import pytest
from made_up_batch import (
    BATCHES,
    TARGETS,
    critical_of,
    make_alone,
    make_batch,
    make_batch_crowd,
    make_lost_batch,
    make_withheld_batch,
    settings_of,
)
from reading import (
    CREATED,
    Page,
    check_figures,
    check_self_contained,
    drawn_elsewhere,
    numbers_of,
    other_lines,
    svg_texts,
    words,
)
from test_browser import BROWSER, browse
from test_page import HOSTILE

from muonlab.analyze.critical_batch import UNDEFINED, Estimate
from muonlab.analyze.findings import Check
from muonlab.report import batch_figures, batch_frontier, batch_page, page
from muonlab.report.canvas import looks_of

MAKERS = [make_batch, make_withheld_batch, make_lost_batch, make_alone]
COUNTS = r"by|\d+ of \d+|\d of \d seeds in"  # of seeds and of batches, which are no fields


@cache
def page_of(make) -> str:
    return batch_page.render(make(), created=CREATED)


def rendered(finding, **options) -> str:
    return batch_page.render(finding, created=CREATED, **options)


def table(html: str, number: int) -> str:
    return html[html.index(f"<b>Table {number}.") : html.index("</table>", html.index(f"<b>Table {number}."))]


def look_of(finding):
    return looks_of(finding.optimizers, finding.baseline)


@pytest.mark.parametrize("make", [*MAKERS, make_batch_crowd])
def test_every_number_is_a_field_of_the_finding(make):
    shown = numbers_of(page_of(make), make().to_dict())
    assert len(shown.fields) > 100
    assert [text for text in shown.bare if not re.fullmatch(rf"({COUNTS})( ({COUNTS}))?", text)] == []


def test_the_finding_is_all_there():
    finding, names = make_batch(), {name for name, _, _ in Page(page_of(make_batch)).fields}
    for i, one in enumerate(finding.times):
        assert one.flag or {f"times[{i}].{part}" for part in ("tokens", "low", "high")} <= names
        assert {f"times[{i}].by_seed[{k}]" for k in range(3)} <= names
    for i, one in enumerate(finding.token_ratio):
        parts = ("detail",) if one.ratio is None else ("ratio", "low", "high", "judgement")
        assert {f"token_ratio[{i}].{part}" for part in parts} <= names
    for i in range(len(finding.trends)):
        assert {f"trends[{i}].{part}" for part in ("slope", "low", "high", "verdict")} <= names
    for i in range(len(finding.critical)):
        parts = [f"{kind}.value" for kind in ("overhead", "sfo", "noise_scale", "nuclear_noise_scale")]
        parts += ["token_optimal", "least_tokens", "power", "sfo.low", "sfo.high"]
        assert {f"critical[{i}].{part}" for part in parts} <= names
    for i in range(len(finding.noise)):
        parts = [f"{kind}.{end}" for kind in ("simple", "nuclear") for end in ("value", "low", "high")]
        assert {f"noise[{i}].{part}" for part in parts} <= names
    for i, one in enumerate(finding.settings):
        parts = [f"predicted['{name}']" for name in one.predicted] + ["horizon_tokens", "num_runs", "step_seconds"]
        parts += [f"chosen['{name}']" for name in one.chosen if one.chosen[name] != one.predicted[name]]
        assert {f"settings[{i}].{part}" for part in parts} <= names
    for i, one in enumerate(finding.frontier):
        assert (f"frontier[{i}].seconds" in names) == one.on_frontier
    for i in range(len(finding.dominance)):
        assert {f"dominance[{i}].{part}" for part in ("seconds[0]", "baseline_seconds[0]", "verdict")} <= names
    assert {f"step_times[{i}].{p}" for i in range(3) for p in ("fixed_seconds", "seconds_per_token", "worst")} <= names
    assert {"device_model.bandwidth", "device_model.latency_seconds", "reference"} <= names
    assert {f"checks[{i}].detail" for i in range(len(finding.checks))} <= names
    assert {"verdict", "num_runs", "num_failed", "total_tokens"} <= names


@pytest.mark.parametrize("make", MAKERS)
def test_tables_and_figures_are_numbered_in_their_order(make):
    html = page_of(make)
    assert [int(n) for n in re.findall(r"<b>Table (\d+)\.", html)] == list(range(1, 13))
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.", html)] == list(range(1, 7))
    assert html.count("<table") == html.count("<caption") == html.count("<thead") == 12
    assert "off the fit of figure 1" in html and "Table 1. Tokens" in html and "Every mean in table 1" in html
    assert "Table 7. Time of a step" in html and "that share (table 7)" in html
    assert "Table 8. Settings" in html and "step times of table 8" in html
    assert "Table 5. Compute-time frontier" in html and "on the lines of figure 5" in html


def test_verdict_comes_first():
    html = page_of(make_batch)
    body = html[html.index("<body>") :]
    at = body.index("At a held-out loss of 2.6: muon takes fewer tokens than tuned adamw at 6 of 6")
    assert body.index("<h1") < at < min(body.index(tag) for tag in ("<table", "<svg", "<h2"))
    assert "differences were resolved" in body and len(re.findall("<h1", html)) == 1


def test_the_state_is_that_of_the_target_which_the_verdict_is_about():
    finding = make_batch()
    ratios = tuple(
        replace(one, judgement="unresolved") if one.target == finding.hardest and one.judgement else one
        for one in finding.token_ratio
    )
    assert "no difference was resolved" in words(rendered(replace(finding, token_ratio=ratios)))
    assert "nothing to compare" in words(page_of(make_alone)) and "nothing to compare" in words(
        page_of(make_lost_batch)
    )


def test_withheld_verdict_claims_nothing_and_says_why_once_above():
    finding, html = make_withheld_batch(), page_of(make_withheld_batch)
    text, detail = words(html), next(check.detail for check in finding.checks if check.name == "interior")
    assert "support no claim" in text and "withholds the verdict" in text and "Verdict: withheld" in text
    claims = ("better", "worse", "grows", "dominates")
    assert [
        claim for claim in claims if re.search(rf"\b{claim}\b", text.replace("An optimizer dominates if", ""))
    ] == []
    above = html[html.index("<body>") : html.index("<table")]
    assert [above.count(f"<li>{reason}</li>") for reason in detail.split("; ")] == [1] * 3


def test_what_was_not_reached_is_said_with_how_many_seeds_and_tokens():
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", table(page_of(make_batch), 1)))
    assert text.count("not reached") == 2
    assert "not reached by 1 of 3 seeds in 16.8M" in text and "not reached by 3 of 3 seeds in 16.8M" in text
    assert re.search(r"&lt; [\d.]+k before the first evaluation", text)


def test_estimates_outside_the_batches_measured_are_bounds():
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", table(page_of(make_batch), 3)))
    assert "&gt; 65,536 [41.2k, ∞]" in text and "&lt; 1,024 [0, 1.5k]" in text
    assert "9,600 no interval" in text and "6 of 7" in text


def test_what_is_modelled_is_told_from_what_is_measured():
    text = words(page_of(make_batch))
    assert "Times on 2, 4, 8 devices are modelled: no run was made on so many. Those on one device are measured" in text
    assert "at 25 GB/s on d devices, and 20.0 µs of latency" in text
    rows = re.findall(r"<tr.*?</tr>", table(page_of(make_batch), 5), re.DOTALL)[1:]
    for row in rows:
        devices = int(re.search(r'value="(\d+)" data-field="frontier\[\d+\].devices', row).group(1))
        assert ("modelled" in row) == (devices > 1) and ("measured" in row) == (devices == 1)


def test_nothing_is_called_measured_where_nothing_was():
    finding = make_batch()
    points = tuple(replace(one, modelled=True) for one in finding.frontier)
    assert "are measured" not in words(rendered(replace(finding, frontier=points)))


def test_settings_that_the_search_left_are_told_from_those_it_kept():
    rows = re.findall(r"<tr.*?</tr>", table(page_of(make_batch), 8), re.DOTALL)[1:]
    moved = [row for row in rows if "→" in row]
    assert len(rows) == 21 and len(moved) == 3 * 2 and all(".chosen['opt.lr']" in unescaped(row) for row in moved)
    assert sum("edge:&nbsp;opt.lr" in row and "capped" in row for row in rows) == 3


def unescaped(html: str) -> str:
    return html.replace("&#39;", "'")


def test_same_finding_same_bytes():
    first = page_of(make_batch)
    assert rendered(make_batch()) == first and drawn_elsewhere(make_batch, "batch_page") == first.encode()
    assert len(other_lines(first, batch_page.render(make_batch(), created="2030-01-01"))) == 1


@pytest.mark.parametrize("make", [make_batch, make_batch_crowd])
def test_self_contained_and_small(make):
    check_self_contained(page_of(make))


def test_figures_have_words_and_ids_of_their_own():
    assert check_figures(page_of(make_batch)) == (3 * len(TARGETS) + 1 + 2 + 3, 4 * 3)


def test_hostile_text_is_inert():
    base = make_batch()

    def renamed(entries):
        return tuple(replace(one, optimizer=HOSTILE) if one.optimizer == "muon" else one for one in entries)

    parts = ("times", "token_ratio", "trends", "critical", "noise", "settings", "step_times", "frontier", "dominance")
    finding = replace(
        base, **{part: renamed(getattr(base, part)) for part in parts}, task=HOSTILE, verdict=HOSTILE,
        optimizers=("adamw", HOSTILE, "lion"), checks=(Check(name=HOSTILE, ok=False, detail=HOSTILE),),
        environment={HOSTILE: HOSTILE}, config={HOSTILE: [HOSTILE]},
    )  # fmt: skip
    settings = tuple(replace(one, chosen={HOSTILE: HOSTILE}, edges=(HOSTILE,)) for one in finding.settings)
    ratios = tuple(replace(one, detail=HOSTILE) for one in finding.token_ratio)
    html = rendered(replace(finding, settings=settings, token_ratio=ratios), command=HOSTILE)
    assert "<script" not in html and "<img" not in html and "49" not in re.findall(r"alert\(2\)&gt;(..)", html)
    assert html.count("</style>") == html.count("<style>") == 1 and "<!--" not in html and "-->" not in html
    clean = Page(page_of(make_batch))
    assert {tag for tag, _ in Page(html).tags} <= {tag for tag, _ in clean.tags} | {"ul", "li", "pre", "code"}


def hard_studies():
    base = make_batch()
    lost = UNDEFINED
    yield "nothing reached", make_lost_batch()
    yield "a baseline alone", make_alone()
    yield "no verdict, no checks", replace(base, verdict="", checks=(), environment={}, config={})
    yield "no step times", replace(base, step_times=(), frontier=(), settings=steps(base, None))
    yield "modelled on one device", replace(base, frontier=tuple(replace(p, modelled=True) for p in base.frontier))
    yield "no noise", replace(base, noise=tuple(replace(one, simple=lost, nuclear=lost) for one in base.noise))
    yield (
        "no intervals",
        replace(
            base,
            times=tuple(replace(one, low=None, high=None) for one in base.times),
            token_ratio=tuple(replace(one, low=None, high=None) for one in base.token_ratio),
        ),
    )
    yield "far off", with_noise(base, Estimate(value=1e3, low=1e-11, high=7e17))
    yield "zero", with_noise(base, Estimate(value=5e-9, low=None, high=None))
    yield (
        "not a number",
        replace(
            base,
            token_ratio=tuple(replace(one, ratio=math.nan, low=math.nan, high=math.inf) for one in base.token_ratio),
            noise=tuple(replace(o, simple=Estimate(value=math.nan, low=None, high=None)) for o in base.noise),
        ),
    )
    yield "odd settings", with_settings(base, {"opt.lr": 0.0, "opt.betas": (0.9, 0.95), "clip": None, "kind": "wsd"})
    yield "no settings", with_settings(base, {})
    only = base.hardest
    yield (
        "one target",
        replace(
            base, targets=(only,),
            **{part: tuple(one for one in getattr(base, part) if one.target == only)
               for part in ("times", "token_ratio", "trends", "critical", "noise", "frontier", "dominance")},
        ),
    )  # fmt: skip


def steps(base, seconds):
    return tuple(replace(one, step_seconds=seconds) for one in base.settings)


def with_noise(base, estimate):
    return replace(
        base,
        noise=tuple(replace(one, simple=estimate) for one in base.noise),
        critical=tuple(replace(one, noise_scale=estimate) for one in base.critical),
    )


def with_settings(base, settings):
    return replace(
        base, settings=tuple(replace(one, predicted=settings, chosen={**settings, "new": 1}) for one in base.settings)
    )


@pytest.mark.parametrize("finding", [pytest.param(f, id=name) for name, f in hard_studies()])
@pytest.mark.filterwarnings("error")
def test_a_report_comes_out_of_every_study(finding):
    html = rendered(finding)
    text = words(html)
    assert "<h1" in html and (finding.verdict or "No verdict was drawn") in text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.", html)] == list(range(1, 7))


def test_a_fit_is_drawn_where_there_is_one():
    known = critical_of("muon", 2.9)
    assert batch_figures.fit_of(known) == (known.least_tokens, known.fitted, known.power)
    outside = replace(known, overhead=replace(known.overhead, value=65536.0, flag="above"), fitted=1e5)
    assert batch_figures.fit_of(outside) == (known.least_tokens, 1e5, known.power)
    assert batch_figures.fit_of(replace(known, least_tokens=None, fitted=None, power=None)) is None


def test_tokens_are_drawn_open_where_they_are_bounds():
    finding = make_batch()
    drawn = batch_figures.tokens(finding, look_of(finding))
    hollow = [len(re.findall(r'<use [^>]*style="[^"]*fill: #ffffff', drawing.svg)) for drawing in drawn]
    assert hollow == [1, 0, 2]
    assert "not reached in 16.8M at 65,536" in drawn[2].alt and "at most 688k at 1,024" in drawn[0].alt
    for one, drawing in zip(TARGETS, drawn, strict=True):
        at = [f"{t.tokens / 1e6:.3g}M" for t in finding.times if t.target == one and not t.flag and t.tokens > 1e6]
        assert at and all(tokens in drawing.alt for tokens in at)


def test_what_is_unresolved_is_faded():
    finding = make_batch()
    drawn = batch_figures.ratios(finding, look_of(finding))
    assert ["opacity: 0.4" in "".join(re.findall(r"<use [^>]*>", drawing.svg)) for drawing in drawn] == [
        True, False, False,
    ]  # fmt: skip
    assert all("2×" in svg_texts(drawing.svg) for drawing in drawn)
    withheld = make_withheld_batch()
    assert all("opacity: 0.4" in d.svg for d in batch_figures.ratios(withheld, look_of(withheld)))


def test_a_noise_scale_without_an_interval_has_no_arrows():
    finding = make_batch()
    bare = Estimate(value=3000.0, low=None, high=None)
    ranges = [
        batch_figures.noise_scales(
            replace(finding, noise=tuple(replace(one, simple=one_estimate) for one in finding.noise)), look_of(finding)
        )[0].svg.count("<use")
        for one_estimate in (bare, replace(bare, low=1e-11, high=1e17))
    ]
    assert ranges[1] - ranges[0] == 2 * 3 * len(BATCHES)


def test_critical_batches_stand_side_by_side():
    finding = make_batch()
    drawing = batch_frontier.critical_batches(finding, look_of(finding))
    texts = svg_texts(drawing.svg)
    assert texts.count("20 % more tokens") == texts.count("noise scale, nuclear") == 3
    assert {"14,000", "undefined", "9,600", "adamw", "lion"} <= set(texts)
    assert texts.count("&lt; 1,024") == 4 and "lion, 20 % more tokens < 1,024" in drawing.alt


def test_frontier_fills_what_was_measured_and_names_batches():
    finding = make_batch()
    drawing = batch_frontier.frontiers(finding, look_of(finding))[-1]
    markers = [style for style in re.findall(r'<use [^>]*style="([^"]*)"', drawing.svg) if "stroke-width: 1.3" in style]
    hollow = [style for style in markers if "fill: #ffffff" in style]
    best = [one for one in finding.frontier if one.target == TARGETS[-1] and one.on_frontier]
    assert len(markers) == len(best) == 12 and len(hollow) == sum(one.modelled for one in best) == 9
    assert {"8,192", "32,768", "devices"} <= set(svg_texts(drawing.svg))
    assert "muon 14.5 s on 1 at batch 16,384" in drawing.alt


def test_rates_show_rule_and_choice():
    finding = make_batch()
    drawn = batch_figures.rates(finding, look_of(finding))
    one = settings_of("muon", 65536)
    assert len(drawn) == 3 and f"{one.predicted['opt.lr']:.6g}, {one.chosen['opt.lr']:.6g} at 65,536" in drawn[1].alt


@pytest.mark.skipif(BROWSER is None, reason="no browser found")
def test_a_browser_has_nothing_to_complain_of(tmp_path):
    page.write(tmp_path / "report.html", page_of(make_batch))
    result = browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", "--dump-dom")
    assert make_batch().verdict in Page(result.stdout).text
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []


@pytest.mark.skipif(BROWSER is None, reason="no browser found")
def test_prints(tmp_path):
    page.write(tmp_path / "report.html", page_of(make_batch))
    target = tmp_path / "report.pdf"
    browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", f"--print-to-pdf={target}")
    content = target.read_bytes()
    assert content.startswith(b"%PDF") and 3 <= content.count(b"/Type /Page\n") <= 16
