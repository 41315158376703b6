"""Figures: what is drawn where, in few and always the same bytes."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from made_up import HORIZON, bowl, law_loss, lost, make_crowd, make_finding, speedup_of

from muonlab.analyze.findings import SlicePoint
from muonlab.report import canvas, figures, strokes
from muonlab.report.slices import slice_figures
from muonlab.report.text import FORMATS, field_name, lookup, show


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_read_off_names_every_series_and_the_speedup(finding):
    drawing = figures.read_off(finding)
    assert {"adamw", "muon", "1.40× tokens", "2.1M", "4.19M", "8.39M"} <= set(texts(drawing.svg))
    assert "muon 1.40x" in drawing.alt and "2.3323 at 4.19M tokens" in drawing.alt


def test_arrow_ends_on_the_curve(finding):
    """At the tokens that the speedup says, the planted law has the challenger's loss."""
    planted = law_loss(1.404 * HORIZON)
    challenger = finding.optimizers["muon"].horizons[0]
    start, end = figures._arrow_span(finding, "muon", finding.speedup["muon"])
    assert start == HORIZON and law_loss(end) == pytest.approx(planted)
    assert challenger.mean == pytest.approx(planted, abs=0.005)
    assert strokes.law_loss(finding.law, end) == pytest.approx(planted)


def test_bounds_are_drawn_as_bounds(finding):
    bound = speedup_of(2.0, flag="censored", bound=">", high=None)
    assert "&gt; 2.00× tokens" in figures.read_off(replace(finding, speedup={"muon": bound})).svg


def test_curves_are_thinned_and_labelled(finding):
    drawing = figures.training_curves(finding)
    assert "training loss, smoothed, nats" in texts(drawing.svg)
    longest = max(len(re.findall(r"[ML] ", path)) for path in re.findall(r'<path d="([^"]*)"', drawing.svg))
    assert longest <= 2 * figures.NUM_POINTS + 4
    assert "Only final held-out losses are compared" in drawing.alt


def test_binned_curve_keeps_its_mean(finding):
    curve = finding.curves[0]
    edges = figures._edges({"adamw": [curve]}, curve.horizon_tokens)
    assert len(edges) == figures.NUM_POINTS + 1
    assert figures._binned(curve, edges).mean() == pytest.approx(sum(curve.loss) / len(curve.loss), abs=0.02)


def test_seeds_show_every_loss(finding):
    drawing = figures.final_losses(finding)
    main = finding.optimizers["muon"].horizons[0]
    assert all(f"{loss:.4f}" in drawing.alt for loss in main.losses)
    assert f"mean {main.mean:.4f}" in texts(drawing.svg)
    assert "mean -, 5 lost" in texts(figures.final_losses(lost(finding, ["muon"])).svg)


def test_nothing_finished_is_no_figure(finding):
    gone = lost(finding, ["adamw", "muon"])
    assert figures.read_off(gone) is None and figures.final_losses(gone) is None
    assert figures.training_curves(replace(finding, curves=())) is None


def test_slices_mark_what_diverged_and_what_was_chosen(finding):
    drawn = slice_figures(finding)
    assert [piece.coordinate for piece, _ in drawn["muon"]] == ["opt.lr", "opt.weight_decay", "opt.momentum"]
    (_, lr), *_ = drawn["adamw"]
    assert "#b3261e" in lr.svg and "0.016: 2 of 3 runs diverged" in lr.alt and "(0.004 was chosen)" in lr.alt
    assert "0.004" in texts(lr.svg)


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ((0.0, 0.01, 0.1), 0.0),
        ((True, False), True),
        (("linear", "cosine", None), "cosine"),
        (((0.9, 0.95), (0.9, 0.99)), (0.9, 0.95)),
        ((1, 2), 1),
        ((-1.0, 0.0, 1.0), 0.0),
    ],
)
@pytest.mark.filterwarnings("error")
def test_slices_of_any_values(finding, values, chosen):
    drawn = slice_figures(replace(finding, slices=(bowl("muon", "opt.x", values, chosen),)))
    ((_, drawing),) = drawn["muon"]
    assert show(chosen, "value") in texts(drawing.svg)


@pytest.mark.filterwarnings("error")
def test_slice_where_all_diverged_or_one_value_was_tried(finding):
    gone = SlicePoint(value=0.1, mean=None, standard_error=None, num_seeds=3, num_diverged=3)
    piece = replace(finding.slices[0], points=(gone, replace(gone, value=0.2)), chosen=0.1)
    assert "3 of 3 runs diverged" in slice_figures(replace(finding, slices=(piece,)))["adamw"][0][1].alt
    assert slice_figures(replace(finding, slices=(replace(piece, points=(gone,)),))) == {}


def test_values_far_above_do_not_flatten_a_slice():
    points = [SlicePoint(value=i, mean=m, standard_error=0.0, num_seeds=3, num_diverged=0)
              for i, m in enumerate((2.30, 2.31, 2.33, 2.36, 6.0))]  # fmt: skip
    from muonlab.report import slices

    assert 2.36 < slices._limit(points) < 6.0


def test_one_look_per_optimizer_everywhere():
    crowd = make_crowd()
    chosen = canvas.looks(crowd)
    assert list(chosen) == list(crowd.optimizers)
    assert len({(look.colour, look.marker) for look in chosen.values()}) == 12
    svg = figures.read_off(crowd).svg
    assert all(look.colour in svg for look in chosen.values())


@pytest.mark.parametrize("colour", [canvas.BASELINE, *canvas.HUES])
def test_colours_are_visible_on_white(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 3.0


def test_user_settings_of_matplotlib_do_not_matter(finding):
    import matplotlib

    before = figures.final_losses(finding).svg
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert figures.final_losses(finding).svg == before
        assert matplotlib.rcParams["font.size"] == 30


def test_figures_are_small(finding):
    assert len(figures.read_off(finding).svg) < 30_000 and len(figures.training_curves(finding).svg) < 60_000


def test_labels_keep_apart():
    placed = canvas.spread([5.0, 5.0, 5.1, 40.0], 10.0)
    ordered = sorted(placed)
    assert min(b - a for a, b in pairwise(ordered)) >= 10.0 - 1e-9
    assert min(canvas.spread([1.0, 1.0], 10.0, low=0.0)) == 0.0


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (999_999, "tokens", "1M"), (512, "tokens", "512"), (1.5e12, "tokens", "1.5T"), (0.0, "loss", "0.0000"),
        (12.345, "ratio", "12.3x"), (1234.5, "ratio", "1,234x"), (math.nan, "ratio", "-"), (None, "value", "none"),
        (59.97, "seconds", "1m 00s"), (7322, "seconds", "2h 02m"), (2e-5, "seconds", "20.0 us"),
        (True, "value", "true"), (0.05, "p", "0.050"), (1e-9, "p", "< 0.001"),
        (4194304.0, "value", "4194304"), (3e-05, "value", "3e-05"),
    ],
)  # fmt: skip
def test_numbers_are_written(value, kind, text):
    assert kind in FORMATS and show(value, kind) == text


def test_field_names_lead_back(finding):
    path = ("optimizers", "muon", "hyperparameters", "opt.lr")
    assert field_name(path) == "optimizers.muon.hyperparameters['opt.lr']"
    assert lookup(finding, path) == 0.02
    assert make_finding() == finding
