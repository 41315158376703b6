"""A mixture of experts. A stack of expert matrices is a batch: each expert is orthogonalised on its own.

python examples/moe.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import muonlab


class Experts(nn.Module):
    """All experts of a layer in two stacks (num_experts, fan_out, fan_in)."""

    def __init__(self, num_experts: int, width: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(num_experts, 4 * width, width) / width**0.5)
        self.down = nn.Parameter(torch.randn(num_experts, width, 4 * width) / (4 * width) ** 0.5)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu()
        return torch.einsum("teh,edh,te->td", hidden, self.down, gates)


class Layer(nn.Module):
    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = Experts(num_experts, width)
        self.shared = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.router(y)
        chosen = scores.topk(2, dim=-1)
        gates = torch.zeros_like(scores).scatter(-1, chosen.indices, chosen.values.softmax(-1))
        return x + self.experts(y, gates) + self.shared(y)


class MoE(nn.Module):
    def __init__(self, num_tokens: int = 64, width: int = 32, num_experts: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_tokens, width)
        self.layers = nn.ModuleList(Layer(width, num_experts) for _ in range(2))
        self.lm_head = nn.Linear(width, num_tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


def main() -> None:
    torch.manual_seed(0)
    model = MoE()
    optimizer = muonlab.Muon(model, lr=0.02, weight_decay=0.01, aux_lr=0.003)
    print(optimizer.explain())
    successor = torch.randperm(64)
    for step in range(20):
        tokens = torch.randint(64, (128,))
        loss = F.cross_entropy(model(tokens), successor[tokens])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
