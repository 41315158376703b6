"""The page of a ladder: every number is a field of the finding, nothing leaves the file, no ladder breaks it."""

import math
import re
from dataclasses import replace
from functools import cache

import pytest
from made_up_ladder import (
    CROWD,
    LARGEST,
    RATIOS,
    SIZES,
    control_of,
    make_ladder,
    make_ladder_crowd,
    make_lost_ladder,
    make_withheld_ladder,
    tuned_lr,
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

from muonlab.analyze.findings import Check
from muonlab.analyze.flips import Flip
from muonlab.report import ladder_figures, ladder_page, ladder_settings, page
from muonlab.report.canvas import looks_of

MAKERS = [make_ladder, make_ladder_crowd, make_withheld_ladder, make_lost_ladder]


@cache
def page_of(make) -> str:
    return ladder_page.render(make(), created=CREATED)


def rendered(finding, **options) -> str:
    return ladder_page.render(finding, created=CREATED, **options)


def look_of(finding):
    return looks_of(finding.sensitivity, finding.baseline)


@pytest.mark.parametrize("make", MAKERS)
def test_every_number_is_a_field_of_the_finding(make):
    shown = numbers_of(page_of(make), make().to_dict())
    assert len(shown.fields) > 200
    assert [text for text in shown.bare if not re.fullmatch(r"1|\d+ of \d+", text)] == []


def test_the_finding_is_all_there():
    finding, names = make_ladder(), {name for name, _, _ in Page(page_of(make_ladder)).fields}
    for i, rung in enumerate(finding.rungs):
        assert {f"rungs[{i}].{part}" for part in ("params", "ratio", "origin", "losses.mean", "losses.low")} <= names
        assert {f"rungs[{i}].losses.losses[{k}]" for k in range(3)} <= names
        assert {f"rungs[{i}].losses.hyperparameters['{key}']" for key in rung.losses.hyperparameters} <= names
    for i, row in enumerate(finding.rows):
        assert {f"rows[{i}].speedup", f"rows[{i}].judgement"} <= names
        assert {f"rows[{i}].low", f"rows[{i}].high"} <= names or row.speedup is None
    for name, coordinates in finding.sensitivity.items():
        for c, one in enumerate(coordinates):
            for regime, near in one.near_optimal.items():
                path = f"sensitivity.{name}[{c}].near_optimal['{regime}']"
                assert {f"{path}[{v}]" for v in range(len(near))} <= names
    for i in range(len(finding.forecasts)):
        parts = ("predicted['opt.lr']", "predicted_loss", "found_loss", "difference_nats")
        assert {f"forecasts[{i}].{part}" for part in parts} <= names
    assert {"forecasts[1].found['opt.lr']", "forecasts[1].low", "forecasts[1].high"} <= names
    for i, one in enumerate(finding.controls):
        parts = ("num_diverged",) if one.num_diverged else ("difference_nats", "low", "high", "speedup")
        assert {f"controls[{i}].{part}" for part in parts} <= names
    assert {f"fits['{size}'].{part}" for size in SIZES for part in ("a", "b", "exponent", "num_lengths")} <= names
    assert {"flips[0].where", "flips[0].fraction", "flips[0].early_nats", "flips[0].final_nats"} <= names
    assert {f"checks[{i}].detail" for i in range(len(finding.checks))} <= names
    assert {"verdict", "num_runs", "num_failed", "total_tokens", "config.insensitive_nats"} <= names


@pytest.mark.parametrize("make", MAKERS)
def test_tables_and_figures_are_numbered_in_their_order(make):
    html = page_of(make)
    assert [int(n) for n in re.findall(r"<b>Table (\d+)\.", html)] == list(range(1, 13))
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.", html)] == list(range(1, 6))
    assert html.count("<table") == html.count("<caption") == html.count("<thead") == 12
    assert "Table 3. Near-optimal" in html and "those that table 3 calls for" in html
    assert "Table 7. Final loss" in html and "Every mean in table 7" in html


def test_verdict_comes_first():
    html = page_of(make_ladder)
    body = html[html.index("<body>") :]
    assert body.index("<h1") < body.index(make_ladder().verdict) < min(body.index(t) for t in ("<table", "<svg", "<h2"))
    assert "differences were resolved" in body and len(re.findall("<h1", html)) == 1


def test_withheld_verdict_claims_nothing_and_says_why_once_above():
    finding, html = make_withheld_ladder(), page_of(make_withheld_ladder)
    text, detail = words(html), finding.checks[5].detail
    assert "support no claim" in text and "withholds the verdict" in text and "Verdict: withheld" in text
    assert "better" not in text and "worse" not in text and "law of adamw at that size" not in text
    above = html[html.index("<body>") : html.index("<table")]
    assert html.index('class="banners"') < html.index("<table") and len(detail.split("; ")) == len(SIZES)
    assert [above.count(f"<li>{reason}</li>") for reason in detail.split("; ")] == [1] * len(SIZES)
    assert above.count("on an edge") == len(SIZES) and len(finding.verdict) < 60


def test_every_broken_check_is_a_banner_and_every_check_is_listed():
    finding = make_ladder()
    checks = tuple(replace(check, ok=i % 2 == 0) for i, check in enumerate(finding.checks))
    html = rendered(replace(finding, checks=checks))
    banners = html[html.index('class="banners"') : html.index("</ul>")]
    broken = [check for check in checks if not check.ok]
    said = [(check.name, *check.detail.split("; ")) for check in broken]
    assert [parts for parts in said if not all(part in banners for part in parts)] == []
    table = html[html.index('class="checks"') :]
    assert all(f">{check.name}<" in table for check in checks)


def test_the_near_optimal_values_mark_what_all_regimes_share():
    html = page_of(make_ladder)
    shared = re.findall(r'class="value shared"><data value="([\d.]+)"', html)
    others = re.findall(r'class="value"><data value="([\d.]+)"', html)
    assert set(shared) == {"0.9", "0.95"} and "0.032" in others and not set(shared) & set(others)
    cells = re.findall(r'<td class="n fits">(.*?)</td>', html)
    near = [re.findall(r">([\d.]+)</data>", cell) for cell in cells if "near_optimal" in cell]
    assert near and all(values == ["0.9", "0.95"] for values in near)  # in order, though 0.95 came first


def test_settings_of_another_are_shaded_by_what_they_cost():
    html = page_of(make_ladder)
    table = html[html.index("Table 6.") : html.index("Table 7.")]
    assert 'class="n heat gain" style="--heat: 0.5"' in table and "3 diverged" in re.sub("<[^>]*>", "", table)
    assert table.count('class="n quiet">own') == 3
    assert re.search(r'<td class="n quiet"><data value="0.0" data-field="controls\[\d+\].difference_nats">', table)


def test_what_did_not_move_is_said_to_be_kept():
    text = words(page_of(make_ladder))
    assert "0.025 → 0.05" in text and "+0.0123 [+0.0041, +0.0205]" in text and text.count("prediction kept") == 2


def test_no_flips_is_said():
    text = words(rendered(make_ladder(flips=())))
    assert "No ranking flipped, at any size and ratio." in text
    assert "64x2 2x lion 0.5 0.0310 muon 0.0820" in words(page_of(make_ladder))


def test_same_finding_same_bytes():
    first = page_of(make_ladder)
    assert rendered(make_ladder()) == first and drawn_elsewhere(make_ladder, "ladder_page") == first.encode()
    assert len(other_lines(first, ladder_page.render(make_ladder(), created="2030-01-01"))) == 1


@pytest.mark.parametrize("make", [make_ladder, make_ladder_crowd])
def test_self_contained_and_small(make):
    check_self_contained(page_of(make))


def test_figures_have_words_and_ids_of_their_own():
    assert check_figures(page_of(make_ladder)) == (len(SIZES) + len(RATIOS) + 3 + 2, 2 * 3)


def test_hostile_text_is_inert():
    base = make_ladder()
    names = {"muon": HOSTILE, "adamw": "adamw", "lion": "lion"}
    finding = replace(
        base,
        task=HOSTILE,
        verdict=HOSTILE,
        sizes={HOSTILE if size == LARGEST else size: n for size, n in base.sizes.items()},
        rungs=tuple(
            replace(r, optimizer=names[r.optimizer], size=HOSTILE if r.size == LARGEST else r.size, origin=HOSTILE)
            for r in base.rungs
        ),
        rows=tuple(
            replace(r, optimizer=names[r.optimizer], size=HOSTILE if r.size == LARGEST else r.size) for r in base.rows
        ),
        sensitivity={
            names[name]: (*ones, replace(ones[0], coordinate=HOSTILE, near_optimal={HOSTILE: (HOSTILE,)}))
            for name, ones in base.sensitivity.items()
        },
        forecasts=tuple(replace(one, optimizer=names[one.optimizer], size=HOSTILE) for one in base.forecasts),
        controls=(control_of("adamw", HOSTILE, "64x2", 0.1), control_of(HOSTILE, "", "64x2", 0.1)),
        flips=(Flip(where=HOSTILE, early=HOSTILE, final="lion", fraction=0.5, early_nats=0.1, final_nats=0.1),),
        checks=(Check(name=HOSTILE, ok=False, detail=HOSTILE),),
        environment={HOSTILE: HOSTILE},
        config={HOSTILE: [HOSTILE]},
    )
    html = rendered(finding, command=HOSTILE)
    assert "<script" not in html and "<img" not in html and "49" not in re.findall(r"alert\(2\)&gt;(..)", html)
    assert html.count("</style>") == html.count("<style>") == 1 and "<!--" not in html and "-->" not in html
    clean = Page(page_of(make_ladder))
    assert {tag for tag, _ in Page(html).tags} <= {tag for tag, _ in clean.tags} | {"ul", "li", "pre", "code"}


def hard_ladders():
    base = make_ladder()
    yield "nothing", make_ladder(
        verdict="", sizes={}, ratios=(), rows=(), fits={}, rungs=(), sensitivity={}, forecasts=(), controls=(),
        flips=(), checks=(), num_runs=0, total_tokens=0, environment={}, config={},
    )  # fmt: skip
    yield "all diverged", make_lost_ladder()
    yield "no challenger", make_ladder({"adamw": 1.0}, controls=(), forecasts=(), verdict="")
    yield "no forecasts, no controls", replace(base, forecasts=(), controls=())
    yield "no laws", replace(base, fits={})
    yield "no interval", replace(base, rows=tuple(replace(row, low=None, high=None) for row in base.rows))
    yield "far off", replace(base, rows=(replace(base.rows[0], speedup=1e9), *base.rows[1:]))
    yield "floor", replace(base, rows=(replace(base.rows[0], speedup=0.0, low=0.0), *base.rows[1:]))
    yield (
        "not a number",
        replace(
            base,
            rows=tuple(replace(row, speedup=math.nan, low=math.nan, high=math.inf) for row in base.rows),
            fits={size: {**law, "b": math.inf} for size, law in base.fits.items()},
            controls=tuple(replace(one, difference_nats=math.nan, speedup=math.inf) for one in base.controls),
            forecasts=tuple(replace(one, difference_nats=math.nan) for one in base.forecasts),
        ),
    )
    yield "one size, one ratio", alone(base)
    yield "twelve, all diverged", replace(make_lost_ladder(), sensitivity=dict.fromkeys(CROWD, ()))
    yield "odd values", with_settings(base, {"opt.lr": 0.0, "opt.betas": (0.9, 0.95), "clip": None, "schedule": "wsd"})
    yield "no settings", with_settings(base, {})


def alone(base):
    """What is left of a ladder at its largest size and shortest ratio."""
    return replace(
        base, sizes={LARGEST: SIZES[LARGEST]}, ratios=RATIOS[:1], flips=(),
        rungs=tuple(r for r in base.rungs if (r.size, r.ratio) == (LARGEST, RATIOS[0])),
        rows=tuple(r for r in base.rows if r.size == LARGEST)[:2],
        controls=tuple(one for one in base.controls if one.size == LARGEST),
    )  # fmt: skip


def with_settings(base, settings):
    near = {"64x2 1x": tuple(settings.values())[:1]}
    ones = tuple(replace(base.sensitivity["adamw"][0], coordinate=name, near_optimal=near) for name in settings)
    return replace(
        base,
        rungs=tuple(replace(r, losses=replace(r.losses, hyperparameters=settings)) for r in base.rungs),
        forecasts=tuple(replace(one, predicted=settings, found=settings) for one in base.forecasts),
        sensitivity=dict.fromkeys(base.sensitivity, ones),
    )


@pytest.mark.parametrize("finding", [pytest.param(f, id=name) for name, f in hard_ladders()])
@pytest.mark.filterwarnings("error")
def test_a_report_comes_out_of_every_ladder(finding):
    html = rendered(finding)
    text = words(html)
    assert "<h1" in html and (finding.verdict or "No verdict was drawn") in text
    assert not re.search(r"\bnan\b|\binf\b|\bNone\b", text)
    assert [int(n) for n in re.findall(r"<b>Figure (\d+)\.", html)] == list(range(1, 6))


def test_speedup_panels_share_a_scale_that_one_far_point_does_not_stretch():
    rows = make_ladder().rows
    low, high = ladder_figures.speedup_limits(rows)
    assert low < 0.8 and 1.54 < high < 4
    assert ladder_figures.speedup_limits((*rows, replace(rows[3], speedup=1e6))) == (low, high)


def test_what_is_extrapolated_is_hollow_and_what_is_unresolved_faded():
    finding = make_ladder()
    muon = [row for row in finding.rows if row.optimizer == "muon"]
    colour, other = look_of(finding)["muon"].colour, look_of(finding)["lion"].colour
    for row, hollow, faded in ((muon[0], False, True), (muon[1], False, False), (muon[-1], True, False)):
        alone = replace(finding, rows=(row,), ratios=RATIOS)
        drawn = ladder_figures.speedups(alone, look_of(finding))
        svg = next(d.svg for d in drawn.values() if "1.40x" in d.alt)
        markers = re.findall(r'<use [^>]*style="([^"]*)"', svg)
        own = [style for style in markers if f"stroke: {colour}" in style and "fill" in style]
        assert any("fill: #ffffff" in style for style in own) == hollow and other not in svg
        assert any("opacity: 0.4" in style for style in own) == faded


def test_scaling_draws_every_optimizer_at_every_size():
    finding = make_ladder()
    drawn = ladder_figures.scaling(finding, look_of(finding))
    assert list(drawn) == list(SIZES)
    for size, drawing in drawn.items():
        means = [f"{rung.losses.mean:.4f}" for rung in finding.rungs if rung.size == size]
        assert len(means) == 9 and all(mean in drawing.alt for mean in means)
        assert all(look.colour in drawing.svg for look in look_of(finding).values())
    assert {"2M", "1×", "4×", "64x2, 100k parameters"} <= set(svg_texts(drawn["64x2"].svg))


def test_law_lines_are_those_that_the_predictions_follow():
    finding = make_ladder()
    found = ladder_settings.optimum_laws(finding)
    assert set(found) == {(name, "opt.lr") for name in ("adamw", "muon", "lion")}
    for (name, _), law in found.items():
        for rung in finding.rungs:
            if (rung.optimizer, rung.size) == (name, LARGEST):
                assert (
                    law.predict(rung.params, rung.losses.horizon_tokens).value == rung.losses.hyperparameters["opt.lr"]
                )
    forecasts = tuple(replace(one, predicted={**one.predicted, "opt.lr": 0.5}) for one in finding.forecasts)
    assert set(ladder_settings.optimum_laws(replace(finding, forecasts=forecasts)).values()) == {None}


def test_laws_show_the_tuned_values_and_the_prediction():
    finding = make_ladder()
    (name, coordinate, drawing), *_ = ladder_settings.laws(finding, look_of(finding))
    assert (name, coordinate) == ("adamw", "opt.lr")
    assert f"{tuned_lr('128x4', 2.0, 1.0):g} at 800k and ratio 2" in drawing.alt
    assert "Predicted at the largest size: 0.013 at ratio 1" in drawing.alt
    assert {"0.032", "0.016", "1×", "4×"} <= set(svg_texts(drawing.svg))


def test_forecast_and_gains_say_their_numbers():
    finding = make_ladder()
    forecast = ladder_settings.forecasts(finding, look_of(finding))
    assert "muon predicted 0.025, found 0.05, loss +0.0123 nats" in forecast.alt
    assert svg_texts(forecast.svg).count("prediction kept") == 2 and "+0.0123" in svg_texts(forecast.svg)
    gains = ladder_settings.tuning_gains(finding, look_of(finding))
    assert "muon at 128x4: tuning 3.60x, itself 1.40x" in gains.alt
    assert {"2.95×", "3.60×, 1.40×", "2 diverged, 0.80×"} <= set(svg_texts(gains.svg))


@pytest.mark.skipif(BROWSER is None, reason="no browser found")
def test_a_browser_has_nothing_to_complain_of(tmp_path):
    page.write(tmp_path / "report.html", page_of(make_ladder))
    result = browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", "--dump-dom")
    assert make_ladder().verdict in Page(result.stdout).text
    assert [line for line in result.stderr.splitlines() if "CONSOLE" in line] == []


@pytest.mark.skipif(BROWSER is None, reason="no browser found")
def test_prints(tmp_path):
    page.write(tmp_path / "report.html", page_of(make_ladder))
    target = tmp_path / "report.pdf"
    browse((tmp_path / "report.html").as_uri(), tmp_path / "profile", f"--print-to-pdf={target}")
    content = target.read_bytes()
    assert content.startswith(b"%PDF") and 3 <= content.count(b"/Type /Page\n") <= 14
