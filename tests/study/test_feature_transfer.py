"""Transfer on made-up losses: what is asked for, from which parent, and what the finding says of what was planted."""

import json
import math
from dataclasses import replace

import pytest

from muonlab.analyze.feature_transfer import LINEAR_PROBE, SCRATCH
from muonlab.errors import UsageError
from muonlab.records import Record
from muonlab.records.features import FeaturesEvidence
from muonlab.records.record import Series, json_text
from muonlab.records.watch import PROBED, Watch
from muonlab.study.config import FeaturesConfig, validated
from muonlab.study.feature_transfer import Target
from muonlab.study.features import FeaturesPlan, plan_features
from muonlab.study.features_fairness import conclude_features
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules

from .conftest import LR, Bench, make_spec, normal

TUNING, FINAL = (1000, 1001), (0, 1, 2)
RULES = TuningRules(seeds=TUNING, first_seeds=2, max_runs=40)
BEST = {"a": 0.016, "b": 0.004}  # lr of fine-tuning, by the optimizer that has pretrained; 0.002 from scratch
GAIN = {"a": 0.0, "b": 0.5}  # nats of the second task, by the optimizer that has pretrained


class World(Bench):
    """Pretraining is best at lr 0.008; fine-tuning depends on who has pretrained, and on its seed."""

    def __init__(self, diverging=(), gain=GAIN):
        super().__init__(self.loss_of)
        self.diverging, self.gain = diverging, gain

    def loss_of(self, spec):
        parent = self.records[spec.init_from].spec if spec.init_from else None
        if parent is not None:
            assert parent.seed == spec.seed and parent.task == "landscape" and spec.task == "second"
        noise = 1e-3 * normal(spec.key)
        origin = parent.optimizer if parent else ""
        best = 0.008 if spec.task == "landscape" else BEST.get(origin, 0.002)
        if spec.task == "landscape" and (spec.optimizer, spec.seed) in self.diverging:
            return math.inf
        gain = self.gain.get(origin, -1.0) if spec.task == "second" else 0.0
        return 3.0 - gain + 0.1 * math.log2(float(spec.get("opt.lr")) / best) ** 2 + noise

    def record(self, spec):
        made = super().record(spec)
        if spec.task != "second" or made.outcome != "ok":
            return made
        values = (2.0 - (0.3 if spec.init_from else 0.0) + 1e-3 * normal(spec.init_from), 0.5)
        probes = {name: Series((0,), (value,)) for name, value in zip(PROBED, values, strict=True)}
        told = {"loaded": 90, "params": 100, "own": ["head.weight"]} if spec.init_from else {}
        return replace(made, probes={**probes, "heldout.accuracy": Series((9,), (0.75,))}, inherited=told)


def studied(**world):
    bench = World(**world)
    bases = {name: make_spec(name) for name in "ab"}
    second = {name: replace(make_spec(name), task="second", horizon_tokens=9 * 256) for name in "ab"}
    target = Target(second, dict.fromkeys("ab", (LR,)), RULES, fresh_head=True, probe=True)
    plan = FeaturesPlan(bases, dict.fromkeys("ab", (LR,)), "a", FINAL, RULES, 4, target)
    return drive(plan.protocol({}), bench), bench, plan


@pytest.fixture(scope="module")
def study():
    return studied()


def test_every_pair_is_tuned_by_itself_and_run_on_fresh_seeds(study):
    evidence, bench, _ = study
    assert len(evidence.transfer.tunings) == 6
    for one in evidence.transfer.tunings:
        tried = [bench.records[key].spec for trial in one.cell.tuning.trials for key in trial.keys]
        finals = [bench.records[key].spec for key in one.cell.keys]
        assert [spec.seed for spec in finals] == list(FINAL) and {spec.seed for spec in tried} == set(TUNING)
        assert one.cell.settings["opt.lr"] == BEST.get(one.pretraining, 0.002)
        for spec in (*tried, *finals):
            assert (spec.optimizer, spec.task, spec.fresh_head) == (one.name, "second", bool(one.pretraining))
            origin = bench.records[spec.init_from].spec.optimizer if spec.init_from else ""
            assert origin == one.pretraining


def test_a_run_starts_from_the_pretraining_of_its_seed_with_the_settings_as_tuned(study):
    evidence, bench, _ = study
    for one in (one for one in evidence.transfer.tunings if one.pretraining):
        parents = {bench.records[key].spec.init_from for key in one.cell.keys}
        assert parents == set(evidence.arms[one.pretraining].cells[0].keys)
    assert set(evidence.record_keys()) == set(bench.records)


def test_what_was_planted_is_found(study):
    evidence, bench, _ = study
    finding = conclude_features(evidence, bench.records)
    rows = {(row.finetuning, row.pretraining): row for row in finding.transfer}
    assert list(rows) == [(way, origin) for way in (LINEAR_PROBE, "a", "b") for origin in ("a", "b", SCRATCH)]
    for way in "ab":
        assert rows[way, "a"].effect is None and rows[way, "a"].loss == pytest.approx(3.0, abs=0.01)
        assert rows[way, "b"].effect.difference == pytest.approx(-0.5, abs=0.01)
        assert rows[way, "b"].effect.judgement == "lower" and rows[way, SCRATCH].effect.judgement == "higher"
        assert rows[way, "b"].accuracy == 0.75 and rows[way, "b"].lr == 0.004 and rows[way, "b"].num_seeds == 3
    assert rows[LINEAR_PROBE, SCRATCH].effect.judgement == "higher" and rows[LINEAR_PROBE, "b"].accuracy == 0.5
    held = {claim.claim: claim.held for claim in finding.claims if claim.claim.startswith("transfers better")}
    assert held == {
        "transfers better to second than a, by a linear probe": None,
        "transfers better to second than a, by full fine-tuning with a": True,
        "transfers better to second than a, by full fine-tuning with b": True,
    }
    told = {check.name: check for check in finding.checks if check.name.startswith("transfer")}
    assert told["transfer_weights"].detail.startswith("90.0% of 100 numbers were taken over")
    assert all(check.ok for check in told.values())


def test_the_other_way_round_the_claim_does_not_hold():
    evidence, bench, _ = studied(gain={"a": 0.5, "b": 0.0})
    claims = conclude_features(evidence, bench.records).claims
    assert [c.held for c in claims if "fine-tuning" in c.claim] == [False, False]


def test_a_broken_rule_of_the_fine_tuning_withholds_the_transfer_alone(study):
    evidence, bench, _ = study
    key = evidence.transfer.cell("b", "a").keys[0]
    records = {**bench.records, key: Record(spec=bench.records[key].spec, outcome="diverged", diverged_step=1)}
    finding = conclude_features(evidence, records)
    assert {row.effect.judgement for row in finding.transfer if row.effect} == {"withheld"}
    said = {claim.detail for claim in finding.claims if claim.claim.startswith("transfers")}
    assert said == {"withheld: complete broken"}
    assert not any("withheld" in claim.detail for claim in finding.claims if not claim.claim.startswith("transfers"))
    assert next(check for check in finding.checks if check.name == "transfer_complete").ok is False


def test_a_pretraining_that_diverged_is_left_out_and_said():
    evidence, bench, _ = studied(diverging={("b", 1)})
    assert {one.pretraining for one in evidence.transfer.tunings} == {"a", ""}
    finding = conclude_features(evidence, bench.records)
    lost = [row for row in finding.transfer if row.pretraining == "b"]
    assert lost and all(row.loss is None and row.effect.difference is None for row in lost)
    check = next(check for check in finding.checks if check.name == "transfer_from")
    assert check.severity == "warning" and check.detail.endswith("not transferred: b")


def test_evidence_survives_json_and_old_evidence_has_no_transfer(study):
    evidence, _, _ = study
    values = json.loads(json_text(evidence.to_dict()))
    assert FeaturesEvidence.from_dict(values) == evidence
    del values["transfer"]
    assert FeaturesEvidence.from_dict(values).transfer is None


def test_final_runs_of_both_tasks_are_looked_at_and_those_of_the_first_leave_their_weights(study):
    _, bench, plan = study
    for spec in (record.spec for record in bench.records.values()):
        watch = plan.watch.of(spec)
        if spec.seed in TUNING:
            assert watch == Watch()
        elif spec.task == "second":
            assert watch.probe and not watch.features and not watch.weights and watch.steps(spec) == {9}
        else:
            assert watch.features and watch.weights and not watch.probe


def test_the_price_holds_what_was_run(study):
    _, bench, plan = study
    price, bare = plan.price(), replace(plan, target=None).price()
    assert bare.least_runs < len(bench.records) <= price.most_runs and price.least_runs <= len(bench.records) + 4
    assert price.least_tokens > bare.least_tokens and price.least_tokens < price.most_tokens


def test_both_tables_fit_a_terminal(study):
    from rich.console import Console

    from muonlab.report.features import features_table

    evidence, bench, _ = study
    finding = conclude_features(evidence, bench.records)
    for width in (80, 100):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        for part in features_table(finding):
            console.print(part)
        text = console.export_text()
        assert "Transfer to second" in text and SCRATCH in text and "Not controlled" in text
        assert max(map(len, text.splitlines())) <= width


# Plans

ASKED = {
    "task": "digits", "optimizers": ("muon", "adamw"), "transfer_to": "text", "horizon_tokens": 12_800,
    "batch_tokens": 64, "settings": {"task.model": "cnn", "task.width": 4},
}  # fmt: skip
TEXT = {
    "task": "text-synthetic", "optimizers": ("muon", "adamw"), "transfer_to": "text", "horizon_tokens": 40_960,
    "settings": {"task.width": 16, "task.depth": 1, "schedule.kind": "cosine"},
}  # fmt: skip


def planned(asked=TEXT, **changes):
    return plan_features(validated({**asked, **changes}, FeaturesConfig))


def test_what_is_set_of_the_first_task_holds_for_the_second():
    target = planned(transfer_settings={"task.eval_tokens": 4096}, transfer_tokens=36_864).target
    base = target.bases["muon"]
    assert (base.task, base.get("task.width"), base.get("task.eval_tokens")) == ("text", 16, 4096)
    assert base.schedule.kind == "cosine" and base.horizon_tokens == 36_864 and not base.init_from
    assert not target.fresh_head and target.probe and target.rules.seeds == (1000, 1001, 1002)
    assert [h.name for h in target.spaces["adamw"]] == ["opt.lr"]


def test_the_default_length_is_a_tenth():
    assert planned(horizon_tokens=409_600, batch_tokens=4096).target.base.horizon_tokens == 40_960


@pytest.mark.parametrize(
    ("asked", "changes", "said"),
    [
        (TEXT, {"transfer_to": "txt"}, "unknown task 'txt'"),
        (TEXT, {}, "fewer than 8 steps of 4096: raise --transfer-tokens"),
        (TEXT, {"transfer_to": "text-synthetic", "transfer_tokens": 40_960}, "is the task itself on the same data"),
        (TEXT, {"transfer_settings": {"opt.lr": 1.0}, "transfer_tokens": 40_960}, "only options of the second task"),
        (TEXT, {"transfer_settings": {"task.widht": 1}, "transfer_tokens": 40_960}, "unknown task option 'widht'"),
        (TEXT, {"transfer_settings": {"task.width": 32}, "transfer_tokens": 40_960}, "no parameter of one name"),
        (ASKED, {"transfer_tokens": 1280}, "no parameter of one name and shape in common"),
        (TEXT, {"transfer_to": "digits"}, "no parameter of one name and shape in common"),
        (ASKED, {"transfer_to": "external:x"}, "is trained elsewhere"),
        (ASKED, {"transfer_to": "", "transfer_tokens": 1280}, "transfer_tokens is for a second task"),
    ],
)
def test_what_cannot_be_transferred_is_found_before_the_first_run(asked, changes, said):
    with pytest.raises(UsageError, match=said):
        planned(asked, **changes)


def test_a_study_without_transfer_is_known_by_the_key_it_had():
    asked = {"optimizers": ("muon", "adamw"), "baseline": "adamw"}
    config = validated(asked, FeaturesConfig)
    assert "transfer" not in config.key and config.key == validated({**asked, "transfer_to": ""}, FeaturesConfig).key
    assert config.key != validated({**asked, "transfer_to": "text-synthetic"}, FeaturesConfig).key
