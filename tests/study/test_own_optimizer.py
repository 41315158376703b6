"""Optimizers of a user's in a study: named, planned, run in children, and never confused with one another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from muonlab.errors import UsageError
from muonlab.execute.executor import Observation
from muonlab.execute.local import InlineExecutor, LocalExecutor
from muonlab.optim import catalog
from muonlab.records import RunSpec
from muonlab.records.record import same_result
from muonlab.study.config import parse_variants, validated
from muonlab.study.plan import base_specs, named, plan_comparison

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_rule.py"
TINY = {"task.width": 16, "task.depth": 1, "task.seq_len": 32, "task.eval_tokens": 1024}
OWN = "own_rule:MyRule"


def config(*optimizers, **values):
    start = {"horizon_tokens": 2048, "batch_tokens": 256, "settings": TINY, "baseline": optimizers[0]}
    return validated({**start, "optimizers": optimizers, **values})


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "own_rule.py"
    path.write_text(EXAMPLE.read_text())
    return path


def test_everything_that_determines_its_runs_is_in_the_spec(file):
    plan = plan_comparison(config("adamw", f"{file}:MyRule"))
    assert list(plan.bases) == list(plan.spaces) == ["adamw", OWN] and plan.rules.baseline == "adamw"
    base = plan.bases[OWN]
    assert (base.optimizer, base.optimizer_source) == (OWN, str(file))
    assert base.numerics["rule"] == catalog.numerics_version(f"{file}:MyRule")
    assert base.hyperparameters == {"opt.lr": 4e-3, "opt.momentum": 0.9, "opt.weight_decay": 0.0}
    assert [(h.name, h.default) for h in plan.spaces[OWN]] == [("opt.lr", 4e-3), ("opt.weight_decay", 0.0)]
    assert RunSpec.from_dict(json.loads(json.dumps(base.to_dict()))) == base
    shared = {"optimizer": "", "optimizer_source": "", "hyperparameters": {}, "numerics": {}}
    assert replace(base, **shared) == replace(plan.bases["adamw"], **shared)


def test_a_report_can_say_which_source_it_was(file):
    said = plan_comparison(config("adamw", f"{file}:MyRule")).conventions
    digest = catalog.numerics_version(f"{file}:MyRule").partition("+")[0]
    assert said[OWN] == {"weight decay": "decoupled", "schedule": "linear", "source": f"{file}, SHA-256 {digest}"}
    assert "source" not in said["adamw"]


def test_a_moved_file_is_the_same_run_and_an_edited_one_another(file):
    before = base_specs(config(f"{file}:MyRule"))[OWN]
    moved = file.parent / "elsewhere" / "own_rule.py"
    moved.parent.mkdir()
    file.rename(moved)
    after = base_specs(config(f"{moved}:MyRule"))[OWN]
    assert after.key == before.key and after.optimizer_source == str(moved) != before.optimizer_source
    moved.write_text(moved.read_text() + "\n# a remark\n")
    assert base_specs(config(f"{moved}:MyRule"))[OWN].key != before.key


def test_settings_reach_it_and_are_checked(file):
    asked = {"opt.momentum": 0.5, "opt.ns_steps": 4, **TINY}
    specs = base_specs(config("muon", f"{file}:MyRule", settings=asked))
    assert specs[OWN].get("opt.momentum") == specs["muon"].get("opt.momentum") == 0.5
    assert "opt.ns_steps" not in specs[OWN].hyperparameters
    for settings, message in (({"opt.beta1": 0.5}, "unknown key 'opt.beta1'"), ({"opt.momentum": 2.0}, "opt.momentum")):
        with pytest.raises(UsageError, match=message):
            base_specs(config(f"{file}:MyRule", settings={**TINY, **settings}))


def test_variants_of_it(file):
    variants = parse_variants([f"fast={file}:MyRule,opt.momentum=0.5", f"mine={file}:MyRule"])
    plan = plan_comparison(config("fast", "adamw", "mine", variants=variants, tune=("opt.lr", "opt.momentum")))
    assert list(plan.bases) == ["fast", "adamw", "mine"] and plan.rules.baseline == "fast"
    assert {plan.bases[name].optimizer for name in ("fast", "mine")} == {OWN}
    assert plan.bases["fast"].get("opt.momentum") == 0.5 and plan.bases["mine"].get("opt.momentum") == 0.9
    assert plan.fixed == {"fast": {"opt.momentum": 0.5}, "mine": {}}
    assert [[h.name for h in plan.spaces[name]] for name in plan.bases] == [
        ["opt.lr"], ["opt.lr"], ["opt.lr", "opt.momentum"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        (["fast=FILE:MyRule,opt.beta1=0.5"], "unknown hyperparameter of own_rule:MyRule in variant 'fast' 'opt.beta1'"),
        (["fast=FILE:MyRule,opt.lr=0.5"], "variant 'fast' fixes opt.lr"),
        (["fast=FILE:MyRul,opt.momentum=0.5"], "did you mean 'MyRule'"),
        (["fast=nowhere.py:MyRule,opt.momentum=0.5"], "no such file"),
        (["fast=FILE:MyRule", "too=FILE:MyRule"], "'fast' and 'too' are the same runs under two names"),
        (["fast=adam-mini"], "variant 'fast' sets nothing: name adam-mini itself"),
    ],
)
def test_a_variant_that_can_not_be(file, variants, message):
    texts = [text.replace("FILE", str(file)) for text in variants]
    with pytest.raises(UsageError) as error:
        names = [text.partition("=")[0] for text in texts]
        plan_comparison(config("adamw", *names, variants=parse_variants(texts)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_hyphen_is_an_underscore_by_the_time_there_is_a_run():
    plan = plan_comparison(config("adam-mini", "muon-hyperball"))
    assert list(plan.bases) == ["adam_mini", "muon_hyperball"] and plan.rules.baseline == "adam_mini"
    assert {name: base.optimizer for name, base in plan.bases.items()} == {name: name for name in plan.bases}
    assert plan.bases["adam_mini"].key == base_specs(config("adam_mini"))["adam_mini"].key


def test_a_variant_of_the_very_name_wins_over_a_hyphen():
    variants = {
        "adam-mini": {"optimizer": "muon", "opt.ns_steps": 4},
        "six": {"optimizer": "adam-mini", "opt.eps": 1.0},
    }
    changed, found = named(config("adam_mini", "adam-mini", "six", variants=variants))
    assert {name: info.name for name, info in found.items()} == {
        "adam_mini": "adam_mini", "adam-mini": "muon", "six": "adam_mini",
    }  # fmt: skip
    assert changed.variants["six"]["optimizer"] == "adam_mini"


def test_names_that_mean_the_same(file, monkeypatch):
    other = file.parent / "elsewhere" / "own_rule.py"
    other.parent.mkdir()
    other.write_text(file.read_text())
    monkeypatch.chdir(file.parent)
    for names, message in (
        (("adam-mini", "adam_mini"), "optimizer 'adam_mini' is named twice"),
        (("own_rule.py:MyRule", "./own_rule.py:MyRule"), "optimizer 'own_rule:MyRule' is named twice"),
        ((f"{file}:MyRule", f"{other}:MyRule"), f"two files give '{OWN}': let one be --variant other={other}:MyRule"),
    ):
        with pytest.raises(UsageError) as error:
            plan_comparison(config(*names))
        assert message in str(error.value)
    other.write_text(file.read_text().replace("hp(4e-3", "hp(5e-3"))
    plan = plan_comparison(config(f"{file}:MyRule", "other", variants=parse_variants([f"other={other}:MyRule"])))
    first, second = plan.bases.values()
    assert first.optimizer == second.optimizer == OWN and first.key != second.key
    assert (first.get("opt.lr"), second.get("opt.lr")) == (4e-3, 5e-3)
    assert [space[0].default for space in plan.spaces.values()] == [4e-3, 5e-3]


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(
        UsageError, match=r"did you mean 'muon-4'\?.*one of your own is path/to/file\.py:Class or module"
    ):
        plan_comparison(config("muon4", "muon-4", variants={"muon-4": {"optimizer": "muon", "opt.ns_steps": 4}}))


def test_a_learning_rate_without_a_grid_can_be_run_and_not_tuned(file):
    lr = "lr: float = hp(4e-3, grid=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2), "
    assert file.read_text().count(lr) == 1
    file.write_text(file.read_text().replace(lr, "lr: float = hp(4e-3, "))
    assert base_specs(config(f"{file}:MyRule"))[OWN].get("opt.lr") == 4e-3
    with pytest.raises(UsageError) as error:
        plan_comparison(config("adamw", f"{file}:MyRule"))
    assert str(error.value) == (
        "own_rule:MyRule declares no grid for lr, so it can't be tuned: "
        "write one around its default, such as lr: float = hp(1e-3, grid=(5e-4, 1e-3, 2e-3, 4e-3), low=0.0)"
    )


BLIND = """
import torch

class Task:
    tokens_per_sample = 1

    def build(self):
        return torch.nn.Linear(2, 1)

    def batch(self, seed, start, count):
        return torch.ones(count, 2)

    def loss(self, model, batch):
        return model(batch).square().mean()

    def evaluation(self):
        yield self.batch(0, 0, 1), 1
"""


def test_what_an_optimizer_observes_is_asked_for_before_the_first_run(tmp_path):
    (tmp_path / "blind.py").write_text(BLIND)
    with pytest.raises(UsageError, match="sophia observes curvature, so the task needs a method curvature_loss"):
        base_specs(config("adamw", "sophia", task=f"{tmp_path}/blind.py:Task", settings={}))


def test_a_child_process_finds_it_and_gives_the_same_bits(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (spec,) = base_specs(config("own_rule.py:MyRule")).values()
    monkeypatch.chdir("/")
    (inline,) = InlineExecutor().run([spec], Observation())
    (forked,) = LocalExecutor(workers=1).run([spec], Observation())
    assert inline.outcome == forked.outcome == "ok" and same_result(inline, forked) and forked.spec == spec


def test_a_child_process_finds_it_in_a_module(file, monkeypatch):
    file.rename(file.with_name("rule_in_a_module.py"))
    monkeypatch.syspath_prepend(file.parent)
    (spec,) = base_specs(config("rule_in_a_module:MyRule")).values()
    assert (spec.optimizer, spec.optimizer_source) == ("rule_in_a_module:MyRule", "")
    (forked,) = LocalExecutor(workers=1).run([spec], Observation())
    assert forked.outcome == "ok", forked.error


def test_a_file_that_is_edited_in_the_midst_of_a_study_ends_it(file):
    (spec,) = base_specs(config(f"{file}:MyRule")).values()
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UsageError, match=r"own_rule\.py has changed since the study began: start it again"):
        list(LocalExecutor(workers=1).run([spec], Observation()))
    file.unlink()
    with pytest.raises(UsageError, match=r"no such file: .*own_rule\.py"):
        list(InlineExecutor().run([spec], Observation()))
