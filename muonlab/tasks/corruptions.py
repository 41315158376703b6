"""Corruptions of images and of text by name, in five severities; and the published sets of corrupted CIFAR.

All that is random is a pure function of (seed, number of the sample, name): a sample is corrupted alike in every
batch, and at each severity by the same draws. Kinds and levels are ours, after Hendrycks and Dietterich 2019: results
on them are not results on CIFAR-10-C.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muonlab.errors import UsageError, unknown
from muonlab.tasks import image_corruptions as images
from muonlab.tasks import text_corruptions as text
from muonlab.tasks.stream import counter_hash

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corruption", "published_names", "read_published"]

SEVERITIES = (1, 2, 3, 4, 5)
RATES = (0.01, 0.02, 0.05, 0.10, 0.20)
PUBLISHED_FROM = "https://zenodo.org/records/2535967 (CIFAR-10-C) or https://zenodo.org/records/3555552 (CIFAR-100-C)"
LABELS = "labels.npy"


@dataclass(frozen=True)
class Corruption:
    """One way to spoil a batch.

    Shapes   image: (B, C, Y, X) in [0, 1], any float dtype -> same; text: (B, T) bytes, any integer dtype -> same

    >>> bytes(CORRUPTIONS["mask"](torch.tensor([list(b"a few words")]), severity=5)[0].tolist())
    b'_ f_w words'
    """

    name: str
    kind: str  # "image" or "text"
    levels: tuple[float, ...]  # by severity
    unit: str  # of the levels
    apply: Callable[[Tensor, float, Callable[[int], Tensor]], Tensor]

    def __call__(self, batch: Tensor, severity: int, seed: int = 0, start: int = 0) -> Tensor:
        """The batch at a severity from 1 to 5; its row i is sample start + i of the seed.

        Raises   UsageError for another severity, a start below 0, a batch of the other kind, numbers that are none of
                 its kind
        """
        _check(severity)
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise UsageError(f"start must be the number of a sample, from 0, got {start!r}")
        self._check_batch(batch)
        stream = zlib.crc32(self.name.encode()) << 32 ^ seed

        def uniform(per_sample: int) -> Tensor:
            hashes = counter_hash(stream, start * per_sample, len(batch) * per_sample)
            numbers = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
            return torch.from_numpy(numbers.reshape(len(batch), per_sample))

        found = self.apply(batch, self.levels[severity - 1], uniform)
        return found.clamp(0, 1) if self.kind == "image" else found

    def _check_batch(self, batch: Tensor) -> None:
        image = self.kind == "image"
        wanted, most = ("images (B, C, Y, X) in [0, 1]", 1) if image else ("bytes (B, T) from 0 to 255", 255)
        if not isinstance(batch, Tensor):
            raise UsageError(f"{self.name} wants a tensor of {wanted}, got {type(batch).__name__}: convert it")
        if batch.ndim != (4 if image else 2) or batch.is_floating_point() != image or batch.dtype == torch.bool:
            raise UsageError(f"{self.name} wants {wanted}, got {batch.dtype} of shape {tuple(batch.shape)}")
        low, high = (float(end) for end in batch.aminmax()) if batch.numel() else (0.0, 0.0)
        if not 0 <= low <= high <= most:  # NaN is neither
            raise UsageError(f"{self.name} wants {wanted}, got values from {low:g} to {high:g}: scale or clamp them")


CORRUPTIONS: Mapping[str, Corruption] = {
    corruption.name: corruption
    for corruption in (
        Corruption("noise", "image", (0.04, 0.08, 0.12, 0.18, 0.26), "deviation", images.noisy),
        Corruption("grain", "image", (60, 25, 12, 5, 3), "photons of a white pixel", images.grainy),
        Corruption("blur", "image", (0.03, 0.045, 0.06, 0.08, 0.11), "deviation in sides", images.blurred),
        Corruption("contrast", "image", (0.75, 0.5, 0.4, 0.3, 0.15), "factor", images.dimmed),
        Corruption("brightness", "image", (0.1, 0.2, 0.3, 0.4, 0.5), "light that is added", images.brightened),
        Corruption("pixelate", "image", (0.8, 0.6, 0.5, 0.375, 0.25), "share of the rows", images.pixelated),
        Corruption("jpeg-like", "image", (40, 25, 15, 10, 5), "quality", images.compressed),
        Corruption("occlusion", "image", (0.25, 0.375, 0.5, 0.625, 0.75), "sides", images.occluded),
        Corruption("shift", "image", (0.04, 0.08, 0.12, 0.16, 0.2), "sides", images.shifted),
        Corruption("swap", "text", RATES, "rate of bytes", text.swapped),
        Corruption("delete", "text", RATES, "rate of bytes", text.deleted),
        Corruption("insert", "text", RATES, "rate of bytes", text.inserted),
        Corruption("keyboard", "text", RATES, "rate of letters and digits", text.mistyped),
        Corruption("word-drop", "text", RATES, "rate of words", text.dropped),
        Corruption("mask", "text", RATES, "rate of bytes", text.masked),
    )
}


def published_names(folder: Path) -> tuple[str, ...]:
    """The corruptions of a published set in a folder, by the names of their files.

    Raises   UsageError for a folder without labels or without any other `.npy`
    """
    names = tuple(sorted(path.stem for path in folder.glob("*.npy") if path.name != LABELS))
    if not names or not (folder / LABELS).exists():
        raise UsageError(f"{folder} holds no {LABELS} with NAME.npy beside it: get them from {PUBLISHED_FROM}")
    return names


def read_published(folder: Path, name: str, severity: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, Y, X) float32 in [0, 1] and classes (N,) int64 of one severity, N being 10,000 as published.

    The files hold the severities one after the other: uint8 (5 N, Y, X, C), and 5 N labels.

    Raises   UsageError for a name that is not there, a severity other than 1 to 5, or files of another layout
    """
    names = published_names(folder)
    if name not in names:
        raise unknown("published corruption", name, names)
    _check(severity)
    pixels, classes = _mapped(folder / f"{name}.npy"), _mapped(folder / LABELS)
    count, rest = divmod(len(pixels), len(SEVERITIES))
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or rest or classes.shape != pixels.shape[:1]:
        found = f"{pixels.dtype} {pixels.shape} with labels {classes.shape}"
        raise UsageError(f"{folder / name}.npy is {found}: want uint8 (5 N, rows, columns, channels) and 5 N labels")
    part = slice((severity - 1) * count, severity * count)
    chosen = torch.from_numpy(np.ascontiguousarray(pixels[part].transpose(0, 3, 1, 2)))
    return chosen.float() / 255, torch.from_numpy(classes[part].astype(np.int64))


def _check(severity: object) -> None:
    if isinstance(severity, bool) or not isinstance(severity, int) or severity not in SEVERITIES:
        raise UsageError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} can't be read ({' '.join(str(error).split())}): get it anew") from None
