"""The tasks whose samples are images: one per data set, with what they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muonlab.errors import UsageError
from muonlab.roles import Role
from muonlab.tasks.corruptions import CORRUPTIONS, Corruption
from muonlab.tasks.images import ImageSet, augmented, drawn, load_images, resized
from muonlab.tasks.vision import VisionConfig, VisionNetwork

__all__ = ["Cifar10", "Cifar100", "Digits", "FashionMnist", "ImageClassification", "Images", "Mnist"]

EVAL_BATCH = 250
Batch = tuple[Tensor, Tensor]  # images (B, C, Y, X) float32 in [0, 1]; classes (B,) int64


@dataclass(frozen=True, kw_only=True)
class ImageClassification(ABC):
    """The class of an image: everything but the images.

    The stream of a seed is one permutation of the training images after the other, so an epoch shows each once.

    Raises   UsageError for a shape that cannot be built, or images that can't be read
    """

    numerics_version: ClassVar[str] = "1"  # raise when the same options give other numbers
    tokens_per_sample: ClassVar[int] = 1  # tokens are images
    dataset: ClassVar[str]
    defaults: ClassVar[Mapping[str, int]]  # of a study, where nothing else is asked for
    later: ClassVar[frozenset[str]] = frozenset({"size"})  # options that there were runs before

    model: str = VisionConfig.model
    width: int | None = VisionConfig.width
    depth: int | None = VisionConfig.depth
    patch_size: int | None = VisionConfig.patch_size
    size: int = 0  # pixels along both sides, to which images are enlarged; 0 = as they are
    shift: int = 0  # pixels that a training image is moved by at most, either way
    flip: bool = False  # training images are mirrored half of the time
    label_smoothing: float = 0.0  # in training; held-out losses know none
    eval_images: int = 0  # at most, evenly spread over the held-out images; 0 = all

    def __post_init__(self) -> None:
        for name in ("size", "shift", "eval_images"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} must be a whole number of at least 0, got {value!r}")
        if not isinstance(self.flip, bool):
            raise UsageError(f"flip must be true or false, got {self.flip!r}")
        smoothing = self.label_smoothing
        if isinstance(smoothing, bool) or not isinstance(smoothing, int | float) or not 0 <= smoothing < 1:
            raise UsageError(f"label_smoothing must be a number from 0 to below 1, got {smoothing!r}")
        if self.shift >= min(self.config.image[1:]):
            raise UsageError(f"shift {self.shift} moves an image of {min(self.config.image[1:])} pixels out of sight")

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("images", "config")}

    @property
    @abstractmethod
    def original(self) -> ImageSet:
        """What is trained on, and what is held out, before anything is enlarged."""

    @cached_property
    def images(self) -> ImageSet:
        """What is trained on, and what is held out; kept once it was read."""
        return resized(self.original, self.size) if self.size else self.original

    @cached_property
    def config(self) -> VisionConfig:
        """The shape of the model."""
        chosen = {name: getattr(self, name) for name in ("model", "width", "depth", "patch_size")}
        return VisionConfig(image=self.images.shape, num_classes=self.images.num_classes, **chosen)

    def build(self) -> VisionNetwork:
        return VisionNetwork(self.config, *self.images.statistics)

    def batch(self, seed: int, start: int, count: int) -> Batch:
        """Samples start ... start + count - 1 of the stream."""
        train = self.images.train
        which = drawn(seed, start, count, len(train.images))
        pixels = train.images[which]
        if self.shift or self.flip:
            pixels = augmented(pixels, seed, start, self.shift, self.flip)
        return _as_tensors(pixels, train.labels[which])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per image; the logits are widened to fp32 first."""
        images, classes = batch
        smoothing = self.label_smoothing if model.training else 0.0
        return F.cross_entropy(model(images).float(), classes, label_smoothing=smoothing)

    def curvature_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy against classes drawn from the model's own predictions, by torch's global generator."""
        logits = model(batch[0]).float()
        return F.cross_entropy(logits, torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1))

    def evaluation(self) -> Iterator[tuple[Batch, int]]:
        """Held-out batches of 250 images, each with their number."""
        heldout = self.images.heldout
        which = np.arange(len(heldout.images))
        if 0 < self.eval_images < len(which):
            which = np.arange(self.eval_images) * len(which) // self.eval_images
        for at in range(0, len(which), EVAL_BATCH):
            part = which[at : at + EVAL_BATCH]
            yield _as_tensors(heldout.images[part], heldout.labels[part]), len(part)

    def measures(self, model: nn.Module) -> dict[str, float]:
        """The share of held-out images whose class has the largest logit."""
        device, training = next(model.parameters()).device, model.training
        right = total = 0
        model.eval()
        with torch.no_grad():
            for (images, classes), size in self.evaluation():
                right += int((model(images.to(device)).argmax(-1) == classes.to(device)).sum())
                total += size
        model.train(training)
        return {"heldout.accuracy": right / total}

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        return {name: corruption for name, corruption in CORRUPTIONS.items() if corruption.kind == "image"}

    def roles(self, model: VisionNetwork) -> dict[str, Role]:
        return model.roles()

    def flops_per_token(self, model: VisionNetwork) -> float:
        return model.flops_per_image()

    def fingerprint(self) -> str:
        return self.images.fingerprint

    def check(self, batch_samples: int) -> None:
        """Raises UsageError if one batch is larger than the training set."""
        held = len(self.images.train.images)
        if batch_samples > held:
            raise UsageError(f"a batch of {batch_samples} images exceeds the {held} to train on: lower --batch-tokens")


@dataclass(frozen=True, kw_only=True)
class Digits(ImageClassification):
    """scikit-learn's handwritten digits, 8 x 8 pixels: 1297 to train on, the last 500 held out.

    >>> task = Digits(width=8)
    >>> images, classes = task.batch(seed=0, start=0, count=4)
    >>> tuple(images.shape), classes.tolist()
    ((4, 1, 8, 8), [4, 3, 1, 4])
    """

    dataset: ClassVar[str] = "digits"
    defaults: ClassVar[Mapping[str, int]] = {"batch_tokens": 64, "horizon_tokens": 12_800}

    @property
    def original(self) -> ImageSet:
        return load_images(self.dataset)


@dataclass(frozen=True, kw_only=True)
class _FromFiles(ImageClassification):
    """Images that are read from disk."""

    defaults: ClassVar[Mapping[str, int]] = {"batch_tokens": 256, "horizon_tokens": 256_000}

    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", (self.data,) if isinstance(self.data, str) else tuple(self.data))
        super().__post_init__()

    @property
    def original(self) -> ImageSet:
        return load_images(self.dataset, self.data)


class Mnist(_FromFiles):
    """Handwritten digits, 28 x 28 pixels; split as published."""

    dataset: ClassVar[str] = "mnist"


class FashionMnist(_FromFiles):
    """Pieces of clothing, 28 x 28 pixels; split as published."""

    dataset: ClassVar[str] = "fashion-mnist"


class Cifar10(_FromFiles):
    """Photographs of ten classes, 32 x 32 pixels in colour; split as published."""

    dataset: ClassVar[str] = "cifar10"


class Cifar100(_FromFiles):
    """Photographs of a hundred classes, 32 x 32 pixels in colour; split as published."""

    dataset: ClassVar[str] = "cifar100"


class Images(_FromFiles):
    """The images of an `.npz` file: x_train, y_train, x_test, y_test."""

    dataset: ClassVar[str] = "images"


def _as_tensors(pixels: np.ndarray, classes: np.ndarray) -> Batch:
    return torch.from_numpy(pixels).float() / 255, torch.from_numpy(classes)
