"""The audit: every defect planted and found by its rule, clean tables, and the published sweep as it really is."""

import json
import re
from typing import Any

import pytest

from muonlab.analyze.audit import RULES, audit, from_store, from_table
from muonlab.errors import UsageError
from muonlab.records import Record, RunSpec
from muonlab.records.spec import Schedule
from muonlab.records.tables import read_rows

RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
SWEEP = "pretraining_optimizer_sweep_"


def numbered(rows: list[dict]) -> list[dict]:
    return [{**row, "line": i} for i, row in enumerate(rows, 2)]


def good() -> list[dict]:
    """Two optimizers, each swept over lr and weight decay with two seeds, whose optima are interior."""
    return [
        {
            "optimizer": name, "size": "1m", "tokens": tokens, "lr": lr, "weight_decay": decay, "seed": seed,
            "loss": 3.0 - (0.05 if name == "muon" else 0.0) - tokens / 1e9
            + 0.01 * abs(RATES.index(lr) - 2) + 0.1 * abs(decay - 0.05) + 1e-4 * seed,
            "horizon_tokens": tokens, "schedule": "cosine", "batch_tokens": 4096,
        }
        for name in ("adamw", "muon") for tokens in (1e8, 2e8) for lr in RATES for decay in (0.0, 0.05, 0.2)
        for seed in (0, 1)
    ]  # fmt: skip


def found(rows: list[dict], rule: str | None = None, **judged: Any) -> list:
    findings = audit(from_table(numbered(rows), "runs.csv", **judged)).findings
    return [finding for finding in findings if rule in (None, finding.rule)]


def one(rows: list[dict], rule: str, severity: str, **judged: Any):
    """The one finding of a rule."""
    (finding,) = found(rows, rule, **judged)
    assert finding.severity == severity, finding
    return finding


def is_adamw(row: dict) -> bool:
    return row["optimizer"] == "adamw"


def test_a_clean_table_has_no_findings_and_every_rule_with_its_columns_is_checked() -> None:
    result = audit(from_table(numbered(good()), "runs.csv"))
    assert result.findings == () and result.is_clean(strict=True)
    assert set(result.skipped) == {"cherry_picked_step"} and set(result.checked) | set(result.skipped) == set(RULES)
    assert "final_loss" in result.skipped["cherry_picked_step"]
    assert result.noise_is_measured and result.noise_nats == pytest.approx(7.07e-5, rel=1e-2)


@pytest.mark.parametrize("kept", [lambda lr: lr >= 0.004, lambda lr: lr <= 0.004], ids=["below", "above"])
def test_a_learning_rate_of_the_baseline_on_an_edge_is_an_error(kept) -> None:
    rows = [row for row in good() if not is_adamw(row) or kept(row["lr"])]
    finding = one(rows, "grid_edge", "error")
    assert finding.detail.startswith("adamw lr is at an open edge: 0.004 of ") and "last step 0.0100" in finding.detail
    shown = [numbered(rows)[line - 2] for line in finding.rows]
    assert {(row["optimizer"], row["weight_decay"]) for row in shown} == {("adamw", 0.05)}
    assert {row["lr"] for row in shown} == {lr for lr in RATES if kept(lr)}


def test_the_edge_of_a_challenger_is_a_warning_and_another_setting_counts_by_the_lead() -> None:
    assert one([r for r in good() if is_adamw(r) or r["lr"] >= 0.004], "grid_edge", "warning").detail.startswith("muon")
    rows = [row for row in good() if not is_adamw(row) or row["weight_decay"] >= 0.05]
    assert "weight_decay" in one(rows, "grid_edge", "warning").detail  # 0.015 nats, muon leads by 0.05
    for row in rows:
        row["loss"] += 0.045 * (not is_adamw(row))
    assert "weight_decay" in one(rows, "grid_edge", "error").detail


def varied(name: str, values: dict[Any, float]) -> list[dict]:
    return [{"optimizer": "adamw", "tokens": 1e8, name: value, "loss": loss} for value, loss in values.items()]


@pytest.mark.parametrize(
    ("name", "values", "severity"),
    [
        ("weight_decay", {0: 3.0, 0.1: 3.1}, None),
        ("warmup", {0: 3.0, 500: 3.1}, None),
        ("lr", {0: 3.0, 0.1: 3.1}, "error"),
        ("schedule.decay_fraction", {0.5: 3.1, 1.0: 3.0}, None),
        ("lr_ratio", {0.5: 3.1, 1.0: 3.0}, "warning"),
        ("precondition_frequency", {1: 3.0, 10: 3.1}, None),
        ("max_grad_norm", {0: 3.1, 1: 3.1, 2: 3.0}, None),  # 0 is no bound: beyond 2
        ("max_grad_norm", {0: 3.1, 1: 3.0, 2: 3.1}, "warning"),
        ("beta2", {0.9: 3.0, 0.95: 3.002}, "note"),  # flat
        ("beta2", {0.9: 3.0, 0.95: 3.02}, "warning"),
        ("beta2", {0.9: 3.0, 0.95: 7.5}, "warning"),  # blew up: no slope
        ("batch_size", {64: 3.0, 128: 3.02}, "note"),
        ("polar", {"exact": 3.0, "gram": 3.1}, None),
        ("nesterov", {True: 3.0, False: 3.1}, None),
    ],
)
def test_edges_and_natural_bounds(name: str, values: dict, severity: str | None) -> None:
    findings = found(varied(name, values), "grid_edge")
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


def test_a_lost_neighbour_is_a_value_that_was_tried() -> None:
    rows = varied("lr", {0.001: 3.1, 0.002: 3.0, 0.004: float("nan")})
    assert found(rows, "grid_edge") == []
    assert "have no loss" in one(rows[1:], "grid_edge", "warning").detail


def test_among_equals_the_configuration_around_which_was_swept_is_the_best() -> None:
    base = {"optimizer": "adamw", "tokens": 1e8, "lr": 0.002, "beta2": 0.95}
    moved = [{"lr": 0.001}, {"lr": 0.004}, {"beta2": 0.9}, {"beta2": 0.98}]
    rows = [{**base, **moved[2], "loss": 3.0}, {**base, "loss": 3.0}]
    rows += [{**base, **change, "loss": 3.1} for change in moved[:2] + moved[3:]]
    assert found(rows, "grid_edge") == []  # beta2 = 0.9 would be on an edge, and without a sweep of lr


def test_unequal_tuning() -> None:
    few = [row for row in good() if not is_adamw(row) or (row["weight_decay"] == 0.05 and row["lr"] >= 0.002)]
    finding = one(few, "unequal_tuning", "error")
    assert "adamw 4, muon 15 (1m, 100M tokens)" in finding.detail and len(finding.rows) == 16
    swapped = [{**row, "optimizer": "muon" if is_adamw(row) else "adamw"} for row in few]
    one(swapped, "unequal_tuning", "warning")


def test_a_baseline_cut_to_its_default() -> None:
    rows = [row for row in good() if not is_adamw(row) or (row["lr"], row["weight_decay"]) == (0.001, 0.05)]
    details = [finding.detail for finding in found(rows, "untuned_baseline") if finding.severity == "error"]
    assert "has one configuration where a challenger has several" in details[0]
    assert "learning rate of a known default, 0.001, and no other" in details[1]
    one(rows, "unequal_tuning", "error")
    fixed = [row for row in good() if not is_adamw(row) or row["lr"] == 0.004]
    assert "has one learning rate only" in one(fixed, "untuned_baseline", "error").detail
    tenth = [{**row, "weight_decay": 0.1, "betas": [0.9, 0.999]} for row in good() if row["weight_decay"] == 0.05]
    detail = one(tenth, "untuned_baseline", "note").detail
    assert "weight_decay 0.1" in detail and "betas (0.9, 0.999)" in detail


def test_rows_before_the_end_of_their_schedule() -> None:
    early = [{**row, "tokens": 1e8, "loss": row["loss"] + 0.3} for row in good() if row["tokens"] == 2e8][:4]
    finding = one(good() + early, "mid_schedule", "error")
    assert finding.rows == tuple(range(len(good()) + 2, len(good()) + 6)) and "adamw at 50%" in finding.detail
    assert "cherry_picked_step" in audit(from_table(numbered(good() + early), "runs.csv")).checked
    elsewhere = [{**row, "tokens": 1.5e8} for row in early]
    one(good() + elsewhere, "mid_schedule", "warning")
    alone = [row for row in good() if row["tokens"] == 1e8] + elsewhere
    one(alone, "mid_schedule", "error")  # no end in the table


def test_steps_of_one_run_and_the_lowest_of_them() -> None:
    plain = [{k: v for k, v in row.items() if k != "horizon_tokens"} | {"step": 100} for row in good()]
    early = [{**row, "step": 50, "loss": row["loss"] - 0.02} for row in plain[:2]]
    assert one(plain + early, "mid_schedule", "error").rows == (len(plain) + 2, len(plain) + 3)
    finding = one(plain + early, "cherry_picked_step", "warning")
    assert "lowest loss of a run is not its last" in finding.detail and len(finding.rows) == 4
    curve = [{**row, "run_id": f"r{i}"} for i, row in enumerate(plain)]
    curve += [{**row, "tokens": row["tokens"] / 2, "loss": row["loss"] + 0.2, "step": 50} for row in curve]
    assert "with more tokens" in one(curve, "mid_schedule", "warning").detail
    assert found(curve, "cherry_picked_step") == []
    twice = [*good(), good()[7]]
    assert "no step, seed or setting" in one(twice, "mid_schedule", "error").detail


def test_a_minimum_in_place_of_the_last_loss() -> None:
    rows = [{**row, "final_loss": row["loss"] + 0.01} for row in good()]
    assert "by up to 0.0100 nats" in one(rows, "cherry_picked_step", "error").detail
    one([{**row, "best_loss": row["loss"]} for row in good()], "cherry_picked_step", "warning")
    assert found([{**row, "best_loss": row["loss"] - 0.01} for row in good()], "cherry_picked_step") == []


def test_nothing_in_common_and_missing_cells() -> None:
    apart = [{**row, "tokens": row["tokens"] * (1 if is_adamw(row) else 3)} for row in good()]
    apart = [{**row, "horizon_tokens": row["tokens"]} for row in apart]
    assert "no size and length in common" in one(apart, "cherry_picked_step", "error").detail
    rows = [row for row in good() if not is_adamw(row) or row["tokens"] == 1e8]
    assert "1m, 200M tokens has muon" in one(rows, "missing_cells", "warning").detail
    holed = [row for row in good() if (row["lr"], row["weight_decay"], row["optimizer"]) != (0.016, 0.2, "muon")]
    assert "muon lacks 1 of 15, such as lr 0.016, weight_decay 0.2" in one(holed, "missing_cells", "note").detail


def test_undecayed_learning_rates() -> None:
    constant = [{**row, "schedule": "constant"} for row in good()]
    one(constant, "lr_not_decayed", "warning")
    half = [{**row, "schedule": "constant_with_warmup" if is_adamw(row) else "cosine"} for row in good()]
    assert "60 runs of adamw end at up to 100%" in one(half, "lr_not_decayed", "error").detail
    assert {finding.rule for finding in found(half)} == {"lr_not_decayed", "conditions_differ"}
    assert found([{**row, "min_lr_ratio": 0.1} for row in good()], "lr_not_decayed") == []
    one([{**row, "min_lr_ratio": 0.5} for row in good()], "lr_not_decayed", "warning")
    one([{**row, "final_lr": row["lr"] / 2} for row in good()], "lr_not_decayed", "warning")


def test_conditions() -> None:
    batch = [{**row, "batch_tokens": 4096 if is_adamw(row) else 8192} for row in good()]
    finding = one(batch, "conditions_differ", "error")
    assert "batch_tokens differs: adamw 4096, muon 8192 (1m, 100M tokens)" in finding.detail
    tried = [{**row, "batch_tokens": 16384, "loss": row["loss"] + 1} for row in batch]
    assert "tuned for each" in one(batch + tried, "conditions_differ", "warning").detail
    one([{**row, "precision": "bf16" if is_adamw(row) else "fp32"} for row in good()], "conditions_differ", "error")
    one([{**row, "task.width": 64 if is_adamw(row) else 65} for row in good()], "conditions_differ", "error")


def test_leads_and_seeds() -> None:
    """Muon leads by 0.05 nats."""
    assert one(good(), "few_seeds", "error", noise_nats=0.05).rows
    single = [{k: v for k, v in row.items() if k != "seed"} for row in good() if row["seed"] == 0]
    assert "rests on a noise of 0.003 nats" in one(single, "few_seeds", "note").detail
    small = [{**row, "loss": row["loss"] + 0.045 * (not is_adamw(row))} for row in single]
    error, note = found(small, "few_seeds")
    assert (error.severity, note.severity) == ("error", "note") and "muon -0.0050 nats" in error.detail
    partly = [row if row["tokens"] == 1e8 else single[i] for i, row in enumerate(small)]
    assert [finding.severity for finding in found(partly, "few_seeds")] == ["warning", "note"]
    behind = [{**row, "loss": row["loss"] + 0.06 * (not is_adamw(row))} for row in good()]
    assert found(behind, "few_seeds") == []


def test_a_choice_within_the_noise_is_noted() -> None:
    rows = [{**row, "loss": row["loss"] + 0.02 * row["seed"]} for row in good()]
    detail = one(rows, "threshold_below_noise", "note").detail
    assert "adamw by 0.0050 of 0.0" in detail


def test_tables_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match="no column 'tokens'"):
        found([{"optimizer": "adamw", "loss": 3.0}])
    with pytest.raises(UsageError, match="--tuned goes with"):
        from_table(numbered(good()), "runs.csv", [{"optimizer": "adamw"}])
    row = {"optimizer": "adamw", "size": "1m", "hyperparameter": "lr", "value": 0.1, "loss": 3.0}
    with pytest.raises(UsageError, match="'tokens' or 'chinchilla'"):
        found([row])
    with pytest.raises(UsageError, match="line 3: hyperparameter and value"):
        found([{**row, "chinchilla": 1}, {**row, "chinchilla": 1, "value": None}])


def ablations(values: dict[float, float], **more: Any) -> list[dict]:
    cell = {"optimizer": "adamw", "size": "1m", "chinchilla": 1}
    return [{**cell, "hyperparameter": "lr", "value": lr, "loss": loss, **more} for lr, loss in values.items()]


def test_ablations_without_their_tuned_point_say_so() -> None:
    assert found(ablations({0.001: 3.1, 0.002: 3.0, 0.004: 3.1}), "grid_edge") == []  # the tuned one is next to 0.002
    assert "unless the tuned value" in one(ablations({0.001: 3.0, 0.002: 3.1}), "grid_edge", "warning").detail
    other = [{**ablations({0.001: 3.0})[0], "hyperparameter": "beta2"}]
    assert "worse by 0.0500 nats or more" in one(ablations({0.002: 3.05}) + other, "grid_edge", "warning").detail


def test_ablations_with_their_tuned_point_are_slices() -> None:
    tuned = [{"optimizer": "adamw", "size": "1m", "chinchilla": 1, "config_json": '{"lr": 0.004, "betas": [0.9, 0.95]}',
              "line": "tuned.csv:2"},
             {"optimizer": "adamw", "size": "1m", "chinchilla": 1, "loss": 2.98, "line": "losses.csv:2"}]  # fmt: skip
    rows = numbered(ablations({0.001: 3.1, 0.002: 3.0, 0.008: 3.1}))
    assert not any(f.rule == "grid_edge" for f in audit(from_table(rows, "a.csv", tuned)).findings)
    (finding,) = (f for f in audit(from_table(rows[:2], "a.csv", tuned)).findings if f.rule == "grid_edge")
    assert finding.severity == "error" and finding.rows == (2, 3, "tuned.csv:2")
    assert finding.detail == "adamw lr is at an open edge: 0.004 of 0.001, 0.002, 0.004, last step 0.0200 nats (1m 1x)"


def test_ablations_that_list_the_tuned_point_need_no_other_table() -> None:
    rows = ablations({0.001: 3.1, 0.002: 3.0})
    rows += [{**rows[0], "hyperparameter": "beta2", "value": v, "loss": x} for v, x in ((0.9, 3.1), (0.95, 3.0))]
    findings = found(rows, "grid_edge")
    assert [(f.severity, f.detail.split(":")[0]) for f in findings] == [
        ("error", "adamw lr is at an open edge"), ("warning", "adamw beta2 is at an open edge"),
    ]  # fmt: skip


def test_a_store_is_audited_with_all_that_determined_its_runs() -> None:
    def record(name: str, lr: float, seed: int, loss: float, **changes: Any) -> Record:
        spec = RunSpec(task="made-up", optimizer=name, horizon_tokens=1024, batch_tokens=64, seed=seed,
                       hyperparameters={"opt.lr": lr}, **changes)  # fmt: skip
        return Record(spec=spec, outcome="ok", final_loss=loss, tokens=1024, params={"hidden": 10})

    records = [
        record(name, lr, seed, 3.0 + abs(lr - 0.02) + 1e-5 * seed - (name == "muon") * 0.1)
        for name in ("adamw", "muon") for lr in (0.01, 0.02, 0.04) for seed in (0, 1)
    ]  # fmt: skip
    assert audit(from_store(records)).findings == ()
    worse = [record("muon", 0.02, seed, 2.8, schedule=Schedule(kind="constant"), precision="bf16") for seed in (0, 1)]
    found = audit(from_store([*records, *worse])).findings
    by_rule = {finding.detail.split(" ")[0]: finding for finding in found if finding.rule == "conditions_differ"}
    assert {"precision", "schedule.kind"} <= by_rule.keys()
    assert worse[0].spec.key in by_rule["precision"].rows
    assert any(finding.rule == "lr_not_decayed" for finding in found)


def test_the_published_ablations_as_they_are(published) -> None:
    """Wen et al. 2025: most optima are interior or flat, and what is open is open."""
    rows = read_rows(published(f"{SWEEP}ablations.csv"), None, ("loss",))
    alone = audit(from_table(rows, "ablations.csv"))
    assert alone.count("error") == 0 and "grid_edge" in alone.checked
    files = [published(f"{SWEEP}{name}.csv") for name in ("configs", "losses")]
    tuned = [{**r, "line": f"{p.name}:{r['line']}"} for p in files for r in read_rows(p, None, ("optimizer",))]
    merged = audit(from_table(rows, "ablations.csv", tuned)).findings
    errors = [finding for finding in merged if finding.severity == "error"]
    assert {finding.rule for finding in errors} == {"grid_edge"}
    where = {f.detail.split(" is at")[0]: re.findall(r"\((\S+ \d+x)\)", f.detail) for f in errors}
    assert where == {"adamw weight_decay": ["300m 2x", "300m 8x"], "adamw learning_rate": ["300m 4x", "1.2b 1x"]}
    text = " ".join(f.detail for f in merged if f.severity != "note" and f.detail.startswith("adamw learning_rate"))
    assert "130m" not in text and "300m 1x" not in text and "300m 2x" not in text  # interior, interior, flat


def test_the_published_losses_have_no_error(published) -> None:
    path = published(f"{SWEEP}losses.csv")
    result = audit(from_table(read_rows(path), path.name))
    assert result.count("error") == 0 and result.count("warning") == 1
    assert {"grid_edge", "unequal_tuning", "untuned_baseline"} <= result.skipped.keys()


def wide(published) -> list[dict]:
    """The tuned points and the ablations around them of 130m at 1x, a run a row with all its settings."""
    tuned, rows = {}, []
    for row in read_rows(published(f"{SWEEP}configs.csv"), None, ("optimizer",)):
        tuned[row["optimizer"], row["size"], row["chinchilla"]] = json.loads(row["config_json"])
    for row in read_rows(published(f"{SWEEP}losses.csv")):
        key = (row["optimizer"], row["size"], row["chinchilla"])
        if key[1:] == ("130m", 1):
            rows.append({**{n: row[n] for n in ("optimizer", "size", "params", "tokens", "loss")}, **tuned[key]})
    for row in read_rows(published(f"{SWEEP}ablations.csv"), None, ("loss",)):
        base = next((r for r in rows if r["optimizer"] == row["optimizer"]), None)
        if (row["size"], row["chinchilla"]) == ("130m", 1) and base:
            rows.append({**base, row["hyperparameter"]: row["value"], "loss": row["loss"]})
    return rows


def test_a_crippled_copy_of_the_published_runs(published) -> None:
    rows = wide(published)
    assert not any(finding.severity == "error" for finding in found(rows))
    for kept in (lambda lr: lr <= 0.008, lambda lr: lr >= 0.008):
        cut = [row for row in rows if not is_adamw(row) or kept(row["learning_rate"])]
        assert "adamw learning_rate is at an open edge" in found(cut, "grid_edge")[0].detail
        assert found(cut, "grid_edge")[0].severity == "error"
    first = next(i for i, row in enumerate(rows) if is_adamw(row))
    default = [row for i, row in enumerate(rows) if not is_adamw(row) or i == first]
    assert {f.rule for f in found(default) if f.severity == "error"} >= {"untuned_baseline", "unequal_tuning"}
    other = [{**row, "data": "a" if is_adamw(row) else "b"} for row in rows]
    assert "data differs" in one(other, "conditions_differ", "error").detail
