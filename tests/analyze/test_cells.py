"""Which rows are runs, which runs are compared, and what is said of the others."""

import warnings

import pytest

from muonlab.analyze.audit import audit, from_table
from muonlab.analyze.cells import best_cells, choose_baseline, lost_notes, named_noise, seed_noise
from muonlab.analyze.points import law_points
from muonlab.analyze.runs import ends, from_rows
from muonlab.analyze.scaling import fit
from muonlab.analyze.speedups import At, speedup_table
from muonlab.analyze.tabled import compare_runs
from muonlab.errors import UsageError

LENGTHS = (1e8, 2e8, 4e8, 8e8)


def loss(tokens: float) -> float:
    return 2 + (tokens / 1e8) ** -0.4


def rows(**more) -> list[dict]:
    """Muon is 1.4 times as fast; two seeds."""
    found = [
        {"optimizer": name, "size": "10m", "tokens": tokens, "seed": seed, "line": 0, **more,
         "loss": loss(speed * tokens) + 0.001 * seed}
        for name, speed in (("adamw", 1.0), ("muon", 1.4)) for tokens in LENGTHS for seed in (0, 1)
    ]  # fmt: skip
    return numbered(found)


def numbered(found: list[dict]) -> list[dict]:
    return [{**row, "line": line} for line, row in enumerate(found, 2)]


def runs(found: list[dict]):
    return from_rows(numbered(found), "t.csv")


def curves() -> list[dict]:
    """Each run with a name and three moments, without a column that says where its schedule ends."""
    named = [{**row, "run_id": number} for number, row in enumerate(rows())]
    early = [{**r, "tokens": r["tokens"] * part, "loss": r["loss"] + 0.3} for r in named for part in (0.25, 0.5)]
    return early + named


def test_only_the_last_row_of_a_named_run_is_its_end() -> None:
    plain = speedup_table(runs(rows()), "adamw")
    found = speedup_table(runs(curves()), "adamw")
    assert found.rows == plain.rows and found.fits == plain.fits
    assert "32 rows before the end of their schedule or run left out" in found.notes
    assert {cell.num_configurations for cell in best_cells(ends(runs(curves()))).values()} == {1}
    evidence = from_table(numbered(curves()), "t.csv")
    assert evidence.ends == ends(evidence.rows) and len(evidence.ends) == 16


def test_a_name_that_several_seeds_share_drops_none_of_them() -> None:
    found = speedup_table(runs([{**row, "run_name": "final"} for row in rows() if row["tokens"] == 1e8]
                               + [row for row in rows() if row["tokens"] > 1e8]), "adamw")  # fmt: skip
    assert {row.num_seeds for row in found.rows} == {2}


def test_names_of_runs_are_replicates_where_there_are_no_seeds() -> None:
    named = [{**{k: v for k, v in row.items() if k != "seed"}, "run_name": f"r{row['line']}"} for row in rows()]
    found = speedup_table(runs(named), "adamw")
    assert {(row.num_seeds, row.num_configurations) for row in found.rows} == {(2, 1)}
    with pytest.raises(UsageError, match="are the same run twice"):
        ends(runs([{k: v for k, v in row.items() if k != "seed"} for row in rows()]))


def test_a_length_that_divergence_took_is_told() -> None:
    lost = [
        {**row, "loss": None} if (row["optimizer"], row["tokens"], row["seed"]) == ("muon", 4e8, 1) else row
        for row in rows()
    ]
    notes = speedup_table(runs(lost), "adamw").notes
    assert "no configuration without a diverged run, so left out: muon 10m 4e+08 tokens" in notes
    (finding,) = (f for f in audit(from_table(numbered(lost), "t.csv")).findings if f.rule == "missing_cells")
    assert finding.severity == "warning" and "muon (10m, 400M tokens)" in finding.detail and len(finding.rows) == 2
    check = next(check for check in compare_runs(runs(lost), "adamw").checks if check.name == "missing_cells")
    assert check.ok and check.severity == "warning" and "muon (10m, 400M tokens)" in check.detail
    assert lost_notes(ends(runs(rows()))) == []


def test_a_baseline_that_is_not_there_is_asked_for() -> None:
    with pytest.raises(
        UsageError, match=r"unknown baseline 'sgd'.* \(valid: adamw, muon\): choose one with --baseline"
    ):
        choose_baseline("sgd", runs(rows()))


def test_columns_that_are_no_settings_are_named_where_no_seed_is_found() -> None:
    measured = [{**row, "runtime": 100.0 + row["line"], "lr": 0.1} for row in rows()]
    with pytest.raises(UsageError, match=r"\(runtime differ in all\), name those that are with --settings"):
        speedup_table(runs(measured), "adamw")
    alone = [row for row in rows() if row["seed"] == 0]
    with pytest.raises(UsageError, match=r"such as --noise 0.003 \(nats\)$"):
        speedup_table(runs(alone), "adamw")


@pytest.mark.parametrize("nats", [0.0, -1.0, float("nan"), float("inf")])
def test_a_noise_of_nothing_is_refused(nats: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        named_noise(nats)
    with pytest.raises(UsageError, match="above 0"):
        audit(from_table(rows(), "t.csv", noise_nats=nats))
    with pytest.raises(UsageError, match="above 0"):
        seed_noise([], nats)


@pytest.mark.parametrize("blown", [1e300, 1e31, 1e29])
def test_a_loss_that_blew_up_warns_of_nothing(blown: float) -> None:
    wild = [{**row, "lr": 0.1} for row in rows()] + [{**row, "lr": 9.0, "loss": blown} for row in rows()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = speedup_table(runs(wild), "adamw")
        audit(from_table(numbered(wild), "t.csv"))
        compare_runs(runs(wild), "adamw")
        points, noise, _ = law_points([run for run in runs(wild) if run.optimizer == "adamw"], "data")
        fit("data", points, noise=noise)
        alone = [{**row, "loss": blown if row["tokens"] == 2e8 else row["loss"]} for row in rows()]
        speedup_table(runs(alone), "adamw")
    assert {row.speedup for row in found.rows} == {row.speedup for row in speedup_table(runs(rows()), "adamw").rows}


@pytest.mark.parametrize("constant", [0.0, 1e29])
def test_losses_that_no_law_describes_warn_of_nothing(constant: float) -> None:
    flat = runs([{**row, "size": f"{p:g}", "params": p, "loss": constant * (1 + row["seed"])}
                 for row in rows() for p in (1e6, 4e6, 16e6)])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = speedup_table(flat, "adamw", at=[At(7e9, 1.4e11)])
    assert all(row.flag in ("undefined", "extrapolated", "") for row in found.rows)
    with pytest.raises(UsageError, match="no run finished"):
        law_points(runs([{**row, "loss": 1e300} for row in rows()]), "data")


def test_a_law_is_not_fitted_to_several_sizes_at_once() -> None:
    bare = [{"params": n, "tokens": t, "loss": loss(t) + 1e3 / n} for n in (1e3, 2e3, 4e3) for t in LENGTHS]
    found = runs(bare)
    with pytest.raises(UsageError, match=r"params \(1000, 2000, 4000\): choose one with --where params=1000, or"):
        law_points(found, "data")
    assert len(law_points(found, "chinchilla")[0]) == 12
    assert len(law_points([run for run in found if run.params == 1e3], "data")[0]) == 4
    exact = runs([{**row, "params": row["params"] * 123457.7} for row in bare])
    with pytest.raises(UsageError, match="choose one with --where size="):
        law_points(exact, "data")


def test_what_a_law_leaves_out_is_told() -> None:
    bare = [{"tokens": t, "loss": loss(t), "horizon_tokens": t} for t in LENGTHS]
    found = runs([*bare, {**bare[0], "horizon_tokens": 2e8}, {**bare[1], "loss": float("nan")}, bare[2]])
    points, _, notes = law_points(found, "data")
    assert len(points) == 5
    assert notes == ["1 rows before the end of their schedule or run left out", "1 diverged runs left out"]
    adamw = [run for run in runs([*rows(), {**rows()[0], "lr": 9.0, "loss": None}]) if run.optimizer == "adamw"]
    assert law_points(adamw, "data")[2] == ["1 diverged runs: their configurations are out of the running"]
