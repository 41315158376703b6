"""QK-clip bounds the logits of the heads that exceed the threshold, and touches no other."""

import pytest
import torch

import muonlab
from muonlab.optim import AttentionWeights, qk_clip_, register_qk_clip

WIDTH, HEAD_DIM = 6, 4


def projections(num_heads: int, num_kv_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(count * HEAD_DIM, WIDTH, generator=generator, dtype=torch.float64) * 4
        for count in (num_heads, num_kv_heads)
    )


def largest_logits(query: torch.Tensor, key: torch.Tensor, num_heads: int, num_kv_heads: int) -> torch.Tensor:
    x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q = (x @ query.T).unflatten(-1, (num_heads, HEAD_DIM)).transpose(0, 1)
    k = (x @ key.T).unflatten(-1, (num_kv_heads, HEAD_DIM)).transpose(0, 1)
    return (q @ k.repeat_interleave(num_heads // num_kv_heads, 0).mT).amax((-2, -1)) / HEAD_DIM**0.5


@pytest.mark.parametrize("num_heads,num_kv_heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_logits_end_at_the_threshold_where_they_exceeded_it(num_heads: int, num_kv_heads: int, balance: float) -> None:
    query, key = projections(num_heads, num_kv_heads)
    before = largest_logits(query, key, num_heads, num_kv_heads)
    threshold = before.sort().values[1:3].mean().item()
    assert (before > threshold).any() and (before < threshold).any()
    arguments = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "threshold": threshold, "balance": balance}
    gamma = qk_clip_(query, key, before, **arguments)
    after = largest_logits(query, key, num_heads, num_kv_heads)
    torch.testing.assert_close(after, before.clamp(max=threshold), rtol=1e-6, atol=0)
    assert torch.equal(gamma < 1, before > threshold)


def test_nothing_to_clip_changes_no_bit_and_a_broken_head_is_left_alone() -> None:
    query, key = projections(2, 2)
    kept = query.clone(), key.clone()
    qk_clip_(query, key, torch.tensor([99.0, torch.nan]), num_heads=2)
    qk_clip_(query, key, torch.tensor([torch.inf, 1.0]), num_heads=2)
    assert torch.equal(query, kept[0]) and torch.equal(key, kept[1])


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.0},
        {"threshold": float("nan")},
        {"balance": 1.5},
        {"num_kv_heads": 3},
        {"num_heads": 3},
        {"max_logits": torch.ones(3)},
    ],
)
def test_bad_arguments_change_nothing(change: dict) -> None:
    query, key = projections(4, 4)
    kept = query.clone()
    arguments = {"max_logits": torch.full((4,), 1e3), "num_heads": 4, "num_kv_heads": 4, **change}
    with pytest.raises(ValueError):
        qk_clip_(query, key, **arguments)
    assert torch.equal(query, kept)


def test_hook_clips_after_every_step_until_removed() -> None:
    qkv = torch.nn.Parameter(torch.ones(12, WIDTH))
    optimizer = muonlab.Muon([qkv], lr=0.0)
    layer = AttentionWeights(qkv[:4], qkv[4:8], num_heads=2, max_logits=lambda: torch.tensor([400.0, 1.0]))
    handle = register_qk_clip(optimizer, [layer], threshold=100.0)
    qkv.grad = torch.zeros_like(qkv)
    optimizer.step()
    assert qkv[:, 0].tolist() == [0.5] * 2 + [1.0] * 2 + [0.5] * 2 + [1.0] * 6
    handle.remove()
    optimizer.step()
    assert qkv[0, 0] == 0.5


def test_balance_is_the_share_of_the_queries() -> None:
    for balance, q_factor, k_factor in ((1.0, 0.25, 1.0), (0.0, 1.0, 0.25), (0.25, 0.25**0.25, 0.25**0.75)):
        q, k = torch.ones(4, 2), torch.ones(4, 2)
        qk_clip_(q, k, torch.tensor([400.0, 50.0]), num_heads=2, threshold=100.0, balance=balance)
        torch.testing.assert_close(q[:, 0], torch.tensor([q_factor, q_factor, 1.0, 1.0]))
        torch.testing.assert_close(k[:, 0], torch.tensor([k_factor, k_factor, 1.0, 1.0]))
