"""The data sets that are known by name; a sample of the stream is a pure function; downloads, without a network."""

import numpy as np
import pytest

from muonlab.errors import UsageError
from muonlab.tasks import downloads
from muonlab.tasks.images import augmented, data_folder, drawn, load_images, resized

PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)


def test_digits_are_those_of_scikit_learn():
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    found = load_images("digits")
    assert found.shape == (1, 8, 8) and (len(found.train.images), len(found.heldout.images)) == (1297, 500)
    pixels = np.concatenate((found.train.images, found.heldout.images))[:, 0]
    assert np.array_equal(pixels, np.rint(theirs.images * 255 / 16)) and pixels.max() == 255
    assert np.array_equal(np.concatenate((found.train.labels, found.heldout.labels)), theirs.target)


def test_fashion_mnist_as_published():
    if not data_folder("fashion-mnist").exists():
        pytest.skip("Fashion-MNIST is not in $MUONLAB_DATA: python -m muonlab.tasks.downloads fashion-mnist")
    found = load_images("fashion-mnist")
    assert (len(found.train.images), len(found.heldout.images)) == (60_000, 10_000)
    assert np.bincount(found.train.labels).tolist() == [6000] * 10
    (mean,), (deviation,) = found.statistics
    assert (round(mean, 4), round(deviation, 4)) == (0.2860, 0.3530)  # the usual constants of normalisation


# Samples


def test_an_epoch_shows_each_image_once_and_slices_agree():
    stream = drawn(5, 0, 40, 13)
    for epoch in range(3):
        assert sorted(stream[13 * epoch : 13 * (epoch + 1)]) == list(range(13))
    assert not np.array_equal(stream[:13], stream[13:26]) and not np.array_equal(stream, drawn(6, 0, 40, 13))
    assert all(np.array_equal(drawn(5, start, 9, 13), stream[start : start + 9]) for start in range(31))


def test_each_image_comes_equally_often_in_each_place():
    first = np.array([drawn(seed, 0, 1, 8)[0] for seed in range(4000)])
    assert abs(np.bincount(first, minlength=8) - 500).max() < 5 * np.sqrt(500)


def test_augmentation_moves_and_mirrors_and_nothing_else():
    image = np.arange(1, 37, dtype=np.uint8).reshape(1, 1, 6, 6)
    found = augmented(np.repeat(image, 3000, axis=0), 0, 0, 2, True)
    padded = np.pad(image[0, 0], 2)
    crops = [padded[y : y + 6, x : x + 6] for y in range(5) for x in range(5)]
    wanted = {crop.tobytes() for crop in crops} | {crop[:, ::-1].tobytes() for crop in crops}
    seen, counts = np.unique(found.reshape(3000, -1), axis=0, return_counts=True)
    assert {row.tobytes() for row in seen} == wanted and len(wanted) == 50
    assert abs(counts - 60).max() < 5 * np.sqrt(60)


def test_a_sample_is_augmented_alike_in_every_batch():
    images = np.repeat(PIXELS[None, None], 30, axis=0)
    whole = augmented(images, 3, 0, 4, True)
    assert np.array_equal(augmented(images[:7], 3, 11, 4, True), whole[11:18])
    assert not np.array_equal(augmented(images, 4, 0, 4, True), whole)
    assert np.array_equal(augmented(images, 3, 0, 0, False), images)
    assert np.array_equal(augmented(images[:, :, :, :20], 3, 0, 1, False)[:, 0, 1:27, 1:19].shape, (30, 26, 18))


# Downloads, without a network


def test_a_download_is_held_to_its_hash_and_lands_where_it_is_looked_for(tmp_path, monkeypatch, capsys):
    pooch = pytest.importorskip("pooch", reason="downloads need pooch")
    monkeypatch.setenv("MUONLAB_DATA", str(tmp_path))
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url, known_hash))
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert downloads.main(["mnist"]) == 0 and capsys.readouterr().out.strip() == str(data_folder("mnist"))
    assert [url.rpartition("/")[2].removesuffix(".gz") for url, _ in asked] == [
        *("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    ]
    assert all(len(digest.removeprefix("sha256:")) == 64 for _, digest in asked)
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: (_ for _ in ()).throw(ValueError("SHA256 hash\ndiffers")))
    assert downloads.main(["mnist"]) == 2 and "could not be fetched" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
    assert downloads.main(["mnits"]) == 2 and "did you mean 'mnist'" in capsys.readouterr().err


# Enlarged


@pytest.mark.parametrize("size", (8, 13, 28))
def test_an_image_is_enlarged_as_torch_does_it(size):
    torch = pytest.importorskip("torch")
    digits = load_images("digits")
    found = resized(digits, size)
    assert found.shape == (1, size, size) and found.num_classes == 10 and found.train.images.dtype == np.uint8
    assert np.array_equal(found.heldout.labels, digits.heldout.labels)
    pixels = torch.from_numpy(digits.train.images[:50]).double()
    theirs = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
    assert np.abs(found.train.images[:50] - theirs.numpy()).max() <= 0.5 + 1e-9


def test_what_is_enlarged_is_other_data_and_is_not_made_smaller():
    digits = load_images("digits")
    assert resized(digits, 28).fingerprint != digits.fingerprint == resized(digits, 8).fingerprint
    with pytest.raises(UsageError, match="size 7 is below the 8 pixels of the images"):
        resized(digits, 7)
