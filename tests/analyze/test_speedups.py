"""Speedups of tables: the published ones, planted ones, and rows that allow none."""

import numpy as np
import pytest

from muonlab.analyze.cells import best_cells
from muonlab.analyze.runs import Run, from_rows
from muonlab.analyze.speedups import At, speedup_table
from muonlab.errors import UsageError
from muonlab.records.tables import read_rows

LENGTHS = (1e8, 2e8, 4e8, 8e8)


def loss(tokens: float, params: float = 1e7) -> float:
    return 1.5 + 60.0 * params**-0.3 + 300.0 * tokens**-0.3


def made(speedups: dict[str, float], *, noise: float = 0.0, seeds: int = 1, sizes=(1e7,), seed: int = 0) -> list[Run]:
    """Runs of optimizers that are so many times as fast as the law of the baseline."""
    rng = np.random.default_rng(seed)
    return [
        Run(
            optimizer=name, size=f"{params:g}", params=params, tokens=tokens, seed=s if seeds > 1 else None,
            loss=loss(factor * tokens, params) + noise * rng.standard_normal(),
        )
        for name, factor in speedups.items() for params in sizes for tokens in LENGTHS for s in range(seeds)
    ]  # fmt: skip


def test_published_speedups_are_reproduced(published) -> None:
    """Wen et al. 2025, their definition on their final losses."""
    path = published("pretraining_optimizer_sweep_losses.csv")
    finding = speedup_table(from_rows(read_rows(path), path.name), "adamw", noise_nats=3e-3)
    found = {(row.optimizer, row.size, round(row.tokens / row.params / 20)): row for row in finding.rows}
    for where, expected in {
        ("muon", "130m", 1): 1.43, ("muon", "1.2b", 1): 1.175, ("muon", "1.2b", 8): 1.10,
        ("soap", "130m", 1): 1.28, ("soap", "1.2b", 1): 1.06, ("soap", "1.2b", 8): 1.095,
    }.items():  # fmt: skip
        row = found[where]
        assert row.speedup == pytest.approx(expected, abs=0.02)
        assert row.low < row.speedup < row.high
    assert found["muon", "130m", 1].flag == "" and found["muon", "130m", 16].flag == "extrapolated"
    assert "noise of 0.003 nats" in " ".join(finding.notes)


def test_planted_speedups_are_covered() -> None:
    covered = 0
    for seed in range(40):
        finding = speedup_table(made({"adamw": 1.0, "muon": 1.3}, noise=0.003, seeds=5, seed=seed), "adamw")
        row = next(row for row in finding.rows if row.tokens == LENGTHS[1])
        covered += row.low <= 1.3 <= row.high
    assert covered >= 34  # of 40; 38 are expected


def test_a_copy_of_the_baseline_saves_nothing() -> None:
    false = 0
    for seed in range(40):
        finding = speedup_table(made({"adamw": 1.0, "copy": 1.0}, noise=0.003, seeds=5, seed=seed), "adamw")
        row = next(row for row in finding.rows if row.tokens == LENGTHS[1])
        false += not row.low <= 1.0 <= row.high
    assert false <= 6


def test_a_loss_below_the_floor_has_no_speedup_and_one_beyond_the_lengths_is_flagged() -> None:
    runs = made({"adamw": 1.0, "muon": 3.0})
    runs.append(Run(optimizer="oracle", size="1e+07", params=1e7, tokens=1e8, loss=1.0))
    finding = speedup_table(runs, "adamw", noise_nats=1e-4)
    found = {(row.optimizer, row.tokens): row for row in finding.rows}
    assert (found["oracle", 1e8].speedup, found["oracle", 1e8].flag) == (None, "undefined")
    assert found["muon", 8e8].flag == "extrapolated" and found["muon", 1e8].flag == ""
    assert found["muon", 8e8].speedup == pytest.approx(3.0, rel=0.02)


def test_joint_laws_extrapolate_with_an_interval_that_grows() -> None:
    runs = made({"adamw": 1.0, "muon": 1.3}, noise=0.002, seeds=3, sizes=(1e6, 4e6, 1.6e7))
    near, far = speedup_table(runs, "adamw", at=[At(3e7, 4e8), At(3e9, 4e10)]).extrapolations
    assert near.low < 1.3 < near.high
    assert (near.factor_params, near.factor_tokens) == (pytest.approx(3e7 / 1.6e7), 1.0)
    assert far.factor_params == pytest.approx(3e9 / 1.6e7) and far.high - far.low > near.high - near.low
    few = speedup_table(made({"adamw": 1.0, "muon": 1.3}), "adamw", noise_nats=1e-3, at=[At(1e8, 1e9)])
    assert not few.extrapolations and any("needs three sizes" in note for note in few.notes)


def test_the_best_configuration_stands_for_an_optimizer() -> None:
    def run(lr: float, value: float | None, seed: int) -> Run:
        return Run(optimizer="adamw", size="s", params=1e6, tokens=1e8, loss=value, seed=seed, settings={"opt.lr": lr})

    runs = [
        run(0.1, 3.0, 0),
        run(0.1, 3.2, 1),
        run(0.2, 3.05, 0),
        run(0.2, 3.05, 1),
        run(0.3, 1.0, 0),
        run(0.3, None, 1),
    ]
    (cell,) = best_cells(runs).values()
    assert (cell.settings, cell.losses, cell.num_configurations) == ({"opt.lr": 0.2}, (3.05, 3.05), 3)
    with pytest.raises(UsageError, match="the same run twice"):
        best_cells([run(0.1, 3.0, 0), run(0.1, 3.1, 0)])


def test_rows_before_the_end_of_a_schedule_are_left_out() -> None:
    runs = made({"adamw": 1.0, "muon": 1.2})
    early = Run(optimizer="muon", size="1e+07", params=1e7, tokens=3e8, horizon_tokens=8e8, loss=2.0)
    finding = speedup_table([*runs, early], "adamw", noise_nats=1e-3)
    assert all(row.tokens != 3e8 for row in finding.rows)
    assert "1 rows before the end of their schedule or run left out" in finding.notes


@pytest.mark.parametrize(
    ("runs", "settings", "message"),
    [
        (made({"muon": 1.0}), {"noise_nats": 0.01}, "unknown baseline 'adamw'"),
        (made({"adamw": 1.0}), {}, "no run has a second seed"),
        (made({"adamw": 1.0})[:2], {"noise_nats": 0.01}, "three lengths"),
        ([], {"noise_nats": 0.01}, "no run finished"),
    ],
)
def test_tables_that_allow_no_speedup(runs, settings, message) -> None:
    with pytest.raises(UsageError, match=message):
        speedup_table(runs, "adamw", **settings)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": 0}, "line 7: tokens must be a number above 0"),
        ({"tokens": None}, "line 7: tokens must be"),
        ({"tokens": float("inf")}, "line 7: tokens must be"),
        ({"params": -1}, "line 7: params must be"),
        ({"optimizer": None}, "line 7: optimizer is empty"),
        ({"seed": 0.5}, "line 7: seed must be a whole number"),
    ],
)
def test_a_bad_row_is_an_error_with_its_line(row, message) -> None:
    good = {"optimizer": "adamw", "size": "s", "params": 1e6, "tokens": 1e8, "loss": 3.0, "line": 7}
    assert from_rows([good], "t.csv")[0].loss == 3.0
    with pytest.raises(UsageError, match=message):
        from_rows([good | row], "t.csv")
