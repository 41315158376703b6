"""A residual network for images. Convolutions are flattened to matrices for Muon; norms and the classifier get AdamW.

python examples/resnet.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import muonlab


class Block(nn.Module):
    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False) if num_in != num_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layers = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.bn1(self.conv1(x)).relu()).mean((2, 3)))


def main() -> None:
    torch.manual_seed(0)
    model = ResNet()
    optimizer = muonlab.Muon(model, lr=0.02, weight_decay=0.01, aux_lr=0.002)
    print(optimizer.explain())
    patterns = torch.randn(10, 3, 16, 16)
    for step in range(20):
        labels = torch.randint(10, (32,))
        loss = F.cross_entropy(model(patterns[labels] + torch.randn(32, 3, 16, 16)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
