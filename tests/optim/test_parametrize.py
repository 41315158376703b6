"""What parametrize does to a model: weights, outputs, and the functions that come of it."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import muonlab
from muonlab.errors import UsageError
from muonlab.optim import param_groups
from muonlab.optim.counterparts import patterns
from muonlab.optim.scaling import parametrization_of
from muonlab.tasks.decoder import Decoder, DecoderConfig

BRANCHES = ["blocks.*.attention.o", "blocks.*.mlp.down"]
TOKENS = torch.arange(60).reshape(4, 15) * 7 % 31


def decoder(width=16, depth=2, seed=0, **options):
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(vocab_size=31, width=width, depth=depth, num_heads=2, **options), 16)


def rms(x):
    return float(x.detach().double().square().mean().sqrt())


def train(model, optimizer, num_steps=3):
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["mup", "spectral"])
@pytest.mark.parametrize("factor", [2, 4])
def test_initial_weights_have_the_roots_of_the_table(factor, kind):
    base, model = decoder(mlp_width=48, seed=1), decoder(16 * factor, mlp_width=48 * factor)
    gains = model.norm.weight.detach().clone()
    muonlab.parametrize(model, base=base, kind=kind)
    small, large = dict(base.named_parameters()), dict(model.named_parameters())
    for name, power in (("embed.weight", 0), ("blocks.1.attention.q.weight", -0.5), ("blocks.0.mlp.down.weight", -0.5)):
        assert rms(large[name]) == pytest.approx(rms(small[name]) * factor**power, rel=1e-6), name
    assert rms(large["head.weight"]) == pytest.approx(rms(small["head.weight"]) / factor, rel=1e-6)
    assert torch.equal(model.norm.weight, gains)


@pytest.mark.parametrize("cls", [muonlab.AdamW, muonlab.Muon, muonlab.SGD])
@pytest.mark.parametrize("kind", ["standard", "mup", "spectral"])
def test_a_base_is_its_own_to_the_bit(cls, kind):
    plain, found = decoder(tied=True), decoder(tied=True)
    muonlab.parametrize(found, base=decoder(seed=7, tied=True), kind=kind, branches=BRANCHES)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), found.parameters(), strict=True))
    assert train(plain, cls(plain, lr=0.01)) == train(found, cls(found, lr=0.01))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), found.parameters(), strict=True))
    assert cls(list(found.named_parameters()), lr=0.01)  # nothing to lose


def test_standard_does_nothing():
    model, twin = decoder(64), decoder(64)
    muonlab.parametrize(model, base=decoder(), kind="standard")
    assert train(model, muonlab.Muon(model)) == train(twin, muonlab.Muon(twin))


class Layers(nn.Module):
    """Three layers in float64; with `scale`, by multipliers on outputs: sqrt(fan_out), 1, 1 / sqrt(fan_in)."""

    def __init__(self, width, scale=None):
        super().__init__()
        self.scale = scale
        self.first, self.hidden = nn.Linear(5, width).double(), nn.Linear(width, width, bias=False).double()
        self.head = nn.Linear(width, 3, bias=False).double()

    def forward(self, x):
        root = math.sqrt(self.scale or 1)
        return self.head(torch.tanh(self.hidden(torch.tanh(self.first(x) * root)))) / root


@pytest.mark.parametrize(
    ("optimizer", "rule", "lr", "powers"),
    [
        (torch.optim.AdamW, "adamw", 0.01, {"first": -0.5, "hidden": -1, "head": -0.5}),  # Yang et al. 2022, table 9
        (torch.optim.SGD, "sgd", 0.1, {"first": 0, "hidden": 0, "head": 0}),
    ],
)
def test_mup_is_the_form_with_multipliers(optimizer, rule, lr, powers):
    torch.manual_seed(0)
    growth, ours, theirs = 4, Layers(32), Layers(32, scale=4)
    muonlab.parametrize(ours, base=Layers(8), kind="mup")
    with torch.no_grad():
        for name, power in (("first", -0.5), ("hidden", 0), ("head", 0.5)):
            for mine, other in zip(getattr(ours, name).parameters(), getattr(theirs, name).parameters(), strict=True):
                other.copy_(mine * growth**power)
    eps = {"eps": 0.0} if rule == "adamw" else {}
    mine = optimizer(param_groups(ours, rule=rule, lr=lr, **eps))
    groups = [
        {"params": getattr(theirs, name).parameters(), "lr": lr * growth**power} for name, power in powers.items()
    ]
    other = optimizer(groups, weight_decay=0.0, **eps)
    x, y = torch.randn(16, 5, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    first = None
    for _ in range(10):
        outputs = []
        for model, optim in ((ours, mine), (theirs, other)):
            optim.zero_grad()
            output = model(x)
            (output - y).square().mean().backward()
            optim.step()
            outputs.append(output.detach())
        first = outputs[0] if first is None else first
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-12)
    assert (outputs[0] - first).abs().max() > 0.01  # it went somewhere


def stream(model):
    """The residual stream after the last block."""
    seen = []
    hook = model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(TOKENS)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("cls", [muonlab.AdamW, muonlab.Muon])
def test_depth_leaves_the_residual_stream_as_it_is(cls):
    def sizes(depth, parametrized=True):
        model = decoder(32, depth, mlp_width=64)
        if parametrized:
            muonlab.parametrize(model, base=decoder(32, 2, mlp_width=64), branches=BRANCHES)
        start = stream(model) - model.embed(TOKENS).detach()
        before = stream(model)
        train(model, cls(model, lr=0.002), 1)
        return rms(start), rms(stream(model) - before)

    (start, moved), (deep_start, deep_moved) = sizes(2), sizes(16)
    assert deep_start < start  # independent branches of 1 / depth: as depth^(-1/2)
    assert deep_moved == pytest.approx(moved, rel=0.35)
    assert sizes(16, parametrized=False)[1] > 2 * deep_moved


def test_init_of_deeper_models_is_that_of_the_base():
    base, model = decoder(depth=2), decoder(depth=8, seed=3)
    found = muonlab.parametrize(model, base=base, branches=BRANCHES)
    assert found.outputs == {f"blocks.{k}.{name}": 0.25 for k in range(8) for name in ("attention.o", "mlp.down")}
    pooled = torch.cat([block.mlp.down.weight.flatten() for block in base.blocks])
    assert rms(model.blocks[7].mlp.down.weight) == pytest.approx(rms(pooled), rel=1e-6)
    x = torch.randn(3, model.config.hidden)
    torch.testing.assert_close(model.blocks[5].mlp.down(x), x @ model.blocks[5].mlp.down.weight.T / 4)


def test_a_tied_head_is_scaled_where_it_reads():
    model = decoder(64, tied=True)
    model.head.bias = nn.Parameter(torch.randn(31))
    base = decoder(16, tied=True)
    base.head.bias = nn.Parameter(torch.randn(31))
    found = muonlab.parametrize(model, base=base)
    assert found.outputs == {"head": 0.25}
    bias, hidden = model.head.bias.detach(), torch.randn(2, 64)
    expected = hidden @ model.embed.weight.T / 4 + bias
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(same.head(hidden), expected)
        torch.testing.assert_close(same.head(input=hidden), expected)
        assert muonlab.AdamW(same, lr=0.1).param_groups[0]["multipliers"]
    assert rms(model.embed.weight) == pytest.approx(rms(base.embed.weight), rel=1e-6)


def test_a_compiled_model_is_the_same_model():
    model = decoder(32, 4, tied=True)
    muonlab.parametrize(model, base=decoder(16, 2, tied=True), branches=BRANCHES)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(TOKENS), model(TOKENS))
    assert muonlab.Muon(compiled, lr=0.1).param_groups[-1]["multipliers"]


def test_zeros_stay_zero():
    model = decoder(64, zero_init=True)
    muonlab.parametrize(model, base=decoder(zero_init=True), branches=BRANCHES)
    for weight in (model.head.weight, model.blocks[0].attention.o.weight, model.blocks[1].mlp.down.weight):
        assert not weight.any()


def image_net(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 7),
    )  # fmt: skip


def test_a_model_of_ones_own_with_convolutions():
    model = image_net(16)
    growths = muonlab.parametrize(model, base=image_net(4)).growths
    told = {name: (g.role.value, g.fan_out, g.fan_in) for name, g in growths.items()}
    assert told["0.weight"] == ("conv", 4, 1) and told["3.weight"] == ("conv", 4, 4)
    assert told["5.weight"] == ("conv", 4, 4) and told["8.weight"] == ("head", 1, 4)
    assert told["1.weight"] == told["0.bias"] == ("vector", 4, 1) and told["8.bias"] == ("vector", 1, 1)
    optimizer = muonlab.Muon(model, lr=0.1)
    nn.functional.cross_entropy(model(torch.randn(2, 3, 12, 12)), torch.tensor([1, 2])).backward()
    optimizer.step()


def test_vocabularies_and_positions_are_no_width():
    class Wide(nn.Module):
        def __init__(self, width, vocab):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocab, width), nn.Parameter(torch.randn(vocab, width))
            self.head = nn.Linear(width, vocab, bias=False)

    growths = muonlab.parametrize(Wide(32, 50), base=Wide(8, 10)).growths
    assert [(g.fan_out, g.fan_in) for g in growths.values()] == [(4, 1), (4, 1), (1, 4)]


def test_only_numbers_that_differ_are_left_out():
    deep = [f"{k}.a.{n}.w" for k in (0, 1, 2) for n in (0, 2)]
    pattern = patterns([*deep, "conv2d.0"], [*deep[:2], "conv2d.0"])
    assert [pattern(name) for name in ("2.a.2.w", "conv2d.0", "2.a.2")] == ["#.a.2.w", "conv2d.0", "#.a.2"]


def on_meta():
    with torch.device("meta"):
        return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "base", "arguments", "words"),
    [
        (decoder(16), decoder(32), {}, "the base must be the smaller one"),
        (decoder(16, 1), decoder(16, 2), {"branches": BRANCHES}, "must be the smaller one"),
        (decoder(16, 4), decoder(16, 2), {}, "name the modules that write to its residual stream in `branches`"),
        (decoder(16), image_net(4), {}, "build both with the same class"),
        (decoder(16), decoder(16, tied=True), {}, r"the model has head\.weight, the base has nothing like it"),
        (nn.Linear(8, 8), on_meta(), {}, "the base has no weights"),
        (on_meta(), nn.Linear(4, 4), {}, "the model has no weights"),
        (nn.Linear(8, 8), nn.Linear(8, 8).parameters(), {}, "base must be a torch.nn.Module"),
        (
            decoder(32),
            decoder(16),
            {"branches": ["blocks.*.out"]},
            r"branches: no module of the model is called 'blocks\.\*\.out'",
        ),
        (decoder(32), decoder(16), {"kind": "muP"}, "unknown parametrization 'muP': did you mean 'mup'"),
        (nn.Conv2d(4, 8, 1), nn.Linear(4, 8), {}, "no counterpart of one shape"),
    ],
)
def test_what_cannot_be_is_one_line(model, base, arguments, words):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=words):
        muonlab.parametrize(model, base=base, **arguments)
    assert parametrization_of(model) is None
    assert all(v.is_meta or torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_a_model_is_parametrized_once():
    model = decoder(32)
    muonlab.parametrize(model, base=decoder(16))
    with pytest.raises(UsageError, match="build it anew"):
        muonlab.parametrize(model, base=decoder(16))
