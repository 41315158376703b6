"""A GPT with fused QKV and a tied head. Muon gets the matrices between the layers, AdamW the rest, by itself.

The one thing that no shape tells is that `qkv` stacks three matrices: `split_sizes` says so.

    python examples/gpt.py
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import muonlab

WIDTH, NUM_HEADS, NUM_TOKENS = 64, 4, 256


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm_1(x)).unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(NUM_TOKENS, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, NUM_TOKENS, bias=False)
        self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


def main() -> None:
    torch.manual_seed(0)
    model = GPT()
    optimizer = muonlab.Muon(
        model, lr=0.02, weight_decay=0.1, aux_lr=0.003, split_sizes={"blocks.*.qkv.weight": (WIDTH, WIDTH, WIDTH)}
    )
    print(optimizer.explain())
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=30)  # reaches both halves
    text = torch.tensor(list(Path(__file__).read_bytes()))
    for step in range(30):
        starts = torch.randint(len(text) - 65, (16,)).tolist()
        batch = torch.stack([text[start : start + 65] for start in starts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
