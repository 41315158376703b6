"""speedup, fit and compare --from on files as people have them."""

import json

import pytest

HEAD = "optimizer,size,params,tokens,loss,seed\n"


@pytest.fixture
def runs(program):
    """Muon is 1.4 times as fast; five lengths, two seeds."""
    lines = [
        f"{name},10m,1e7,{tokens:g},{2 + (speed * tokens / 1e8) ** -0.4 + 0.001 * (-1) ** seed:.5f},{seed}"
        for name, speed in (("adamw", 1.0), ("muon", 1.4))
        for tokens in (1e8, 2e8, 4e8, 8e8, 16e8)
        for seed in (0, 1)
    ]
    path = program.folder / "runs.csv"
    path.write_text(HEAD + "\n".join(lines) + "\n")
    return path


def test_speedup_has_the_documented_keys(program, runs) -> None:
    document = program("speedup", runs, "--json").json
    row = document["rows"][0]
    assert {"optimizer", "size", "params", "tokens", "loss", "speedup", "low", "high", "flag"} <= row.keys()
    assert row["optimizer"] == "muon" and row["speedup"] == pytest.approx(1.4, abs=0.01)
    assert document["fits"]["10m"]["exponent"] == pytest.approx(0.4, abs=0.02)
    assert document["fits"]["10m"]["b"] == pytest.approx(2.0, abs=0.02)


def test_speedup_shows_a_table_with_ratios_and_notes(program, runs) -> None:
    out = program("speedup", runs).out
    assert "1.40x" in out and "0.5x" in out and "Laws of adamw" in out


def test_columns_can_be_named_and_rows_chosen(program, runs) -> None:
    text = runs.read_text().replace("tokens", "D").replace("loss", "eval/loss")
    runs.write_text(text + "adamw,20m,2e7,1e8,3.0,0\n")
    asked = ("--column", "tokens=D", "--column", "loss=eval/loss", "--where", "size=10m")
    assert len(program("speedup", runs, *asked, "--json").json["rows"]) == 5
    assert "did you mean 'size'" in program("speedup", runs, *asked[:4], "--where", "sise=1").said()
    assert "no row has size=7m" in program("speedup", runs, *asked[:4], "--where", "size=7m").said()


def test_a_size_that_looks_like_a_number_is_chosen_as_it_is_shown(program, runs) -> None:
    text = runs.read_text().replace("10m", "")
    runs.write_text(text + text.removeprefix(HEAD).replace("1e7", "2e7"))
    done = program("compare", "--from", runs, "--where", "size=1e+07", "--json", "--out", "r.html")
    assert done.json["speedup"]["muon"]["tokens"] == pytest.approx(1.4, abs=0.01)


def test_lengths_beyond_64_bits(program, runs) -> None:
    runs.write_text(runs.read_text().replace("e+08,", "e+19,").replace("e+09,", "e+20,"))
    lines = [line.replace("1e+20", "10" + "0" * 19) for line in runs.read_text().splitlines()]
    runs.write_text("\n".join(lines))
    assert program("speedup", runs, "--json").json["rows"]


def test_json_lines_of_a_tracker(program, runs) -> None:
    names = HEAD.strip().split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in runs.read_text().splitlines()[1:]]
    path = program.folder / "runs.jsonl"
    nested = [
        {"config": {"optimizer": row["optimizer"], "seed": int(row["seed"])}, "summary": {"loss": float(row["loss"])},
         "tokens": float(row["tokens"]), "tags": None, "runtime": number}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, nested)))
    asked = [
        f"--column={ours}={theirs}"
        for ours, theirs in {
            "optimizer": "config.optimizer", "seed": "config.seed", "loss": "summary.loss",
        }.items()
    ]  # fmt: skip
    document = program("speedup", path, *asked, "--settings", "", "--json").json
    assert document["rows"][0]["speedup"] == pytest.approx(1.4, abs=0.01)
    assert document["rows"][0]["num_configurations"] == 1
    assert "did you mean 'runtime'" in program("speedup", path, *asked, "--settings", "runtim").said()


def test_fit_has_the_documented_keys(program, runs) -> None:
    document = program("fit", runs, "--law", "data", "--where", "optimizer=adamw", "--json").json
    assert {"law", "parameters", "intervals", "num_points"} <= document.keys()
    assert document["num_points"] == 5 and document["parameters"]["b"] == pytest.approx(2.0, abs=0.02)
    low, high = document["intervals"]["exponent"]
    assert low < 0.4 < high


def test_fit_wants_one_optimizer(program, runs) -> None:
    assert "choose one with --where optimizer=adamw" in program("fit", runs).said()


def test_compare_takes_a_table(program, runs) -> None:
    done = program("compare", "--from", runs, "--json", "--out", "r.html")
    assert done.json["speedup"]["muon"]["tokens"] == pytest.approx(1.4, abs=0.01)
    assert (program.folder / "r.html").is_file()
    assert "needs a TASK" in program("compare").said()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("adamw,10m,1e7,0,3.0,0", "line 22: tokens must be a number above 0"),
        ("adamw,10m,1e7,1e8,abc,0", "line 22: loss must be a number"),
        (",10m,1e7,1e8,3.0,0", "line 22: optimizer is empty"),
        ("adamw,10m,1e7,1e8,3.0", "line 22 has 5 cells"),
        ("adamw,10m,1e7,1e8,3.0,0", "are the same run twice"),
    ],
)
def test_a_bad_row_is_named(program, runs, line, message) -> None:
    runs.write_text(runs.read_text() + line + "\n")
    assert message in program("speedup", runs).said()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--at", "7e9"), "--at wants PARAMS:TOKENS"),
        (("--at", "0:1"), "--at wants a number of at least 1"),
        (("--baseline", "muno"), "did you mean 'muon'"),
        (("--column", "loss"), "--column wants OURS=THEIRS"),
        (("--column", "loss=los"), "did you mean 'loss'"),
    ],
)
def test_bad_options_say_what_to_do(program, runs, arguments, message) -> None:
    assert message in program("speedup", runs, *arguments).said()


def test_files_that_are_not_there_or_empty(program) -> None:
    (program.folder / "empty.csv").write_text(HEAD)
    assert "has no rows" in program("speedup", "empty.csv").said()
    assert "cannot read" in program("speedup", "missing.csv").said()
    assert "does not exist" in program("speedup", "missing.db").said()


def test_a_flag_that_has_no_effect_is_refused(program, runs) -> None:
    done = program("compare", "text", "--from", runs, "--tokens", "1000", "--dry-run")
    assert done.said() == "TASK, --tokens, --dry-run: for runs that muonlab makes, which --from does not"
    assert "--noise, --where: for the runs of a table" in program("compare", "text", "--noise=1", "--where=a=1").said()


def test_optimizers_choose_rows_and_the_first_is_the_baseline(program, runs) -> None:
    runs.write_text(runs.read_text() + runs.read_text().removeprefix(HEAD).replace("muon,", "soap,"))
    lines = runs.read_text().splitlines()
    runs.write_text("\n".join(dict.fromkeys(lines)))
    asked = ("compare", "--from", runs, "--out", "r.html", "--json", "--optimizers")
    assert program(*asked[:-1]).json["contrasts"].keys() == {"muon", "soap"}
    assert program(*asked, "muon,soap").json["contrasts"].keys() == {"soap"}
    assert "did you mean 'soap'" in program(*asked, "muon,soup").said()
    runs.write_text(runs.read_text().replace("adamw", "AdamW"))
    said = program("compare", "--from", runs).said()
    assert "unknown baseline 'adamw': did you mean 'AdamW'?" in said and "choose one with --baseline" in said


def test_a_size_and_length_can_be_written_with_suffixes(program, runs) -> None:
    lines = [f"{n},,{p:g},{t:g},{2 + 9 * (p / 1e6) ** -0.3 + (s * t / 1e8) ** -0.4:.5f},0"
             for n, s in (("adamw", 1), ("muon", 1.4)) for p in (1e6, 4e6, 16e6) for t in (1e8, 2e8, 4e8)]  # fmt: skip
    runs.write_text(HEAD + "\n".join(lines))
    asked = ("speedup", runs, "--noise", "0.001", "--json", "--at")
    short, long = (program(*asked, at).json["extrapolations"] for at in ("64M:1.6B", "6.4e7:1.6e9"))
    assert short == long and short[0]["params"] == 6.4e7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--where", "seed=0", "--where", "seed=1"), "--where asks for seed=0 and seed=1: no row has both"),
        (("--column", "loss=seed", "--column", "loss=params"), "--column loss=params: loss is named twice"),
        (("--column", "loss=seed", "--column", "step=seed"), "--column step=seed: seed is named twice"),
        (("--noise", "0"), "--noise wants a standard deviation above 0, such as 0.003 (nats), got 0"),
    ],
)
def test_contradictions_are_one_line(program, runs, arguments, message) -> None:
    assert message in program("speedup", runs, *arguments).said()


def test_an_array_of_objects_is_a_table(program, runs) -> None:
    names = HEAD.strip().split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in runs.read_text().splitlines()[1:]]
    typed = [{**row, "tokens": float(row["tokens"]), "loss": float(row["loss"]), "seed": int(row["seed"]),
              "params": float(row["params"])} for row in rows]  # fmt: skip
    plain = program("speedup", runs, "--json").json
    for name, text in {"a.json": json.dumps(typed), "b.json": json.dumps(typed, indent=1)}.items():
        (program.folder / name).write_text(text)
        assert program("speedup", name, "--json").json == plain
    (program.folder / "bad.json").write_text("[1, 2]")
    assert "bad.json row 1 must be an object" in program("speedup", "bad.json").said()
    (program.folder / "one.json").write_text(json.dumps(typed[0], indent=1))
    assert "one object a line, or one array of objects" in program("speedup", "one.json").said()


def test_tables_fit_80_columns(program, runs) -> None:
    lines = [f"{line},{lr}" for line in runs.read_text().splitlines()[1:] for lr in (0.1, 0.2)]
    lines = [line.replace("muon,", "muon-with-a-long-name,") for line in lines]
    more = [line.replace(",1,0.1", ",2,0.1") for line in lines if ",8e+08," in line and line.endswith(",1,0.1")]
    fewer = [line for line in lines if not (",1e+08," in line and line.endswith("0.2"))]
    runs.write_text(HEAD.strip() + ",lr\n" + "\n".join(fewer + more))
    out = program("speedup", runs, environment={"COLUMNS": "80"}).out
    assert "…" not in out and max(map(len, out.splitlines())) <= 80
    assert "* extrapolated: " in out and "seeds" in out
