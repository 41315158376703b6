"""What each kind multiplies, against numbers worked out by hand; and that optimizers do so, group by group."""

import copy
import io
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import muonlab
from muonlab.errors import UsageError
from muonlab.kernels.norms import SCALES
from muonlab.optim import catalog, param_groups
from muonlab.optim.parametrization import LAWS, MUP_ONLY, Growth, multipliers
from muonlab.roles import Role

DOCS = Path(__file__).parents[2] / "docs" / "parametrization.md"


def grown(fan_out, fan_in, depth=1.0, base=(16, 16), role=Role.HIDDEN):
    shape = (base[0] * fan_out, base[1] * fan_in)
    return Growth(role=role, shape=shape, base_shape=base, fan_out=fan_out, fan_in=fan_in, depth=depth)


def rule(name, **settings):
    return catalog.RULES[name](**settings)


TWICE, FOUR = grown(2, 2), grown(4, 4)
WIDER_OUT, WIDER_IN = grown(4, 1), grown(1, 4)
TABLE, HEAD = grown(4, 1, role=Role.EMBEDDING), grown(1, 4, role=Role.HEAD)

SPECTRAL = [
    ("adamw", {}, TWICE, {"lr": 1 / 2, "eps": 1 / 2}),
    ("adamw", {}, grown(4, 4, depth=2), {"lr": 1 / 4, "eps": 1 / 8}),
    ("adamw", {}, TABLE, {"eps": 1 / 4, "weight_decay": 1 / 4}),
    ("adamw", {}, HEAD, {"lr": 1 / 4}),
    ("adamw", {"decay": "independent"}, FOUR, {"lr": 1 / 4, "eps": 1 / 4, "weight_decay": 1 / 4}),
    ("lion", {}, FOUR, {"lr": 1 / 4}),
    ("signum", {}, grown(2, 4), {"lr": 1 / 4}),
    ("sgd", {}, grown(4, 2, depth=3), {"lr": 6, "weight_decay": 1 / 12}),
    ("sgd", {}, TABLE, {"lr": 4, "weight_decay": 1 / 16}),
    ("sgd", {}, HEAD, {"lr": 1 / 4}),
    ("muon", {}, TWICE, {"weight_decay": 1 / 2}),
    ("muon", {}, grown(4, 4, depth=2), {"eps": 1 / 2, "weight_decay": 1 / 4}),
    ("muon", {"adjust_lr_fn": "match_rms_adamw"}, FOUR, {"lr": 1 / 2, "weight_decay": 1 / 2}),
    ("muon", {"adjust_lr_fn": "match_rms_adamw", "decay": "independent"}, FOUR, {"lr": 1 / 2, "weight_decay": 1 / 4}),
    ("muon", {"adjust_lr_fn": "spectral"}, WIDER_OUT, {"eps": 1 / 2, "weight_decay": 1 / 4}),
    ("muon", {}, grown(4, 1, base=(16, 64)), {"lr": 2, "eps": 1 / 2, "weight_decay": 1 / 8}),
    ("muon", {}, WIDER_IN, {"lr": 1 / 2, "eps": 2, "weight_decay": 1 / 2}),
    ("scion", {}, WIDER_IN, {"eps": 2, "weight_decay": 1 / 4}),
    ("orthogonal_sgdm", {}, WIDER_IN, {"lr": 1 / 2, "eps": 2, "weight_decay": 1 / 2}),
    ("shampoo", {}, WIDER_OUT, {"lr": 2, "weight_decay": 1 / 8}),
    ("soap", {}, grown(4, 1, depth=2), {"lr": 2, "eps": 1 / 4, "weight_decay": 1 / 8}),
    ("soap_muon", {}, WIDER_IN, {"lr": 1 / 2, "moment_eps": 2, "weight_decay": 1 / 2}),
    ("adamuon", {}, FOUR, {"lr": 1 / 4, "moment_eps": 1 / 4}),
    ("adamuon", {"adjust_lr_fn": "original"}, FOUR, {"lr": 1 / 2, "moment_eps": 1 / 4, "weight_decay": 1 / 2}),
    ("normuon", {}, FOUR, {"lr": 1 / 2, "moment_eps": 1 / 4, "weight_decay": 1 / 2}),
    ("muon_hyperball", {}, FOUR, {}),
    ("muon_hyperball", {}, WIDER_IN, {"lr": 1 / 2, "eps": 2}),
    ("adam_hyperball", {}, FOUR, {"lr": 1 / 2, "eps": 1 / 4}),
]  # fmt: skip
MUP = [
    ("adamw", FOUR, {"lr": 1 / 4}), ("adamw", TWICE, {"lr": 1 / 2}),
    ("adamw", TABLE, {}), ("adamw", HEAD, {"lr": 1 / 4}),
    ("muon", FOUR, {"lr": 1 / 4}), ("soap", TWICE, {"lr": 1 / 2}), ("kron", FOUR, {"lr": 1 / 4}),
    ("sgd", FOUR, {}), ("sgd", TABLE, {"lr": 4}), ("sgd", HEAD, {"lr": 1 / 4}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "growth", "expected"), SPECTRAL)
def test_spectral_is_the_table(name, settings, growth, expected):
    assert multipliers("spectral", rule(name, **settings), growth) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "growth", "expected"), MUP)
def test_mup_is_adams_rule_for_all_but_sgd(name, growth, expected):
    assert multipliers("mup", rule(name), growth) == pytest.approx(expected, rel=1e-12)


def test_every_rule_has_a_law_or_is_refused_and_the_page_says_which():
    assert set(catalog.RULES) == {*LAWS, *MUP_ONLY}
    for name in catalog.RULES:
        assert multipliers("standard", rule(name), FOUR) == {}
        assert multipliers("spectral" if name in LAWS else "mup", rule(name), grown(1, 1)) == {}
    with pytest.raises(UsageError, match="unknown parametrization 'muP': did you mean 'mup'"):
        multipliers("muP", rule("adamw"), FOUR)
    with pytest.raises(UsageError, match='"spectral" says nothing of kron, only of these: adam_hyperball'):
        multipliers("spectral", rule("kron"), FOUR)
    with pytest.raises(UsageError, match='decay="decoupled"'):
        multipliers("spectral", rule("adamw", decay="coupled"), FOUR)
    page = DOCS.read_text()
    for name, law in LAWS.items():
        row = next(line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert ("ours" in row) == law.source.startswith("ours"), name


def test_the_example_of_the_page_runs(capsys):
    code = DOCS.read_text().split("```python\n")[1].split("```")[0]
    exec(compile(code, str(DOCS), "exec"), {"__name__": "page"})
    told = capsys.readouterr().out
    assert "blocks.3.3 as a module: x 0.5" in told and "lr x 0.25" in told


class Net(nn.Module):
    def __init__(self, width, depth=2, tied=False):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(width, 2 * width), "down": nn.Linear(2 * width, width, bias=False)})
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 11)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](x)))
        return self.head(self.norm(x))


def made(width=32, base=8, kind="spectral", depth=2, **arguments):
    torch.manual_seed(0)
    model = Net(width, depth)
    muonlab.parametrize(model, base=Net(base), kind=kind, branches=["blocks.*.down"], **arguments)
    return model


def settings_of(optimizer, key):
    return {n: g.get(key) for g in optimizer.param_groups for n in g["param_names"]}


def step(model, optimizer):
    optimizer.zero_grad()
    tokens = torch.arange(20).reshape(4, 5) % 11
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), (tokens.flatten() * 3 + 1) % 11)
    loss.backward()
    optimizer.step()
    return loss.item()


def test_each_group_has_its_own_settings():
    optimizer = muonlab.Muon(
        made(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw", aux_lr=0.01, aux_eps=1e-6
    )
    lr, eps, decay = (settings_of(optimizer, key) for key in ("lr", "eps", "weight_decay"))
    assert lr["blocks.1.up.weight"] == pytest.approx(0.01) and decay["blocks.1.up.weight"] == pytest.approx(0.05)
    assert (lr["head.weight"], eps["head.weight"], decay["head.weight"]) == pytest.approx((0.0025, 1e-6, 0.1))
    assert (lr["embed.weight"], eps["embed.weight"], decay["embed.weight"]) == pytest.approx((0.01, 2.5e-7, 0.025))
    assert (lr["norm.weight"], eps["norm.weight"], decay["norm.weight"]) == pytest.approx((0.01, 2.5e-7, 0))
    assert (lr["head.bias"], eps["head.bias"]) == (0.01, 1e-6)
    line = next(line for line in optimizer.explain().splitlines() if line.startswith("head.weight"))
    assert "; lr x 0.25" in line and line.endswith("0.0025 per element")
    assert not any("weight_decay x" in line for line in optimizer.explain().splitlines() if " vector " in line)


def test_kinds_differ_where_the_table_says():
    lrs = {kind: settings_of(muonlab.Muon(made(kind=kind), lr=0.02, aux_lr=0.01), "lr") for kind in ("mup", "spectral")}
    assert lrs["mup"]["blocks.0.up.weight"] == pytest.approx(0.005) != lrs["spectral"]["blocks.0.up.weight"] == 0.02

    assert lrs["mup"]["head.weight"] == lrs["spectral"]["head.weight"] == pytest.approx(0.0025)


def test_schedules_and_state_dicts_go_on_to_work():
    model = made()
    optimizer = muonlab.AdamW(model, lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (t + 1))
    before = settings_of(optimizer, "lr")
    step(model, optimizer)
    schedule.step()
    assert settings_of(optimizer, "lr") == pytest.approx({name: lr / 2 for name, lr in before.items()})
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other_model = copy.deepcopy(model)
    other = muonlab.AdamW(other_model, lr=0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert settings_of(other, "lr") == settings_of(optimizer, "lr") and len(set(before.values())) > 1
    assert [step(model, optimizer) for _ in range(3)] == [step(other_model, other) for _ in range(3)]


@pytest.mark.parametrize("convention", SCALES)
def test_a_step_of_muon_has_the_same_size_at_any_width(convention):
    def change(width):
        model = made(width)
        before = {n: p.detach().clone() for n, p in model.named_parameters() if n.startswith("blocks") and p.ndim == 2}
        arguments = {"adjust_lr_fn": convention, "polar": "exact", "polar_dtype": "float32", "weight_decay": 0.0}
        step(model, muonlab.Muon(model, lr=0.01, **arguments))
        now = dict(model.named_parameters())
        return [
            float(torch.linalg.matrix_norm(now[n].detach() - w, 2)) / math.sqrt(w.shape[0] / w.shape[1])
            for n, w in before.items()
        ]

    assert change(32) == pytest.approx(change(8), rel=1e-3)
    assert change(64) == pytest.approx(change(8), rel=1e-3)


def test_what_decay_takes_in_a_step_goes_like_one_over_width():
    for optimizer in (muonlab.AdamW, muonlab.Muon, muonlab.SOAP, muonlab.Shampoo, muonlab.NorMuon, muonlab.AdaMuon):
        found = optimizer(made(), lr=0.02, weight_decay=0.1)
        told = {n: g["lr"] * g["weight_decay"] for g in found.param_groups for n in g["param_names"]}
        base = optimizer(made(8), lr=0.02, weight_decay=0.1)
        plain = {n: g["lr"] * g["weight_decay"] for g in base.param_groups for n in g["param_names"]}
        for name in ("blocks.0.up.weight", "blocks.1.down.weight", "embed.weight", "head.weight"):
            assert told[name] == pytest.approx(plain[name] / 4), (optimizer, name)


def test_torchs_own_optimizers_get_groups():
    ours, theirs = made(), made()
    mine = muonlab.AdamW(ours, lr=0.01, weight_decay=0.1)
    other = torch.optim.AdamW(param_groups(theirs, lr=0.01, weight_decay=0.1))
    assert [step(ours, mine) for _ in range(5)] == pytest.approx([step(theirs, other) for _ in range(5)], rel=1e-5)
    sgd = torch.optim.SGD(param_groups(made(), rule="sgd", lr=0.1))
    assert {group["lr"] for group in sgd.param_groups} == {0.1, 0.4, 0.1 / 4}
    assert {group["weight_decay"] for group in sgd.param_groups} == {0.0}
    for arguments, words in (
        ({"rule": "muon", "lr": 0.1}, "use muonlab.Muon"),
        ({"lr": 0.1, "wd": 0.1}, "unknown hyperparameter of adamw 'wd'"),
        ({}, "needs the lr"),
    ):
        with pytest.raises(UsageError, match=words):
            param_groups(made(), **arguments)
    with pytest.raises(UsageError, match="not parametrized"):
        param_groups(Net(8), lr=0.1)


def test_parameters_are_not_trained_without_what_belongs_to_them():
    model = made()
    for params in (model.parameters(), list(model.named_parameters()), nn.Sequential(model)):
        with pytest.raises(UsageError, match="give the optimizer that model itself"):
            muonlab.AdamW(params, lr=0.1)
    muonlab.AdamW([{"params": list(model.parameters()), "lr": 0.1}])  # whoever says it all may
    with pytest.raises(UsageError, match=r"head\.weight is hidden here and head to parametrize"):
        muonlab.Muon(model, roles={"head.weight": "hidden"})
    model.extra = nn.Linear(3, 3)
    with pytest.raises(UsageError, match=r"extra\.weight was not there"):
        muonlab.Muon(model)


def test_fused_matrices_are_taken_part_by_part():
    class Fused(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width, bias=False)

    model = Fused(32)
    muonlab.parametrize(model, base=Fused(8), roles={"qkv.weight": "hidden"})
    roles = {"qkv.weight": "hidden"}

    def lr(**splits):
        return muonlab.Muon(model, lr=1.0, roles=roles, adjust_lr_fn="original", **splits).param_groups[0]["lr"]

    assert lr(split_sizes={"qkv.weight": (32, 32, 32)}) == pytest.approx(1.0)
    # Heads of width 4: 8 of them, 2 in the base. A head has four times the inputs and as many outputs.
    assert lr(split_sizes={"qkv.weight": (32, 32, 32)}, num_heads={"qkv.weight": 8}) == pytest.approx(0.5)
    with pytest.raises(UsageError, match="do not fit the 24 rows of the base"):
        lr(split_sizes={"qkv.weight": (32, 32, 32)}, num_heads={"qkv.weight": 2})
    with pytest.raises(UsageError, match=r"grow differently|do not fit"):
        lr(split_sizes={"qkv.weight": (90, 6)})
