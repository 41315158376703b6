"""What a transfer study plans: every run that it may make, what they cost, and the coordinate check before them."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the worlds, which pytest's importlib mode does not find

import coordinate_world
from transfer_world import World

from muonlab.errors import UsageError
from muonlab.records.transfer_evidence import TransferEvidence
from muonlab.records.watch import Watch
from muonlab.study.config import TransferConfig, flattened, load_config, validated
from muonlab.study.protocol import drive
from muonlab.study.telescoping import num_points
from muonlab.study.transfer_fairness import conclude_transfer
from muonlab.study.transfer_plan import TransferPlan, plan_transfer, runs_of

SMALL = {
    "task": "text-synthetic", "widths": (8, 16, 32), "final": 32, "horizon_tokens": 4096, "batch_tokens": 512,
    "settings": {"task.seq_len": 32},
}  # fmt: skip


def test_a_plan_has_every_optimizer_parametrization_and_width() -> None:
    plan = plan_transfer(TransferConfig(**SMALL, parametrizations=("standard", "mup"), survey=True))
    assert [subject.name for subject in plan.subjects] == [
        f"{o} {p}" for p in ("standard", "mup") for o in ("adamw", "muon")
    ]
    for subject in plan.subjects:
        assert list(subject.specs) == [8, 16, 32]
        for width, spec in subject.specs.items():
            assert spec.get("task.width") == width and spec.parametrization == subject.parametrization
            assert subject.parametrization == "standard" or spec.base == {"width": 8}
    assert plan.rules.baseline == "adamw standard"
    assert plan_transfer(TransferConfig(**SMALL)).rules.baseline == "adamw"


def test_a_price_counts_every_mesh() -> None:
    plan = plan_transfer(TransferConfig(**SMALL, optimizers=("adamw",), survey=True))
    counts = runs_of(plan.subjects[0], plan.rules)
    meshes = {width: num_points(7, 8, width, 2) ** 2 * 2 for width in (8, 16)}
    assert {width: least for width, (least, _) in counts.items()} == {
        8: meshes[8] + 14, 16: meshes[16] + 14, 32: 4 * 2 + 14 + 3 if num_points(7, 8, 32, 2) > 1 else 17,
    }  # fmt: skip
    price = plan.price()
    checked = 3 * 3  # widths and seeds of the coordinate check, whose runs are as long
    assert price.least_runs == sum(least for least, _ in counts.values()) + checked <= price.most_runs
    unchecked = plan_transfer(TransferConfig(**SMALL, optimizers=("adamw",), survey=True, coordinates=False)).price()
    assert price.most_runs - unchecked.most_runs == price.least_runs - unchecked.least_runs == checked
    assert price.check.least_runs == checked and price.check.least_tokens == checked * 4096 and unchecked.check is None
    assert price.parts[: len(price.check.parts)] == price.check.parts
    assert price.least_tokens == 4096 * price.least_runs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"widths": (8,)}, "two or more ascending widths"),
        ({"widths": (16, 8)}, "ascending"),
        ({"final": None}, "--final"),
        ({"final": 16}, "no narrower"),
        ({"widths": (8, 16), "survey": True}, "three widths"),
        ({"parametrizations": ("nup",)}, "did you mean 'mup'"),
        ({"parametrizations": ("mup", "mup")}, "each once"),
        ({"settings": {"task.width": 8}}, "--widths"),
        ({"tune": ("opt.lr", "opt.weight_decay", "opt.beta1", "opt.beta2")}, "at most 3"),
        ({"tune": ("opt.weight_decay",)}, "must name opt.lr"),
        ({"tune": ("opt.lr", "clip")}, "clip is not"),
        ({"settings": {"opt.weight_decay": 0.0}}, "no log mesh"),
        ({"max_runs": 100}, "raise --max-runs"),
        ({"coordinate_widths": (4, 64, 2)}, "no narrower than the base model, .* 8,16,32: leave out 4,2"),
        ({"widths": (0, 8, -1)}, "--widths must be 1 or more, got 0,-1"),
        ({"tune": ("opt.lr", "opt.lr")}, "names opt.lr twice"),
        (
            {"widths": (7, 8, 9), "final": 16, "coordinate_widths": (11,)},
            r"^--widths 7,9 --coordinate-widths 11: width / num_heads must be even .*, got 7 / 1",
        ),
        ({"widths": (7, 9), "final": 13}, "^--widths 7,9 --final 13: width"),
        ({"batch_tokens": 500}, "^batch_tokens 500 must be a multiple"),
        ({"task": "matrix", "settings": {}, "batch_tokens": 1}, "needs a task with an option `width`: unknown"),
        ({"coordinate_widths": (64,), "coordinates": False}, "which --no-coordinates leaves out"),
    ],
)
def test_bad_input_is_refused_in_one_line(changes: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        plan_transfer(TransferConfig(**{**SMALL, **changes}))
    assert "\n" not in str(error.value)


def made(plan: TransferPlan, layers: coordinate_world.World) -> tuple[TransferEvidence, World, list[list[str]]]:
    """A planned study in a world in which layers move, too; the keys of every request."""
    world, asked, checked = World(), [], plan.watch.runs

    def run(specs):
        asked.append([spec.key for spec in specs])
        layered = layers([spec for spec in specs if spec.key in checked])
        world.records |= layered
        return world([spec for spec in specs if spec.key not in checked]) | layered

    return drive(plan.protocol({}), run), world, asked


CHECKED = {**SMALL, "parametrizations": ("standard", "mup"), "coordinate_widths": (24, 64), "survey": True}


def test_the_coordinate_check_comes_first_and_its_runs_alone_are_looked_at() -> None:
    plan = plan_transfer(TransferConfig(**CHECKED))
    evidence, world, asked = made(plan, coordinate_world.World(change={("muon", "mup"): -0.6}))
    assert set(asked[0]) == plan.watch.runs and not plan.watch.runs & {key for keys in asked[1:] for key in keys}
    assert {key for key in world.records if plan.watch.of(world.records[key].spec).coordinates} == plan.watch.runs
    assert evidence.coordinates is not None and evidence.coordinates.widths == (8, 16, 24, 32, 64)
    assert TransferEvidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
    assert set(evidence.record_keys()) == set(world.records)
    assert set(evidence.arm_keys()) == set(world.records) - plan.watch.runs
    assert evidence.coordinates.predictions == plan.check.predictions


def test_a_parametrization_that_fails_its_check_is_a_warning_and_withholds_nothing() -> None:
    for power, severity in ((-0.6, "warning"), (0.0, "")):
        plan = plan_transfer(TransferConfig(**CHECKED))
        layers = coordinate_world.World(
            change={("muon", "mup"): power, ("adamw", "standard"): 0.5},
            update={(n, "mup"): -1.0 if n == "muon" else 0.0 for n in ("adamw", "muon")} | {("adamw", "standard"): 0.7},
            noise=0.01,
        )
        evidence, world, _ = made(plan, layers)
        finding = conclude_transfer(evidence, world.records)
        checks = {check.name: check for check in finding.checks}
        assert checks["same_conditions"].ok and "Verdict withheld" not in finding.verdict
        assert checks["coordinates"].ok and checks["coordinates"].severity == severity
        assert ("muon mup" in checks["coordinates"].detail.partition("failed by")[2]) == (severity == "warning")


def test_the_coordinate_check_can_be_left_out() -> None:
    plan = plan_transfer(TransferConfig(**SMALL, coordinates=False))
    evidence, world, _ = made(plan, coordinate_world.World())
    assert plan.check is None and plan.watch == Watch() and evidence.coordinates is None
    finding = conclude_transfer(evidence, world.records)
    assert finding.coordinates is None and "coordinates" not in {check.name for check in finding.checks}


def test_the_study_that_ships_can_be_planned() -> None:
    values = load_config(Path(__file__).parents[2] / "studies" / "transfer.toml")
    named = {"tokens": "horizon_tokens", "seeds": "num_seeds", "hyperparameters": "tune"}
    values = {named.get(name, name): value for name, value in values.items()}
    plan = plan_transfer(validated({**values, "settings": flattened(values["settings"])}, TransferConfig))
    assert len(plan.subjects) == 6 and plan.rules.survey and plan.rules.widths == (16, 32, 64, 128)
