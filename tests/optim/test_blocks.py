"""Fused projections: a parameter that stacks matrices is updated as those matrices would be on their own."""

import copy
import io

import pytest
import torch
from reference import Reference
from stepping import bits, each_of_matrices, fill_gradients, in_float64, state_bits, steps, weights
from torch import nn

import muonlab
from muonlab.errors import UsageError
from muonlab.optim import soap

FLOAT64 = {"lr": 0.1, "weight_decay": 0.3, "polar_dtype": "float64"}
SPLITS = {
    "qkv": ({"split_sizes": (4, 4, 4)}, [4, 4, 4]),
    "gqa": ({"split_sizes": (8, 2, 2)}, [8, 2, 2]),
    "uneven": ({"split_sizes": (5, 6, 1)}, [5, 6, 1]),
    "heads": ({"num_heads": 3}, [4, 4, 4]),
    "qkv-heads": ({"split_sizes": (4, 4, 4), "num_heads": 2}, [2] * 6),
    "gqa-heads": ({"split_sizes": (8, 2, 2), "num_heads": (4, 1, 1)}, [2] * 6),
    "uneven-heads": ({"split_sizes": (8, 4), "num_heads": (2, 4)}, [4, 4, 1, 1, 1, 1]),
    "heads-of-one-part": ({"split_sizes": (8, 4), "num_heads": (2, 1)}, [4, 4, 4]),
    "lists": ({"split_sizes": [8, 4], "num_heads": [2, 1]}, [4, 4, 4]),
}
each_split = pytest.mark.parametrize("split,rows", SPLITS.values(), ids=SPLITS.keys())


def separate(params, rows) -> list[nn.Parameter]:
    return [nn.Parameter(part.clone()) for p in params for part in p.detach().split(rows)]


def run_both(params, rows, fused, apart, optimizer_of, count: int = 3) -> None:
    """Step both with the same gradients and compare weights and momentum."""
    alone = optimizer_of(apart)
    for seed in range(count):
        fill_gradients(params, seed)
        for part, g in zip(apart, [g for p in params for g in p.grad.split(rows)], strict=True):
            part.grad = g.clone()
        fused.step()
        alone.step()
    for p, parts in zip(params, [apart[i : i + len(rows)] for i in range(0, len(apart), len(rows))], strict=True):
        torch.testing.assert_close(p.detach(), torch.cat([part.detach() for part in parts]), atol=1e-12, rtol=0)
        momenta = torch.cat([alone.state[part]["momentum_buffer"] for part in parts])
        torch.testing.assert_close(fused.state[p]["momentum_buffer"], momenta, atol=1e-13, rtol=0)


@each_split
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw", "spectral"])
def test_a_split_equals_separate_parameters(split, rows, adjust, path) -> None:
    params = weights(2, (12, 5), torch.float64)
    settings = {**FLOAT64, "adjust_lr_fn": adjust}
    fused = muonlab.Muon([{"params": params, **split}], **settings)
    run_both(params, rows, fused, separate(params, rows), lambda parts: muonlab.Muon(parts, **settings))


@each_split
@pytest.mark.parametrize("decay", ["independent", "coupled", "cautious"])
def test_a_split_equals_separate_parameters_in_every_form_of_decay(split, rows, decay) -> None:
    params = weights(1, (12, 5), torch.float64)
    settings = {**FLOAT64, "decay": decay, "momentum_form": "heavy_ball"}
    fused = muonlab.Muon([{"params": params, **split}], **settings)
    run_both(params, rows, fused, separate(params, rows), lambda parts: muonlab.Muon(parts, **settings))


def some_basis(a: torch.Tensor) -> torch.Tensor:
    """The same for every matrix of a size: eigenvectors of a null space are rounding noise, and differ with it."""
    x = torch.randn(a.shape[-1], a.shape[-1], generator=torch.Generator().manual_seed(0), dtype=a.dtype)
    return torch.linalg.qr(x)[0].expand_as(a)


ROWS = (12, 4)
PARTS = {  # shape, group, the matrices of a tensor of that shape
    "qkv": (ROWS, {"split_sizes": (4, 4, 4)}, lambda x: x.split(4)),
    "gqa": (ROWS, {"split_sizes": (8, 2, 2)}, lambda x: x.split((8, 2, 2))),
    "heads": (ROWS, {"num_heads": 3}, lambda x: x.split(4)),
    "gqa-heads": (ROWS, {"split_sizes": (8, 2, 2), "num_heads": (4, 1, 1)}, lambda x: x.split(2)),
    "uneven-heads": (ROWS, {"split_sizes": (8, 4), "num_heads": (2, 2)}, lambda x: x.split((4, 4, 2, 2))),
    "experts": ((3, 4, 4), {"role": "expert"}, lambda x: x.unbind(0)),
    "wide-experts": ((3, 2, 4), {"role": "expert"}, lambda x: x.unbind(0)),
    "transposed": ((4, 6), {"transposed": True}, lambda x: [x.mT]),
    "transposed-qkv": ((4, 12), {"transposed": True, "split_sizes": (4, 4, 4)}, lambda x: x.mT.split(4)),
    "convolution": ((6, 2, 2, 2), {"role": "conv"}, lambda x: [x.flatten(1)]),
    "channels-last": ((6, 2, 2, 2), {"role": "conv"}, lambda x: [x.flatten(1)]),
}


def states_of(optimizer, p: torch.Tensor, name: str, parts) -> list[torch.Tensor]:
    """A state of a parameter, matrix by matrix."""
    if optimizer.rule.state[name].layout == "param":
        return list(parts(optimizer.state[p][name]))
    blocks = [value for key, value in optimizer.state[p].items() if key.partition(".")[0] == name]
    return [one for block in blocks for one in block.reshape(-1, *block.shape[-2:])]


@each_of_matrices
@pytest.mark.parametrize("shape,group,parts", PARTS.values(), ids=PARTS.keys())
def test_every_matrix_of_a_parameter_is_updated_as_if_alone(
    cls, arguments, shape, group, parts, path, request, monkeypatch
) -> None:
    """Weights and state, float64, gradients of very different size; refreshed bases and factors among them."""
    monkeypatch.setattr(soap, "eigenbasis", some_basis)
    settings = in_float64(cls, arguments)
    layout = torch.channels_last if "channels-last" in request.node.name else torch.preserve_format
    params = [nn.Parameter(p.detach().clone(memory_format=layout)) for p in weights(2, shape, torch.float64)]
    apart = [nn.Parameter(part.clone()) for p in params for part in parts(p.detach())]
    fused = cls([{"params": params, "algorithm": cls.rule.name, **group}], **settings)
    alone = cls(apart, **settings)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        for p in params:
            p.grad = torch.randn(shape, generator=generator, dtype=p.dtype)
            for i, part in enumerate(parts(p.grad)):
                part.mul_(10.0**i)
            p.grad = p.grad.clone(memory_format=layout)
        for part, g in zip(apart, [g for p in params for g in parts(p.grad)], strict=True):
            part.grad = g.clone()
        fused.step()
        alone.step()
    torch.testing.assert_close(
        [part for p in params for part in parts(p.detach())], [p.detach() for p in apart], atol=1e-9, rtol=0
    )
    for name in cls.rule().active_state():
        found = [one for p in params for one in states_of(fused, p, name, parts)]
        torch.testing.assert_close(found, [alone.state[p][name] for p in apart], atol=1e-7, rtol=1e-7)


@each_of_matrices
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "master"])
def test_a_split_of_bfloat16_weights_moves_every_row(cls, arguments, rounding) -> None:
    params = weights(2, (12, 5), torch.bfloat16)
    before = [p.detach().clone() for p in params]
    optimizer = cls([{"params": params, "split_sizes": (8, 4)}], **{**arguments, "lr": 0.5}, rounding=rounding)
    steps(optimizer, params, range(3))
    for p, start in zip(params, before, strict=True):
        assert (p != start).any(dim=1).all()
        if rounding == "master":
            assert torch.equal(p.detach(), optimizer.state[p]["master"].to(torch.bfloat16))


def test_a_split_changes_the_result() -> None:
    whole, split = weights(1, (12, 5), torch.float64), weights(1, (12, 5), torch.float64)
    steps(muonlab.Muon(whole, **FLOAT64), whole, [0])
    steps(muonlab.Muon([{"params": split, "split_sizes": (8, 4)}], **FLOAT64), split, [0])
    assert (whole[0] - split[0]).abs().max() > 1e-3


def test_scale_is_that_of_the_block() -> None:
    """9 x 3 as three squares: scale 1 instead of sqrt(3)."""
    (w,) = weights(1, (9, 3), torch.float64)
    start = w.detach().clone()
    optimizer = muonlab.Muon([{"params": [w], "split_sizes": (3, 3, 3)}], lr=1.0, weight_decay=0.0, polar="exact")
    steps(optimizer, [w], [0])
    for part in (w.detach() - start).split(3):
        torch.testing.assert_close(torch.linalg.svdvals(part), torch.ones(3, dtype=torch.float64))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(nn.ModuleDict({"qkv": nn.Linear(8, 12, bias=False)}) for _ in range(2))
        self.double()


@pytest.mark.parametrize("pattern", ["blocks.*.qkv.weight", "blocks.0.qkv.weight", "*qkv*"])
@pytest.mark.parametrize("named", [False, True])
def test_splits_are_given_by_name_or_glob(pattern: str, named: bool) -> None:
    torch.manual_seed(0)
    model = Attention()
    source = model.named_parameters() if named else model
    roles = {"tokens.weight": "embedding"}
    optimizer = muonlab.Muon(source, roles=roles, split_sizes={pattern: (8, 2, 2)}, num_heads={pattern: (4, 1, 1)})
    matched = [p for n, p in model.named_parameters() if "qkv" in n and ("*" in pattern or "0" in n)]
    split = [p for group in optimizer.param_groups if group.get("split_sizes") for p in group["params"]]
    assert [id(p) for p in split] == [id(p) for p in matched]
    assert "as 4 of 2 x 8, 1 of 2 x 8, 1 of 2 x 8" in optimizer.explain()


def test_attention_is_split_by_itself_and_equals_three_parameters() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2).double()
    (w,) = params = [attention.in_proj_weight]
    optimizer = muonlab.Muon(attention, **FLOAT64)
    group = next(group for group in optimizer.param_groups if any(p is w for p in group["params"]))
    assert group["split_sizes"] == (6, 6, 6)
    run_both(params, [6, 6, 6], optimizer, separate(params, [6, 6, 6]), lambda parts: muonlab.Muon(parts, **FLOAT64))
    assert "3 of 6 x 6" in optimizer.explain()
    uneven = nn.MultiheadAttention(6, 2, kdim=4, vdim=5)
    assert not any(group.get("split_sizes") for group in muonlab.Muon(uneven).param_groups)


@pytest.mark.parametrize(
    "make,gates",
    [
        (lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True), 4),
        (lambda: nn.LSTM(3, 5, proj_size=2), 4),
        (lambda: nn.LSTMCell(3, 5), 4),
        (lambda: nn.GRU(3, 5), 3),
        (lambda: nn.GRUCell(3, 5), 3),
        (lambda: nn.RNN(3, 5), 1),
    ],
    ids=["lstm", "projected", "lstm-cell", "gru", "gru-cell", "rnn"],
)
def test_gates_are_matrices_of_their_own(make, gates: int) -> None:
    model = make().double()
    optimizer = muonlab.Muon(model, **FLOAT64)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            stacked = gates > 1 and p.ndim == 2 and "weight_hr" not in names[id(p)]
            assert group.get("split_sizes") == ((p.shape[0] // gates,) * gates if stacked else None)
    params = [p for name, p in model.named_parameters() if "weight_hh" in name][:1]
    rows = [params[0].shape[0] // gates] * gates
    run_both(params, rows, optimizer, separate(params, rows), lambda parts: muonlab.Muon(parts, **FLOAT64))


def test_what_the_user_says_beats_what_the_module_says() -> None:
    attention = nn.MultiheadAttention(6, 2)
    optimizer = muonlab.Muon(attention, split_sizes={"in_proj_weight": (12, 6)}, num_heads={"in_proj_weight": (4, 2)})
    (group,) = [group for group in optimizer.param_groups if group.get("split_sizes")]
    assert group["split_sizes"] == (12, 6) and group["num_heads"] == (4, 2)


@pytest.mark.parametrize(
    "split,message",
    [
        ({"split_sizes": (4, 4)}, "add up to the 12 rows"),
        ({"split_sizes": 12}, "split_sizes"),
        ({"split_sizes": (12.0,)}, "positive whole numbers"),
        ({"split_sizes": (12, 0)}, "positive whole numbers"),
        ({"split_sizes": (13, -1)}, "positive whole numbers"),
        ({"split_sizes": (True, 11)}, "positive whole numbers"),
        ({"split_sizes": "444"}, "split_sizes"),
        ({"num_heads": 5}, "divide"),
        ({"num_heads": 0}, "positive whole numbers"),
        ({"num_heads": (2, 2)}, "one number, or one per part"),
        ({"split_sizes": (8, 4), "num_heads": (2, 2, 2)}, "one number, or one per part"),
        ({"split_sizes": (9, 3), "num_heads": 2}, "divide"),
    ],
)
def test_splits_that_do_not_fit_are_refused_everywhere(split: dict, message: str) -> None:
    (w,) = weights(1, (12, 5))
    by_name = {key: {"w": value} for key, value in split.items()}
    for make in (
        lambda: muonlab.Muon([{"params": [w], **split}]),
        lambda: muonlab.Muon(weights(1, seed=1)).add_param_group({"params": [w], **split}),
        lambda: muonlab.Muon([("w", w)], **by_name),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_splits_in_the_wrong_place_are_refused() -> None:
    model = Attention()
    with pytest.raises(UsageError, match="embedding"):
        muonlab.Muon(model, split_sizes={"tokens.weight": (10, 10)})
    with pytest.raises(UsageError, match="no parameter is called 'blokcs"):
        muonlab.Muon(model, split_sizes={"blokcs.*": (6, 6)})
    with pytest.raises(UsageError, match="dictionary"):
        muonlab.Muon(model, split_sizes=(4, 4, 4))
    with pytest.raises(ValueError, match="split_sizes"):
        muonlab.AdamW([{"params": weights(1), "split_sizes": (3, 3)}])
    with pytest.raises(ValueError, match="matrices"):
        muonlab.Muon([{"params": weights(1, (4, 3, 2)), "role": "expert", "split_sizes": (2, 2)}])


def test_a_checkpoint_keeps_its_split_and_one_that_does_not_fit_is_refused() -> None:
    params, twins = weights(2, (12, 5)), weights(2, (12, 5))
    optimizer = muonlab.Muon([{"params": params, "split_sizes": (8, 4)}], lr=0.1)
    steps(optimizer, params, [0])
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other = muonlab.Muon(twins)
    steps(other, twins, [0])
    with torch.no_grad():
        for p, q in zip(params, twins, strict=True):
            q.copy_(p)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups[0]["split_sizes"] == (8, 4)
    steps(optimizer, params, [1])
    steps(other, twins, [1])
    assert bits(params) == bits(twins) and state_bits(optimizer) == state_bits(other)
    bad = copy.deepcopy(optimizer.state_dict())
    bad["param_groups"][0]["split_sizes"] = (8, 3)
    with pytest.raises(ValueError, match="add up"):
        other.load_state_dict(bad)
    assert other.param_groups[0]["split_sizes"] == (8, 4)


def test_gqa_like_projection_equals_the_formula() -> None:
    params = weights(1, (8, 4), torch.float64)
    optimizer = muonlab.Muon([{"params": params, "split_sizes": (4, 2, 2)}], **FLOAT64)
    settings = {"lr": 0.1, "weight_decay": 0.3, "decay": "decoupled"}
    references = [Reference("muon", part, **settings) for part in params[0].detach().split([4, 2, 2])]
    for seed in range(3):
        steps(optimizer, params, [seed])
        grads = params[0].grad.split([4, 2, 2])
        expected = torch.cat([reference.step(g) for reference, g in zip(references, grads, strict=True)])
        torch.testing.assert_close(params[0].detach(), expected, atol=1e-11, rtol=0)
