"""What parametrize, param_groups and optimizers refuse or tell, where a step would silently be the wrong one."""

import copy
import warnings

import pytest
import torch
from torch import nn

import muonlab
from muonlab.errors import UsageError
from muonlab.optim import param_groups
from muonlab.optim.scaling import parametrization_of


class Net(nn.Module):
    """Regression with residual blocks: attention, and a sequence of layers."""

    def __init__(self, width=8, depth=1, outputs=3):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block.attention(x, x, x)[0]
            x = x + block.mlp(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def wide(width=16, kind="spectral", **more):
    model = Net(width, **more)
    muonlab.parametrize(model, base=Net(8), kind=kind)
    return model


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(4, 3, 5)).square().mean().backward()
    optimizer.step()


def encoder(depth):
    return nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(depth)))


@pytest.mark.parametrize(
    ("model", "base", "branches", "instead"),
    [
        (Net(depth=4), Net(depth=2), "blocks.*.attention.out_proj", r"'blocks\.\*\.attention'"),
        (encoder(4), encoder(2), "*.self_attn.out_proj", r"'\*\.self_attn'"),
    ],
)
def test_a_branch_that_is_never_called_is_refused_with_the_one_to_name(model, base, branches, instead):
    with pytest.raises(UsageError, match=f"out_proj is never called, .*name the attention, {instead}"):
        muonlab.parametrize(model, base=base, branches=branches)
    with pytest.raises(UsageError, match="blocks is a ModuleList, which is never called"):
        muonlab.parametrize(Net(depth=4), base=Net(depth=2), branches="blocks")


def test_the_attention_itself_is_a_branch():
    model, x = Net(depth=4), torch.randn(2, 3, 8)
    before = model.blocks[0].attention(x, x, x)[0]
    base = copy.deepcopy(model)
    del base.blocks[2:]
    found = muonlab.parametrize(model, base=base, branches=["blocks.*.attention", "blocks.*.mlp"]).outputs
    assert found == {f"blocks.{k}.{name}": 0.5 for k in range(4) for name in ("attention", "mlp")}
    after = model.blocks[0].attention(x, x, x)[0].detach()
    assert float(after.norm() / before.detach().norm()) == pytest.approx(0.5, rel=0.2)  # weights are rescaled, too


def test_a_star_is_one_part_of_a_name_and_branches_do_not_nest():
    found = muonlab.parametrize(Net(depth=4), base=Net(depth=2), branches="blocks.*.mlp")
    assert list(found.outputs) == [f"blocks.{k}.mlp" for k in range(4)]
    blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(4)))
    assert list(muonlab.parametrize(blocks, base=copy.deepcopy(blocks)[:2], branches="*").outputs) == list("0123")
    with pytest.raises(UsageError, match=r"called '\*mlp', where \* is one part of a name"):
        muonlab.parametrize(Net(depth=4), base=Net(depth=2), branches="*mlp")
    with pytest.raises(UsageError, match=r"blocks\.0\.mlp\.2 lies within blocks\.0\.mlp"):
        muonlab.parametrize(Net(depth=4), base=Net(depth=2), branches=["blocks.*.mlp", "blocks.*.mlp.2"])


def test_bases_that_are_none():
    model = Net(16)
    lazy = nn.Sequential(nn.LazyLinear(4))
    for base, words in (
        ({}, "base must be a torch.nn.Module .*parametrize\\(model, base="),
        ({"base": model}, "base is the model itself"),
        ({"base": wide()}, "the base was parametrized itself: build it anew"),
        ({"base": copy.deepcopy(wide())}, "the base was parametrized itself"),
        ({"base": lazy}, "the base has lazy modules without shapes: pass it a batch first"),
    ):
        with pytest.raises(UsageError, match=words):
            muonlab.parametrize(model, **base)
    with pytest.raises(UsageError, match="the model has lazy modules"):
        muonlab.parametrize(lazy, base=model)
    muonlab.parametrize(model, base=Net(8))


def test_a_model_that_is_parametrized_too_late_is_noticed_at_the_first_step():
    for make in (muonlab.Muon, muonlab.AdamW):
        model = Net(16)
        optimizer = make(model, lr=0.1)
        muonlab.parametrize(model, base=Net(8))
        weights = [p.clone() for p in model.parameters()]
        with pytest.raises(UsageError, match="make the optimizer anew"):
            step(model, optimizer)
        assert all(map(torch.equal, weights, model.parameters()))
    step(model, make(model, lr=0.1))
    step(model, muonlab.AdamW(param_groups(model, lr=0.1)))
    optimizer = muonlab.AdamW(Net(16).parameters(), lr=0.1)
    optimizer.add_param_group({"params": list(model.parameters()), "lr": 0.1})
    step(model, optimizer)


@pytest.mark.parametrize("make", [muonlab.AdamW, muonlab.Muon])
def test_a_scheduler_that_takes_factors_away_is_told_once(make):
    model = wide()
    optimizer = make(model, lr=0.1)
    rates = [group["lr"] for group in optimizer.param_groups]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer)
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=10)
        step(model, optimizer)
        plain = Net(16)
        step(plain, make(plain))
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    with pytest.warns(UserWarning, match="one for each group") as seen:
        for _ in range(2):
            step(model, optimizer)
    assert len(seen) == 1 and seen[0].filename == __file__


def test_a_module_that_is_replaced_later_is_noticed_and_a_copy_is_not():
    for kept in (wide(), copy.deepcopy(wide())):
        assert muonlab.Muon(kept).param_groups[0]["multipliers"]
        kept.head.bias = nn.Parameter(torch.zeros(3))
        assert muonlab.AdamW(kept)
        kept.head = nn.Linear(16, 3)
        with pytest.raises(UsageError, match=r"head\.weight was replaced after the model was parametrized"):
            muonlab.Muon(kept)
    other = wide()
    other.head.bias = nn.Parameter(torch.zeros(4))
    other.head = nn.Linear(16, 4)
    with pytest.raises(UsageError, match="was replaced"):
        param_groups(other, lr=0.1)


def test_groups_for_torch_all_have_eps_and_nothing_that_torch_has_not():
    groups = param_groups(wide(), lr=0.1)
    assert len({frozenset(group) for group in groups}) == 1 and "eps" in groups[0]
    assert {group["eps"] for group in torch.optim.AdamW(groups, eps=1.0).param_groups} <= {1e-8, 5e-9}
    assert not any("decay" in group for group in param_groups(wide(), lr=0.1, decay="decoupled"))
    with pytest.raises(UsageError, match=r'no decay="independent": leave it out, or use muonlab\.AdamW\(model\)'):
        param_groups(wide(), lr=0.1, decay="independent")


@pytest.mark.parametrize("rule", ["adamw", "nadamw", "lion", "sgd", "signum", "sophia", "adopt"])
def test_groups_of_every_kind_of_rule(rule):
    groups = param_groups(wide(kind="mup"), rule=rule, lr=0.1)
    assert {group["lr"] for group in groups} > {0.1}


def test_the_standard_needs_no_base_and_gives_plain_groups():
    model = Net(16)
    assert str(muonlab.parametrize(model, kind="standard")) == "standard: the model is left as it is"
    groups = param_groups(model, lr=0.1, weight_decay=0.2)
    assert {group["lr"] for group in groups} == {0.1} and {group["weight_decay"] for group in groups} == {0.0, 0.2}
    assert muonlab.AdamW(model.parameters()) and "multipliers" not in muonlab.Muon(model).param_groups[0]
    muonlab.parametrize(model, base=Net(8))  # it was not changed
    assert parametrization_of(model).kind == "spectral"
    with pytest.raises(UsageError, match="not parametrized"):
        param_groups(Net(), lr=0.1)


def test_what_is_told_where_nothing_grows_and_where_a_head_has_more_outputs():
    nothing = "mup: no width or depth has grown, so nothing is multiplied"
    assert str(muonlab.parametrize(Net(), base=Net(), kind="mup")) == nothing
    said = "head.weight: its x 2 outputs count as a vocabulary and are not scaled"
    assert str(muonlab.parametrize(Net(16, outputs=6), base=Net())).splitlines()[-1] == said
    assert str(muonlab.parametrize(Net(outputs=6), base=Net())).splitlines()[-1] == said
    assert "vocabulary" not in str(muonlab.parametrize(Net(16), base=Net()))


def test_a_group_that_comes_later_without_names_is_told_what_to_pass():
    optimizer, late = muonlab.AdamW(wide(), lr=0.1), nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="pass \\(name, parameter\\) pairs as params; what comes later is not scaled"):
        optimizer.add_param_group({"params": [late]})
    optimizer.add_param_group({"params": [("late", late)]})
    assert optimizer.param_groups[-1]["lr"] == 0.1
