"""Networks for small images: a residual network, a vision transformer, a plain stack of convolutions.

Nothing looks across the batch: a batch of images gives what the images give one by one.

Shape suffixes
    B batch    C channels    Y X rows and columns of pixels    T patches    D width    H heads    E width of one head
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.errors import UsageError, unknown
from muonlab.roles import Role
from muonlab.tasks.decoder import MLP, DecoderConfig, Norm

__all__ = ["VisionConfig", "VisionNetwork"]

WIDTHS = {"resnet": 16, "vit": 64, "cnn": 16}
DEPTHS = {"resnet": 1, "vit": 2, "cnn": 1}
LAST_SIDE = 4  # images are halved from stage to stage while their shorter side is above this
MOST_PATCHES = 64
NORM_GROUPS = 8
SMALL_STD = 0.02  # of the head and the positions at initialisation

Size = tuple[int, int]  # rows, columns


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The shape of a network. `None` means: the default of the model.

    width      resnet, cnn: channels of the first stage, doubled from stage to stage; vit: of its blocks
    depth      resnet, cnn: blocks of a stage; vit: blocks
    patch_size vit: pixels along a patch's side; None = the least, above 1, that gives at most 64 patches

    `resnet` of width 64 and depth 2 on 32 x 32 pixels has the layers of ResNet-18 for CIFAR.

    >>> VisionConfig(image=(3, 32, 32), num_classes=10).sizes
    ((32, 32), (16, 16), (8, 8), (4, 4))

    Raises   UsageError for a shape that cannot be built
    """

    image: tuple[int, int, int]  # channels, height, width
    num_classes: int
    model: str = "resnet"
    width: int | None = None
    depth: int | None = None
    patch_size: int | None = None

    def __post_init__(self) -> None:
        if self.model not in WIDTHS:
            raise unknown("model", self.model, WIDTHS)
        for name in ("width", "depth", "patch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.model != "vit":
            if self.patch_size is not None:
                raise UsageError(f"patch_size is for model vit: leave it out for {self.model}")
        elif any(side % self.patch for side in self.image[1:]):
            raise UsageError(f"patch_size {self.patch} must divide {self.image[1]} and {self.image[2]} pixels")

    @property
    def channels(self) -> int:
        """Of the first stage, or of the blocks."""
        return self.width or WIDTHS[self.model]

    @property
    def blocks(self) -> int:
        """Of a stage, or of all."""
        return self.depth or DEPTHS[self.model]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Pixels of each stage of a convolutional network."""
        sizes = [(self.image[1], self.image[2])]
        while min(sizes[-1]) > LAST_SIDE:
            sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
        return tuple(sizes)

    @property
    def patch(self) -> int:
        """`patch_size`, or the least common divisor of both sides above 1 that gives at most 64 patches."""
        if self.patch_size is not None:
            return self.patch_size
        common = math.gcd(*self.image[1:])
        fits = (p for p in range(2, common) if common % p == 0 and self.image[1] * self.image[2] <= MOST_PATCHES * p**2)
        return next(fits, common)


class VisionNetwork(nn.Module):
    """Images -> logits of their classes.

    Shapes   (B, C, Y, X) in [0, 1] -> (B, num_classes)
    Init     kernels N(0, 2/fan_in), hidden matrices N(0, 1/fan_in), what leaves a residual branch also divided by the
             root of the number of branches; head and positions N(0, 0.02^2), biases 0, gains 1
    """

    def __init__(self, config: VisionConfig, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        """Pixels are standardised by the mean and deviation of their channel."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)
        self.stem, self.blocks, self.pool, num_features = PARTS[config.model](config)
        self.head = nn.Linear(num_features, config.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        outputs = [out for block in self.blocks for out in block.outputs()]
        for out in outputs:
            out.weight.data.div_(math.sqrt(len(outputs)))
        nn.init.normal_(self.head.weight, std=SMALL_STD)
        if isinstance(self.stem, Patches):
            nn.init.normal_(self.stem.positions, std=SMALL_STD)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        x = self.stem((images_BCYX - self.mean) / self.deviation)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))

    def roles(self) -> dict[str, Role]:
        """Parameter name -> role; the layer that reads pixels counts like any other of its kind."""
        found = {}
        for name, parameter in self.named_parameters():
            if name in ("head.weight", "stem.positions"):
                found[name] = Role.HEAD if name == "head.weight" else Role.EMBEDDING
            else:
                found[name] = {4: Role.CONV, 2: Role.HIDDEN}.get(parameter.ndim, Role.VECTOR)
        return found

    def flops_per_image(self) -> float:
        """Forward and backward of convolutions, matrices and attention scores; the pixels get no gradient.

        Differs  from what is executed: norms, activations, pooling and the softmax are not counted
        """
        layers = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        products = [getattr(layer, "positions", 1) * layer.weight.numel() for layer in layers]
        scores = sum(2 * getattr(block, "num_patches", 0) ** 2 * self.config.channels for block in self.blocks)
        return 2.0 * (3 * (sum(products) + scores) - products[0])


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), the first convolution with a stride where the size is halved.

    Source   He et al. 2016, "Identity mappings in deep residual networks"
    Differs  from it: group norm (Wu and He 2018) for batch norm
    """

    def __init__(self, fan_in: int, fan_out: int, size: Size, halves: bool) -> None:
        super().__init__()
        stride = 2 if halves else 1
        self.norm1, self.conv1 = _norm(fan_in), _conv(fan_in, fan_out, size, stride=stride)
        self.norm2, self.conv2 = _norm(fan_out), _conv(fan_out, fan_out, size)
        changes = halves or fan_in != fan_out
        self.shortcut = _conv(fan_in, fan_out, size, side=1, stride=stride) if changes else None

    def forward(self, x_BCYX: Tensor) -> Tensor:
        h = F.relu(self.norm1(x_BCYX))
        kept = x_BCYX if self.shortcut is None else self.shortcut(h)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(h))))

    def outputs(self) -> tuple[nn.Module, ...]:
        return (self.conv2,)


class PlainBlock(nn.Module):
    """relu(conv(x)), of the mean over squares of four pixels where the size is halved."""

    def __init__(self, fan_in: int, fan_out: int, size: Size, halves: bool) -> None:
        super().__init__()
        self.halves, self.conv = halves, _conv(fan_in, fan_out, size, bias=True)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        x_BCYX = F.avg_pool2d(x_BCYX, 2, ceil_mode=True) if self.halves else x_BCYX
        return F.relu(self.conv(x_BCYX))

    def outputs(self) -> tuple[nn.Module, ...]:
        return ()


class Patches(nn.Module):
    """One token for each square of pixels, with a learned vector for its place."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        channels, height, width = config.image
        self.side = config.patch
        num_patches = height * width // self.side**2
        self.patch = nn.Linear(channels * self.side**2, config.channels, bias=False)
        self.patch.positions = num_patches
        self.positions = nn.Parameter(torch.empty(num_patches, config.channels))

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.patch(F.unfold(x_BCYX, self.side, stride=self.side).transpose(1, 2)) + self.positions


class Attention(nn.Module):
    """Self-attention of all patches to all; q, k, v and o are separate matrices."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.width, config.width, bias=False) for _ in range(4))

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (m(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for m in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class AttentionBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); layer norm and GELU, as in ViT."""

    def __init__(self, config: DecoderConfig, num_patches: int) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.attention_norm, self.attention = Norm(config.width, "layer"), Attention(config)
        self.mlp_norm, self.mlp = Norm(config.width, "layer"), MLP(config)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                layer.positions = num_patches

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD))
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))

    def outputs(self) -> tuple[nn.Module, ...]:
        return (self.attention.o, self.mlp.down)


class Mean(nn.Module):
    """Over all places of an image: the last dimensions of (B, C, Y, X), the middle one of (B, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3) if x.ndim == 4 else 1)


Parts = tuple[nn.Module, nn.ModuleList, nn.Module, int]  # stem, blocks, pool, features of the head


def _resnet(config: VisionConfig) -> Parts:
    stem = _conv(config.image[0], config.channels, config.sizes[0])
    blocks, num_features = _stages(config, ResidualBlock)
    return stem, blocks, nn.Sequential(_norm(num_features), nn.ReLU(), Mean()), num_features


def _cnn(config: VisionConfig) -> Parts:
    stem = nn.Sequential(_conv(config.image[0], config.channels, config.sizes[0], bias=True), nn.ReLU())
    blocks, num_features = _stages(config, PlainBlock)
    return stem, blocks, Mean(), num_features


def _vit(config: VisionConfig) -> Parts:
    """Width and depth mean what they mean in the decoder."""
    stem = Patches(config)
    shape = DecoderConfig(width=config.channels, depth=config.blocks, mlp="gelu", norm="layer")
    blocks = nn.ModuleList(AttentionBlock(shape, len(stem.positions)) for _ in range(shape.depth))
    return stem, blocks, nn.Sequential(Norm(shape.width, "layer"), Mean()), shape.width


PARTS: dict[str, Callable[[VisionConfig], Parts]] = {"resnet": _resnet, "vit": _vit, "cnn": _cnn}


def _stages(config: VisionConfig, block: type[ResidualBlock] | type[PlainBlock]) -> tuple[nn.ModuleList, int]:
    """Blocks at ever smaller sizes and greater widths, and the last width."""
    blocks, fan_in = nn.ModuleList(), config.channels
    for stage, size in enumerate(config.sizes):
        fan_out = config.channels << stage
        for place in range(config.blocks):
            blocks.append(block(fan_in, fan_out, size, halves=stage > 0 and place == 0))
            fan_in = fan_out
    return blocks, fan_in


def _conv(fan_in: int, fan_out: int, size: Size, side: int = 3, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution whose outputs have `size`."""
    layer = nn.Conv2d(fan_in, fan_out, side, stride, padding=side // 2, bias=bias)
    layer.positions = size[0] * size[1]
    return layer


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(width, NORM_GROUPS), width)
