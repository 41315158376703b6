"""From a config to runs: defaults, routing of settings, errors, and the price."""

import json
from dataclasses import replace

import pytest

from muonlab.errors import UsageError
from muonlab.optim import catalog
from muonlab.optim.rule import Hyperparameter
from muonlab.records.evidence import Evidence
from muonlab.study.calibration import Landscape, Response
from muonlab.study.compare import compare
from muonlab.study.config import validated
from muonlab.study.fairness import conclude
from muonlab.study.plan import base_specs, plan_comparison
from muonlab.study.protocol import drive
from muonlab.study.space import coordinates
from muonlab.study.tune import tune

TINY = {"task.width": 16, "task.depth": 1, "task.seq_len": 32, "task.eval_tokens": 1024}
H, BATCH = 65_536, 1024


def config(settings=(), **values):
    start = {"horizon_tokens": H, "batch_tokens": BATCH}
    return validated({**start, **values, "settings": {**TINY, **dict(settings)}})


@pytest.fixture(scope="module")
def plan():
    return plan_comparison(config())


def test_every_determinant_of_a_run_is_filled_in(plan):
    for name, base in plan.bases.items():
        assert set(base.hyperparameters) >= {h.name for h in catalog.hyperparameters(name)}
        assert base.task_options["width"] == 16 and base.task_options["qk_norm"] in (True, False)
        assert base.data_fingerprint and base.torch and base.device == "cpu"
        assert base.numerics["rule"] == catalog.numerics_version(name) and base.numerics["task"]
    assert plan.bases["muon"].polar and not plan.bases["adamw"].polar
    shared = {"optimizer": "", "hyperparameters": {}, "polar": "", "numerics": {}}
    assert replace(plan.bases["muon"], **shared) == replace(plan.bases["adamw"], **shared)


def test_tuning_starts_at_published_values(plan):
    assert plan.bases["adamw"].get("opt.beta2") == 0.98 and plan.bases["muon"].get("aux.lr_ratio") == 0.3
    for name, space in plan.spaces.items():
        assert [h.name for h in space] == ["opt.lr", "opt.weight_decay"]
        assert [h.default for h in space] == [plan.bases[name].get(h.name) for h in space]


def test_tuning_seeds_and_final_seeds_never_meet():
    for first in (0, 3, 950, 1000):
        rules = plan_comparison(config(first_seed=first, num_seeds=100, max_tuning_seeds=100)).rules
        assert rules.final_seeds == tuple(range(first, first + 100))
        assert not set(rules.final_seeds) & set(rules.tuning.seeds) and len(rules.tuning.seeds) == 100


def test_a_base_model_reaches_every_run():
    found = base_specs(config({"parametrization": "mup", "base.width": 8}))
    for spec in found.values():
        assert (spec.parametrization, spec.base, spec.task_options["width"]) == ("mup", {"width": 8}, 16)


def test_settings_reach_the_runs_they_are_for():
    settings = {"opt.momentum": 0.8, "opt.weight_decay": 0.05, "schedule.kind": "cosine", "clip": 0.5}
    specs = base_specs(config(settings, optimizers=("adamw", "muon", "sgd")))
    assert "opt.momentum" not in specs["adamw"].hyperparameters  # which has none
    assert specs["muon"].get("opt.momentum") == specs["sgd"].get("opt.momentum") == 0.8
    assert {s.get("opt.weight_decay") for s in specs.values()} == {0.05}
    assert {(s.schedule.kind, s.clip, s.get("task.width")) for s in specs.values()} == {("cosine", 0.5, 16)}
    for spec in specs.values():
        assert spec.get("schedule.kind") == "cosine" and spec.get("task.depth") == 1
        start = next(h.default for h in coordinates(spec, ["opt.lr", "opt.weight_decay"]) if "decay" in h.name)
        assert start == 0.05  # what is set is where the tuning starts


def test_a_setting_that_changes_the_polar_factor_is_in_the_spec():
    exact, default = (base_specs(config(s))["muon"] for s in ({"opt.polar": "exact"}, {}))
    assert exact.polar.startswith("exact") and exact.polar != default.polar and exact.key != default.key


def test_the_horizon_is_a_whole_number_of_batches():
    """A million tokens, the default, are 244 batches of 4096 and a rest that nobody would train on."""
    plan = plan_comparison(config(horizon_tokens=1_000_000, batch_tokens=4096))
    assert {base.horizon_tokens for base in plan.bases.values()} == {244 * 4096}


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({"task": "txt"}, {}, "unknown task 'txt': did you mean 'text'?"),
        ({"optimizers": ("adamw", "muno")}, {}, "unknown optimizer 'muno': did you mean 'muon'?"),
        (
            {"tune": ("opt.lr", "opt.momentun")},
            {},
            "unknown coordinate to tune 'opt.momentun': did you mean 'opt.momen",
        ),
        ({"tune": ("opt.weight_decay",)}, {}, "--tune must name opt.lr"),
        ({}, {"task.widht": 3}, "unknown task option 'widht': did you mean 'width'?"),
        ({}, {"task.width": "abc"}, "width must be a whole number of at least 1, got 'abc'"),
        ({}, {"base.width": 8}, "base.* is the base model of a parametrization: add --set parametrization=spectral"),
        ({}, {"base.widht": 8, "parametrization": "mup"}, "unknown task option 'widht': did you mean 'width'?"),
        ({}, {"base.width": 0, "parametrization": "mup"}, "width must be a whole number of at least 1"),
        ({}, {"parametrization": "mp"}, "unknown parametrization 'mp': did you mean 'mup'?"),
        ({}, {"opt.lrr": 3}, "unknown key 'opt.lrr': did you mean 'opt.lr'?"),
        ({}, {"schedule.warmup": 0.1}, "unknown key 'schedule.warmup': did you mean 'schedule.warmup_fraction'?"),
        ({}, {"schedule.kind": "cosin"}, "unknown schedule.kind 'cosin': did you mean 'cosine'?"),
        ({}, {"opt.lr": -1.0}, "opt.lr: "),
        ({}, {"opt.lr": float("nan")}, "opt.lr: must be a finite number, got nan"),
        ({}, {"opt.lr": "fast"}, "opt.lr: "),
        ({}, {"clip": -1.0}, "clip must be 0 (none) or positive, got -1.0"),
        ({}, {"clip": float("inf")}, "clip must be a finite number, got inf"),
        ({}, {"seed": 3}, "name the first with --seed"),
        ({"batch_tokens": 1000}, {}, "batch_tokens 1000 must be a multiple of one sample, 32 tokens: try 992"),
        ({"horizon_tokens": 7 * BATCH}, {}, f"is only 7 steps: raise it (--tokens) to at least {8 * BATCH}, 8 steps"),
        ({"data": ("/nonexistent/corpus.txt",)}, {}, "no such file or directory: /nonexistent/corpus.txt"),
        ({"horizon_ratios": (1.0, 2.0)}, {}, "horizon_ratios needs at least three horizons"),
        ({"horizon_ratios": (0.0, 1.0, 2.0)}, {}, "horizon_ratios must be positive"),
    ],
)
def test_what_can_not_be_run_is_said_in_one_line(values, settings, message):
    with pytest.raises(UsageError) as error:
        plan_comparison(config(settings, **values))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_to_tune(plan):
    base = plan.bases["muon"]
    names = [h.name for h in coordinates(base, ["all"])]
    assert names[0] == "opt.lr" and len(set(names)) == len(names)
    assert {"opt.momentum", "aux.lr_ratio", "schedule.warmup_fraction", "clip", "batch_tokens"} < set(names)
    assert "schedule.decay_fraction" not in names  # only wsd reads it
    wsd = coordinates(base.set({"schedule.kind": "wsd"}), ["all"])
    assert "schedule.decay_fraction" in {h.name for h in wsd}
    asked = ["opt.weight_decay", "opt.momentum", "opt.lr", "opt.lr"]
    assert [h.name for h in coordinates(plan.bases["adamw"], asked)] == ["opt.lr", "opt.weight_decay"]
    batch = next(h for h in coordinates(base, ["all"]) if h.name == "batch_tokens")
    assert batch.grid == (256, 512, 1024, 2048, 4096) and batch.extend("high") is None and batch.extend("low") is None


def ran(plan, bench, *, final_runs: bool = True, **responses):
    """What a study by this plan asks for, on a made-up landscape."""
    made = bench(lambda s: 0.0)
    made.record = Landscape(responses).record
    if final_runs:
        drive(compare(plan.bases, plan.spaces, plan.rules), made)
    else:
        (name,) = responses
        drive(tune(plan.bases[name], plan.spaces[name], plan.rules.tuning), made)
    return made.asked


def at_start(speed: float = 1.0, lr: float = 0.008, noise: float = 0.0) -> Response:
    """Already best where the tuning starts."""
    horizon = 98_304 / H  # of the landscape over that of the plan
    return Response(speed=speed * horizon, noise=noise, best_lr=lr * horizon**-0.2, seed_share=0.0)


def test_the_least_price_is_that_of_a_study_without_a_move(plan, bench):
    asked = ran(plan, bench, adamw=at_start(), muon=at_start(1.4, 0.02))
    price = plan.price()
    assert len(asked) == price.least_runs and sum(s.horizon_tokens for s in asked) == price.least_tokens
    assert price.least_tokens <= price.likely_tokens <= price.most_tokens and price.least_runs <= price.most_runs


def test_the_least_price_of_a_tuning(bench):
    """Of a grid of five, only what lies beside the start is tried."""
    names = ("opt.lr", "opt.weight_decay", "schedule.warmup_fraction", "batch_tokens")
    plan = plan_comparison(config(optimizers=("adamw",), tune=names))
    asked = ran(plan, bench, final_runs=False, adamw=at_start())
    price = plan.price(final_runs=False)
    assert (len(asked), sum(s.horizon_tokens for s in asked)) == (price.least_runs, price.least_tokens)
    assert price.most_runs == plan.rules.tuning.max_runs


@pytest.mark.parametrize("speed", [1 / 40, 1 / 3, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_no_study_costs_more_than_the_most(bench, speed, noise):
    """A small cap, which every tuning reaches, and a challenger that needs every shorter horizon."""
    plan = plan_comparison(config(max_runs=24, batch_tokens=256))
    far = {"best_lr": 1e-9, "lr_curvature": 0.01}
    asked = ran(
        plan, bench, adamw=replace(at_start(noise=noise), **far), muon=replace(at_start(speed, noise=noise), **far)
    )
    price = plan.price()
    assert price.least_runs <= len(asked) <= price.most_runs
    assert sum(s.horizon_tokens for s in asked) <= price.most_tokens


def test_space_may_hold_coordinates_of_any_kind(plan, bench):
    kind = Hyperparameter("schedule.kind", "linear", ("linear", "cosine"))
    spaces = {name: (*space, kind) for name, space in plan.spaces.items()}
    wider = replace(plan, spaces=spaces)
    asked = ran(wider, bench, adamw=at_start(), muon=at_start(1.4, 0.02))
    assert len(asked) == wider.price().least_runs


VARIANTS = {
    "four": {"optimizer": "muon", "opt.ns_steps": 4},
    "sluggish": {"optimizer": "adamw", "opt.beta1": 0.98},
}


def test_a_variant_is_its_optimizer_with_something_set():
    study = config({"opt.ns_steps": 6}, variants=VARIANTS, tune=("all",))
    plan = plan_comparison(study)
    assert list(plan.bases) == ["adamw", "muon", "four", "sluggish"]
    four, sluggish = plan.bases["four"], plan.bases["sluggish"]
    assert (four.optimizer, four.get("opt.ns_steps")) == ("muon", 4)  # the variant's word, not that of all runs
    assert plan.bases["muon"].get("opt.ns_steps") == 6
    assert four.polar == catalog.polar_description("muon", {"opt.ns_steps": 4}) != plan.bases["muon"].polar
    assert (sluggish.optimizer, sluggish.get("opt.beta1")) == ("adamw", 0.98)
    assert plan.fixed == {"four": {"opt.ns_steps": 4}, "sluggish": {"opt.beta1": 0.98}}
    assert plan.conventions["four"]["polar factor"] == four.polar
    tuned = {name: [h.name for h in space] for name, space in plan.spaces.items()}
    assert tuned["four"] == tuned["muon"]  # the steps have no grid
    assert set(tuned["adamw"]) - set(tuned["sluggish"]) == {"opt.beta1"}


def test_a_variant_shares_its_runs_with_whoever_sets_the_same():
    ours = base_specs(config(variants=VARIANTS))["four"]
    assert ours.key == base_specs(config({"opt.ns_steps": 4}))["muon"].key


@pytest.mark.parametrize(
    ("variants", "optimizers", "message"),
    [
        ({"muon": {"optimizer": "muon", "opt.ns_steps": 4}}, ("adamw", "muon"),
         "variant 'muon' has the name of an optimizer: give it another"),
        ({"Muon": {"optimizer": "muon", "opt.ns_steps": 4}}, ("adamw", "Muon"),
         "variant 'Muon' has the name of an optimizer: give it another"),
        ({"x": {"optimizer": "muno", "opt.ns_steps": 4}}, None, "unknown optimizer 'muno': did you mean 'muon'?"),
        ({"x": {"optimizer": "muon", "opt.ns_step": 4}}, None,
         "unknown hyperparameter of muon in variant 'x' 'opt.ns_step': did you mean 'opt.ns_steps'?"),
        ({"x": {"optimizer": "adamw", "opt.ns_steps": 4}}, None, "unknown hyperparameter of adamw in variant 'x'"),
        ({"x": {"optimizer": "muon", "schedule.kind": "wsd"}}, None, "unknown hyperparameter of muon in variant 'x'"),
        ({"x": {"optimizer": "muon", "opt.lr": 0.1}}, None, "variant 'x' fixes opt.lr, which is tuned for every"),
        ({"x": {"optimizer": "muon", "opt.ns_steps": 0}}, None, "opt.ns_steps: Invalid ns_steps value: 0"),
        ({"x": {"optimizer": "muon", "opt.ns_steps": 5}}, None, "'muon' and 'x' are the same runs under two names"),
        (VARIANTS, ("adamw", "fuor"), "unknown optimizer 'fuor': did you mean 'four'?"),
    ],
)  # fmt: skip
def test_a_variant_that_can_not_be_compared(variants, optimizers, message):
    chosen = {"optimizers": optimizers} if optimizers else {}
    with pytest.raises(UsageError) as error:
        plan_comparison(config(variants=variants, **chosen))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_shared_setting_that_one_variant_fixes_breaks_the_rule_of_equal_tuning(bench):
    plan = plan_comparison(config(variants={"bare": {"optimizer": "muon", "opt.weight_decay": 0.0}}))
    made = bench(lambda s: 0.0)
    made.record = Landscape({"adamw": at_start(), "muon": at_start(1.4, 0.02)}).record
    evidence = drive(compare(plan.bases, plan.spaces, plan.rules, fixed=plan.fixed), made)
    assert evidence.arms["bare"].fixed == {"opt.weight_decay": 0.0} and evidence.arms["bare"].optimizer == "muon"
    finding = conclude(evidence, made.records)
    check = next(check for check in finding.checks if check.name == "same_tuning")
    assert not check.ok and "bare: opt.lr;" in f"{check.detail};"
    bare = finding.optimizers["bare"]
    assert (bare.name, bare.optimizer, bare.fixed) == ("bare", "muon", {"opt.weight_decay": 0.0})
    assert set(finding.contrasts) == set(finding.paired) == {"muon", "bare"}
    assert {s.optimizer for s in finding.slices} == {c.optimizer for c in finding.curves} == set(plan.bases)
    again = Evidence.from_dict(json.loads(json.dumps(evidence.to_dict())))
    assert conclude(again, made.records) == finding
