"""One import changed: what users of torch.optim have written goes on working, and runs change hands in the middle."""

import re

import pytest
import torch
from stepping import backward, bits, each, small_model, steps, weights
from torch import nn

import muonlab


@pytest.fixture(params=[torch.optim, muonlab], ids=["torch", "muonlab"])
def optim(request: pytest.FixtureRequest):
    return request.param


def test_the_documented_example_of_muon_runs(optim) -> None:
    torch.manual_seed(0)
    model, loss_fn = small_model(), nn.MSELoss()
    x, target = torch.randn(8, 6), torch.randn(8, 3)
    muon_params = [p for p in model.parameters() if p.ndim == 2]
    other_params = [p for p in model.parameters() if p.ndim != 2]
    optim_muon = optim.Muon(muon_params, lr=0.02, momentum=0.95)
    optim_adamw = optim.AdamW(other_params, lr=3e-4, weight_decay=0.01)
    losses = []
    for _ in range(20):
        optim_muon.zero_grad()
        optim_adamw.zero_grad()
        loss = loss_fn(model(x), target)
        loss.backward()
        optim_muon.step()
        optim_adamw.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len(optim_muon.param_groups) == len(optim_adamw.param_groups) == 1
    assert {group["algorithm"] for group in optim_adamw.param_groups if "algorithm" in group} <= {"adamw"}


def test_the_documented_examples_of_sgd_and_adamw_run(optim) -> None:
    model = small_model()
    optimizers = [
        optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        optim.SGD(
            [
                {"params": model[0].parameters(), "lr": 1e-2},
                {"params": [*model[2].parameters(), *model[4].parameters()]},
            ],
            lr=1e-3,
            momentum=0.9,
        ),
        optim.AdamW(model.named_parameters(), 1e-3, (0.9, 0.95), 1e-8, 0.1),
        optim.AdamW(({"params": [p]} for p in model.parameters()), lr=1e-3, foreach=True),
    ]
    for optimizer in optimizers:
        assert backward(model, 0) > 0
        optimizer.step()
    assert optimizers[1].param_groups[0]["lr"] == 1e-2 and optimizers[1].param_groups[1]["lr"] == 1e-3


@pytest.mark.parametrize("name", ["Muon", "AdamW", "SGD"])
def test_group_and_state_keys_hold_torchs_own(name: str) -> None:
    params, twins = weights(1), weights(1)
    arguments = {"momentum": 0.9} if name == "SGD" else {}
    ours, theirs = getattr(muonlab, name)(params, **arguments), getattr(torch.optim, name)(twins, **arguments)
    for key, value in theirs.param_groups[0].items():
        if key not in ("params", "decoupled_weight_decay"):  # the latter is how torch's AdamW tells Adam's code apart
            assert ours.param_groups[0][key] == value, key
    assert set(theirs.defaults) - {"decoupled_weight_decay"} <= set(ours.defaults)
    steps(ours, params, [0])
    steps(theirs, twins, [0])
    kept = {key for key, value in theirs.state[twins[0]].items() if value is not None}
    extra = {"step"} if name == "SGD" else set()
    assert set(ours.state[params[0]]) == kept | extra
    assert re.match(rf"{name} \(\nParameter Group 0\n", repr(ours))


@pytest.mark.parametrize(
    "name,arguments,exact",
    [
        ("AdamW", {"lr": 0.01}, True),
        ("SGD", {"lr": 0.1}, True),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, True),
        ("Muon", {"lr": 0.02}, False),
        ("Muon", {"lr": 0.02, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}, False),
    ],
)
@pytest.mark.parametrize("first", ["torch", "muonlab"])
def test_a_run_changes_hands_in_the_middle_with_the_same_losses(name, arguments, exact: bool, first: str) -> None:
    """Plain load_state_dict both ways. Muon: two right bfloat16 iterations differ by a few percent of an update."""
    theirs, ours = getattr(torch.optim, name), getattr(muonlab, name)

    def run(*classes) -> tuple[list[float], list[bytes]]:
        model, losses, state = small_model(), [], None
        params = [p for p in model.parameters() if p.ndim == 2] if name == "Muon" else list(model.parameters())
        fused = {"fused": True} if name == "AdamW" else {}
        for part, cls in enumerate(classes):
            optimizer = cls(params, **arguments, **fused)
            if state is not None:
                optimizer.load_state_dict(state)
            for seed in range(5):
                losses.append(backward(model, 10 * part + seed))
                optimizer.step()
            state = optimizer.state_dict()
        return losses, bits(params)

    expected = run(theirs, theirs, theirs)
    found = run(theirs, ours, theirs) if first == "torch" else run(ours, theirs, ours)
    assert found[0] == pytest.approx(expected[0], rel=1e-5 if exact else 0.03)
    assert found[1] == expected[1] or not exact


def test_a_bfloat16_muon_run_of_torch_continues(optim) -> None:
    model = small_model().to(torch.bfloat16)
    params = [p for p in model.parameters() if p.ndim == 2]
    before = torch.optim.Muon(params, lr=0.02)
    for seed in range(3):
        backward(model, seed)
        before.step()
    optimizer = optim.Muon(params, lr=0.5)
    optimizer.load_state_dict(before.state_dict())
    backward(model, 3)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert all(state["momentum_buffer"].dtype == torch.bfloat16 for state in optimizer.state.values())


@each
def test_zero_grad_and_add_param_group_are_torchs(cls, arguments) -> None:
    model = small_model()
    optimizer = cls(list(model[0].parameters())[:1], **arguments)
    backward(model, 0)
    optimizer.zero_grad(set_to_none=False)
    assert not model[0].weight.grad.any()
    optimizer.zero_grad()
    assert model[0].weight.grad is None and model[2].weight.grad is not None
    optimizer.add_param_group({"params": model[2].weight, "lr": 0.5})  # a bare tensor
    assert [group["lr"] for group in optimizer.param_groups] == [arguments["lr"], 0.5]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model[0].weight]})
    assert len(optimizer.param_groups) == 2


@each
def test_layers_can_be_frozen_and_thawed(cls, arguments) -> None:
    model = small_model()
    optimizer, frozen = cls(model, **arguments), model[2].weight
    for seed in range(6):
        frozen.requires_grad_(seed not in (2, 3))
        backward(model, seed)
        state = {key: value.clone() for key, value in optimizer.state.get(frozen, {}).items()}
        before = bits([frozen])
        optimizer.step()
        assert (bits([frozen]) == before) is (seed in (2, 3))
        if seed in (2, 3):
            assert all(torch.equal(value, state[key]) for key, value in optimizer.state[frozen].items())


@each
def test_a_step_inside_autocast_or_with_anomaly_detection_is_the_same_step(cls, arguments) -> None:
    params, others, twins = weights(2), weights(2), weights(2)
    for these, context in (
        (params, torch.autocast("cpu", dtype=torch.bfloat16)),
        (others, torch.autograd.set_detect_anomaly(True, check_nan=False)),
    ):
        with context:
            steps(cls(these, **arguments), these, [0, 1])
    steps(cls(twins, **arguments), twins, [0, 1])
    assert bits(params) == bits(others) == bits(twins)
