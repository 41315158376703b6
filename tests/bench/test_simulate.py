"""A simulation moves the bytes that the optimizer's own code moves, and keeps to what bounds any schedule."""

import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from muonlab.bench.designs import DESIGNS, Round, step_of
from muonlab.bench.limits import Work
from muonlab.bench.sets import SETS
from muonlab.bench.simulate import Machine, Schedule, ranks_that_help, simulate, times
from muonlab.bench.traffic import buckets, must_send, owned, replicated, sharded, to_owners, to_shards
from muonlab.bench.typed import parse_matrices, parse_simulation
from muonlab.errors import UsageError
from muonlab.optim import MuonRule, owners
from muonlab.optim.hyperball import MuonHyperballRule
from muonlab.optim.normuon import NorMuonRule
from muonlab.optim.sharding import Layout, boxes_of
from muonlab.optim.state import create
from muonlab.optim.update import Job

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sharding.py"
SHAPES = [(30, 10), (10, 30), (10, 10), (7, 40), (40, 7), (3, 5), (30, 10)]  # uneven, and with fewer rows than ranks
GROUP = {"lr": 0.1, "rounding": "nearest", "algorithm": "muon"}
MACHINE = Machine(1e12, 1e10, 1e-5)


def hybrid(shape, num_ranks):
    """Rows over half of the ranks, two replicas."""
    mesh, placements = (2, num_ranks // 2), (Replicate(), Shard(0))
    places = [(replica, rank) for replica in range(2) for rank in range(num_ranks // 2)]
    boxes, rows = zip(*(boxes_of(shape, mesh, placements, at) for at in places), strict=True)
    return Layout(None, 0, boxes, rows, frozenset({0}))


def moved(members, rule, monkeypatch):
    """What a step of the optimizer's own code hands to every exchange, as rank 0 sees it."""
    found = []

    def exchange(group, rank, moves, tensors, device):
        found.append(moves)
        yield
        return {
            n: tensors.get(n, torch.ones(move.shape, dtype=move.dtype))
            for n, move in enumerate(moves)
            if move.target == rank
        }

    monkeypatch.setattr(owners, "exchange", exchange)
    members = [replace(member, p=torch.ones(member.p.shape)) for member in members]
    real = [torch.ones(member.layout.boxes[0].shape) for member in members]
    for w, member in zip(real, members, strict=True):
        create(rule, [w], [member.state], GROUP, names=owners.on_shards(rule, member.layout))
    job = Job(rule, real, [w.clone() for w in real], [member.state for member in members], [], 1)
    for transfer in owners.transfers(job, members, GROUP):
        for _ in transfer:
            pass
    return found


def by_rank(moves, num_ranks):
    sent, received = Counter(), Counter()
    for move in moves:
        if move.source != move.target:
            sent[move.source] += move.num_bytes
            received[move.target] += move.num_bytes
    return [[counted[rank] for rank in range(num_ranks)] for counted in (sent, received)]


def returned(moves, bucket):
    """In which dtype each matrix of a bucket comes back: its moves follow each other."""
    dtypes = []
    for member in bucket:
        count = sum(box.numel > 0 for box in member.layout.boxes)
        (dtype,) = {move.dtype for move in moves[:count]}
        dtypes.append(dtype)
        moves = moves[count:]
    return dtypes


@pytest.mark.parametrize("bucket_bytes", [owners.BUCKET_BYTES, 512])
@pytest.mark.parametrize(
    ("layout", "rule", "num_copies"),
    [
        (sharded, MuonRule(), 1),
        (hybrid, MuonRule(), 1),
        (sharded, MuonHyperballRule(), 2),
        (hybrid, MuonHyperballRule(), 2),
        (replicated, MuonRule(), 2),
    ],
    ids=["directions", "directions-hybrid", "weights", "weights-hybrid", "replicas"],
)
@pytest.mark.parametrize("num_ranks", [2, 4, 6])
def test_the_traffic_of_the_optimizers_own_exchanges(num_ranks, layout, rule, num_copies, bucket_bytes, monkeypatch):
    monkeypatch.setattr(owners, "BUCKET_BYTES", bucket_bytes)
    members = owned(SHAPES, lambda shape: layout(shape, num_ranks), rule, torch.float32)
    real = moved(members, rule, monkeypatch)
    expected = [
        traffic
        for k, bucket in enumerate(buckets(members))
        for traffic in (to_owners(bucket, num_copies), to_shards(bucket, returned(real[2 * k + 1], bucket)))
    ]
    assert len(real) == len(expected) > (2 if bucket_bytes == 512 and num_ranks == 2 else 1)
    for moves, traffic in zip(real, expected, strict=True):
        assert by_rank(moves, num_ranks) == [traffic.sent.tolist(), traffic.received.tolist()]
        assert traffic.sent.sum() == traffic.received.sum()


@pytest.mark.parametrize(("design", "layout", "rule"), [
    ("owner", sharded, MuonRule()),
    ("owner", sharded, NorMuonRule()), ("weights", sharded, MuonHyperballRule()), ("DDP owner", replicated, MuonRule()),
])  # fmt: skip
@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_the_collectives_of_a_step(num_ranks, design, layout, rule, monkeypatch):
    monkeypatch.setattr(owners, "BUCKET_BYTES", 512)
    step = step_of(design, SHAPES, num_ranks, rule)
    members = owned(SHAPES, lambda shape: layout(shape, num_ranks), rule, torch.float32)
    away = [moves for moves in moved(members, rule, monkeypatch) if any(m.source != m.target for m in moves)]
    assert len(step.collectives) == len(away) + (num_ranks > 1)  # and the agreement
    sent = [sum(by_rank(moves, num_ranks)[0][rank] for moves in away) for rank in range(num_ranks)]
    assert (step.sent_bytes - sum(step.opening)).tolist() == sent


def test_ranks_that_gather_or_sum_by_hand():
    assert must_send("all_reduce", 60, 3) == must_send("reduce_scatter", 60, 3) + must_send("all_gather", 20, 3)
    assert must_send("all_to_all", 60, 3) == 40
    with pytest.raises(ValueError, match="broadcast"):
        must_send("broadcast", 1, 2)


@pytest.mark.parametrize("found", [SETS["gpt2-small"].whole, SETS["d128"], SETS["tall"]], ids=lambda found: found.name)
@pytest.mark.parametrize("num_ranks", [1, 3, 8, 64])
def test_owners_share_the_work_and_no_more_than_a_matrix_apart(found, num_ranks):
    flops = [Work("newton_schulz", 5, "bfloat16").flops(shape) for shape in found.shapes]
    loads = step_of("owner", found.shapes, num_ranks).flops
    assert float(loads.sum()) == pytest.approx(sum(flops))
    most = sum(flops) / num_ranks + (1 - 1 / num_ranks) * max(flops)  # Graham 1969, of any list
    assert max(sum(flops) / num_ranks, max(flops)) <= float(loads.max()) * 1.000001
    assert float(loads.max()) <= most * 1.01  # owners are given by costs, which count elements, too
    assert sum(flops) / float(loads.max()) <= ranks_that_help(found.shapes) * 1.000001


@pytest.mark.parametrize("num_ranks", [2, 8, 32])
@pytest.mark.parametrize("design", DESIGNS)
def test_a_schedule_is_between_its_bounds(design, num_ranks, monkeypatch):
    monkeypatch.setattr(owners, "BUCKET_BYTES", 2**16)
    step = step_of(design, SETS["d128"].shapes, num_ranks)
    found = times(step, MACHINE)
    communication = found["latency_seconds"] + found["transfer_seconds"]
    assert max(found["compute_seconds"], communication) <= found["seconds"] * 1.000001
    assert found["seconds"] <= found["serial_seconds"] * 1.000001
    assert found["bound"] in ("compute", "latency", "transfer", "waiting")


def test_one_bucket_has_nothing_to_overlap_with():
    step = step_of("owner", SETS["d64"].shapes, 4)
    found = times(step, MACHINE)
    assert len(step.rounds) == 1 and found["seconds"] == pytest.approx(found["serial_seconds"])


def test_a_schedule_by_hand():
    """Two owners, a second for each product and each collective, then one and a half for each collective.

    There 0-1 and 1-2, products 1-2 and 2-3, back 2-3 and 3-4; then the network has no pause: four times 1.5.
    """
    rounds = [Round(torch.tensor(flops, dtype=torch.float64), (1.0,), (1.0,)) for flops in ([1.0, 0.0], [0.0, 1.0])]
    assert Schedule(Machine(1.0, 1.0, 0.0)).run(rounds) == 4.0
    assert Schedule(Machine(1.0, 1.0, 0.5)).run(rounds) == 6.0


def test_faster_machines_are_never_slower():
    step = step_of("owner", SETS["d128"].shapes, 8)
    base = times(step, MACHINE)["seconds"]
    for better in (Machine(2e12, 1e10, 1e-5), Machine(1e12, 2e10, 1e-5), Machine(1e12, 1e10, 5e-6)):
        assert times(step, better)["seconds"] < base


def test_the_document_has_a_row_for_every_design_and_number_of_ranks():
    sources = {"flops_per_second": "given", "bytes_per_second": "assumed", "latency_seconds": "assumed"}
    document = simulate([SETS["d64"], SETS["tall"]], [1, 4], MACHINE, sources)
    rows = {(row["set"], row["num_ranks"], row["design"]): row for row in document["rows"]}
    assert len(rows) == len(document["rows"]) == 2 * 2 * len(DESIGNS)
    assert document["constants"]["bytes_per_second"] == {"value": 1e10, "source": "assumed"}
    alone = [rows["d64", 1, design] for design in DESIGNS]
    assert {(row["num_collectives"], row["sent_bytes"]) for row in alone} == {(0, 0.0)}
    assert max(row["seconds"] for row in alone) == pytest.approx(min(row["seconds"] for row in alone))
    json.dumps(document)


@pytest.mark.parametrize(
    ("typed", "worlds"),
    {"world=8..64": (8, 16, 32, 64), "world=6,4,4,8": (4, 6, 8), "world=1": (1,), "world=6..30": (6, 12, 24),
     "world=2..4,64": (2, 4, 64)}.items(),
)  # fmt: skip
def test_numbers_of_ranks(typed, worlds):
    assert parse_simulation(typed) == (worlds, {})


def test_units():
    assert parse_simulation("world=2,flops=1.5e2Gflops,bandwidth=8Gb/s,latency=3")[1] == {
        "flops_per_second": 150e9,
        "bytes_per_second": 1e9,
        "latency_seconds": 3.0,
    }


@pytest.mark.parametrize(
    ("typed", "said"),
    {
        "": "cannot read ''",
        "flops=1T": "wants numbers of ranks",
        "world=": "no number of ranks",
        "world=0": "go from 1",
        "world=8..4": "the smaller first",
        "world=8..": "no number of ranks",
        "world=2,bandwidht=1GB/s": "did you mean 'bandwidth'",
        "world=2,bandwidth=50Gbit": "with a unit of",
        "world=2,latency=-1us": "above 0",
        "world=2,latency=0": "above 0",
        "world=2,flops=1e999": "above 0",
        "world=2,latency=1us,2us": "cannot read '2us'",
        "world=2,world=4": "twice",
        "world=99999999": "go from 1 to",
    }.items(),
)
def test_what_cannot_be_read_is_one_line(typed, said):
    with pytest.raises(UsageError, match=said) as error:
        parse_simulation(typed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("typed", ["", "64", "0*4x4", "4x0", "2*4x4x4", "-4x4", "99999*4x4"])
def test_matrices_that_cannot_be_read(typed):
    with pytest.raises(UsageError, match="count\\*rowsxcolumns"):
        parse_matrices(typed)


@pytest.fixture
def seen(monkeypatch):
    """What counts collectives, bytes and flops in the benchmark."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    return importlib.import_module("sharding_rank").Seen


@pytest.mark.parametrize("num_ranks", [8, 64])
def test_torchs_muon_on_more_ranks_than_there_are_processes(num_ranks, seen):
    """torch's backend that moves nothing: the collectives are those of a rank among so many."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg", reason="this torch has no fake backend")
    torch.distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=num_ranks)
    try:
        mesh = init_device_mesh("cpu", (num_ranks,))
        for shape in ((512, 32), (32, 512), (256, 256), (100, 30), (70, 100), (9, 20), (20, 9), (63, 8)):
            w = torch.nn.Parameter(distribute_tensor(torch.randn(shape), mesh, (Shard(0),)))
            w.grad = distribute_tensor(torch.randn(shape), mesh, (Shard(0),))
            optimizer, step = torch.optim.Muon([w]), step_of("per matrix", [shape], num_ranks)
            if step.raises:
                with pytest.raises(RuntimeError, match="placement changes"):
                    optimizer.step()
                assert set(times(step, MACHINE).values()) == {None}
                continue
            optimizer.step()  # the first also propagates shapes
            with seen(0, num_ranks) as counted:
                optimizer.step()
            assert sum(counted.counts.values()) == len(step.collectives), shape
            assert sum(counted.bytes.values()) == pytest.approx(float(step.sent_bytes)), shape
            assert counted.flops == pytest.approx(float(step.flops)), shape
    finally:
        torch.distributed.destroy_process_group()


def test_ranks_count_what_was_predicted(tmp_path):
    """Two processes, real FSDP2 and DDP: collectives, bytes, flops and state of every optimizer are the simulated."""
    out = tmp_path / "sharding.json"
    command = [sys.executable, str(SCRIPT), "--worlds", "2", "--rounds", "1", "--stacks", "d16", "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    rows = json.loads(out.read_text())["rows"]
    assert {row["design"] for row in rows} == set(DESIGNS)
    for row in rows:
        for count in ("num_collectives", "sent_bytes", "flops"):
            assert row[count] == pytest.approx(row["predicted"][count]), (row["optimizer"], count)
        if ".Muon," in row["optimizer"]:  # the others keep more than a momentum
            assert row["state_bytes"] == row["predicted"]["state_bytes"]
