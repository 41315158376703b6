"""Names, spaces and building from dotted names."""

import dataclasses
import inspect
import math

import pytest
import torch
from torch import nn

from muonlab.errors import UsageError
from muonlab.optim import Hyperparameter, catalog
from muonlab.optim.rule import declarations


def constructor_default(name: str, key: str):
    """The default of the argument that a dotted name sets, or of its part."""
    cls = catalog.get(name)
    parameters = inspect.signature(cls).parameters
    prefix, leaf = key.split(".")
    start, rule = ("aux_", cls.companion) if prefix == "aux" else ("", cls.rule)
    for field, declaration in declarations(rule).items():
        if leaf in declaration.parts:
            return parameters[start + field].default[declaration.parts.index(leaf)]
    return parameters[start + leaf].default


@pytest.mark.parametrize("name", catalog.names())
def test_space(name: str) -> None:
    space = catalog.space(name)
    assert len({h.name for h in space}) == len(space) and space[0].name == "opt.lr"
    for h in space:
        assert h.grid == tuple(sorted(set(h.grid))) and h.source and dataclasses.is_dataclass(h)
        assert all(h.low <= value and (h.high is None or value < h.high) for value in h.grid)
        if h.name != "aux.lr_ratio":
            assert h.default == constructor_default(name, h.name)
    lr = space[0]
    assert lr.log and lr.unit and all(b == pytest.approx(2 * a) for a, b in zip(lr.grid, lr.grid[1:], strict=False))


def test_spaces_hold_the_published_names() -> None:
    assert {h.name for h in catalog.space("adamw")} == {
        *("opt.lr", "opt.beta1", "opt.beta2", "opt.eps", "opt.weight_decay")
    }
    assert {h.name for h in catalog.space("muon")} == {
        *("opt.lr", "opt.momentum", "opt.weight_decay", "aux.lr_ratio", "aux.beta1", "aux.beta2", "aux.eps")
    }
    ratio = next(h for h in catalog.space("muon") if h.name == "aux.lr_ratio")
    assert ratio.default == 0.3 and set(ratio.grid) >= {0.1, 0.2, 0.3}


def test_extension() -> None:
    lr = Hyperparameter("opt.lr", 1e-3, (0.004, 0.008, 0.024), low=0.0)
    assert lr.extend("high") == 0.072 and lr.extend("low") == 0.002
    decay = Hyperparameter("opt.weight_decay", 0.1, (0.0, 0.1, 0.2), low=0.0)
    assert decay.extend("high") == 0.4 and decay.extend("low") is None
    assert decay.is_natural_bound(0.0) and not decay.is_natural_bound(0.2)
    beta = Hyperparameter("opt.beta2", 0.9, (0.9, 0.98), low=0.0, high=1.0, high_closed=False, log=False)
    assert beta.extend("high") == 0.99 and beta.extend("low") == 0.8 and not beta.is_natural_bound(1.0)
    assert dataclasses.replace(beta, grid=(0.4, 0.9)).extend("low") is None
    assert dataclasses.replace(lr, grid=()).extend("high") is None
    assert dataclasses.replace(lr, grid=(0.01,)).extend("high") == 0.02
    for h in catalog.space("muon") + catalog.space("adamw"):
        grid = h.grid
        for _ in range(60):  # whatever a search asks for, in bounds and new, or None
            value = dataclasses.replace(h, grid=grid).extend("high")
            if value is None:
                break
            assert value > max(grid) and (h.high is None or value < h.high)
            grid = (*grid, value)
    with pytest.raises(ValueError):
        lr.extend("up")


def test_build() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 9))
    settings = {"opt.lr": 0.02, "opt.momentum": 0.8, "aux.lr_ratio": 0.1, "aux.beta2": 0.98, "opt.nesterov": False}
    roles = {"0.weight": "embedding", "2.weight": "head"}
    optimizer = catalog.build("muon", model.named_parameters(), roles, settings)
    groups = {group["role"]: group for group in optimizer.param_groups}
    assert groups["hidden"]["lr"] == 0.02 and groups["hidden"]["momentum"] == 0.8 and not groups["hidden"]["nesterov"]
    assert groups["head"]["lr"] == pytest.approx(0.002) and groups["head"]["betas"] == (0.9, 0.98)
    assert groups["vector"]["weight_decay"] == 0.0 and groups["head"]["weight_decay"] == 0.1
    adamw = catalog.build("adamw", model, None, {"opt.beta1": 0.8})
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.999)}
    assert catalog.build("muon", model).param_groups[-1]["lr"] == pytest.approx(0.3e-3)
    assert catalog.build("muon", model, None, {"opt.ns_coefficients": "polar_express"}) is not None


@pytest.mark.parametrize("name", catalog.names())
def test_every_grid_value_can_be_built(name: str) -> None:
    for h in catalog.hyperparameters(name):
        for value in (h.default, *h.grid):
            catalog.build(name, [("w", nn.Parameter(torch.ones(2, 2)))], {"w": "hidden"}, {h.name: value})


@pytest.mark.parametrize(
    "name,key,value",
    [
        *[("adamw", "opt.lr", value) for value in (-1.0, math.nan, math.inf, "0.1", None)],
        ("adamw", "opt.beta1", 1.0),
        ("adamw", "opt.weight_decay", -0.1),
        ("muon", "aux.lr_ratio", -0.1),
        ("muon", "aux.beta2", 1.5),
        ("muon", "opt.momentum", math.nan),
        ("muon", "opt.ns_steps", 0),
        ("muon", "opt.adjust_lr_fn", "arbitrary"),
    ],
)
def test_a_bad_value_names_its_key(name: str, key: str, value) -> None:
    with pytest.raises(UsageError, match=key):
        catalog.build(name, nn.Linear(3, 3), None, {key: value})


def test_unknown_names() -> None:
    words = r"did you mean 'muon'\?.*one of your own is path/to/file\.py:Class"
    for ask in (catalog.get, catalog.locate, catalog.numerics_version):
        with pytest.raises(UsageError, match=words) as error:
            ask("muno")
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="did you mean 'muon-4'"):
        catalog.locate("muon4", others=["muon-4"])
    with pytest.raises(UsageError, match=r"did you mean 'opt\.lr'"):
        catalog.build("adamw", nn.Linear(3, 3), None, {"opt.lrr": 0.1})
    for name, key in (("adamw", "aux.lr_ratio"), ("adamw", "opt.momentum"), ("muon", "aux.lr"), ("muon", "lr")):
        with pytest.raises(UsageError, match="unknown hyperparameter"):
            catalog.build(name, nn.Linear(3, 3), None, {key: 0.1})
    with pytest.raises(UsageError, match="sgd"):
        catalog.build("sgd", nn.Linear(3, 3), None, {"opt.nesterov": True})


def test_a_hyphen_may_stand_for_an_underscore() -> None:
    for name in catalog.names():
        info = catalog.locate(name.replace("_", "-"))
        assert (info.name, info.source, info.named) == (name, "", name) and info.cls is catalog.get(name)
        assert info.numerics == catalog.numerics_version(name) and catalog.get(name.replace("_", "-")) is info.cls


@pytest.mark.parametrize("name", catalog.names())
def test_case_does_not_matter_and_a_class_may_be_named(name: str) -> None:
    for written in (name.upper(), name.title(), catalog.get(name).__name__):
        assert catalog.locate(written).name == name and catalog.get(written) is catalog.get(name)
        assert catalog.numerics_version(written) == catalog.numerics_version(name)


@pytest.mark.parametrize("name", catalog.names())
def test_a_class_stands_for_its_name(name: str) -> None:
    cls = catalog.get(name)
    assert catalog.get(cls) is cls and catalog.optimizer_class(cls) is cls and catalog.optimizer_class(cls.rule) is cls
    for ask in (catalog.hyperparameters, catalog.space, catalog.settable, catalog.conventions):
        assert ask(cls) == ask(name)
    assert type(catalog.build(cls, nn.Linear(3, 3), {"weight": "hidden"}, {"opt.lr": 0.5})) is cls


def test_conventions_say_what_there_is_to_say() -> None:
    assert catalog.conventions("adamw") == {"weight decay": "decoupled"}
    assert catalog.conventions("sgd", {"opt.decay": "cautious"}) == {"weight decay": "cautious"}
    assert catalog.conventions("shampoo") == {"weight decay": "decoupled"}
    muon = catalog.conventions("muon", {"opt.adjust_lr_fn": "spectral", "opt.polar": "exact"})
    assert muon == {"weight decay": "decoupled", "scale rule": "spectral", "polar factor": "exact:float64"}
    sphere = catalog.conventions("muon_hyperball")
    assert sphere["weight decay"].startswith("none") and "scale rule" not in sphere


def test_versions_and_polar_description() -> None:
    assert catalog.numerics_version("adamw") == "adamw:1" and catalog.numerics_version("muon") == "muon:2+adamw:1"
    describe = catalog.polar_description
    assert describe("sgd", {}) == "" and describe("muon", {}) == "newton_schulz:jordan:5:bfloat16"
    assert describe("muon", {"opt.ns_steps": 7}) == "newton_schulz:jordan:7:bfloat16"
    assert describe(
        "muon", {"opt.ns_coefficients": "youjiacheng_6", "opt.ns_steps": 6, "opt.polar_dtype": "float32"}
    ) == ("newton_schulz:youjiacheng_6:6:float32")
    assert describe("muon", {"opt.polar": "exact"}) == "exact:float64"
