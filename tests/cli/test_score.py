import pytest

HEAD = "submission,study,workload,trial,time_to_target\n"
TIMES = HEAD + "".join(
    f"{name},1,w{i},1,{time}\n"
    for name, times in {"adamw": (10, 40, "inf", 8, 8, 8), "muon": (20, 20, 6, 8, "", 16)}.items()
    for i, time in enumerate(times)
)


@pytest.fixture
def times(program):
    path = program.folder / "times.csv"
    path.write_text(TIMES)
    return path


def test_the_documented_keys(program, times):
    found = program("score", "times.csv", "--json").json
    assert found["scores"] == {"adamw": pytest.approx((1 + 2 / 3 + 0 + 1 + 1 + 1) / 6),
                               "muon": pytest.approx((2 / 3 + 1 + 1 + 1 + 0 + 2 / 3) / 6)}  # fmt: skip
    assert list(found["scores"]) == ["adamw", "muon"] and found["num_workloads"] == 6 and found["r_max"] == 4
    low, high = found["intervals"]["adamw"]
    assert 0 <= low < found["scores"]["adamw"] < high <= 1
    assert found["behind"]["adamw"] == {"difference": 0, "interval": None}
    assert found["behind"]["muon"]["difference"] == pytest.approx(1 / 18)
    assert found["profiles"]["adamw"] == [
        {"tau": 1, "rho": pytest.approx(4 / 6)}, {"tau": 2, "rho": pytest.approx(5 / 6)}
    ]  # fmt: skip
    assert found["reached"] == {"adamw": 5, "muon": 5} == found["credited"]
    assert found["workloads"][2] == {
        "workload": "w2", "base": "", "times": {"adamw": None, "muon": 6}, "ratios": {"adamw": None, "muon": 1}
    }  # fmt: skip
    assert found["warnings"] == []


def test_the_table_is_ranked_and_plain(program, times):
    out = program("score", "times.csv").out
    lines = out.splitlines()
    rows = [line for line in lines if line[:3].strip().isdigit()]
    assert [row.split()[:3] for row in rows] == [["1", "adamw", "0.7778"], ["2", "muon", "0.7222"]]
    assert "5 of 6" in rows[0] and "Workloads" in out
    assert max(map(len, lines)) <= 80


def test_held_out_rows_and_warnings(program, times):
    with times.open("w") as file:
        file.write(HEAD.replace("\n", ",base\n"))
        file.writelines(f"{line},\n" for line in TIMES.splitlines()[1:])
        file.write("adamw,1,w0-wide,1,9,w0\nmuon,1,w0-wide,1,inf,w0\n")
    found = program("score", "times.csv", "--json").json
    assert found["num_workloads"] == 6 and found["scores"]["muon"] == pytest.approx((3 + 2 / 3) / 6)
    assert found["warnings"] == ["w0 is cancelled by a miss on its held-out variant w0-wide: muon"]
    out = program("score", "times.csv").out
    assert "! w0 is cancelled by a miss" in out and "w0-wide (held out)" in out


def test_columns_may_have_other_names(program):
    (program.folder / "own.csv").write_text("who,task,seconds\na,x,3\nb,x,6\n")
    names = ("submission=who", "workload=task", "time_to_target=seconds")
    found = program("score", "own.csv", *(word for name in names for word in ("--column", name)), "--json").json
    assert found["scores"] == {"a": 1, "b": pytest.approx(2 / 3)} and found["intervals"] == {"a": None, "b": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "times.csv has no rows"),
        ("submission,workload\na,b\n", "times.csv has no column 'time_to_target'"),
        (HEAD + "a,1,w,1,3\na,1,w,2,-1\n", "times.csv line 3: time_to_target must be above 0"),
        (HEAD + "a,1,w,1,soon\n", "times.csv line 2: time_to_target must be a number, got 'soon'"),
        (HEAD + "a,1,w,1,3\na,1,w,1,4\n", "times.csv line 3 and times.csv line 2 are the same trial twice"),
    ],
)
def test_each_mistake_is_one_line(program, text, message):
    (program.folder / "times.csv").write_text(text)
    assert program("score", "times.csv").said().startswith(message)


def test_names_of_others_cannot_drive_the_terminal(program):
    (program.folder / "times.csv").write_text(HEAD + "[red]a\x1b[31m,1,w,1,3\nb,1,w,1,3\n")
    out = program("score", "times.csv").out
    assert "\x1b[31m" not in out and "[red]a?[31m" in out
