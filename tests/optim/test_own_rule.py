"""A rule, or an optimizer class, in a file of the user's is an optimizer like any other."""

import copy
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.optim import AdamWRule, MuonRule, catalog
from muonlab.testing import check

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_rule.py"
RULE = '''
from dataclasses import dataclass
from typing import ClassVar

from muonlab.optim import AdamWRule, Engine, LionRule, MuonRule, Rule, StateField, hp


@dataclass(frozen=True, kw_only=True)
class PlainRule(Rule):
    """The gradient."""

    name: ClassVar[str] = "plain"
    numerics_version: ClassVar[str] = "3"
    source: ClassVar[str] = "made up"

    lr: float = hp(0.1, grid=(0.05, 0.1, 0.2), low=0.0, source="ours")
    betas: tuple[float, float] = hp((0.5, 0.9), parts=("beta1", "slow"), grid=((0.5, 0.6), ()), low=0.0, high=1.0)
    weight_decay: float = hp(0.0, low=0.0)

    def local(self, g, w, state, t):
        return g * self.betas[0]


@dataclass(frozen=True, kw_only=True)
class RowsRule(Rule):
    """Each row of a matrix at unit norm."""

    name: ClassVar[str] = "rows"
    numerics_version: ClassVar[str] = "1"
    source: ClassVar[str] = "made up"
    lr: float = hp(0.1, grid=(0.05, 0.1, 0.2), low=0.0)
    weight_decay: float = hp(0.0, grid=(0.0, 0.1), low=0.0)

    def local(self, g, w, state, t):
        return g.clone()

    def matrix(self, u, state, t):
        return u / u.norm(dim=-1, keepdim=True).clamp(min=1e-30)


class Rows(Engine):
    rule = RowsRule
    companion = LionRule
    companion_defaults: ClassVar = {"betas": (0.8, 0.9)}


class MuonLion(Engine):
    rule = MuonRule
    companion = LionRule
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(RULE)
    return path


def sha(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def step(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    model.zero_grad()
    model(torch.arange(12.0).reshape(3, 4) / 10).square().sum().backward()
    optimizer.step()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def test_what_a_run_remembers(file):
    info = catalog.locate(f"{file}:PlainRule")
    assert (info.name, info.source, info.named) == ("mine:PlainRule", str(file), info.cls)
    assert info.numerics == f"{sha(file)}+plain:3"
    assert info.cls.__name__ == "Plain" and info.cls.rule.name == "plain" and info.cls.companion is None
    again = catalog.locate(info.name, info.source)
    assert again == info and catalog.get(info.name, info.source, numerics=info.numerics) is info.cls
    assert catalog.numerics_version(info.name, info.source) == info.numerics
    assert not set(catalog.names()) & {info.name, "plain"}


def test_an_importable_module(file, monkeypatch):
    path = file.rename(file.with_name("importable_rule.py"))
    monkeypatch.syspath_prepend(path.parent)
    info = catalog.locate("importable_rule:PlainRule")
    assert (info.name, info.source) == ("importable_rule:PlainRule", "")
    assert info.numerics == f"{sha(path)}+plain:3" and catalog.get(info.name) is info.cls


def test_the_space_is_what_the_rule_declares(file):
    plain = catalog.locate(f"{file}:PlainRule").cls
    assert [(h.name, h.default, h.grid) for h in catalog.hyperparameters(plain)] == [
        ("opt.lr", 0.1, (0.05, 0.1, 0.2)), ("opt.beta1", 0.5, (0.5, 0.6)), ("opt.slow", 0.9, ()),
        ("opt.weight_decay", 0.0, ()),
    ]  # fmt: skip
    assert [h.name for h in catalog.space(plain)] == ["opt.lr", "opt.beta1"]
    assert catalog.settable(plain) == {"opt.lr", "opt.beta1", "opt.slow", "opt.weight_decay", "opt.decay"}
    assert catalog.conventions(plain) == {"weight decay": "decoupled"}


def test_a_rule_for_matrices_has_adamw_beside_it(file):
    info = catalog.locate(f"{file}:RowsRule")
    assert info.cls.companion is AdamWRule and info.numerics == f"{sha(file)}+rows:1+adamw:1"
    found = {h.name: h for h in catalog.hyperparameters(info.cls)}
    assert found["aux.lr_ratio"] == catalog.LR_RATIO and found["aux.beta2"].default == 0.95
    optimizer = catalog.build(info.cls, model(), None, {"opt.lr": 0.5, "aux.lr_ratio": 0.1, "aux.beta1": 0.7})
    groups = {group["role"]: group for group in optimizer.param_groups}
    assert groups["hidden"]["algorithm"] == "rows" and groups["hidden"]["lr"] == 0.5
    assert groups["head"]["lr"] == pytest.approx(0.05) and groups["head"]["betas"] == (0.7, 0.95)


def test_an_optimizer_class_of_the_user_stays_as_it_is(file):
    info = catalog.locate(f"{file}:Rows")
    assert info.cls.__name__ == "Rows" and info.numerics == f"{sha(file)}+rows:1+lion:1"
    assert "aux.eps" not in {h.name for h in catalog.hyperparameters(info.cls)}
    mixed = catalog.locate(f"{file}:MuonLion")
    assert mixed.cls.rule is MuonRule and mixed.numerics == f"{sha(file)}+muon:2+lion:1"
    assert catalog.polar_description(mixed.cls) == catalog.polar_description("muon")


def test_a_step_is_the_mathematics_of_the_rule(file):
    net = model()
    optimizer = catalog.build(catalog.get(f"{file}:PlainRule"), net, None, {"opt.lr": 0.2, "opt.beta1": 0.25})
    before = [p.detach().clone() for p in net.parameters()]
    step(optimizer, net)
    for p, start in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), start - 0.2 * 0.25 * p.grad)


def test_the_class_of_a_rule_is_always_the_same_and_named_after_it(file):
    rule = catalog.get(f"{file}:PlainRule").rule
    cls = catalog.optimizer_class(rule)
    assert cls is catalog.optimizer_class(rule) and cls is catalog.get(f"{file}:PlainRule")
    assert (cls.__name__, cls.__qualname__, cls.__module__) == ("Plain", "Plain", rule.__module__)
    assert cls.__doc__ == "The gradient." and repr(cls([torch.nn.Parameter(torch.ones(2))])).startswith("Plain (")


@pytest.mark.parametrize("name", ["PlainRule", "RowsRule", "Rows"])
def test_an_optimizer_of_a_users_rule_is_copied_and_pickled(file, name):
    net = model()
    optimizer = catalog.build(catalog.get(f"{file}:{name}"), net)
    step(optimizer, net)
    for carry in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        twin, other = carry((optimizer, net))
        assert type(twin) is type(optimizer) and twin.explain() == optimizer.explain()
        step(twin, other)
        step(optimizer, net)
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


LOAD = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
optimizer = pickle.load(open(sys.argv[2], "rb"))
optimizer.step()
print(type(optimizer).__module__, type(optimizer).__name__, optimizer.param_groups[0]["lr"])
"""


def test_another_process_loads_a_pickle_where_it_can_import_the_rule(file, monkeypatch, tmp_path):
    path = file.rename(file.with_name("pickled_rule.py"))
    monkeypatch.syspath_prepend(path.parent)
    net = model()
    optimizer = catalog.build(catalog.get("pickled_rule:PlainRule"), net, None, {"opt.lr": 0.3})
    step(optimizer, net)
    (tmp_path / "pickle").write_bytes(pickle.dumps(optimizer))
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(path.parent), str(tmp_path / "pickle")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "pickled_rule Plain 0.3\n", done.stderr


def test_a_class_derived_from_a_made_one_is_pickled_as_any_class(file):
    made = catalog.get(f"{file}:PlainRule")
    derived = type("Derived", (made,), {"__module__": __name__})
    optimizer = derived([nn.Parameter(torch.ones(2))])
    with pytest.raises(pickle.PicklingError, match="Derived"):
        pickle.dumps(optimizer)
    assert type(copy.deepcopy(optimizer)) is derived


def test_an_edited_file_is_another_optimizer(file):
    before = catalog.locate(f"{file}:PlainRule")
    file.write_text(RULE.replace("hp(0.1, grid", "hp(0.2, grid"))
    after = catalog.locate(f"{file}:PlainRule")
    assert after.numerics != before.numerics and after.cls is not before.cls
    assert [catalog.hyperparameters(info.cls)[0].default for info in (before, after)] == [0.1, 0.2]
    with pytest.raises(UsageError, match=r"mine\.py has changed since the study began: start it again"):
        catalog.get(before.name, before.source, numerics=before.numerics)


def test_a_neighbour_that_defines_the_rule_counts(tmp_path):
    (tmp_path / "rule_next_door.py").write_text(RULE)
    file = tmp_path / "front.py"
    file.write_text("from rule_next_door import PlainRule, Rows\n")
    before = [catalog.numerics_version(f"{file}:{name}") for name in ("PlainRule", "Rows")]
    (tmp_path / "rule_next_door.py").write_text(RULE + "\n")
    after = [catalog.numerics_version(f"{file}:{name}") for name in ("PlainRule", "Rows")]
    assert not set(before) & set(after)


def test_the_example_is_a_rule_that_holds_every_clause():
    info = catalog.locate(f"{EXAMPLE}:MyRule")
    assert info.name == "own_rule:MyRule" and check(info.cls.rule) == [] and check(info.cls) == []
    assert {h.name for h in catalog.space(info.cls)} == {"opt.lr", "opt.momentum", "opt.weight_decay"}
    net = model()
    optimizer = info.cls(net, lr=0.01, momentum=0.0)
    before = [p.detach().clone() for p in net.parameters()]
    step(optimizer, net)
    for p, start in zip(net.parameters(), before, strict=True):
        moved = (p - start).detach()
        assert moved.square().mean().sqrt().item() == pytest.approx(0.01, rel=1e-4)
        torch.testing.assert_close(moved / moved.norm(), -p.grad / p.grad.norm())


HEAD = "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom muonlab.optim import Engine, Rule, hp\n"
DECORATED = "@dataclass(frozen=True, kw_only=True)\n"
LR = "    lr: float = hp(0.1)\n"
DECAY = "    weight_decay: float = hp(0.0)\n"
NAME = '    name: ClassVar[str] = "mine"\n'
LOCAL = "    def local(self, g, w, state, t):\n        return g.clone()\n"
CLASS = "class R(Rule):\n"
GOOD = [DECORATED, CLASS, NAME, LR, DECAY, LOCAL]


def without(part: str) -> str:
    return "".join(line for line in GOOD if line != part)


def instead(part: str, other: str) -> str:
    return "".join(other if line == part else line for line in GOOD)


MISTAKES = {
    "no decorator": (without(DECORATED), r"R is no dataclass: write @dataclass\(frozen=True, kw_only=True\) above"),
    "not frozen": (instead(DECORATED, "@dataclass\n"), r"bad\.py, line 4: TypeError: cannot inherit non-frozen"),
    "no name": (without(NAME), 'R has no name, so it is only a base: write name: ClassVar'),
    "a name that is a field": (instead(NAME, '    name: str = "mine"\n'), r"R\.name is not declared: .* or ClassVar"),
    "no lr": (without(LR), r"R declares no lr, .*: write lr: float = hp\(default, grid="),
    "no weight decay": (without(DECAY), "R declares no weight_decay"),
    "no annotation": (instead(LR, "    lr = hp(0.1)\n"), r"line 4: TypeError: 'lr' is a field but has no type"),
    "a plain field": (instead(LR, LR + "    beta: float = 0.9\n"), r"R\.beta is not declared: write hp\(default"),
    "no local": (without(LOCAL) + "    pass\n", r"R has no method local\(self, g, w, state, t\)"),
    "a stage that is never called": (
        instead(LOCAL, LOCAL + "    def finish(self, u, w, state, t):\n        return 2 * u\n"),
        "R has finish and no `matrix`, without which it is never called",
    ),
    "our name": (instead(NAME, NAME.replace("mine", "muon")), "R has the name of our 'muon', .*give it another `name`"),
    "a default out of bounds": (
        instead(LR, "    lr: float = hp(-1.0, low=0.0)\n"), r"fails in its first step, .*ValueError: Invalid learning",
    ),
    "a word for a number": (instead(LR, '    lr: float = hp("fast")\n'), "TypeError: lr must be a number, got 'fast'"),
    "grids that do not fit": (
        instead(LR, LR + '    b: tuple = hp((0.1, 0.2), parts=("x", "y"), grid=((0.1,),))\n'),
        "want a grid each, a tuple of 2 tuples",
    ),
    "an argument of ours": (instead(LR, LR + "    params: float = hp(0.1)\n"), "makes no optimizer: .*params"),
    "a step that raises": (
        instead(LOCAL, LOCAL.replace("g.clone()", "state['m']")),
        r"bad:R fails in its first step, on a matrix and a vector: .*bad\.py, line 10: KeyError: 'm'",
    ),
    "a step for matrices alone": (
        instead(LOCAL, LOCAL.replace("g.clone()", "g @ g.mT @ g")), r"first step.*bad\.py, line 10: RuntimeError",
    ),
    "neither": ("class R:\n    pass\n", r"bad:R is no optimizer: it must be a subclass of Rule or Engine of muonlab"),
    "torch's": ("import torch\nclass R(torch.optim.SGD):\n    pass\n", "bad:R is no optimizer"),
    "an engine without a rule": ("class R(Engine):\n    pass\n", r"bad\.py, line 4: AttributeError: .*'rule'"),
    "no class": ("class Other:\n    pass\n", "unknown class in .*'R'"),
    "raises": ("1 / 0\n", r"importing bad\.py failed: .*bad\.py, line 4: ZeroDivisionError"),
    "a companion of that kind": (
        "".join(GOOD).replace("class R(", "class B(").replace(DECORATED, "")
        + "class R(Engine):\n    from muonlab.optim import MuonRule as rule\n    companion = B\n",
        "B is no dataclass",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_each_mistake_is_one_line(tmp_path, what):
    content, message = MISTAKES[what]
    path = tmp_path / "bad.py"
    path.write_text(HEAD + content)
    with pytest.raises(UsageError, match=message) as error:
        catalog.locate(f"{path}:R")
    assert "\n" not in str(error.value)
    path.write_text(HEAD + "".join(GOOD))
    assert catalog.locate(f"{path}:R").cls.rule.name == "mine"


@pytest.mark.parametrize("base", ["Rule", "Engine", "OrthogonalRule"])
def test_a_base_of_ours_is_no_optimizer(tmp_path, base):
    path = tmp_path / "bases.py"
    path.write_text(f"from muonlab.optim import {base}\n")
    with pytest.raises(UsageError, match=r"no name|no optimizer"):
        catalog.locate(f"{path}:{base}")


def test_looking_for_mistakes_leaves_torchs_generator_alone(file):
    before = torch.get_rng_state()
    catalog.locate(f"{file}:RowsRule")
    assert torch.equal(before, torch.get_rng_state())
