"""Recipes: what the shipped sweep and a store's own runs predict, and which of them is believed."""

import csv
import json
import math
from dataclasses import replace

import pytest

from muonlab.analyze.laws import fit_law, within_a_step
from muonlab.analyze.recipe import recipe
from muonlab.analyze.sweeps import own_sweep, published
from muonlab.errors import UsageError
from muonlab.records import Record, RunSpec, Schedule
from muonlab.records.record import json_text

SWEEPS = published()

LRS = (0.002, 0.004, 0.008, 0.016, 0.032)


def runs(sizes=(1e6, 4e6, 16e6), lengths=(10**7, 10**8), lrs=LRS, seeds=(0, 1), task="made-up"):
    """Records whose loss is least at lr = 0.008 (N / 4e6)^-0.5, wherever that lies on the grid."""
    records = []
    for n in sizes:
        best = 0.008 * (n / 4e6) ** -0.5
        for d in lengths:
            for lr in lrs:
                for seed in seeds:
                    spec = RunSpec(
                        task=task, optimizer="muon", horizon_tokens=d, batch_tokens=2**15, seed=seed,
                        hyperparameters={"opt.lr": lr, "opt.weight_decay": 0.1}, schedule=Schedule(kind="cosine"),
                    )  # fmt: skip
                    loss = 3 + 0.1 * math.log(lr / best) ** 2 + 1e-4 * seed
                    params = {"hidden": int(n), "embedding": 777}
                    records.append(Record(spec=spec, outcome="ok", final_loss=loss, params=params))
    return records


def test_the_shipped_table_is_whole() -> None:
    assert len(SWEEPS) == 11 and sum(len(sweep.cells) for sweep in SWEEPS.values()) == 150
    for sweep in SWEEPS.values():
        assert "2509.02046" in sweep.source and sweep.differs
        for name, values in sweep.values.items():
            assert len(values) == len(sweep.cells) and None not in values, name
    assert SWEEPS["scion"].fixed == {"opt.adjust_lr_fn": "original"}


def test_the_shipped_table_is_the_published_one(published) -> None:
    with published("pretraining_optimizer_sweep_configs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("adamw", "muon", "kron"):
        theirs = [(row, json.loads(row["config_json"])) for row in rows if row["optimizer"] == name]
        sweep = SWEEPS[name]
        assert list(sweep.cells) == [(float(row["params"]), float(row["tokens"])) for row, _ in theirs]
        assert list(sweep.values["opt.lr"]) == [config["learning_rate"] for _, config in theirs]
        assert list(sweep.values["batch_tokens"]) == [config["train_batch_size"] * 4096 for _, config in theirs]
        for (row, config), fraction in zip(theirs, sweep.values["schedule.warmup_fraction"], strict=True):
            steps = float(row["tokens"]) / config["train_batch_size"] / 4096
            assert fraction * steps == pytest.approx(config["warmup"], rel=1e-5)


@pytest.mark.parametrize("optimizer", SWEEPS)
def test_published_learning_rates_are_predicted_within_a_step(optimizer) -> None:
    sweep = SWEEPS[optimizer]
    points, grid = sweep.points("opt.lr"), sweep.grids["opt.lr"]
    law = fit_law(points, "opt.lr", grid)
    assert within_a_step(law, points, grid) >= 0.9 * len(points)
    assert law.held_out.worst_factor < 2.5


@pytest.mark.parametrize("optimizer", SWEEPS)
@pytest.mark.parametrize("place", [(1e9, 2e10), (7e10, 1.4e12), (1e4, 1e5)])
def test_nothing_unphysical_is_recommended(optimizer, place) -> None:
    found = recipe(optimizer, *place, published=SWEEPS[optimizer])
    for name, entry in found.hyperparameters.items():
        leaf = name.rpartition(".")[2]
        if isinstance(entry.value, str):
            continue
        for value in (entry.value, entry.low, entry.high):
            assert value is None or (math.isfinite(value) and value >= 0), name
        if "beta" in leaf or leaf == "momentum":
            assert entry.value < 1
        if leaf.endswith("fraction"):
            assert entry.value <= 1
        if entry.low is not None:
            assert entry.low <= entry.value <= entry.high, name
    json.loads(json_text(found.to_dict()))  # is JSON


@pytest.mark.parametrize(
    ("params", "tokens", "batch", "message"),
    [
        (1e9, 1e6, 2_000_000, "--batch 2,000,000 is more than all of --tokens 1,000,000"),
        (1e9, 0.0, None, "--tokens must be above 0"),
        (1e300, 1e9, None, "--params must be above 0 and below 1e"),
        (1e9, 1e9, 0, "--batch must be above 0"),
    ],
)
def test_what_nobody_trains_is_refused(params, tokens, batch, message) -> None:
    with pytest.raises(UsageError, match=message):
        recipe("muon", params, tokens, batch_tokens=batch, published=SWEEPS["muon"])


def test_a_run_of_no_length_for_its_size_is_warned_of() -> None:
    warnings = recipe("muon", 1e9, 4e9, published=SWEEPS["muon"]).warnings
    assert [warning.split()[0] for warning in warnings] == ["tokens_per_param"]


def test_extrapolation_is_told_and_warned_of() -> None:
    inside = recipe("muon", 6e8, 2e10, published=SWEEPS["muon"])
    assert inside.extrapolation == {"params": 1.0, "tokens": 1.0, "tokens_per_param": 1.0} and not inside.warnings
    outside = recipe("muon", 12_079_595_520, 1.6e11, published=SWEEPS["muon"])
    assert outside.extrapolation["params"] == pytest.approx(10) and outside.extrapolation["tokens"] == 1.0
    assert outside.extrapolation["tokens_per_param"] > 1
    assert [warning.split()[0] for warning in outside.warnings] == ["params"]
    widths = [math.log(f.hyperparameters["opt.lr"].high / f.hyperparameters["opt.lr"].low) for f in (inside, outside)]
    assert widths[0] < widths[1]


def test_the_price_of_a_check() -> None:
    found = recipe("adamw", 1e8, 2e9, published=SWEEPS["adamw"])
    lr = found.hyperparameters["opt.lr"].value
    assert found.cost.num_runs == 6 and found.cost.tokens == 1.2e10 and found.cost.flops == 6 * 6 * 1e8 * 2e9
    assert found.cost.lrs == pytest.approx((lr / 2, lr, 2 * lr), rel=0.05)


def test_a_batch_that_is_set_is_taken_and_one_far_from_the_sweep_warned_of() -> None:
    found = recipe("muon", 6e8, 2e10, batch_tokens=2**16, published=SWEEPS["muon"])
    assert found.hyperparameters["batch_tokens"].value == 2**16 and found.num_steps == 2e10 // 2**16
    assert any("batches near" in warning for warning in found.warnings)
    short = recipe("muon", 6e8, 1e6, batch_tokens=2**16, published=SWEEPS["muon"])
    assert "batches of that size make 15 steps only: name a smaller one with --batch" in short.warnings


def test_own_runs_are_read_cell_by_cell() -> None:
    sweep = own_sweep(runs(), "muon")
    assert sweep.source == "your runs of made-up" and len(sweep.cells) == 6
    lrs = dict(zip(sweep.cells, sweep.values["opt.lr"], strict=True))
    assert lrs[1e6, 1e7] == 0.016  # embeddings are not counted
    assert set(sweep.values) == {"opt.lr"} and sweep.fixed["opt.weight_decay"] == 0.1
    assert sweep.fixed["schedule.kind"] == "cosine" and sweep.notes == {}
    edge = own_sweep(runs(lrs=(0.016, 0.032)), "muon")
    assert edge.notes["opt.lr"] == "on an edge of what was tried in 6 of 6 cells"


def test_own_runs_that_cannot_be_used() -> None:
    assert own_sweep([], "muon") is None and own_sweep(runs(), "adamw") is None
    assert own_sweep(runs(lrs=(0.004,)), "muon") is None  # nothing was tried
    failed = [replace(record, outcome="failed", final_loss=None) for record in runs()]
    assert own_sweep(failed, "muon") is None
    diverged = [
        replace(r, outcome="diverged", final_loss=None) if r.spec.get("opt.lr") == 0.008 and r.spec.seed == 0 else r
        for r in runs()
    ]
    assert 0.008 not in own_sweep(diverged, "muon").values["opt.lr"]


def test_tasks_are_never_mixed() -> None:
    both = runs() + runs(task="other", lrs=(0.004, 0.008))
    with pytest.raises(UsageError, match=r"several tasks \(made-up, other\): choose one with --task"):
        own_sweep(both, "muon")
    assert len(own_sweep(both, "muon", "other").cells) == 6
    assert own_sweep(both, "muon", "third") is None


def test_own_runs_win_where_they_cover() -> None:
    own = own_sweep(runs(), "muon")
    near = recipe("muon", 3.2e7, 1e8, published=SWEEPS["muon"], own=own)
    assert near.source == "your runs of made-up" and near.extrapolation["params"] == 2.0
    entry = near.hyperparameters["opt.lr"]
    assert entry.low <= 0.008 * 8**-0.5 <= entry.high and entry.source == near.source
    assert near.hyperparameters["opt.weight_decay"].note == "held fixed in your runs, not tuned"
    assert near.hyperparameters["aux.beta1"].source == near.published.source  # which the runs do not set
    assert near.published.hyperparameters["opt.lr"].value != entry.value  # shown beside it
    far = recipe("muon", 1e9, 2e10, published=SWEEPS["muon"], own=own)
    assert far.source == SWEEPS["muon"].source and far.own.extrapolation["params"] == 62.5
    alone = recipe("muon", 1e9, 2e10, own=own)
    assert alone.source == own.source and len(alone.warnings) == 2


def test_runs_that_tuned_no_learning_rate_do_not_win() -> None:
    records = [
        replace(record, spec=record.spec.set({"opt.lr": 0.01, "opt.weight_decay": record.spec.get("opt.lr")}))
        for record in runs()
    ]
    own = own_sweep(records, "muon")
    assert set(own.values) == {"opt.weight_decay"}
    assert recipe("muon", 4e6, 1e8, published=SWEEPS["muon"], own=own).source == SWEEPS["muon"].source


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="no published sweep and no runs"):
        recipe("normuon", 1e9, 2e10)
    for place in ((0, 1e9), (1e9, -1), (math.inf, 1e9)):
        with pytest.raises(UsageError, match="must be above 0"):
            recipe("muon", *place, published=SWEEPS["muon"])
