"""Where images come from: data sets by name, their splits; and which of them a sample of a stream is."""

import gzip
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muonlab.errors import UsageError
from muonlab.tasks.image_files import Split, read_splits
from muonlab.tasks.stream import counter_hash

__all__ = ["DATASETS", "Dataset", "ImageSet", "augmented", "data_folder", "drawn", "load_images", "resized"]

FOLDER_VARIABLE, FOLDER = "MUONLAB_DATA", "~/.cache/muonlab"
DIGITS_HELDOUT = 500  # the last images of the file; ours: scikit-learn publishes no split
DIGITS_LEVELS = 16
RESIZED_AT_ONCE = 4096  # images
AUGMENTATION = 0x5D1F_C0DE_0000_0000  # parts the stream of augmentations from that of the order
CHANNELS = (1, 3, 4)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Dataset:
    """What is known of a published data set before it is read."""

    layouts: tuple[str, ...]
    shape: tuple[int, int, int]  # channels, height, width
    num_classes: int
    url: str  # where the files lie
    sha256: Mapping[str, str]  # file -> hash
    megabytes: int  # of the files


# Hashes as several projects that pin these files publish them.
DATASETS: Mapping[str, Dataset] = {
    "mnist": Dataset(
        ("idx", "npz"), (1, 28, 28), 10, "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        12,
    ),
    "fashion-mnist": Dataset(
        ("idx", "npz"), (1, 28, 28), 10, "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        31,
    ),
    "cifar10": Dataset(
        ("cifar10-binary", "cifar10-python", "npz"), (3, 32, 32), 10, "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"}, 170,
    ),
    "cifar100": Dataset(
        ("cifar100-binary", "cifar100-python", "npz"), (3, 32, 32), 100, "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"}, 169,
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Training and held-out images with their classes; never written."""

    train: Split  # images (num_images, channels, height, width) uint8; labels (num_images,) int64
    heldout: Split
    num_classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.train.images.shape[1:]

    @cached_property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the training images, pixels being in [0, 1].

        From counts of whole numbers, so that they are the same on every machine.
        """
        means, deviations, levels = [], [], np.arange(256)
        for channel in range(self.shape[0]):
            counts = np.bincount(self.train.images[:, channel].reshape(-1), minlength=256)
            total, first, second = (int((counts * levels**power).sum()) for power in (0, 1, 2))
            mean = first / total
            means.append(mean / 255)
            deviations.append(max(second / total - mean**2, 1.0) ** 0.5 / 255)
        return tuple(means), tuple(deviations)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over both splits in order: the same for the same images in another layout."""
        digest = hashlib.sha256(b"images 1")
        for name, split in (("train", self.train), ("heldout", self.heldout)):
            digest.update(f"|{name} {split.images.shape}|".encode())
            digest.update(split.images)
            digest.update(split.labels.astype("<i8").tobytes())
        return digest.hexdigest()


def load_images(name: str, data: tuple[str, ...] = ()) -> ImageSet:
    """The images of "digits", of a name of DATASETS, or of any `.npz` ("images"); read once per process and content.

    Without `data` a published data set is looked for where downloads are put.

    Raises   UsageError for files that are missing, broken, or another data set's
    """
    if name == "digits":
        return _load_digits()
    paths = [Path(item).expanduser() for item in data]
    if not paths:
        if name not in DATASETS:
            raise UsageError(f"task {name} needs images: --data FILE.npz with x_train, y_train, x_test, y_test")
        paths = [data_folder(name)]
        if not paths[0].exists():
            known = DATASETS[name]
            raise UsageError(
                f"no {name} in {paths[0]}: `python -m muonlab.tasks.downloads {name}` fetches {known.megabytes} MB "
                f"from {known.url}, or name your files with --data"
            )
    files = [file for path in paths for file in ([path] if not path.is_dir() else sorted(path.rglob("*")))]
    stats = tuple((str(f.absolute()), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file())
    return _load_files(name, tuple(map(str, paths)), stats)


def data_folder(name: str) -> Path:
    """Where a data set lies that was downloaded: in $MUONLAB_DATA, or the user's cache."""
    return Path(os.environ.get(FOLDER_VARIABLE) or FOLDER).expanduser() / name


def drawn(seed: int, start: int, count: int, num_images: int) -> NDArray[np.int64]:
    """Which image each sample start ... start + count - 1 of the stream `seed` is: one permutation after the other.

    >>> drawn(0, 0, 8, 4).tolist()
    [2, 1, 0, 3, 0, 2, 1, 3]
    """
    epochs, places = np.divmod(np.arange(start, start + count), num_images)
    found = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        found[epochs == epoch] = _order(seed, int(epoch), num_images)[places[epochs == epoch]]
    return found


def augmented(images: Bytes, seed: int, start: int, shift: int, flip: bool) -> Bytes:
    """Each image moved by up to `shift` pixels either way, what comes in being black, and mirrored half of the time.

    The same as a random crop of an image with a black border of `shift` pixels. Row i is sample start + i of `seed`.

    Shapes   (num_images, channels, height, width) -> same
    """
    count, channels, height, width = images.shape
    draws = counter_hash(seed ^ AUGMENTATION, start * 3, count * 3).reshape(count, 3)
    rows, right = (_places(draws[:, axis], size, shift) for axis, size in enumerate((height, width)))
    mirrored = (draws[:, 2:] >> np.uint64(63)).astype(bool) & flip
    columns = np.where(mirrored, right[:, ::-1], right)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    taken = images[
        np.arange(count)[:, None, None, None], np.arange(channels)[None, :, None, None],
        rows.clip(0, height - 1)[:, None, :, None], columns.clip(0, width - 1)[:, None, None, :],
    ]  # fmt: skip
    return taken * inside


def _places(draws: NDArray[np.uint64], size: int, shift: int) -> NDArray[np.int64]:
    """Where each row of the moved images was before: (num_images, size)."""
    offsets = (draws % np.uint64(2 * shift + 1)).astype(np.int64) - shift
    return offsets[:, None] + np.arange(size)


@lru_cache(maxsize=2)
def resized(images: ImageSet, size: int) -> ImageSet:
    """The same images with `size` pixels along both sides, between pixels linear in the distance.

    From whole numbers, so that they are the same on every machine.

    Raises   UsageError for fewer pixels than there are, since most would be lost
    """
    if size < max(images.shape[1:]):
        raise UsageError(f"size {size} is below the {max(images.shape[1:])} pixels of the images: it only enlarges")
    rows, columns = (_weights(old, size) for old in images.shape[1:])

    def enlarged(split: Split) -> Split:
        found = np.empty((*split.images.shape[:2], size, size), np.uint8)
        for at in range(0, len(found), RESIZED_AT_ONCE):
            sums = rows @ split.images[at : at + RESIZED_AT_ONCE].astype(np.float64) @ columns.T  # whole, below 2^53
            found[at : at + RESIZED_AT_ONCE] = (sums + 2 * size**2) // (4 * size**2)
        return Split(found, split.labels)

    return ImageSet(enlarged(images.train), enlarged(images.heldout), images.num_classes)


def _weights(old: int, new: int) -> NDArray[np.float64]:
    """Of each old pixel in each new one, centres on centres, times 2 new: whole numbers, (new, old)."""
    places = ((2 * np.arange(new) + 1) * old - new).clip(0, 2 * new * (old - 1))  # in the old pixels, times 2 new
    return np.maximum(0, 2 * new - abs(places[:, None] - 2 * new * np.arange(old))).astype(np.float64)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_images: int) -> NDArray[np.int64]:
    return np.argsort(counter_hash(seed, epoch * num_images, num_images), kind="stable")


@lru_cache(maxsize=1)
def _load_digits() -> ImageSet:
    """The file that scikit-learn ships, read without scikit-learn, whose import takes longer than a short run."""
    found = find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise UsageError("task digits needs scikit-learn, which ships the images: pip install scikit-learn")
    path = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: install scikit-learn anew") from None
    pixels = np.rint(table[:, :64] * (255 / DIGITS_LEVELS)).astype(np.uint8).reshape(-1, 1, 8, 8)
    cut = len(table) - DIGITS_HELDOUT
    return ImageSet(Split(pixels[:cut], table[:cut, 64]), Split(pixels[cut:], table[cut:, 64]), num_classes=10)


@lru_cache(maxsize=2)
def _load_files(name: str, paths: tuple[str, ...], stats: tuple[tuple[str, int, int], ...]) -> ImageSet:
    known = DATASETS.get(name)
    where = ", ".join(paths)
    splits = read_splits([Path(path) for path in paths], known.layouts if known else ("npz",))
    train, heldout = (_clean(split, f"{where}, {side}") for split, side in zip(splits, ("train", "test"), strict=True))
    if train.images.shape[1:] != heldout.images.shape[1:]:
        shapes = [_shape(split) for split in (train, heldout)]
        raise UsageError(f"{where}: training images are {shapes[0]}, held-out ones {shapes[1]}: they must be alike")
    num_classes = known.num_classes if known else int(train.labels.max()) + 1
    largest = max(int(train.labels.max()), int(heldout.labels.max()))
    if known and train.images.shape[1:] != known.shape:
        wanted = " x ".join(map(str, known.shape))
        raise UsageError(f"{where} is not {name}: its images are {_shape(train)}, not {wanted}: name another --data")
    if largest >= num_classes:
        raise UsageError(f"{where}: there is a class {largest}, want 0 to {num_classes - 1}: name other files")
    if not known:
        _check_gaps(np.concatenate((train.labels, heldout.labels)), where)
    return ImageSet(train, heldout, num_classes)


def _check_gaps(labels: NDArray[np.int64], where: str) -> None:
    """Each class that nothing belongs to would be an output that is never right."""
    found, last = np.unique(labels), int(labels.max())
    if len(found) <= last:
        gap = int(np.argmax(found != np.arange(len(found))))
        raise UsageError(
            f"{where}: no image has class {gap}, though there is a class {last}: number the {len(found)} classes "
            "from 0 without gaps, as np.unique(labels, return_inverse=True) does for both splits together"
        )


def _clean(split: Split, where: str) -> Split:
    """Images (num_images, channels, height, width) uint8 and labels (num_images,) int64.

    Raises   UsageError for anything that can't be that
    """
    images, labels = split.images, split.labels
    if not len(images):
        raise UsageError(f"{where}: there are no images: both splits need some")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or len(labels) != len(images):
        raise UsageError(
            f"{where}: {len(images)} images have labels of shape {labels.shape} and type {labels.dtype}: "
            "give every image one whole number"
        )
    if images.dtype != np.uint8:
        raise UsageError(f"{where}: images are {images.dtype}, want uint8 from 0 to 255: convert them")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in CHANNELS:
        raise UsageError(f"{where}: images have shape {images.shape}: want (images, height, width) or with channels")
    if int(labels.min()) < 0:
        raise UsageError(f"{where}: class {int(labels.min())} is below 0: number the classes from 0")
    return Split(np.ascontiguousarray(images), labels.astype(np.int64))


def _shape(split: Split) -> str:
    return " x ".join(map(str, split.images.shape[1:]))
