"""QK-clip: keep attention logits bounded by shrinking query and key weights, head by head (MuonClip)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

__all__ = ["AttentionWeights", "qk_clip_", "register_qk_clip"]


@dataclass(frozen=True)
class AttentionWeights:
    """Query and key projection of one attention layer, and where to find its largest logits.

    Shapes   query (num_heads x head_dim, width), key (num_kv_heads x head_dim, width): parameters, or the rows of a
             fused one (`qkv.weight[:width]`, taken again after the weight has been replaced); max_logits()
             (num_heads,): the largest logit, after the 1/sqrt(head_dim), of each query head since the last step
    """

    query: Tensor
    key: Tensor
    num_heads: int
    max_logits: Callable[[], Tensor]
    num_kv_heads: int | None = None  # None: as many as query heads


@torch.no_grad()
def qk_clip_(
    query: Tensor,
    key: Tensor,
    max_logits: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int | None = None,
    threshold: float = 100.0,
    balance: float = 0.5,
) -> Tensor:
    """Shrink the weights of every head whose largest logit exceeds `threshold`, so that it would have been just that.

    Math     gamma = min(1, threshold / max_logit) per head;  W_q <- gamma^balance W_q,  W_k <- gamma^(1 - balance) W_k
    Shapes   query (num_heads x head_dim, width), key (num_kv_heads x head_dim, width), max_logits (num_heads,)
             -> gamma (num_heads,), 1 where nothing was clipped
    Raises   ValueError for shapes that do not fit together, or a threshold or balance out of range
    Source   Kimi K2 (2507.20534), MuonClip; threshold 100 is theirs
    Differs  with grouped queries a key head takes the smallest gamma of its group, and each query head of the group
             makes up the difference, so that every head's logits shrink by exactly its own gamma; a head whose
             max_logit is not finite is left alone. Biases are not touched. No host synchronisation

    >>> q, k = torch.ones(4, 2), torch.ones(4, 2)
    >>> qk_clip_(q, k, torch.tensor([400.0, 50.0]), num_heads=2).tolist()
    [0.25, 1.0]
    >>> q[:, 0].tolist(), k[:, 0].tolist()
    ([0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0])
    """
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    _check(query, key, max_logits, num_heads, num_kv_heads, threshold, balance)
    logits = max_logits.detach().to(query.device, torch.float32)
    gamma = torch.where(logits.isfinite() & (logits > threshold), threshold / logits, 1.0)
    shared = gamma.reshape(num_kv_heads, -1).amin(1) ** (1 - balance)
    rest = gamma / shared.repeat_interleave(num_heads // num_kv_heads)
    for weight, factor in ((query, rest), (key, shared)):
        rows = factor.repeat_interleave(weight.shape[0] // len(factor))
        weight.mul_(rows.to(weight.dtype).reshape(-1, *[1] * (weight.ndim - 1)))
    return gamma


def register_qk_clip(
    optimizer: torch.optim.Optimizer,
    layers: Sequence[AttentionWeights],
    *,
    threshold: float = 100.0,
    balance: float = 0.5,
) -> RemovableHandle:
    """Clip these layers after every step of `optimizer`, also one that was skipped; `remove()` on the handle ends it.

    Raises   ValueError or TypeError at once for layers that cannot be clipped

    >>> weight = torch.nn.Parameter(torch.eye(2))
    >>> weight.grad = torch.zeros(2, 2)
    >>> sgd = torch.optim.SGD([weight], lr=0.1)
    >>> layer = AttentionWeights(weight[:1], weight[1:], num_heads=1, max_logits=lambda: torch.tensor([400.0]))
    >>> handle = register_qk_clip(sgd, [layer])
    >>> sgd.step()
    >>> weight.diagonal().tolist()
    [0.5, 0.5]
    """

    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    for layer in layers:
        if not isinstance(layer, AttentionWeights) or not callable(layer.max_logits):
            raise TypeError(f"layers must be AttentionWeights whose max_logits can be called, got {layer!r}")
        logits = torch.zeros(max(layer.num_heads, 0))
        _check(layer.query, layer.key, logits, layer.num_heads, _num_kv_heads(layer), threshold, balance)

    def clip(*_: object) -> None:
        for layer in layers:
            qk_clip_(
                layer.query,
                layer.key,
                layer.max_logits(),
                num_heads=layer.num_heads,
                num_kv_heads=layer.num_kv_heads,
                threshold=threshold,
                balance=balance,
            )

    return optimizer.register_step_post_hook(clip)


def _num_kv_heads(layer: AttentionWeights) -> int:
    return layer.num_heads if layer.num_kv_heads is None else layer.num_kv_heads


def _check(
    query: Tensor, key: Tensor, max_logits: Tensor, num_heads: int, num_kv_heads: int, threshold: float, balance: float
) -> None:
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    if not 0 <= balance <= 1:
        raise ValueError(f"balance must be between 0 (keys alone) and 1 (queries alone), got {balance}")
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"num_kv_heads={num_kv_heads} must divide num_heads={num_heads}")
    if tuple(max_logits.shape) != (num_heads,):
        raise ValueError(f"max_logits needs one value per query head, ({num_heads},), got {tuple(max_logits.shape)}")
    for name, weight, count in (("query", query, num_heads), ("key", key, num_kv_heads)):
        if weight.ndim < 1 or weight.shape[0] % count:
            raise ValueError(f"the rows of {name} {tuple(weight.shape)} are not a multiple of {count} heads")
