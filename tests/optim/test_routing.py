"""Who gets which rule, and why."""

import copy
import warnings

import pytest
import torch
from torch import nn

import muonlab
from muonlab import Role
from muonlab.errors import UsageError
from muonlab.optim import route


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)


class Decoder(nn.Module):
    def __init__(self, tied: bool = False, head: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)
        self.pos_emb = nn.Parameter(torch.zeros(1, 16, 8))
        self.blocks = nn.ModuleList(Block(8) for _ in range(2))
        self.gain = nn.Parameter(torch.ones(1, 1, 8))
        if head:
            self.out = nn.Linear(8, 50, bias=False)
        if tied:
            self.out.weight = self.tokens.weight


def roles_of(source, roles=None) -> dict[str, Role]:
    return {found.name: found.role for found in route(source, roles)}


def test_decoder() -> None:
    model = Decoder()
    found = roles_of(model)
    assert list(found) and set(found) == {name for name, _ in model.named_parameters()}
    assert found["tokens.weight"] is Role.EMBEDDING and found["pos_emb"] is Role.EMBEDDING
    assert found["out.weight"] is Role.HEAD and found["gain"] is Role.VECTOR
    hidden = {name for name, role in found.items() if role is Role.HIDDEN}
    assert hidden == {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("qkv", "up", "down")}
    assert all(role is Role.VECTOR for name, role in found.items() if "norm" in name or "bias" in name)


def test_tied_weight_appears_once_and_says_so() -> None:
    routes = route(Decoder(tied=True))
    (tied,) = [found for found in routes if found.name in ("tokens.weight", "out.weight")]
    assert tied.role is Role.EMBEDDING and tied.reason == "embedding, tied to out.weight"
    assert Role.HEAD not in {found.role for found in routes}  # and no block is taken for the head instead


def test_a_backbone_has_no_head() -> None:
    assert Role.HEAD not in roles_of(Decoder(head=False)).values()
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    assert Role.HEAD not in roles_of(encoder).values()


def test_vision() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv1d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    found = roles_of(model)
    assert [found[f"{i}.weight"] for i in (0, 1, 2, 3, 5)] == [
        Role.CONV,
        Role.VECTOR,
        Role.VECTOR,
        Role.CONV,
        Role.HEAD,
    ]
    assert roles_of(nn.LayerNorm((4, 4)))["weight"] is Role.VECTOR  # two dimensions, yet a gain


def test_names_and_shapes_of_a_list() -> None:
    named = [
        ("lm_head.weight", torch.ones(9, 4)),
        ("wte.weight", torch.ones(9, 4)),
        ("pos_embed", torch.ones(1, 9, 4)),
        ("patch_embed.proj.weight", torch.ones(4, 3, 2, 2)),
        ("blocks.0.mlp.weight", torch.ones(4, 4)),
        ("moe.experts.up", torch.ones(3, 4, 5)),
        ("head.bias", torch.ones(9)),
        ("scale", torch.ones(())),
    ]
    assert [role.value for role in roles_of(named).values()] == [
        *("head", "embedding", "embedding", "conv", "hidden", "expert", "vector", "vector")
    ]


def test_roles_come_first_exact_before_glob() -> None:
    model = Decoder()
    found = roles_of(model, {"blocks.*.up.weight": "embedding", "blocks.1.up.weight": Role.HIDDEN, "out.*": "hidden"})
    assert found["blocks.0.up.weight"] is Role.EMBEDDING and found["blocks.1.up.weight"] is Role.HIDDEN
    assert found["out.weight"] is Role.HIDDEN


def test_errors_say_what_to_write() -> None:
    with pytest.raises(UsageError, match=r'roles=\{"mix": "expert"\}'):
        route([("mix", torch.ones(2, 3, 4))])
    with pytest.raises(UsageError, match="blokcs"):
        route(Decoder(), {"blokcs.*": "hidden"})
    with pytest.raises(UsageError, match="did you mean 'hidden'"):
        route(Decoder(), {"out.weight": "hiden"})
    assert roles_of([("mix", torch.ones(2, 3, 4))], {"mix": "conv"})["mix"] is Role.CONV
    assert [f.role for f in route([("mix", torch.ones(2, 3, 4))], strict=False)] == [Role.HIDDEN]


def test_every_parameter_exactly_once() -> None:
    for model in (Decoder(), Decoder(tied=True), nn.LSTM(4, 4), nn.MultiheadAttention(8, 2)):
        optimizer = muonlab.Muon(model)
        owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_an_iterable_of_matrices_means_what_it_means_in_torch() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    for params in (model.parameters(), model.named_parameters()):
        (group,) = muonlab.Muon(params).param_groups
        assert group["algorithm"] == "muon" and len(group["params"]) == 2
    routed = muonlab.Muon(model.named_parameters(), roles={"0.weight": Role.EMBEDDING})
    assert {group["role"]: group["algorithm"] for group in routed.param_groups} == {
        "hidden": "muon",
        "embedding": "adamw",
    }


def test_companion_settings() -> None:
    model = Decoder()
    optimizer = muonlab.Muon(model, lr=0.02, weight_decay=0.3, aux_lr=0.004, aux_betas=(0.8, 0.9), aux_eps=1e-10)
    groups = {group["role"]: group for group in optimizer.param_groups}
    assert set(groups) == {"hidden", "embedding", "head", "vector"}
    assert [groups[role]["lr"] for role in ("hidden", "head", "vector")] == [0.02, 0.004, 0.004]
    assert [groups[role]["weight_decay"] for role in ("hidden", "embedding", "head", "vector")] == [0.3, 0.3, 0.3, 0.0]
    assert groups["head"]["betas"] == (0.8, 0.9) and groups["head"]["eps"] == 1e-10
    follows = {group["role"]: group for group in muonlab.Muon(model, lr=0.02, aux_weight_decay=0.5).param_groups}
    assert follows["head"]["lr"] == 0.02 and follows["head"]["betas"] == (0.9, 0.95)
    assert [follows[role]["weight_decay"] for role in ("hidden", "head", "vector")] == [0.1, 0.5, 0.0]


def test_companion_steps_equal_adamw() -> None:
    torch.manual_seed(0)
    model = Decoder()
    twin = copy.deepcopy(model)
    ours = muonlab.Muon(model, lr=0.02, aux_lr=0.01)
    theirs = torch.optim.AdamW(
        [
            {"params": [twin.tokens.weight, twin.pos_emb, twin.out.weight], "weight_decay": 0.1},
            {"params": [p for n, p in twin.named_parameters() if p.ndim == 1 or n == "gain"], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.9, 0.95),
    )
    for _ in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if "blocks" not in name or p.ndim == 1:
            torch.testing.assert_close(p, q, atol=1e-6, rtol=0, msg=name)
        else:
            assert not torch.equal(p, q)


def test_adamw_on_a_model_exempts_vectors_only() -> None:
    groups = {group["role"]: group["weight_decay"] for group in muonlab.AdamW(Decoder(), weight_decay=0.1).param_groups}
    assert groups == {"hidden": 0.1, "embedding": 0.1, "head": 0.1, "vector": 0.0}
    (group,) = muonlab.AdamW(Decoder().named_parameters(), weight_decay=0.1).param_groups
    assert group["weight_decay"] == 0.1


def test_unnamed_mixture_warns_and_goes_by_shape() -> None:
    matrix, bias = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    with pytest.warns(UserWarning, match="without names"):
        optimizer = muonlab.Muon([matrix, bias])
    assert [group["algorithm"] for group in optimizer.param_groups] == ["muon", "adamw"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        muonlab.Muon([("w", matrix), ("b", bias)])


def test_explain_is_complete_and_gives_the_step_size() -> None:
    model = Decoder()
    lines = muonlab.Muon(model, lr=0.02, aux_lr=0.003, adjust_lr_fn="spectral").explain().splitlines()
    assert len(lines) == 1 + len(list(model.named_parameters()))
    rows = {line.split()[0]: line for line in lines[1:]}
    assert "hidden  " in rows["blocks.0.up.weight"] and "0.04 spectral norm" in rows["blocks.0.up.weight"]
    assert "0.01 spectral norm" in rows["blocks.0.down.weight"]
    assert "as many outputs as an embedding has rows" in rows["out.weight"]
    assert "0.003 per element" in rows["gain"]
    assert "iterable of matrices" in muonlab.Muon([torch.ones(2, 2)]).explain()


def test_a_single_block_has_no_output_layer():
    """A one-layer model's last matrix is inside its block, though nothing repeats."""
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    routes = {found.name: found.role for found in route(model)}
    assert routes["decoder.layers.0.linear2.weight"] is Role.HIDDEN
