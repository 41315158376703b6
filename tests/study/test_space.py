"""Where a tuning starts: every optimizer has its values, and those that are said to be published are."""

import csv
import json
from pathlib import Path

import pytest
from torch import nn

from muonlab.optim import catalog
from muonlab.study.config import validated
from muonlab.study.plan import base_specs
from muonlab.study.space import DEFAULT, PUBLISHED, STARTS, start, starts

SWEEP = Path(__file__).parents[3] / "shared" / "records" / "pretraining_optimizer_sweep_configs.csv"
NAMES = {"mini": "adam_mini"}  # where theirs is not ours
KEYS = {
    "learning_rate": "opt.lr", "weight_decay": "opt.weight_decay", "beta1": "opt.beta1", "beta2": "opt.beta2",
    "momentum": "opt.momentum", "gamma": "opt.gamma", "shampoo_beta": "opt.shampoo_beta",
    "precondition_frequency": "opt.precondition_frequency", "preconditioner_lr": "opt.precondition_lr",
    "preconditioner_update_probability": "opt.update_probability", "update_prob_flat_start": "opt.update_flat_steps",
    "muon_to_adam_lr": "aux.lr_ratio", "scion_to_signum_lr": "aux.lr_ratio",
}  # fmt: skip
KEYS_OF = {
    "muon": {"beta1": "aux.beta1", "beta2": "aux.beta2"},
    "scion": {"beta1": "aux.momentum"},
    "kron": {"beta1": "opt.momentum"},
}
TRAINERS = {"train_batch_size", "warmup", "max_grad_norm", "min_lr_ratio", "lr_schedule", "decay"}
NOT_OURS = {
    *("epsilon", "muon_epsilon", "scion_epsilon", "nesterov"),
    *("block_size", "partition_grads_into_blocks", "normalize_grads", "preconditioner_init_scale"),
}
OTHERWISE = {"muon": "aux.lr_ratio", "soap": "opt.precondition_frequency"}  # what is not that of 130M at 1x


@pytest.fixture(scope="module")
def sweep():
    """(optimizer, size, horizon) -> its published configuration, in our words."""
    if not SWEEP.exists():
        pytest.skip(f"needs the published configurations, {SWEEP.name}")
    found = {}
    with SWEEP.open() as file:
        for row in csv.DictReader(file):
            name = NAMES.get(row["optimizer"], row["optimizer"])
            words = KEYS | KEYS_OF.get(name, {})
            values = {k: v for k, v in json.loads(row["config_json"]).items() if k not in TRAINERS | NOT_OURS}
            found[name, row["size"], row["chinchilla"]] = {words[k]: v for k, v in values.items()}
    return found


@pytest.mark.parametrize("name", catalog.names())
def test_every_optimizer_has_a_start_that_can_be_built(name):
    known = [h.name for h in catalog.hyperparameters(name)]
    named = [key for values in STARTS[name].values() for key in values]
    assert list(starts(name)) == known and set(named) <= set(known)
    assert len(named) == len(set(named)), "a value has two sources"
    assert "opt.lr" in named and ("aux.lr_ratio" in named) == (catalog.get(name).companion is not None)
    catalog.build(name, nn.Linear(4, 4), {"weight": "hidden"}, start(name))
    for h in catalog.hyperparameters(name):
        found = starts(name)[h.name]
        assert found.source.strip() and (found.value == h.default or found.source != DEFAULT)


def test_runs_begin_there():
    chosen = ("adamw", "kron", "scion")
    specs = base_specs(validated({"horizon_tokens": 65_536, "batch_tokens": 1024, "optimizers": chosen}))
    assert all(specs[name].hyperparameters == start(name) for name in chosen)


def test_what_is_said_to_be_published_is(sweep):
    smallest = {name: values for (name, size, horizon), values in sweep.items() if (size, horizon) == ("130m", "1")}
    assert smallest.keys() == {name for name in STARTS if PUBLISHED in STARTS[name]}
    for name, values in smallest.items():
        expected = {key: value for key, value in values.items() if key != OTHERWISE.get(name)}
        assert dict(STARTS[name][PUBLISHED]) == expected, name


def test_where_the_smallest_is_the_exception(sweep):
    ratios = [values["aux.lr_ratio"] for (name, *_), values in sweep.items() if name == "muon"]
    ours = starts("muon")["aux.lr_ratio"]
    assert f"in {ratios.count(ours.value)} of their {len(ratios)}" in ours.source
    every = {key[1:]: values["opt.precondition_frequency"] for key, values in sweep.items() if key[0] == "soap"}
    small = {("130m", "1"), ("130m", "2")}
    assert {found for at, found in every.items() if at not in small} == {start("soap")["opt.precondition_frequency"]}
    assert {every[at] for at in small} == {1}
