"""A comparison from a table: the tests of the laboratory on anybody's runs."""

import math

import numpy as np
import pytest

from muonlab.analyze.runs import Run
from muonlab.analyze.tabled import compare_runs
from muonlab.errors import UsageError

LENGTHS = (1e8, 2e8, 4e8)
BEST = {"adamw": 0.004, "muon": 0.02}


def table(speed: float = 1.4, noise: float = 0.004, seeds: int = 4, lengths=LENGTHS, seed: int = 0) -> list[Run]:
    rng = np.random.default_rng(seed)
    return [
        Run(
            optimizer=name, size="10m", params=1e7, tokens=tokens, seed=s, settings={"lr": lr}, where=f"{name} {s}",
            loss=2 + (factor * tokens / 1e8) ** -0.4 + 0.06 * math.log2(lr / BEST[name]) ** 2
            + noise * rng.standard_normal(),
        )
        for name, factor in (("adamw", 1.0), ("muon", speed)) for tokens in lengths
        for lr in (BEST[name] / 2, BEST[name], BEST[name] * 2) for s in range(seeds)
    ]  # fmt: skip


def compared(runs, **asked):
    return compare_runs(runs, "adamw", **asked)


def test_a_planted_difference_is_found_with_its_speedup() -> None:
    finding = compared(table())
    assert finding.contrasts["muon"].judgement == "better"
    speedup = finding.speedup["muon"]
    assert speedup.low < 1.4 < speedup.high and speedup.flag == "" and speedup.horizon_tokens == 2e8
    assert finding.verdict.startswith("muon is better than tuned adamw: 1.")
    assert finding.optimizers["muon"].hyperparameters == {"lr": 0.02}


def test_nothing_is_found_where_nothing_is() -> None:
    judged = [compared(table(1.0, noise=0.02, seed=seed)).contrasts["muon"].judgement for seed in range(20)]
    assert judged.count("unresolved") >= 18


def test_an_optimum_on_an_edge_withholds_the_verdict() -> None:
    runs = [run for run in table() if run.optimizer == "muon" or run.settings["lr"] < 0.005]
    finding = compared(runs)
    assert finding.verdict.startswith("Verdict withheld: interior")
    assert finding.contrasts["muon"].judgement == "withheld"


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([run for run in table() if run.optimizer == "muon"], "unknown baseline 'adamw'"),
        ([run for run in table() if run.optimizer == "adamw"], "nothing to compare adamw with"),
        ([r for r in table() if (r.optimizer == "adamw") == (r.tokens < 3e8)], "no length"),
        (table(seeds=1), "no run has a second seed"),
        ([], "no run finished"),
    ],
)
def test_tables_that_cannot_be_compared(runs, message) -> None:
    with pytest.raises(UsageError, match=message):
        compared(runs)


def test_several_sizes_are_not_mixed() -> None:
    import dataclasses

    runs = table() + [dataclasses.replace(run, size="20m", params=2e7) for run in table()]
    with pytest.raises(UsageError, match="choose one with --where size=10m"):
        compared(runs)


def test_runs_without_seeds_take_the_noise_that_is_named() -> None:
    finding = compared([run for run in table() if run.seed == 0], noise_nats=0.004)
    assert finding.contrasts["muon"].judgement == "better" and finding.optimizers["muon"].num_seeds == 1


def test_an_optimizer_that_diverged_everywhere_does_not_vanish() -> None:
    from dataclasses import replace

    gone = [replace(run, optimizer="lion", loss=None) for run in table() if run.optimizer == "muon"]
    finding = compared(table() + gone)
    assert finding.verdict.startswith("Verdict withheld: complete: lion 36 of 36 runs diverged")


def test_rows_that_are_left_out_are_neither_counted_nor_judged() -> None:
    from dataclasses import replace

    runs = [replace(run, horizon_tokens=run.tokens) for run in table()]
    early = [replace(run, tokens=run.tokens / 2, loss=run.loss + 0.3) for run in runs if run.seed == 0]
    plain, finding = compared(runs), compared(runs + early)
    assert (finding.num_runs, finding.total_tokens) == (plain.num_runs, plain.total_tokens)
    assert finding.verdict == plain.verdict and all(check.ok is not False for check in finding.checks)
    assert "18 rows before the end of their schedule or run left out" in finding.checks[0].detail


def test_what_is_not_known_of_a_table_is_not_said() -> None:
    assert {found.converged for found in compared(table()).optimizers.values()} == {None}
    one = [run for run in table() if run.settings["lr"] == BEST[run.optimizer]]
    assert compared(one).verdict.startswith("muon is better than adamw: 1.")


def test_where_no_speedup_can_be_read_the_losses_decide() -> None:
    short = [run for run in table() if run.tokens < 4e8]
    finding = compared(short)
    assert finding.speedup["muon"].flag == "undefined" and finding.contrasts["muon"].judgement == "better"
    assert finding.verdict.startswith("muon is better than tuned adamw: final loss lower by 0.")
    assert finding.verdict.endswith("nats at the same tokens; how many tokens that saves cannot be told.")
    same = [compared([r for r in table(1.0, noise=0.02, seed=seed) if r.tokens < 4e8]) for seed in range(20)]
    assert [finding.contrasts["muon"].judgement for finding in same].count("unresolved") >= 17


def test_rules_below_an_error_or_without_their_columns_are_not_ok() -> None:
    runs = [run for run in table() if run.optimizer == "adamw" or run.settings["lr"] <= 0.02]
    checks = {check.name: check for check in compared(runs).checks}
    assert checks["interior"].ok and checks["interior"].severity == "warning"
    assert "muon lr is at an open edge" in checks["interior"].detail
    assert checks["mid_schedule"].ok is None and "horizon_tokens" in checks["mid_schedule"].detail
    assert checks["complete"].ok and checks["complete"].severity == ""
