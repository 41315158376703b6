"""Every layout of images read, on files written here; whatever is wrong with them is one line."""

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from muonlab.errors import UsageError
from muonlab.tasks.image_files import LAYOUTS
from muonlab.tasks.images import DATASETS, load_images

RNG = np.random.default_rng(0)
GREY, GREY_LABELS = RNG.integers(0, 256, (26, 28, 28), np.uint8), np.arange(26, dtype=np.uint8) % 10
COLOUR, LABELS, COARSE = RNG.integers(0, 256, (12, 3, 32, 32), np.uint8), np.arange(12) % 10, np.arange(12) % 3
NUM_TRAIN = {"mnist": 20, "cifar10": 10, "cifar100": 8}


def idx(array):
    """As MNIST is published: magic, sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def binary(pixels, *labels):
    """As CIFAR is published: label bytes, then planes."""
    columns = [np.asarray(label, np.uint8)[:, None] for label in labels]
    return np.concatenate((*columns, pixels.reshape(len(pixels), -1)), axis=1).tobytes()


class OldPickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as which CIFAR is published."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)

    dispatch[bytes] = save_bytes


def pickled(**values):
    """A batch of the python layout, with the name that numpy had then."""
    file = io.BytesIO()
    OldPickler(file, protocol=2).dump({name.encode(): value for name, value in values.items()})
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python_batch(part, key):
    data = COLOUR[part].reshape(-1, 3072)
    return pickled(batch_label=b"some", data=data, **{key: [int(label) for label in LABELS[part]]})


def parts(num_train, num_files):
    """The rows of each file of the training split, and of the held-out one."""
    step = num_train // num_files
    return [slice(i * step, (i + 1) * step) for i in range(num_files)] + [slice(num_train, None)]


def cifar(layout):
    """Name -> content of a layout of CIFAR."""
    names = LAYOUTS[layout].names
    rows = parts(NUM_TRAIN[layout.partition("-")[0]], len(names) - 1)
    make = {
        "cifar10-binary": lambda part: binary(COLOUR[part], LABELS[part]),
        "cifar10-python": lambda part: python_batch(part, "labels"),
        "cifar100-binary": lambda part: binary(COLOUR[part], COARSE[part], LABELS[part]),
        "cifar100-python": lambda part: python_batch(part, "fine_labels"),
    }[layout]
    return {name: make(part) for name, part in zip(names, rows, strict=True)}


def mnist():
    contents = [array[part] for part in parts(20, 1) for array in (GREY, GREY_LABELS)]
    names = LAYOUTS["idx"].names
    return {name: idx(content) for name, content in zip(names, contents, strict=True)}


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def npz(path, **arrays):
    np.savez_compressed(path, **arrays)
    return str(path)


def same(found, pixels, labels, num_train):
    pixels = pixels if pixels.ndim == 4 else pixels[:, None]
    return all(
        np.array_equal(split.images, pixels[part]) and np.array_equal(split.labels, labels[part])
        for split, part in ((found.train, slice(num_train)), (found.heldout, slice(num_train, None)))
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith("cifar")])
def test_cifar_in_a_folder_below_and_in_its_archive(tmp_path, layout):
    name, files = layout.partition("-")[0], cifar(layout)
    found = load_images(name, (write(tmp_path / "a" / "deep", files),))
    assert same(found, COLOUR, LABELS, NUM_TRAIN[name]) and found.num_classes == DATASETS[name].num_classes
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "a" / "deep", "cifar-batches")
        tar.add(__file__, "readme.html")
    assert load_images(name, (str(archive),)).fingerprint == found.fingerprint


def test_mnist_packed_or_not_and_under_older_names(tmp_path):
    plain = load_images("mnist", (write(tmp_path / "plain", mnist()),))
    assert same(plain, GREY, GREY_LABELS, 20) and plain.shape == (1, 28, 28)
    packed = {f"{name}.gz": gzip.compress(content) for name, content in mnist().items()}
    older = {name.replace("s-idx", "s.idx").replace("t10k", "test"): content for name, content in mnist().items()}
    for folder in (write(tmp_path / "packed", packed), write(tmp_path / "older", older)):
        assert load_images("fashion-mnist", (folder,)).fingerprint == plain.fingerprint
    both = write(tmp_path / "both", {**mnist(), **packed})
    assert load_images("mnist", (both,)).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    "keys", [("x_train", "y_train", "x_test", "y_test"), ("Train_Images", "Train_Labels", "test_images", "test_labels")]
)
def test_an_archive_of_arrays_with_channels_first_last_or_none(tmp_path, keys):
    for name, pixels, labels in (
        ("first", COLOUR, LABELS),
        ("last", COLOUR.transpose(0, 2, 3, 1), LABELS[:, None]),
        ("grey", GREY[:12], LABELS),
    ):
        arrays = dict(zip(keys, (pixels[:10], labels[:10], pixels[10:], labels[10:]), strict=True))
        found = load_images("images", (npz(tmp_path / f"{name}.npz", **arrays),))
        assert same(found, GREY[:12] if name == "grey" else COLOUR, LABELS, 10) and found.num_classes == 10


def test_statistics_are_those_of_the_training_pixels(tmp_path):
    found = load_images("cifar10", (write(tmp_path, cifar("cifar10-binary")),))
    mean, deviation = found.statistics
    pixels = COLOUR[:10].astype(float) / 255
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), rel=1e-12)
    assert deviation == pytest.approx(pixels.std(axis=(0, 2, 3)), rel=1e-9)
    black = np.zeros((4, 5, 5), np.uint8)
    flat = load_images(
        "images", (npz(tmp_path / "b.npz", x_train=black, y_train=[0, 1, 0, 1], x_test=black[:1], y_test=[0]),)
    )
    assert flat.statistics == ((0.0,), (1 / 255,))  # nothing is divided by zero


def test_the_fingerprint_follows_pixels_labels_and_split(tmp_path):
    def of(name, x=GREY, y=GREY_LABELS, cut=20):
        path = npz(tmp_path / f"{name}.npz", x_train=x[:cut], y_train=y[:cut], x_test=x[cut:], y_test=y[cut:])
        return load_images("mnist", (path,)).fingerprint

    changed, relabelled = GREY.copy(), GREY_LABELS.copy()
    changed[3, 0, 0] ^= 1
    relabelled[3] ^= 1
    assert len({of("a"), of("b", x=changed), of("c", y=relabelled), of("d", cut=19)}) == 4 and of("e") == of("a")


# Errors


def line_of(name, *data):
    with pytest.raises(UsageError) as caught:
        load_images(name, tuple(map(str, data)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_data_set_that_is_not_here_says_where_it_is_from(tmp_path, monkeypatch):
    monkeypatch.setenv("MUONLAB_DATA", str(tmp_path))
    line = line_of("cifar10")
    assert "downloads cifar10" in line and "170 MB from https://www.cs.toronto.edu/" in line and "--data" in line
    assert "x_train" in line_of("images")
    write(tmp_path / "cifar10", cifar("cifar10-binary"))
    assert same(load_images("cifar10"), COLOUR, LABELS, 10)  # found where a download would be


def test_a_wrong_layout_says_what_was_found(tmp_path):
    files = cifar("cifar10-binary")
    assert "no such file or directory" in line_of("mnist", tmp_path / "missing")
    assert "holds no file: want cifar10-binary (data_batch_1.bin, ...)" in line_of(
        "cifar10", write(tmp_path / "no", {})
    )
    other = line_of("mnist", write(tmp_path / "c10", files))
    assert "holds data_batch_1.bin, data_batch_2.bin" in other and "want idx (train-images-idx3-ubyte, ...)" in other
    del files["data_batch_3.bin"], files["test_batch.bin"]
    assert "lacks data_batch_3.bin, test_batch.bin" in line_of("cifar10", write(tmp_path / "part", files))
    write(tmp_path / "twice" / "a", mnist())
    write(tmp_path / "twice" / "b", mnist())
    assert "found twice" in line_of("mnist", tmp_path / "twice")


@pytest.mark.parametrize(
    ("name", "broken", "message"),
    [
        ("train-images-idx3-ubyte", lambda c: c[:-5], "the header counts 15680 bytes, the file holds 15675"),
        ("train-images-idx3-ubyte", lambda c: b"\0\0\x08\x01" + c[4:], "no idx file of images: it begins with 0x801"),
        ("t10k-labels-idx1-ubyte", lambda c: b"", "no idx file of labels: it begins with 0x0"),
        ("t10k-labels-idx1-ubyte", lambda c: gzip.compress(c)[:-9], "can't be read"),
        ("t10k-labels-idx1-ubyte", lambda c: idx(GREY_LABELS[:3]), "6 images have labels of shape (3,)"),
        ("t10k-labels-idx1-ubyte", lambda c: idx(np.full(6, 10, np.uint8)), "there is a class 10, want 0 to 9"),
    ],
)  # fmt: skip
def test_a_broken_file_of_mnist_is_named(tmp_path, name, broken, message):
    files = mnist()
    line = line_of("mnist", write(tmp_path, {**files, name: broken(files[name])}))
    assert message in line


def test_a_broken_file_of_cifar_is_named(tmp_path):
    files = cifar("cifar10-binary")
    files["test_batch.bin"] += b"x"
    assert "6147 bytes are no whole number of records of 3073" in line_of("cifar10", write(tmp_path / "b", files))
    files = cifar("cifar10-python")
    files["test_batch"] = pickled(data=b"")
    assert "no batch of CIFAR" in line_of("cifar10", write(tmp_path / "p", files))
    (tmp_path / "c.tar").write_bytes(b"no archive")
    assert "c.tar can't be read" in line_of("cifar10", tmp_path / "c.tar")


class Trap:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path, capsys):
    files = cifar("cifar10-python")
    files["data_batch_2"] = pickle.dumps({b"data": Trap(), b"labels": [0]})
    assert "asks for builtins.print, which no data set needs" in line_of("cifar10", write(tmp_path, files))
    assert capsys.readouterr().out == ""
    objects = np.array([Trap()], dtype=object)
    path = npz(tmp_path / "o.npz", x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    assert "can't be read" in line_of("images", path) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": COLOUR[:10] / 255}, "images are float64, want uint8"),
        ({"x_train": COLOUR[:10, 0, 0]}, "images have shape (10, 32)"),
        ({"x_test": COLOUR[10:, :, :16, :16]}, "training images are 3 x 32 x 32, held-out ones 3 x 16 x 16"),
        ({"y_train": LABELS[:10] - 1}, "class -1 is below 0"),
        ({"y_train": LABELS[:10] / 2}, "type float64: give every image one whole number"),
        ({"y_test": LABELS[:1]}, "2 images have labels of shape (1,)"),
        ({"x_test": COLOUR[:0], "y_test": LABELS[:0]}, "a.npz, test: there are no images"),
        ({"y_train": LABELS[:10] * 1000, "y_test": LABELS[:2] * 1000}, "no image has class 1, though there is a class"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images_are_refused(tmp_path, change, message):
    arrays = {"x_train": COLOUR[:10], "y_train": LABELS[:10], "x_test": COLOUR[10:], "y_test": LABELS[:2], **change}
    assert message in line_of("images", npz(tmp_path / "a.npz", **arrays))


def test_other_archives_say_what_they_hold(tmp_path):
    path = npz(tmp_path / "a.npz", images=COLOUR, labels=LABELS)
    assert "a.npz holds images, labels: want x_train" in line_of("images", path)
    npz(tmp_path / "b.npz", images=COLOUR)
    assert "2 .npz files, of which one is to be named" in line_of("images", tmp_path)
    grey = npz(tmp_path / "g.npz", x_train=GREY, y_train=GREY_LABELS, x_test=GREY, y_test=GREY_LABELS)
    assert "is not cifar10: its images are 1 x 28 x 28, not 3 x 32 x 32" in line_of("cifar10", grey)


def test_a_damaged_archive_of_arrays_is_named_with_its_reason(tmp_path):
    content = Path(npz(tmp_path / "a.npz", x_train=COLOUR, y_train=LABELS, x_test=COLOUR, y_test=LABELS)).read_bytes()
    for name, damaged, reason in (
        ("cut", content[: len(content) // 2], "BadZipFile"),
        ("other", b"\x93NUMPY" + content, "is no .npz"),
        ("empty", b"", "is no .npz"),
    ):
        (tmp_path / f"{name}.npz").write_bytes(damaged)
        told = line_of("images", tmp_path / f"{name}.npz")
        assert f"{name}.npz" in told and reason in told and "pickle" not in told
