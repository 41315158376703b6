"""The protocol of a study of features: what it asks for, and that it is what a comparison asks for too."""

import numpy as np
import pytest

from muonlab.errors import UsageError
from muonlab.records.watch import Watch
from muonlab.study.calibration import Landscape, Response
from muonlab.study.config import ComparisonConfig, FeaturesConfig, validated
from muonlab.study.features import features_study, plan_features, without_decay
from muonlab.study.plan import plan_comparison
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules

from .conftest import LR, WEIGHT_DECAY, Bench, make_spec

RULES = TuningRules(max_runs=80)


def studied():
    landscape = Landscape({"a": Response(), "b": Response()})
    bench = Bench(lambda spec: 0.0)
    bench.record = landscape.record
    bases = {name: make_spec(name) for name in "ab"}
    spaces = dict.fromkeys(bases, (LR, WEIGHT_DECAY))
    return drive(features_study(bases, spaces, "a", (0, 1, 2), RULES), bench), bench


def test_every_optimizer_is_tuned_twice_and_run_on_fresh_seeds():
    evidence, bench = studied()
    assert set(evidence.arms) == set(evidence.controls) == {"a", "b"}
    for decays, arms in (({0.0, 0.1, 0.2}, evidence.arms), ({0.0}, evidence.controls)):
        for arm in arms.values():
            (cell,) = arm.cells
            runs = [bench.records[key] for key in cell.keys]
            assert [run.spec.seed for run in runs] == [0, 1, 2]
            tried = [bench.records[key].spec for trial in cell.tuning.trials for key in trial.keys]
            assert {spec.get("opt.weight_decay") for spec in tried} <= decays and len(tried) > 10
            assert not {spec.seed for spec in tried} & {0, 1, 2}
    assert set(evidence.record_keys()) == set(bench.records)


def test_no_decay_means_none_of_any_kind():
    spec = make_spec().set({"opt.weight_decay": 0.1, "aux.weight_decay": 0.2})
    free = without_decay(spec)
    assert free.get("opt.weight_decay") == free.get("aux.weight_decay") == 0.0 and free.get("opt.lr") == spec.get(
        "opt.lr"
    )


def test_a_comparison_of_the_same_asks_for_the_same_runs():
    asked = {"optimizers": ("muon", "adamw"), "horizon_tokens": 40_960, "settings": {"task.width": 16}}
    plan = plan_features(validated(asked, FeaturesConfig))
    other = plan_comparison(validated(asked, ComparisonConfig))
    assert plan.bases == other.bases and plan.spaces == other.spaces and plan.tuning == other.rules.tuning


def test_only_final_runs_are_looked_at():
    plan = plan_features(validated({"optimizers": ("muon", "adamw"), "horizon_tokens": 40_960}, FeaturesConfig))
    base = plan.bases["muon"]
    assert plan.watch.of(base.set({"seed": plan.final_seeds[0]})).features
    assert plan.watch.of(base.set({"seed": plan.tuning.seeds[0]})) == Watch()
    price = plan.price()
    assert 0 < price.least_runs < price.most_runs and price.least_tokens < price.most_tokens


def planned(task, **more):
    return plan_features(validated({"task": task, "batch_tokens": 8, "horizon_tokens": 256, **more}, FeaturesConfig))


@pytest.mark.parametrize("task", ["matrix", "components"])
def test_a_model_without_layers_is_refused_before_the_first_run(task):
    with pytest.raises(UsageError, match=f"task {task} can't be studied: the model has no ModuleList"):
        planned(task)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros(16, int), "two classes"), (np.arange(16) % 9, "twice as many rows"), (np.arange(16) % 2, "")],
)
def test_labels_that_cannot_be_probed_are_refused_before_the_first_run(tmp_path, labels, message):
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8)
    path = tmp_path / "a.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    asked = {"data": (str(path),), "settings": {"task.width": 4}}
    if not message:
        assert planned("images", **asked).price().least_runs
        return
    with pytest.raises(UsageError, match=f"task images of .*a.npz can't be studied: .*{message}"):
        planned("images", **asked)
