"""Images and labels from files as they were published: idx, the layouts of CIFAR, `.npz`; no pickle is trusted."""

import gzip
import io
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muonlab.errors import UsageError

__all__ = ["LAYOUTS", "Split", "read_splits"]

TARS = (".tar", ".tar.gz", ".tgz")
IDX_NAME = re.compile(r"(train|t10k|test)-(images|labels)[.-](idx[13])-ubyte(\.gz)?")
IDX_MAGIC = {"images": 0x803, "labels": 0x801}  # two zero bytes, 8 = uint8, number of dimensions
NPZ_KEYS = (  # training images and labels, held-out images and labels; case does not matter
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("train_x", "train_y", "test_x", "test_y"),
)
CIFAR_PIXELS = 3 * 32 * 32
# What the pickles of CIFAR are made of, under the names that old and new versions of numpy give it.
PICKLED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
MODULES = {"numpy.core.multiarray", "numpy._core.multiarray"}
BROKEN = (
    OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, pickle.UnpicklingError, tarfile.TarError,
    zipfile.BadZipFile,
)  # fmt: skip


class Split(NamedTuple):
    """Images with their labels, as they are in the files."""

    images: NDArray[Any]  # (num_images, ...)
    labels: NDArray[Any]  # (num_images,)


class _File(NamedTuple):
    place: str
    read: Callable[[], bytes]


Files = Mapping[str, _File]  # by the last part of their names


@dataclass(frozen=True)
class _Layout:
    """Which files there are, and how one split is read from its own."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    read: Callable[[Sequence[_File]], Split]

    @property
    def names(self) -> tuple[str, ...]:
        return self.train + self.heldout


def read_splits(paths: Sequence[Path], allowed: Collection[str]) -> tuple[Split, Split]:
    """The training split and the held-out one, from files, folders of them at any depth, or tar archives.

    `allowed` are names of LAYOUTS, or "npz".

    Raises   UsageError for a path that does not exist, files that are none of the layouts, lack a part, or are broken
    """
    files = _gathered(paths)
    archives = [name for name in files if name.endswith(".npz")]
    if "npz" in allowed and archives:
        if len(archives) > 1:
            where = ", ".join(map(str, paths))
            raise UsageError(f"{where}: {len(archives)} .npz files, of which one is to be named")
        return _guarded(_read_npz, files[archives[0]])
    layout = _layout_of(files, [LAYOUTS[name] for name in LAYOUTS if name in allowed], paths, allowed)
    train, heldout = (
        _guarded(layout.read, *(files[name] for name in names)) for names in (layout.train, layout.heldout)
    )
    return train, heldout


def _layout_of(files: Files, layouts: Sequence[_Layout], paths: Sequence[Path], allowed: Collection[str]) -> _Layout:
    """The one whose files are all there."""
    for layout in layouts:
        if all(name in files for name in layout.names):
            return layout
    where = ", ".join(map(str, paths))
    closest = max(layouts, key=lambda layout: sum(name in files for name in layout.names), default=None)
    if closest and any(name in files for name in closest.names):
        missing = [name for name in closest.names if name not in files]
        raise UsageError(f"{where} lacks {', '.join(missing)}: add what is missing")
    held = ", ".join(sorted(files)[:4]) + (", ..." if len(files) > 4 else "") if files else "no file"
    kinds = [f"{name} ({layout.names[0]}, ...)" for name, layout in LAYOUTS.items() if name in allowed]
    kinds += ["one .npz"] if "npz" in allowed else []
    found = "" if held == paths[0].name and len(paths) == 1 else f" holds {held}"
    raise UsageError(f"{where}{found}: want {' or '.join(kinds)}")


def _gathered(paths: Sequence[Path]) -> Files:
    """Every file under the name that it was published with; a plain file before what an archive or gzip holds."""
    plain: dict[str, _File] = {}
    packed: dict[str, _File] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or directory: {path}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file() or file.name.startswith("."):
                continue
            if file.name.endswith(TARS):
                packed |= {name: found for name, found in _members(file) if name not in packed}
                continue
            name, into = _canonical(file.name), packed if file.suffix == ".gz" else plain
            if name in into and not Path(into[name].place).samefile(file):
                raise UsageError(f"found twice: {into[name].place} and {file}: name the folder of one data set")
            into[name] = _File(str(file), file.read_bytes)
    return packed | plain


def _members(path: Path) -> Iterator[tuple[str, _File]]:
    """The files of an archive, those of a layout unpacked in memory; the archive is read once from front to back."""
    wanted = {name for layout in LAYOUTS.values() for name in layout.names}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name, opened = _canonical(Path(member.name).name), archive.extractfile(member)
                if opened is not None:
                    content = opened.read() if name in wanted or name.endswith(".npz") else b""
                    yield name, _File(f"{path}:{member.name}", lambda c=content: c)
    except BROKEN as error:
        raise _broken(str(path), error) from None


def _canonical(name: str) -> str:
    """`t10k-images.idx3-ubyte.gz` is `t10k-images-idx3-ubyte`; other names are what they are."""
    if found := IDX_NAME.fullmatch(name):
        split, what, idx, _ = found.groups()
        return f"{'t10k' if split == 'test' else split}-{what}-{idx}-ubyte"
    return name


def _guarded(read: Callable[..., Any], *files: _File) -> Any:
    try:
        return read(*files) if read is _read_npz else read(files)
    except UsageError:
        raise
    except BROKEN as error:
        raise _broken(files[0].place, error) from None


def _broken(place: str, error: Exception) -> UsageError:
    return UsageError(f"{place} can't be read ({type(error).__name__}: {' '.join(str(error).split())}): get it anew")


def _read_npz(file: _File) -> tuple[Split, Split]:
    content = file.read()
    if content[:2] != b"PK":  # numpy would take it for a pickle
        raise UsageError(f"{file.place} is no .npz, or its beginning is damaged: write it with np.savez")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        names = {name.lower(): name for name in archive.files}
        for keys in NPZ_KEYS:
            if all(key in names for key in keys):
                a, b, c, d = (archive[names[key]] for key in keys)
                return Split(a, b), Split(c, d)
    held = ", ".join(archive.files) or "nothing"
    raise UsageError(f"{file.place} holds {held}: want {', '.join(NPZ_KEYS[0])}, or {', '.join(NPZ_KEYS[1])}")


def _read_idx(files: Sequence[_File]) -> Split:
    return Split(_idx_array(files[0], "images"), _idx_array(files[1], "labels"))


def _idx_array(file: _File, what: str) -> NDArray[np.uint8]:
    """Big-endian: magic, one int32 per dimension, then bytes."""
    content = file.read()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    magic, num_dims = int.from_bytes(content[:4], "big"), 3 if what == "images" else 1
    if magic != IDX_MAGIC[what]:
        raise UsageError(f"{file.place} is no idx file of {what}: it begins with {magic:#x}, not {IDX_MAGIC[what]:#x}")
    start = 4 + 4 * num_dims
    shape = tuple(np.frombuffer(content[4:start], dtype=">i4").tolist())
    wanted, held = int(np.prod(shape)), len(content) - start
    if wanted != held:
        raise UsageError(f"{file.place}: the header counts {wanted} bytes, the file holds {held}: get it anew")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _binary_reader(num_labels: int) -> Callable[[Sequence[_File]], Split]:
    """Records of label bytes, of which the last counts, and 3072 pixels: red, green, blue planes."""
    size = num_labels + CIFAR_PIXELS

    def read(files: Sequence[_File]) -> Split:
        records = []
        for file in files:
            content = file.read()
            if not content or len(content) % size:
                raise UsageError(f"{file.place}: {len(content)} bytes are no whole number of records of {size}")
            records.append(np.frombuffer(content, dtype=np.uint8).reshape(-1, size))
        whole = np.concatenate(records)
        return Split(whole[:, num_labels:].reshape(-1, 3, 32, 32), whole[:, num_labels - 1])

    return read


def _pickle_reader(label_key: bytes) -> Callable[[Sequence[_File]], Split]:
    """Pickled dictionaries with `data` (num_images, 3072) and labels."""

    def read(files: Sequence[_File]) -> Split:
        images, labels = [], []
        for file in files:
            batch = _ArraysOnly(io.BytesIO(file.read()), encoding="bytes").load()
            if not isinstance(batch, dict) or not {b"data", label_key} <= batch.keys():
                raise UsageError(f"{file.place} is no batch of CIFAR: it has no data or no {label_key.decode()}")
            images.append(np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[label_key]))
        return Split(np.concatenate(images), np.concatenate(labels))

    return read


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays, numbers, texts and their containers; whatever else a pickle asks for is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in MODULES:
            return np._core.multiarray._reconstruct
        if (module, name) in PICKLED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")


LAYOUTS: Mapping[str, _Layout] = {
    "idx": _Layout(
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
        _read_idx,
    ),
    "cifar10-binary": _Layout(
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), _binary_reader(1)
    ),
    "cifar10-python": _Layout(
        tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), _pickle_reader(b"labels")
    ),
    "cifar100-binary": _Layout(("train.bin",), ("test.bin",), _binary_reader(2)),
    "cifar100-python": _Layout(("train",), ("test",), _pickle_reader(b"fine_labels")),
}  # fmt: skip
