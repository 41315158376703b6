"""What a constructor and a param group accept, and what they refuse."""

import inspect
import math

import pytest
import torch
from stepping import each, each_of_matrices, steps, weights
from torch import nn

import muonlab
from muonlab.optim.rule import declarations


def test_signatures_are_torchs() -> None:
    for name in ("Muon", "AdamW", "SGD"):
        ours = inspect.signature(getattr(muonlab, name)).parameters
        theirs = inspect.signature(getattr(torch.optim, name)).parameters
        positional = [p for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert list(ours)[: len(positional)] == [p.name for p in positional]
        for p in theirs.values():
            assert ours[p.name].default == p.default and ours[p.name].kind is p.kind


@each
@pytest.mark.parametrize("lr", [-1, -1e-9, math.nan, math.inf, "0.1", None, True, torch.tensor([0.1, 0.1])])
def test_bad_lr(cls, arguments, lr) -> None:
    (w,) = weights(1)
    for make in (
        lambda: cls([w], lr=lr),
        lambda: cls([{"params": [w], "lr": lr}]),
        lambda: cls(weights(1, seed=1)).add_param_group({"params": [w], "lr": lr}),
    ):
        with pytest.raises((ValueError, TypeError)):
            make()


@pytest.mark.parametrize(
    "name,arguments",
    [
        *[(name, {"weight_decay": value}) for name in ("Muon", "AdamW", "SGD") for value in (-1, math.nan, "0", None)],
        *[("Muon", {"momentum": value}) for value in (-0.5, 1.0, math.nan, "x")],
        *[("SGD", {"momentum": value}) for value in (-0.5, 1.0, math.nan)],
        ("SGD", {"nesterov": True}),
        ("SGD", {"momentum": 0.9, "dampening": 0.1, "nesterov": True}),
        *[
            ("AdamW", {"betas": value})
            for value in ((1.0, 0.0), (0.9,), (0.9, 0.9, 0.9), 0.9, (0.9, math.nan), (-0.1, 0.9))
        ],
        ("AdamW", {"betas": (0.9, torch.tensor(0.99))}),
        *[("AdamW", {"eps": value}) for value in (-1e-8, math.nan)],
        *[("AdamW", {key: True}) for key in ("amsgrad", "capturable", "differentiable")],
        *[("Muon", {"ns_steps": value}) for value in (-1, 0, 1000, 2.5, True)],
        *[("Muon", {"ns_coefficients": value}) for value in ((1.0, 2.0), (), None, "jordon", (1.0, 2.0, math.nan))],
        *[
            ("Muon", {"adjust_lr_fn": "arbitrary"}),
            ("Muon", {"polar": "svd"}),
            ("Muon", {"polar": "gram", "polar_dtype": "float16"}),
        ],
        *[("Muon", {"aux_lr": -1.0}), ("Muon", {"aux_betas": (0.9,)}), ("Muon", {"aux_betas": None})],
        *[("Muon", {"nesterov": "yes"}), ("Muon", {"differentiable": True})],
    ],
)
def test_bad_hyperparameters(name: str, arguments: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        getattr(muonlab, name)(weights(1), **arguments)


@each
def test_values_outside_what_is_declared_are_refused_everywhere(cls, arguments) -> None:
    for name, declared in declarations(cls.rule).items():
        if declared.kind is bool or declared.check is not None:
            continue
        low, high = declared.low, declared.high
        outside = [math.nan, math.inf, "0.5", None, True]
        outside += [] if low is None else [low - 1, *([] if declared.low_closed else [low])]
        outside += [] if high is None else [high + 1, *([] if declared.high_closed else [high])]
        for value in outside:
            given = {name: (value,) * len(declared.parts) if declared.parts else value}
            for make in (
                lambda given=given: cls(weights(1), **given),
                lambda given=given: cls([{"params": weights(1), **given}]),
                lambda given=given: cls(weights(1)).add_param_group({"params": weights(1, seed=1), **given}),
            ):
                with pytest.raises((ValueError, TypeError)):
                    make()
        for given in ((), (0.5,) * 9, 0.5) if declared.parts else ():
            with pytest.raises((ValueError, TypeError)):
                cls(weights(1), **{name: given})


@each
def test_unknown_keyword_and_misspelt_group_key(cls, arguments) -> None:
    with pytest.raises(TypeError):
        cls(weights(1), weight_decy=0.1)
    with pytest.raises(ValueError, match="weight_decay"):
        cls([{"params": weights(1), "weight_decy": 0.1}])


@each
@pytest.mark.parametrize(
    "params,error",
    [
        (None, TypeError),
        ([], ValueError),
        ("weights", TypeError),
        (torch.ones(2, 2), TypeError),
        ([1, 2], TypeError),
        ({"a": torch.ones(2, 2)}, TypeError),
        ({torch.ones(2, 2)}, TypeError),
        ([nn.Parameter(torch.ones(2, 2)) * 2], ValueError),
        ([{"lr": 0.1}], ValueError),
        ([{"params": {torch.ones(2, 2)}}], TypeError),
        ([("w", nn.Parameter(torch.ones(2, 2))), nn.Parameter(torch.ones(2, 2))], ValueError),
    ],
)
def test_bad_params(cls, arguments, params, error) -> None:
    with pytest.raises(error):
        cls(params)


@each
def test_params_that_are_fine(cls, arguments) -> None:
    assert len(cls(p for p in weights(2)).param_groups[0]["params"]) == 2
    (w,) = weights(1)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = cls([w, w], lr=0.5)
    steps(optimizer, [w], [0])
    (once,) = weights(1)
    steps(cls([once], lr=0.5), [once], [0])
    assert torch.equal(w, once)  # counted once
    with pytest.raises(ValueError, match="more than one parameter group"):
        cls([{"params": [w]}, {"params": [w]}])


@each_of_matrices
def test_shapes_a_matrix_rule_cannot_take(cls, arguments) -> None:
    (w,), message = weights(1), "only supports 2D parameters"
    for bad in (torch.ones(2, 3, 4), torch.ones(2, 3, 4, 5)):
        with pytest.raises(ValueError, match=message):
            cls([bad])
        optimizer = cls([w])
        with pytest.raises(ValueError, match=message):
            optimizer.add_param_group({"params": [bad]})
        assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="2D"):
        cls([{"params": [torch.ones(3)], "use_muon": True}])
    for small in (torch.ones(3), torch.tensor(1.0), torch.ones(1, 5)):
        params = [nn.Parameter(small)]
        optimizer = cls([*params, w] if small.ndim == 2 else params)
        assert optimizer.param_groups[0]["algorithm"] == (cls.rule if small.ndim == 2 else cls.companion).name
        steps(optimizer, params, range(2))
        assert params[0].isfinite().all()


@each
def test_numbers_and_vectors_are_parameters(cls, arguments) -> None:
    params = [nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(4))]
    optimizer = cls(params, **arguments)
    steps(optimizer, params, range(3))
    optimizer.load_state_dict(optimizer.state_dict())
    steps(optimizer, params, [3])
    assert all(p.isfinite().all() and (p != 1.5).all() for p in params)


def test_group_flags_of_other_libraries() -> None:
    a, b, c, d = weights(4)
    optimizer = muonlab.Muon(
        [
            {"params": [a], "use_muon": True, "lr": 0.1, "momentum": 0.9},
            {"params": [b], "use_muon": False, "lr": 0.2, "betas": (0.8, 0.9), "eps": 1e-10},
            {"params": [c], "use_fallback": True},
            {"params": [d], "algorithm": "adamw"},
        ],
        aux_lr=0.3,
    )
    assert [group["algorithm"] for group in optimizer.param_groups] == ["muon", "adamw", "adamw", "adamw"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.3, 0.3]
    assert "momentum" not in optimizer.param_groups[1] and "betas" not in optimizer.param_groups[0]
    with pytest.raises(ValueError, match="algorithm"):
        muonlab.Muon([{"params": [nn.Parameter(torch.ones(2, 2))], "algorithm": "lion"}])


@each
def test_class_can_be_rebuilt_from_its_defaults(cls, arguments) -> None:
    optimizer = cls(weights(1), **arguments)
    again = type(optimizer)(weights(1), **optimizer.defaults)
    assert repr(again) == repr(optimizer)


@each
def test_a_group_has_names_where_the_others_have(cls, arguments) -> None:
    """Refused before the routing of anything."""
    w, b = weights(1, seed=1)[0], nn.Parameter(torch.ones(4))
    for first, second, wanted in (
        ([("w", w)], [b], r"without names to the optimizer: pass \(name, parameter\) pairs"),
        ([w], [("b", b)], "with names to the optimizer: pass parameters alone"),
    ):
        optimizer = cls(first, **arguments)
        with pytest.raises(ValueError, match=wanted):
            optimizer.add_param_group({"params": second})
        assert len(optimizer.param_groups) == 1
