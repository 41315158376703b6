"""The benchmark as a whole: its document, its reference, and peers that are missing or misbehave."""

import subprocess
import sys

import pytest
import torch

from muonlab.bench import ADAMW_PEERS, MUON_PEERS, SETS, Conditions, Contender, ParameterSet, Plan, benchmark, ours, run
from muonlab.bench.contest import Contest, TooSlow
from muonlab.bench.limits import Work
from muonlab.bench.peers import find_peer
from muonlab.errors import UsageError

SMALL = ParameterSet("small", ((24, 8), (8, 8), (8, 24)))
VECTORS = ParameterSet("vectors", ((24, 8), (8,)), rule="adamw")
QUICK = Conditions(num_rounds=3, batch_tokens=64)
KEYS = {
    "set", "num_matrices", "num_parameters", "optimizer", "config", "algorithm", "median_seconds", "seconds_low",
    "seconds_high", "num_rounds", "ratio_to_torch", "ratio_low", "ratio_high", "orthogonality_error",
    "orthogonality_error_loguniform", "peak_bytes", "state_bytes_per_weight", "limit_seconds", "limit_multiple",
    "share_of_model", "share_low", "share_high", "flop_share", "flop_overhead",
}  # fmt: skip


@pytest.fixture(scope="module")
def document():
    return run(Plan((SMALL, VECTORS), (ours("newton_schulz"), ours("exact")), QUICK))


def test_every_row_says_everything(document):
    assert {(row["set"], row["optimizer"]) for row in document["rows"]} == {
        ("small", "torch.optim.Muon"), ("small", "muonlab.Muon"), ("vectors", "torch.optim.AdamW"),
        ("vectors", "muonlab.AdamW"),
    }  # fmt: skip
    for row in document["rows"]:
        assert row.keys() == KEYS and row["num_rounds"] == 3
        assert 0 < row["seconds_low"] <= row["median_seconds"] <= row["seconds_high"]
        assert row["ratio_low"] <= row["ratio_to_torch"] <= row["ratio_high"]


def test_the_reference_is_one(document):
    references = [row for row in document["rows"] if row["optimizer"].startswith("torch.optim.")]
    assert len(references) == 2
    ratios = [row["ratio_to_torch"] for row in document["rows"] if row["set"] == "small"]
    assert ratios == sorted(ratios)
    assert all(row["ratio_low"] == row["ratio_to_torch"] == row["ratio_high"] == 1.0 for row in references)


def test_rows_tell_the_methods_apart(document):
    muon = {row["config"].partition("polar=")[2]: row for row in document["rows"] if row["set"] == "small"}
    assert muon.keys() == {"", "newton_schulz", "exact"}
    assert muon["exact"]["orthogonality_error"] < 1e-4 < 0.05 < muon["newton_schulz"]["orthogonality_error"] < 0.4
    assert muon[""]["orthogonality_error"] == pytest.approx(muon["newton_schulz"]["orthogonality_error"], abs=0.02)
    assert muon[""]["algorithm"] == muon["newton_schulz"]["algorithm"] == "newton_schulz, 5 steps, bfloat16"
    assert muon["exact"]["limit_multiple"] is None and muon["exact"]["flop_share"] is None
    assert muon[""]["limit_multiple"] > 1 and muon[""]["flop_overhead"] == 5 * 8 / 64 > muon[""]["flop_share"]
    assert all(row["state_bytes_per_weight"] == 4 and row["peak_bytes"] > 0 for row in muon.values())


def test_vectors_have_no_polar_factor_and_no_layers(document):
    for row in (row for row in document["rows"] if row["set"] == "vectors"):
        assert row["orthogonality_error"] is row["share_of_model"] is row["limit_seconds"] is row["algorithm"] is None
        assert 8 <= row["state_bytes_per_weight"] < 8.1


PEER = """
import torch
print("imported")

class Loud(torch.optim.SGD):
    def __init__(self, params, **settings):
        super().__init__(params, lr=0.1)

    def step(self, closure=None):
        print("step")
        torch.set_float32_matmul_precision("medium")
        super().step()

class Broken(Loud):
    def step(self, closure=None):
        raise RuntimeError("planned\\nfailure")
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    (tmp_path / "planted_peer.py").write_text(PEER)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: Contender("planted_peer", name, "planted-peer")
    sys.modules.pop("planted_peer", None)


def test_peers_that_are_missing_or_fail_are_listed(peers, capfd):
    missing = Contender("no_such_package.optim", "Muon", "no-such-package")
    contenders = (peers("Broken"), peers("Absent"), missing, peers("Loud"))
    precision = torch.get_float32_matmul_precision()
    document = run(Plan((SMALL, ParameterSet("other", ((8, 8),))), contenders, QUICK))
    assert [row["optimizer"] for row in document["rows"]].count("planted_peer.Loud") == 2
    reasons = {(one["optimizer"], one["set"]): one["reason"] for one in document["skipped"]}
    assert reasons.pop(("no_such_package.optim.Muon", None)) == "not installed (package no-such-package)"
    for name in ("small", "other"):
        assert reasons.pop(("planted_peer.Broken", name)) == "RuntimeError: planned failure"
        assert reasons.pop(("planted_peer.Absent", name)).startswith("AttributeError: ")
    assert reasons == {}
    assert torch.get_float32_matmul_precision() == precision and capfd.readouterr().out == ""
    assert document["machine"]["packages"] == {"torch": torch.__version__, "planted-peer": None}


def test_who_would_take_minutes_is_left_out():
    """Planted: a machine that has no float16 to speak of."""
    peaks = {"bfloat16": 1e9, "float32": 1e9, "float16": 1e3}
    contest = Contest(SMALL, QUICK, peaks)
    contest.enter(MUON_PEERS["torch.optim.Muon"])
    slow = Contender("torch.optim", "Muon", "torch", work=Work("newton_schulz", 5, "float16"))
    with pytest.raises(TooSlow, match=r"take \d+ s per step"):
        contest.enter(slow)
    assert [row["optimizer"] for row in contest.rows()] == ["torch.optim.Muon"]


def test_a_busy_machine_is_noticed(monkeypatch):
    def warned(loads, speeds):
        monkeypatch.setattr(benchmark.os, "getloadavg", lambda: loads)
        monkeypatch.setattr(benchmark, "matmul_flops_per_second", lambda dtype, device: next(speeds))
        return " ".join(run(Plan((VECTORS,), (), QUICK))["warnings"])

    free = -float(torch.get_num_threads())
    assert "busy" not in warned((free, 0, 0), iter([1e9, 1e9]))
    assert "busy before the start" in warned((99.0, 0, 0), iter([1e9, 1e9]))
    assert "changed by 50% meanwhile" in warned((free, 0, 0), iter([1.5e9, 1e9]))
    row = {"set": "s", "optimizer": "torch.optim.Muon", "median_seconds": 1.0, "seconds_low": 0.8}
    assert benchmark._busy_meanwhile([1.0], [{**row, "seconds_high": 1.04}]) == []
    assert "lie 40% apart" in benchmark._busy_meanwhile([1.0], [{**row, "seconds_high": 1.2}])[0]


def test_the_sets_are_the_models_they_are_named_after():
    """GPT-2 small has 124,439,808 parameters with 50257 tokens; the usual padding makes it 50304."""
    whole = SETS["gpt2-small"].whole.num_parameters + SETS["aux"].whole.num_parameters
    assert whole == 124_439_808 + (50304 - 50257) * 768
    assert SETS["tall"].whole == SETS["tall"] and all(found.name == name for name, found in SETS.items())


def test_names_are_checked():
    with pytest.raises(UsageError, match=r"did you mean 'heavyball\.Muon'"):
        find_peer("heavybal.Muon")
    with pytest.raises(UsageError, match="did you mean 'newton_schulz'"):
        ours("newton_shulz")


def test_no_peer_is_imported_before_it_is_measured():
    packages = {c.module.partition(".")[0] for c in (*MUON_PEERS.values(), *ADAMW_PEERS.values())} - {
        "torch",
        "muonlab",
    }
    code = f"import sys, muonlab.bench; print(sorted({packages!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
