"""The coordinate check's protocol: what it asks for, what is predicted before anything runs, and its evidence."""

import json
import sys
from pathlib import Path

import pytest

from muonlab.errors import UsageError
from muonlab.records import RunSpec
from muonlab.records.coordinate_evidence import CoordinateEvidence
from muonlab.study.coordinates import parametrized, predict

sys.path.insert(0, str(Path(__file__).parent))  # coordinate_world.py, which pytest's importlib mode does not find

from coordinate_world import KINDS, WIDTHS, World, checked, plan

RUN = RunSpec(task="text", optimizer="muon", horizon_tokens=8, batch_tokens=1)


def powers(optimizer: str, scale: str | None, kind: str) -> tuple[float | None, float | None]:
    run = RUN if optimizer == "muon" else RunSpec(**{**RUN.to_dict(), "optimizer": optimizer})
    found = predict(optimizer, run.set({"opt.adjust_lr_fn": scale}) if scale else run, kind)
    return found.low, found.high


@pytest.mark.parametrize(
    ("scale", "standard", "mup"),
    [
        (None, 0, -1),
        ("original", 0, -1),
        ("spectral", 0, -1),
        ("match_rms_adamw", 0.5, -0.5),
        ("sqrt_max", 0.5, -0.5),
        ("rms_norm", 0.5, -0.5),
    ],
)
def test_what_is_predicted_of_muon(scale: str | None, standard: float, mup: float) -> None:
    for kind, power in zip(KINDS, (standard, mup, 0.0), strict=True):
        assert powers("muon", scale, kind) == (power, power)


def test_powers_are_those_of_the_scales_themselves() -> None:
    """Of shapes of one aspect, wide and tall, by the function that optimizers call."""
    from muonlab.kernels.norms import SCALES, update_scale

    for scale in SCALES:
        for aspect in (1, 4, 0.25):
            gains = [update_scale(int(n * aspect), n, scale) * aspect**-0.5 for n in (64, 256)]
            assert gains[1] / gains[0] == pytest.approx(4 ** powers("muon", scale, "standard")[0])


def test_what_is_predicted_of_the_others() -> None:
    assert [powers("adamw", None, kind) for kind in KINDS] == [(0.5, 1.0), (-0.5, 0.0), (-0.5, 0.0)]
    assert powers("lion", None, "mup") == (-0.5, 0.0) and powers("scion", None, "mup") == (-1.0, -1.0)
    assert powers("shampoo", None, "standard") == (None, None)
    assert "shampoo" in predict("shampoo", RunSpec(**{**RUN.to_dict(), "optimizer": "shampoo"}), "mup").reason


def test_predictions_are_there_before_a_run() -> None:
    laid = plan()
    assert [(p.name, p.parametrization) for p in laid.predictions] == [(n, k) for n in ("adamw", "muon") for k in KINDS]
    evidence, _ = checked(World())
    assert evidence.predictions == laid.predictions


def test_runs_differ_in_what_is_asked_for_and_in_nothing_else() -> None:
    world = World()
    evidence, _ = checked(world)
    specs = [record.spec for record in world.records.values()]
    assert {spec.get("task.width") for spec in specs} == set(WIDTHS) and {spec.seed for spec in specs} == {0, 1, 2}
    for spec in specs:
        assert (spec.schedule.kind, spec.schedule.warmup_fraction, spec.num_steps) == ("constant", 0.0, 8)
        assert spec.get("opt.lr") == evidence.lr[spec.optimizer] and spec.get("task.eval_tokens") == 8192
    for kind in KINDS[1:]:
        wide = parametrized(specs[0], kind, 256, 32)
        assert (wide.parametrization, wide.get("base.width"), wide.is_parametrized) == (kind, 32, True)


def test_the_base_width_is_run_once_for_all_parametrizations() -> None:
    world, laid = World(), plan()
    checked(world)
    assert len(world.records) == 2 * 3 * (3 * (len(WIDTHS) - 1) + 1) == laid.price().least_runs
    assert (
        laid.price().least_tokens
        == laid.price().most_tokens
        == sum(r.spec.horizon_tokens for r in world.records.values())
    )


def test_what_is_watched() -> None:
    assert plan().watch.coordinates == {1, 2, 4, 8} and not plan().watch.eval_steps


def test_lr_is_as_set() -> None:
    settings = {"opt.lr": 0.5, "task.seq_len": 32, "task.eval_tokens": 64}
    laid = plan(settings={**settings, "schedule.kind": "cosine", "averaging": 0.1})
    assert {spec.get("opt.lr") for name in laid.bases for spec in laid.specs(name, "mup", 64)} == {0.5}
    muon = laid.bases["muon"]
    assert (muon.get("task.eval_tokens"), muon.schedule.kind, muon.averaging) == (64, "constant", 0.0)


def test_evidence_survives_json() -> None:
    evidence, _ = checked(World())
    again = CoordinateEvidence.from_dict(json.loads(json.dumps(evidence.to_dict())))
    assert again == evidence and set(again.record_keys()) == {key for run in evidence.runs for key in run.keys}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"widths": (64,)}, "at least two widths"),
        ({"widths": (64, 64)}, "at least two widths"),
        ({"widths": (0, 64)}, "at least two widths"),
        ({"kinds": ("mpu",)}, "unknown parametrization 'mpu'"),
        ({"kinds": ()}, "a parametrization and a seed"),
        ({"num_seeds": 0}, "a parametrization and a seed"),
        ({"settings": {"seed": 1}}, "use --seed"),
        ({"settings": {"task.width": 64}}, "use --widths"),
        ({"settings": {"parametrization": "mup"}}, "use --parametrizations"),
    ],
)
def test_what_can_not_be_checked_is_one_line(values: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan(**values)
