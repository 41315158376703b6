"""A Llama-style decoder in plain matrices, so that a matrix optimizer sees each map by itself.

Shape suffixes
    B batch    T positions    D width    H heads    E width of one head    P pairs in one head (E / 2)
    F width of the MLP    V vocabulary
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.errors import UsageError, unknown
from muonlab.roles import Role

if TYPE_CHECKING:
    from torch.distributed.tensor.parallel import ParallelStyle

__all__ = ["Decoder", "DecoderConfig"]

NORMS = ("rms", "layer")
MLPS = ("swiglu", "gelu")
HEAD_WIDTH = 32  # of the default; one wide head is several times faster on a CPU than many narrow ones
NORM_EPS = 1e-6
HEAD_STD = 0.02  # at initialisation, also of a tied table, as in GPT-2
BRANCHES = ("attention.o", "mlp.down")  # of a block, whose outputs are added to the residual stream
EMBEDDING_STD = 1.0  # untied: the residual stream starts at the scale that the blocks write at


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder. `None` means: derived from the width, see `heads` and `hidden`.

    >>> config = DecoderConfig(width=32, depth=2)
    >>> config.heads, config.hidden, config.num_matmul_params
    (1, 88, 33280)

    Raises   UsageError for a shape that cannot be built
    """

    vocab_size: int = 256
    width: int = 64
    depth: int = 2
    num_heads: int | None = None
    mlp_width: int | None = None
    mlp: str = "swiglu"
    norm: str = "rms"
    qk_norm: bool = False  # normalise each head's queries and keys, without a gain
    tied: bool = False  # the head is the embedding table
    zero_init: bool = False  # output projections and an untied head start at zero
    rope_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "num_heads", "mlp_width"):
            value = getattr(self, name)
            if value is None and name in ("num_heads", "mlp_width"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("qk_norm", "tied", "zero_init"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.mlp not in MLPS:
            raise unknown("mlp", self.mlp, MLPS)
        if isinstance(self.rope_base, bool) or not isinstance(self.rope_base, int | float) or self.rope_base <= 1:
            raise UsageError(f"rope_base must be a number above 1, got {self.rope_base!r}")
        if self.width % self.heads:
            raise UsageError(f"num_heads {self.heads} must divide width {self.width}")
        if self.width // self.heads % 2:
            raise UsageError(f"width / num_heads must be even (RoPE turns pairs), got {self.width} / {self.heads}")

    @property
    def heads(self) -> int:
        """`num_heads`, or as many as there are whole 32s in the width, fewer if they do not divide it."""
        if self.num_heads is not None:
            return self.num_heads
        most = max(1, self.width // HEAD_WIDTH)
        return next(n for n in range(most, 0, -1) if self.width % n == 0 and (self.width // n % 2 == 0 or n == 1))

    @property
    def hidden(self) -> int:
        """`mlp_width`, or 8/3 of the width rounded to a multiple of 8 (swiglu), 4 times the width (gelu)."""
        if self.mlp_width is not None:
            return self.mlp_width
        return max(8, 8 * round(self.width / 3)) if self.mlp == "swiglu" else 4 * self.width

    @property
    def num_matmul_params(self) -> int:
        """Parameters that every token is multiplied by: the hidden matrices and the head, tied or not."""
        num_mlp = 3 if self.mlp == "swiglu" else 2
        return self.depth * self.width * (4 * self.width + num_mlp * self.hidden) + self.vocab_size * self.width

    def flops_per_token(self, seq_len: int) -> float:
        """Forward and backward.

        Math     6 N + 12 depth width seq_len, with N = num_matmul_params
        Differs  from what a causal kernel executes: scores above the diagonal are counted, as is usual; norms,
                 activations, the rotation and the softmax are not
        """
        return 6.0 * self.num_matmul_params + 12.0 * self.depth * self.width * seq_len


class Norm(nn.Module):
    """RMS norm with a gain, or layer norm with gain and bias, over the last dimension."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.bias is not None:
            return F.layer_norm(x_BTD, self.weight.shape, self.weight, self.bias, NORM_EPS)
        # The gain outside: `rms_norm` with a weight falls back to a path half as fast on a CPU.
        return F.rms_norm(x_BTD, self.weight.shape, eps=NORM_EPS) * self.weight


class Attention(nn.Module):
    """Causal self-attention with rotary positions; q, k, v and o are separate matrices."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_width, self.qk_norm = config.width // config.heads, config.qk_norm
        self.q = _linear(config.width, config.width)
        self.k = _linear(config.width, config.width)
        self.v = _linear(config.width, config.width)
        self.o = _linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, turns_T1P2: Tensor) -> Tensor:
        q_BTHE, k_BTHE, v_BTHE = (m(x_BTD).unflatten(-1, (-1, self.head_width)) for m in (self.q, self.k, self.v))
        if self.qk_norm:
            q_BTHE, k_BTHE = (F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) for x in (q_BTHE, k_BTHE))
        q_BTHE, k_BTHE = rotate(q_BTHE, turns_T1P2), rotate(k_BTHE, turns_T1P2)
        y_BHTE = F.scaled_dot_product_attention(
            q_BTHE.transpose(1, 2), k_BTHE.transpose(1, 2), v_BTHE.transpose(1, 2), is_causal=True
        )
        return self.o(y_BHTE.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """SwiGLU, or two matrices around a GELU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate = _linear(config.width, config.hidden) if config.mlp == "swiglu" else None
        self.up = _linear(config.width, config.hidden)
        self.down = _linear(config.hidden, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(x_BTD)
        h_BTF = F.gelu(h_BTF) if self.gate is None else F.silu(self.gate(x_BTD)) * h_BTF
        return self.down(h_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(config.width, config.norm), Attention(config)
        self.mlp_norm, self.mlp = Norm(config.width, config.norm), MLP(config)

    def forward(self, x_BTD: Tensor, turns_T1P2: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), turns_T1P2)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Decoder(nn.Module):
    """Tokens -> logits of the next token.

    Shapes   (B, T) int64, T <= seq_len -> (B, T, V)
    Init     hidden matrices N(0, 1/fan_in), output projections also / sqrt(2 depth), embedding N(0, 1), head and
             tied table N(0, 0.02^2), gains 1;
             with `zero_init` output projections and an untied head are 0 (a tied table cannot be)
    """

    def __init__(self, config: DecoderConfig, seq_len: int) -> None:
        super().__init__()
        self.config, self.seq_len = config, seq_len
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = Norm(config.width, config.norm)
        self.head = _linear(config.width, config.vocab_size)
        if config.tied:
            self.head.weight = self.embed.weight
        turns = rotations(seq_len, config.width // config.heads, config.rope_base)
        self.register_buffer("turns", turns, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        config = self.config
        for block in self.blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
            for out in (block.attention.o, block.mlp.down):
                nn.init.zeros_(out.weight) if config.zero_init else out.weight.data.div_(math.sqrt(2 * config.depth))
        nn.init.normal_(self.embed.weight, std=HEAD_STD if config.tied else EMBEDDING_STD)
        if not config.tied:
            nn.init.normal_(self.head.weight, std=0.0 if config.zero_init else HEAD_STD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        num_positions = tokens_BT.shape[1]
        if num_positions > self.seq_len:
            raise UsageError(f"a sequence of {num_positions} tokens exceeds the model's seq_len {self.seq_len}")
        turns_T1P2 = self.turns[:num_positions].float()
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD, turns_T1P2)
        return self.head(self.norm(x_BTD))

    def roles(self) -> dict[str, Role]:
        """Parameter name -> role; a tied table counts as EMBEDDING."""
        found = {}
        for name, parameter in self.named_parameters():
            if parameter is self.embed.weight:
                found[name] = Role.EMBEDDING
            elif parameter is self.head.weight:
                found[name] = Role.HEAD
            else:
                found[name] = Role.HIDDEN if parameter.ndim == 2 else Role.VECTOR
        return found

    def branches(self) -> list[str]:
        """The modules whose output is added to the residual stream."""
        return [f"blocks.{k}.{name}" for k in range(len(self.blocks)) for name in BRANCHES]

    def tensor_parallel_plan(self, size: int) -> dict[str, "ParallelStyle"]:
        """What goes into a block by columns comes out of it by rows; heads stay whole.

        Raises   UsageError for a number of ranks that does not divide heads or MLP
        """
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

        for name, option in (("heads", "num_heads"), ("hidden", "mlp_width")):
            if (number := getattr(self.config, name)) % size:
                raise UsageError(f"tp={size} must divide the model's {name}, {number}: choose --set task.{option}")
        return {
            f"blocks.{k}.{name}": RowwiseParallel() if name in BRANCHES else ColwiseParallel()
            for k, block in enumerate(self.blocks)
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }

    def num_params(self) -> dict[Role, int]:
        """Role -> number of parameters, each counted once."""
        roles, count = self.roles(), Counter[Role]()
        for name, parameter in self.named_parameters():
            count[roles[name]] += parameter.numel()
        return dict(count)


def rotations(num_positions: int, head_width: int, base: float) -> Tensor:
    """Cosine and sine of each position's angle for each pair of coordinates.

    Math     angle(t, i) = t base^(-2 i / head_width)
    Shapes   -> (num_positions, 1, head_width / 2, 2) float32; real, since module.to(dtype) would cast a complex buffer
    """
    speed = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None, None] * speed
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def rotate(x_BTHE: Tensor, turns_T1P2: Tensor) -> Tensor:
    """Turn each pair of neighbouring coordinates by its position's angle (RoPE).

    Source   Su et al. 2021, "RoFormer"
    Differs  from Llama's code as released on the hub: neighbours (2 i, 2 i + 1) are paired, as in the paper, not
             (i, i + head_width / 2): one complex product is two to four times faster on a CPU than the four real ones
    """
    x_BTHP2 = x_BTHE.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the same product in real numbers: the compiler generates no complex code
        (a_BTHP, b_BTHP), (cos_T1P, sin_T1P) = x_BTHP2.unbind(-1), turns_T1P2.unbind(-1)
        y_BTHP2 = torch.stack((a_BTHP * cos_T1P - b_BTHP * sin_T1P, a_BTHP * sin_T1P + b_BTHP * cos_T1P), dim=-1)
    else:
        y_BTHP2 = torch.view_as_real(torch.view_as_complex(x_BTHP2) * torch.view_as_complex(turns_T1P2))
    return y_BTHP2.flatten(-2).type_as(x_BTHE)


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)
