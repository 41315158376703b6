"""Tables for the terminal: complete, legible at 80 columns, in ASCII and without colour."""

import io
import re
from dataclasses import replace

import pytest
from made_up import contrast_of, lost, make_crowd, make_finding, make_variants, paired_of, speedup_of
from made_up_batch import make_alone, make_batch, make_batch_crowd, make_lost_batch, make_withheld_batch
from made_up_ladder import make_ladder, make_withheld_ladder
from rich.console import Console

from muonlab.analyze.findings import Check
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Move, Trial, Tuning
from muonlab.records.record import Series
from muonlab.report.batch import batch_table
from muonlab.report.ladder import ladder_table
from muonlab.report.tables import checks_table, comparison_table, record_table, runs_table, tuning_table

TUNING = Tuning(
    optimizer="muon",
    horizon_tokens=4_194_304,
    coordinates=("opt.lr", "opt.weight_decay"),
    best={"opt.lr": 0.02, "opt.weight_decay": 0.0},
    trials=(
        Trial(settings={"opt.lr": 0.02, "opt.weight_decay": 0.0}, keys=("a", "b")),
        Trial(settings={"opt.lr": 0.16, "opt.weight_decay": 0.0}, keys=("c",)),
    ),
    moves=(
        Move(
            coordinate="opt.lr", old=0.01, new=0.02, gain=0.0312, standard_error=0.004, num_seeds=3, accepted=True,
            reason="argmin of seed means over the whole grid",
        ),
        Move(
            coordinate="opt.weight_decay", old=0.0, new=0.1, gain=None, standard_error=None, num_seeds=6,
            accepted=False, reason="the gain is not positive",
        ),
    ),
    edges=("opt.lr",),
    converged=False,
    num_runs=40,
    tokens=167_772_160,
)  # fmt: skip


def printed(parts, width: int = 80, encoding: str = "utf-8", **options) -> str:
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=buffer, width=width, **options)
    for part in parts:
        console.print(part)
    buffer.flush()
    return buffer.buffer.getvalue().decode(encoding)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("width", [80, 100])
def test_comparison_says_everything(finding, width):
    text = printed(comparison_table(finding), width)
    assert words(text).startswith(finding.verdict)
    for part in ("2.3323", "+- 0.0062", "5 seeds", "1.40x", "[1.28, 1.55]", "1.18x", "[1.08, 1.31]", "1m 13s"):
        assert part in text, part
    for name, value in finding.optimizers["muon"].hyperparameters.items():
        assert f"{name} {value:g}" in text
    for at in finding.optimizers["adamw"].horizons:
        assert f"{at.mean:.4f}" in text and all(f"{loss:.4f}" in text for loss in at.losses)
    assert all(check.name in text for check in finding.checks)
    assert "212 runs, 734M tokens" in words(text)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_pipes_get_plain_text(finding, encoding):
    text = printed(comparison_table(finding), encoding=encoding)
    assert "\x1b" not in text
    assert words(text).startswith(finding.verdict)


def test_no_color_is_obeyed(finding, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(comparison_table(finding), force_terminal=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", text)


def test_broken_checks_stand_out_without_colour(finding):
    checks = (Check(name="interior", ok=False, detail="on an edge"), *finding.checks[1:])
    text = printed(comparison_table(replace(finding, checks=checks)))
    assert re.search(r"interior +BROKEN +on an edge", text) and "11 rules, 1 broken" in text


def test_what_was_not_checked_is_neither_ok_nor_broken(finding):
    checks = tuple(Check(name=f"rule{i}", ok=ok, detail="found") for i, ok in enumerate((True, None, None)))
    text = printed([checks_table(checks)])
    assert "3 rules, 0 broken, 2 not checked" in words(text)
    assert [line.split()[1] for line in text.splitlines() if line.startswith("rule") and "found" in line][-3:] == [
        "ok", "-", "-",
    ]  # fmt: skip


def test_a_ladder_without_a_verdict_says_why_in_a_list():
    finding = make_withheld_ladder()
    lines = printed(ladder_table(finding), width=120).strip().splitlines()
    said = [line.rstrip() for line in lines if line.startswith("- ")]
    assert lines[0].rstrip() == finding.verdict == "Verdict withheld: interior is broken."
    assert said == [f"- interior, {reason}" for reason in finding.checks[5].detail.split("; ")]
    assert not [line for line in printed(ladder_table(make_ladder())).splitlines() if line.startswith("- ")]


@pytest.mark.parametrize("make", [make_batch, make_withheld_batch, make_lost_batch, make_alone, make_batch_crowd])
@pytest.mark.parametrize("width", [80, 120])
def test_every_batch_study_gives_tables(make, width):
    finding = make()
    text = printed(batch_table(finding), width)
    assert words(text).startswith(words(finding.verdict)[:60])
    assert all(name in text for name in finding.optimizers) and all(f"{batch:,}" in text for batch in finding.batches)
    assert not re.search(r"\bNone\b|\bnan\b", text) and max(map(len, text.splitlines())) <= width


def test_a_batch_study_says_tokens_ratio_and_trend():
    finding = make_batch()
    text = words(printed(batch_table(finding), 100))
    for one in finding.token_ratio:
        if one.ratio is not None:
            said = f"{one.ratio:.2f}x [{one.low:.2f}, {one.high:.2f}] {one.judgement}"
            assert f"{one.batch_tokens:,}" in text and said in text, said
    assert "trend of log ratio a doubling +0.0710 [+0.0520, +0.0900] grows" in text
    assert "65,536 not reached 7.58M - -" in text and "by 1 of 3" in text and "1,024 1.04M < 688k - -" in text


def test_a_batch_study_puts_the_estimators_side_by_side():
    text = words(printed(batch_table(make_batch()), 100))
    assert "muon 3.2 > 65,536 70,000 < 1,024 5,600 22,400 2,048 [41.2k, open] [56k, 112k] [1.02k, 2.31k]" in text
    assert "2.6 6,000 30,000 < 1,024 - 9,600 2,048" in text and "[open, 1.5k]" in text


def test_a_batch_study_tells_what_is_modelled_and_how():
    text = words(printed(batch_table(make_batch()), 100))
    assert "1 adamw 23.5 s 8,192 7.88M measured" in text and "2 adamw 13.7 s 16,384 9.08M modelled" in text
    assert "Modelled, not run: 2, 4, 8 devices." in text and "at 25 GB/s with 20.0 us of latency" in text
    assert "2.6 muon dominates 1: 0.62x, 2: 0.60x" in text
    held_back = words(printed(batch_table(make_withheld_batch()), 100))
    assert not re.search(r"better|worse|grows|dominates", held_back) and "2.6 muon withheld 1: 0.62x" in held_back


def test_names_in_a_batch_study_are_text_not_markup():
    base, name = make_batch(), "[red]x[/red]\x1b[31m"
    parts = ("times", "token_ratio", "trends", "critical", "settings", "frontier", "dominance")
    renamed = {
        part: tuple(replace(one, optimizer=name) if one.optimizer == "muon" else one for one in getattr(base, part))
        for part in parts
    }
    text = printed(batch_table(replace(base, optimizers=("adamw", name, "lion"), **renamed)), 120)
    assert text.count("[red]x") > 5 and "\x1b" not in text


def test_a_batch_study_lists_settings_that_stay_once():
    text = words(printed(batch_table(make_batch()), 100))
    assert text.count("opt.momentum 0.95") == 1 and "muon all opt.weight_decay 0.1, opt.momentum 0.95 1,024" in text
    assert "32,768 opt.lr 0.064 -> 0.032 18 runs, converged" in text and "18 runs, capped, on an edge: opt.lr" in text


def test_withheld_verdict_hides_judgements(finding):
    text = printed(comparison_table(replace(finding, verdict="Verdict withheld: interior: on an edge")))
    assert "better" not in text and "withheld" in text


@pytest.mark.parametrize(
    "make",
    [
        lambda: lost(make_finding(), ["muon"]),
        lambda: lost(make_finding(), ["adamw", "muon"]),
        make_crowd,
        make_variants,
        lambda: make_finding(optimizers={}, speedup={}, contrasts={}, paired={}, checks=(), verdict="", law=None),
        lambda: make_finding(speedup={"muon": speedup_of(4.0, flag="censored", bound=">", high=None)}),
        lambda: make_finding(contrasts={"muon": contrast_of(None, "unresolved")}),
    ],
)
def test_every_study_gives_a_table(make):
    finding = make()
    text = printed(comparison_table(finding))
    assert all(name in text for name in finding.optimizers)
    assert not re.search(r"\bNone\b|\bnan\b", text)
    assert max(map(len, text.splitlines())) <= 80


def test_bounds_are_written_as_bounds():
    finding = make_finding(speedup={"muon": speedup_of(4.0, flag="censored", bound=">", high=None, wall_high=None)})
    assert "> 4.00x" in printed(comparison_table(finding))


def test_paired_by_seed(finding):
    text = words(printed(comparison_table(finding)))
    assert "muon 5 -0.0823 [-0.0894, -0.0752] -0.42 -0.0729" in text and "no worse" not in text
    shown = words(printed(comparison_table(make_variants()), width=100))
    assert "no worse by 0.013" in shown and "+0.0106 shown" in shown and "+0.0206 not shown" in shown
    held_back = make_finding(paired={"muon": replace(paired_of(0.0, True), no_worse=None)})
    assert "withheld" in printed(comparison_table(held_back))


def test_a_variant_says_what_it_is_and_sets():
    text = printed(comparison_table(make_variants()), width=100)
    assert "(muon)" in text and "opt.ns_steps 4, fixed" in text and "opt.ns_steps 2, fixed" in text
    assert "fixed" not in printed(comparison_table(make_finding()))


def test_names_are_text_not_markup(finding):
    name = "[red]x[/red]\x1b[31m"
    text = printed(comparison_table(replace(finding, optimizers={name: finding.optimizers["muon"]})), width=100)
    assert "[red]x" in text and "\x1b" not in text


def test_runs_table():
    rows = [
        {
            "key": "ab" * 32, "task": "text", "optimizer": "muon", "outcome": "ok", "horizon_tokens": 4_194_304,
            "seed": 0, "final_loss": 2.3451, "wall_seconds": 61.2, "created": "2026-10-01T12:00:33+00:00",
        },
        {"key": "cd" * 32, "outcome": "diverged", "final_loss": None},
    ]  # fmt: skip
    text = printed([runs_table(rows)])
    lines = text.splitlines()
    for part in ("abababababab", "text", "muon", "ok", "4.19M", "2.3451", "1m 01s", "2026-10-01"):
        assert part in lines[2], part
    assert "cdcdcdcdcdcd" in lines[3] and "diverged" in lines[3] and "ab" * 7 not in text
    assert "-" in printed([runs_table([])])


def test_record_table():
    spec = RunSpec(
        task="text", optimizer="muon", horizon_tokens=4_194_304, batch_tokens=4096, seed=3,
        hyperparameters={"opt.lr": 0.02},
    )  # fmt: skip
    probes = {"rank.blocks.0": Series((8, 1024), (3.0, 4.2)), "heldout.accuracy": Series((1024,), (0.5,))}
    good = Record(
        spec=spec, outcome="ok", final_loss=2.3456, tokens=4_194_304, wall_seconds=61.2, step_seconds=0.015,
        probes=probes,
    )  # fmt: skip
    text = words(printed(record_table(good)))
    for part in (spec.key, "text, muon", "2.3456", "4.19M of 4.19M", "1m 01s, a step 15.0 ms", "opt.lr 0.02",
                 "effective rank of blocks.0 4.2 at step 1,024", "held-out accuracy 0.5 at step 1,024"):  # fmt: skip
        assert part in text, part
    assert "diverged" not in text
    bad = Record(spec=spec, outcome="diverged", diverged_step=17, error="loss is not finite\n[bold]trace[/bold]")
    text = words(printed(record_table(bad)))
    assert "diverged at step 17" in text and "loss is not finite [bold]trace[/bold]" in text


def test_tuning_table():
    text = words(printed(tuning_table(TUNING, 2.3456)))
    assert "stopped by the cap on runs after 40 runs (168M tokens)" in text and "edge of its grid: opt.lr" in text
    assert "0.01 -> 0.02 +0.0312" in text and "1 made of 2" in text and "whole grid" in text
    assert "Mean loss 2.3456." in text and "Trials" not in text
    with_losses = words(printed(tuning_table(TUNING, losses={"a": 2.31, "b": None})))
    assert "2.3100 lost" in with_losses and "2 configurations" in with_losses
