"""`muonlab audit` as a reviewer and as a CI job run it."""

import pytest

GOOD = "optimizer,size,tokens,lr,seed,loss\n" + "".join(
    f"{name},1m,{1e8:g},{lr},{seed},{3.0 + abs(lr - 0.002) * 10 - 0.1 * (name == 'muon') + 1e-4 * seed}\n"
    for name in ("adamw", "muon")
    for lr in (0.001, 0.002, 0.004)
    for seed in (0, 1)
)
EDGE = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith("adamw,1m,1e+08,0.004"))
WARNED = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith("muon,1m,1e+08,0.004"))


@pytest.fixture
def tables(program):
    for name, text in {"good": GOOD, "edge": EDGE, "warned": WARNED}.items():
        (program.folder / f"{name}.csv").write_text(text)
    return program


def test_exit_codes_are_for_ci(tables) -> None:
    assert tables("audit", "good.csv").code == 0
    assert tables("audit", "edge.csv").code == 1
    assert tables("audit", "warned.csv").code == 0
    assert tables("audit", "warned.csv", "--strict").code == 1


def test_the_document(tables) -> None:
    done = tables("audit", "edge.csv", "--json")
    (finding,) = done.json["findings"]
    assert done.code == 1 and set(finding) == {"rule", "severity", "detail", "rows"}
    assert (finding["rule"], finding["severity"], finding["rows"]) == ("grid_edge", "error", [2, 3, 4, 5])
    assert "grid_edge" in done.json["checked"] and "horizon_tokens" in done.json["skipped"]["mid_schedule"]


def test_the_table_says_what_was_found_and_what_could_not_be_checked(tables) -> None:
    out = " ".join(tables("audit", "edge.csv", environment={"COLUMNS": "120"}).out.split())
    assert "1 error, 0 warnings, 0 notes in 10 rows; 6 of 10 rules checked, baseline adamw." in out
    assert "adamw lr is at an open edge" in out and "2 3 4 5" in out
    assert "What this table does not allow to be checked" in out and "horizon_tokens or run_id would allow it" in out
    assert "What a reviewer would object to" not in tables("audit", "good.csv").out


def test_bad_input_is_one_line(tables) -> None:
    (tables.folder / "bare.csv").write_text("optimizer,loss\nadamw,3\n")
    assert "no column 'tokens'" in tables("audit", "bare.csv").said()
    assert "did you mean 'adamw'" in tables("audit", "good.csv", "--baseline", "adamv").said()
    assert "--tuned goes with" in tables("audit", "good.csv", "--tuned", "good.csv").said()
    assert "optimizer, size and chinchilla" in _ablated(tables, "optimizer,size\nadamw,1m\n").said()
    assert "gone.csv" in tables("audit", "gone.csv").said()


def _ablated(tables, tuned: str):
    (tables.folder / "ablations.csv").write_text(
        "optimizer,size,chinchilla,hyperparameter,value,loss\nadamw,1m,1,lr,0.001,3.1\nadamw,1m,1,lr,0.002,3.05\n"
    )
    (tables.folder / "tuned.csv").write_text(tuned)
    return tables("audit", "ablations.csv", "--tuned", "tuned.csv", "--json")


def test_ablations_with_the_tuned_points_beside_them(tables) -> None:
    done = _ablated(tables, "optimizer,size,chinchilla,loss,lr\nadamw,1m,1,3.0,0.004\n")
    finding = next(one for one in done.json["findings"] if one["rule"] == "grid_edge")
    assert done.code == 1 and finding["rows"] == [2, 3, "tuned.csv:2"]


def test_a_store_is_audited_too(study) -> None:
    done = study.program("audit", "muonlab.db", "--json")
    assert done.code in (0, 1) and {"grid_edge", "conditions_differ", "lr_not_decayed"} <= set(done.json["checked"])
    assert all(len(row) == 64 for finding in done.json["findings"] for row in finding["rows"])


def test_a_baseline_that_diverged_everywhere_does_not_pass(program) -> None:
    (program.folder / "r.csv").write_text("optimizer,tokens,loss\nadamw,1e8,nan\nmuon,1e8,3.0\n")
    assert "every configuration of the baseline adamw diverged" in program("audit", "r.csv").said()


def test_rows_and_settings_are_chosen(tables) -> None:
    twice = GOOD + "".join(line.replace(",1m,", ",2m,") for line in EDGE.splitlines(keepends=True)[1:])
    (tables.folder / "sizes.csv").write_text(twice)
    assert tables("audit", "sizes.csv").code == 1
    assert tables("audit", "sizes.csv", "--where", "size=1m").code == 0
    assert "no row has size=3m" in tables("audit", "sizes.csv", "--where", "size=3m").said()
    head, *lines = GOOD.splitlines()
    measured = [f"{line},{number}" for number, line in enumerate(lines)]
    (tables.folder / "measured.csv").write_text("\n".join([f"{head},runtime", *measured]))
    assert not tables("audit", "measured.csv", "--json").json["noise_is_measured"]
    assert tables("audit", "measured.csv", "--settings", "lr", "--json").json["noise_is_measured"]
    ablated = _ablated(tables, "optimizer,size,chinchilla,loss,lr\nadamw,1m,1,3.0,0.004\n")
    asked = ("audit", "ablations.csv", "--tuned", "tuned.csv", "--where")
    assert tables(*asked, "hyperparameter=lr", "--json").json["num_rows"] == ablated.json["num_rows"] - 1
    assert tables(*asked, "chinchilla=1", "--json").json["findings"] == ablated.json["findings"]
    assert "in the column hyperparameter" in tables("audit", "ablations.csv", "--settings", "lr").said()
