import doctest
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from muonlab.errors import UsageError
from muonlab.roles import Role
from muonlab.tasks import decoder
from muonlab.tasks.decoder import Decoder, DecoderConfig, rotate, rotations

SHAPES = (
    {},
    {"mlp": "gelu", "norm": "layer"},
    {"qk_norm": True, "tied": True},
    {"num_heads": 4, "mlp_width": 20, "depth": 1},
)


def make(seq_len=16, **shape):
    torch.manual_seed(0)
    return Decoder(DecoderConfig(**{"vocab_size": 50, "width": 32, **shape}), seq_len)


def tokens(count=3, length=16, vocab_size=50):
    return torch.randint(vocab_size, (count, length), generator=torch.Generator().manual_seed(1))


def loss_of(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_reaches_every_parameter(shape):
    model = make(**shape)
    loss_of(model, tokens()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_never_changes_earlier_logits(shape):
    model, before = make(**shape), tokens()
    after = before.clone()
    after[:, 9] = (after[:, 9] + 1) % 50
    a, b = model(before), model(after)
    assert torch.equal(a[:, :9], b[:, :9])
    assert (a[:, 9:] - b[:, 9:]).abs().amax(dim=(0, 2)).min() > 0


def test_a_shorter_sequence_gives_the_same_logits():
    model, batch = make(), tokens()
    torch.testing.assert_close(model(batch[:, :7]), model(batch)[:, :7])
    with pytest.raises(UsageError, match="17 tokens exceeds the model's seq_len 16"):
        model(tokens(length=17))


@pytest.mark.parametrize("shape", [{}, {"tied": True}, {"width": 128}, {"zero_init": True}])
def test_the_first_loss_is_that_of_a_uniform_guess(shape):
    model = make(vocab_size=256, **shape)
    assert loss_of(model, tokens(32, 16, 256)).item() == pytest.approx(math.log(256), abs=0.1)


def test_zero_init_starts_as_the_identity_with_flat_logits():
    model = make(zero_init=True)
    block = model.blocks[0]
    assert block.attention.o.weight.any().item() is False and block.mlp.down.weight.any().item() is False
    assert model(tokens()).any().item() is False
    assert make(zero_init=True, tied=True)(tokens()).any().item() is True  # a tied table cannot be zero


def test_initial_scales():
    model = make(width=256, vocab_size=512)
    assert model.blocks[0].attention.q.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    assert model.blocks[0].attention.o.weight.std().item() == pytest.approx(1 / 16 / 2, rel=0.02)  # sqrt(2 depth) = 2
    assert model.embed.weight.std().item() == pytest.approx(1, rel=0.02)
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_building_draws_from_the_global_generator_only():
    a, b = make(), make()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_rotated_products_depend_on_the_distance_alone():
    turns = rotations(12, 8, 10_000.0)
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(8, generator=generator).expand(1, 12, 1, 8) for _ in range(2))
    scores = (rotate(q, turns)[0, :, 0] @ rotate(k, turns)[0, :, 0].T).double()
    for distance in range(-11, 12):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), atol=1e-5, rtol=1e-5)
    assert (scores[0] - scores[0, 0]).abs()[1:].min() > 1e-3
    torch.testing.assert_close(rotate(q, turns).norm(dim=-1), q.norm(dim=-1))


def test_rotation_is_a_turn_of_neighbouring_pairs():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(1, 3, 1, 4)
    y = rotate(x, rotations(3, 4, 100.0))[0, 2, 0]
    expected = [math.cos(2), math.sin(2), -math.sin(0.2), math.cos(0.2)]
    assert y.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_compiled_rotation_is_the_same(monkeypatch):
    x, turns = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0)), rotations(5, 8, 10_000.0)
    eager = rotate(x, turns)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, turns), eager)


@pytest.mark.parametrize("shape", [*SHAPES, {"width": 96, "depth": 3}])
@pytest.mark.parametrize("seq_len", [16, 64])
def test_flops_are_those_that_torch_counts(shape, seq_len):
    model, batch = make(seq_len, **shape), tokens(2, seq_len + 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_of(model, batch).backward()
    counted = counter.get_total_flops() / (2 * seq_len)
    assert model.config.flops_per_token(seq_len) == pytest.approx(counted, rel=0.02)


def test_parameter_counts_by_role():
    counts = make(vocab_size=256, mlp_width=88).num_params()
    assert counts == {
        Role.EMBEDDING: 256 * 32,
        Role.HEAD: 256 * 32,
        Role.HIDDEN: 2 * (4 * 32 * 32 + 3 * 32 * 88),
        Role.VECTOR: 5 * 32,
    }
    gelu = make(mlp="gelu", norm="layer").num_params()
    assert gelu[Role.HIDDEN] == 2 * (4 + 8) * 32 * 32 and gelu[Role.VECTOR] == 5 * 2 * 32


def test_a_tied_table_is_one_embedding_parameter():
    model = make(tied=True)
    assert model.head.weight is model.embed.weight
    assert Role.HEAD not in model.num_params()
    assert sum(model.num_params().values()) == sum(p.numel() for p in model.parameters())
    assert model.roles()["embed.weight"] is Role.EMBEDDING
    assert model.roles().keys() == dict(model.named_parameters()).keys()
    untied = make()
    assert untied.config.num_matmul_params == model.config.num_matmul_params


def test_queries_keys_and_values_are_separate_matrices():
    hidden = [name for name, role in make(depth=1).roles().items() if role is Role.HIDDEN]
    assert sorted(name.split(".", 2)[2] for name in hidden) == sorted(
        [*(f"attention.{m}.weight" for m in "qkvo"), "mlp.gate.weight", "mlp.up.weight", "mlp.down.weight"]
    )


def test_runs_under_autocast_and_in_bf16():
    model, batch = make(qk_norm=True), tokens()
    full = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(batch).float(), full, atol=0.02, rtol=0.05)
    torch.testing.assert_close(model.bfloat16()(batch).float(), full, atol=0.03, rtol=0.1)


def test_derived_sizes():
    assert [DecoderConfig(width=w).heads for w in (32, 48, 64, 96, 128, 768)] == [1, 1, 2, 3, 4, 24]
    assert [DecoderConfig(width=w).hidden for w in (32, 64, 768)] == [88, 168, 2048]
    assert DecoderConfig(width=64, mlp="gelu").hidden == 256


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_heads": 3}, "num_heads 3 must divide width 64"),
        ({"num_heads": 64}, r"width / num_heads must be even .*64 / 64"),
        ({"width": 33}, "must be even"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"depth": 1.5}, "depth must be a whole number of at least 1, got 1.5"),
        ({"mlp_width": True}, "mlp_width must be a whole number"),
        ({"norm": "rmss"}, "unknown norm 'rmss': did you mean 'rms'"),
        ({"mlp": "gely"}, "unknown mlp 'gely': did you mean 'gelu'"),
        ({"tied": 1}, "tied must be true or false, got 1"),
        ({"rope_base": 0}, "rope_base must be a number above 1"),
    ],
)
def test_a_shape_that_cannot_be_built_is_one_line(shape, message):
    with pytest.raises(UsageError, match=message) as caught:
        DecoderConfig(**shape)
    assert "\n" not in str(caught.value)


def test_doctests():
    assert doctest.testmod(decoder).failed == 0
