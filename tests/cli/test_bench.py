"""`muonlab bench`: the document, the tables, and what is mistyped."""

import json

import pytest

ROW = {
    "set", "optimizer", "config", "median_seconds", "ratio_to_torch", "orthogonality_error", "peak_bytes",
}  # fmt: skip
QUICK = ["bench", "--sets", "d64", "--rounds", "3", "--threads", "1", "--device", "cpu"]
PEERS = ["muon.SingleDeviceMuon", "dion.Muon"]  # none whose import takes long


def test_the_document(program):
    methods = ["--methods", "newton_schulz"]
    done = program(*QUICK, *methods, "--peers", ",".join(PEERS), "--out", "bench.json", "--json")
    assert done.code == 0, done
    document = done.json  # stdout holds it and nothing else
    assert json.loads((program.folder / "bench.json").read_text()) == document
    assert document["machine"].keys() >= {"cpu", "cores", "threads", "torch", "device", "packages"}
    assert document["machine"]["threads"] == 1 and "torch" in document["machine"]["packages"]
    rows = {row["optimizer"]: row for row in document["rows"]}
    assert all(row.keys() >= ROW and row["set"] == "d64" and row["num_rounds"] == 3 for row in rows.values())
    assert rows["torch.optim.Muon"]["ratio_to_torch"] == 1.0
    assert rows["muonlab.Muon"]["ratio_to_torch"] > 0 and rows["muonlab.Muon"]["peak_bytes"] > 0
    assert 0.05 < rows["muonlab.Muon"]["orthogonality_error"] < 0.4
    skipped = {one["optimizer"]: one["reason"] for one in document["skipped"]}
    assert rows.keys() | skipped.keys() == {"torch.optim.Muon", "muonlab.Muon", *PEERS}
    assert not rows.keys() & skipped.keys() and all(skipped.values())
    said = done.err.splitlines()
    assert all(line.startswith("muonlab: ") for line in said) and "muonlab: d64: 3 rounds" in said


def test_the_tables(program):
    done = program(*QUICK, "--sets", "d64,aux-d64", "--peers", "dion.Muon", "--no-progress")
    assert done.code == 0 and done.err == "", done
    for text in (
        "d64: 16 tensors",
        "aux-d64: ",
        "muonlab.Muon newton_schulz",
        "muonlab.Muon auto",
        "torch.optim.AdamW",
        "1.00x",
        "MiB",
    ):
        assert text in done.out
    assert "dion.Muon" in done.out  # whether it is measured or skipped
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("typed", "said"),
    {
        "--sets d46": "unknown set 'd46': did you mean 'd64'?",
        "--sets ,": "--sets names no set: write some of gpt2-small, d64",
        "--peers heavybal.Muon": "unknown peer 'heavybal.Muon': did you mean 'heavyball.Muon'?",
        "--methods newton_shulz": "unknown method 'newton_shulz': did you mean 'newton_schulz'?",
        "--device gpu": "unknown device 'gpu'",
        "--out nowhere/bench.json": "there is no folder",
    }.items(),
)
def test_a_mistake_is_one_line(program, typed, said):
    assert said in program(*QUICK, *typed.split(), "--json").said()
    assert sorted(path.name for path in program.folder.iterdir()) == ["small.toml", "text.txt"]


@pytest.mark.parametrize("typed", ["--rounds 0", "--threads 0", "--ranks 0", "--batch-tokens many"])
def test_what_is_mistyped_is_exit_code_2(program, typed):
    done = program(*QUICK, *typed.split())
    assert done.code == 2 and "Traceback" not in done.err and typed.split()[0] in done.err


SIMULATED = ["bench", "--simulate", "world=2,8,flops=1T"]


def test_a_simulation_as_a_document(program):
    done = program(*SIMULATED, "--sets", "d64", "--out", "sharding.json", "--json")
    assert done.code == 0 and done.err == "", done
    document = done.json
    assert json.loads((program.folder / "sharding.json").read_text()) == document
    assert document["constants"]["flops_per_second"] == {"value": 1e12, "source": "given"}
    assert document["constants"]["latency_seconds"]["source"] == "assumed"
    designs = {row["design"] for row in document["rows"]}
    assert {(row["num_ranks"], row["design"]) for row in document["rows"]} == {(w, d) for w in (2, 8) for d in designs}
    assert {"owner", "per matrix", "DDP repeated"} < designs


def test_a_simulation_measures_what_was_not_given(program):
    done = program("bench", "--simulate", "world=2", "--sets", "d64", "--threads", "1", "--device", "cpu", "--json")
    assert done.code == 0, done
    flops = done.json["constants"]["flops_per_second"]
    assert flops["source"] == "measured" and flops["value"] > 0
    assert done.err == "muonlab: products of matrices, for the arithmetic limit\n"


@pytest.mark.parametrize("chosen", [["--full"], ["--matrices", "30*4096x4096,30*11008x4096"]])
def test_a_simulation_as_tables(program, chosen):
    done = program(*SIMULATED, *chosen)
    assert done.code == 0 and done.err == "", done
    sets = ["gpt2-small: 48 tensors", "d64: 16 tensors"] if chosen == ["--full"] else ["matrices: 60 tensors"]
    for text in (*sets, "Predicted, not measured", "1 Tflops (given)", "(assumed)", "per matrix", "torch.optim.Muon"):
        assert text in done.out
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("typed", "said"),
    {
        "--simulate word=2": "unknown setting of --simulate 'word': did you mean 'world'?",
        "--simulate flops=1T": "write world=8..4096",
        "--simulate world=2 --sets aux": "--simulate is for sets of Muon",
        "--simulate world=2 --sets d46": "unknown set 'd46'",
        "--simulate world=2 --sets ,": "--simulate is for sets of Muon",
        "--simulate world=2 --matrices 64": "--matrices cannot read '64'",
        "--simulate world=2 --matrices 4x4 --full": "--full: no effect with --matrices",
        "--simulate world=2 --rounds 3": "--rounds: no effect with --simulate",
        "--matrices 4x4": "--matrices: no effect without --simulate",
    }.items(),
)
def test_a_mistake_in_a_simulation_is_one_line(program, typed, said):
    assert said in program("bench", *typed.split(), "--json").said()
