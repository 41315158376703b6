"""What may happen to an image, as functions of how much of it: pure tensor arithmetic on pixels in [0, 1].

Each takes images (B, C, Y, X), a level, and a source of random numbers: `uniform(n)` gives n of them in (0, 1) for
every image, float64. Lengths are in sides: in heights along the columns, in widths along the rows.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "blurred", "brightened", "compressed", "dimmed", "grainy", "noisy", "occluded", "pixelated", "shifted",
]  # fmt: skip

Uniform = Callable[[int], Tensor]  # numbers per image -> (B, that many) float64

BLOCK = 8
# How coarsely JPEG takes each frequency of brightness: ITU-T T.81, table K.1.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
GREY = 0.5


def noisy(x: Tensor, deviation: float, uniform: Uniform) -> Tensor:
    """Gaussian noise of one deviation everywhere."""
    return x + deviation * _normal(x, uniform)


def grainy(x: Tensor, photons: float, uniform: Uniform) -> Tensor:
    """Noise whose variance grows with brightness, as that of counted light: x / photons; Gaussian, not Poisson."""
    return x + (x / photons).sqrt() * _normal(x, uniform)


def blurred(x: Tensor, sides: float, uniform: Uniform) -> Tensor:
    """Smoothed by a Gaussian of this deviation, integrated over each pixel; the border goes on as it is."""
    rows, columns = (_smoothing(size, sides).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def dimmed(x: Tensor, contrast: float, uniform: Uniform) -> Tensor:
    """Differences from the image's mean, times `contrast`."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (x - mean)


def brightened(x: Tensor, light: float, uniform: Uniform) -> Tensor:
    return x + light


def pixelated(x: Tensor, share: float, uniform: Uniform) -> Tensor:
    """Means over a grid with this share of the rows and columns, drawn at the old size, pixels on its lines mixed."""
    rows, columns = (_coarse(size, max(1, round(share * size))).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def compressed(x: Tensor, quality: float, uniform: Uniform) -> Tensor:
    """Blocks of 8 x 8 pixels through the discrete cosine transform, rounded as JPEG does it at this quality, and back.

    Differs  from JPEG: every channel is taken for brightness; pixels between the transforms are not rounded
    """
    height, width = x.shape[-2:]
    padded = F.pad(x.double(), (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
    blocks = (255 * padded - 128).unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).transpose(-2, -3)
    turn = _cosines().to(padded)
    steps = _steps(quality).to(padded)
    kept = ((turn @ blocks @ turn.T) / steps).round() * steps
    back = (turn.T @ kept @ turn).transpose(-2, -3).flatten(-4, -3).flatten(-2)
    return ((back + 128) / 255)[..., :height, :width].to(x.dtype)


def occluded(x: Tensor, sides: float, uniform: Uniform) -> Tensor:
    """A grey rectangle with these sides, anywhere inside the image."""
    draws, inside = uniform(2), []
    for axis, size in enumerate(x.shape[-2:]):
        length = max(1, round(sides * size))
        first = (draws[:, axis] * (size - length + 1)).floor()[:, None]
        place = torch.arange(size)
        inside.append((place >= first) & (place < first + length))
    covered = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(covered.to(x.device), GREY)


def shifted(x: Tensor, sides: float, uniform: Uniform) -> Tensor:
    """Moved this far in a random direction, between pixels linearly; the border is drawn out."""
    angle = 2 * math.pi * uniform(1)[:, 0]
    for dim, part in ((-2, angle.sin()), (-1, angle.cos())):
        x = _moved(x, sides * x.shape[dim] * part, dim)
    return x


def _moved(x: Tensor, distance: Tensor, dim: int) -> Tensor:
    """Each image by its own number of pixels along one dimension."""
    size = x.shape[dim]
    source = torch.arange(size) - distance[:, None]
    low = source.floor()
    between = _along(source - low, dim).to(x)
    before, after = (
        x.gather(dim, _along(place.long().clamp(0, size - 1), dim).to(x.device).expand_as(x))
        for place in (low, low + 1)
    )
    return before + between * (after - before)


def _along(values: Tensor, dim: int) -> Tensor:
    """(B, size) as images of one channel that vary along one dimension alone."""
    return values[:, None, :, None] if dim == -2 else values[:, None, None, :]


def _normal(x: Tensor, uniform: Uniform) -> Tensor:
    return torch.special.ndtri(uniform(x[0].numel())).view(x.shape).to(x)


def _smoothing(size: int, sides: float) -> Tensor:
    """(size, size): row i holds the weight of every pixel in the new pixel i."""
    reach = size  # far beyond any deviation below a third of the side
    edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5
    weights = torch.special.ndtr(edges / (sides * size)).diff()
    source = (torch.arange(size)[:, None] + torch.arange(-reach, reach + 1)).clamp(0, size - 1)
    found = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, source, weights.expand(size, -1))
    return found / weights.sum()


def _coarse(size: int, num_cells: int) -> Tensor:
    """(size, size): the mean of each cell, and for each pixel the cells that it lies in, by the share of each."""
    pixel, cell = (torch.arange(count + 1, dtype=torch.float64) / count for count in (size, num_cells))
    upper, lower = torch.minimum(pixel[1:, None], cell[1:]), torch.maximum(pixel[:-1, None], cell[:-1])
    common = (upper - lower).clamp(min=0)  # (size, num_cells): the length that they share
    return (common * size) @ (common.T * num_cells)


def _cosines() -> Tensor:
    """The orthonormal discrete cosine transform of 8 numbers: (8, 8) float64."""
    order = torch.arange(BLOCK, dtype=torch.float64)
    turn = torch.cos(math.pi / BLOCK * (order + 0.5) * order[:, None]) * math.sqrt(2 / BLOCK)
    turn[0] /= math.sqrt(2)
    return turn


def _steps(quality: float) -> Tensor:
    """The table at a quality from 1 to 100, scaled as the Independent JPEG Group does it."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(LUMINANCE, dtype=torch.float64) * scale + 50) / 100).floor().clamp(1, 255)
