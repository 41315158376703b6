"""Every corruption held to the same rules; what each does, by itself; the published sets, from files written here."""

import doctest
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from muonlab.errors import UsageError
from muonlab.tasks import corruptions
from muonlab.tasks.corruptions import CORRUPTIONS, RATES, SEVERITIES, published_names, read_published
from muonlab.tasks.image_corruptions import _coarse, _cosines, _smoothing, _steps, compressed

IMAGES = [name for name, corruption in CORRUPTIONS.items() if corruption.kind == "image"]
TEXTS = [name for name, corruption in CORRUPTIONS.items() if corruption.kind == "text"]
SENTENCES = b"The quick brown fox jumps over 13 lazy dogs; pack my box with five dozen liquor jugs, said Anna. "


def scenes(count=48, channels=3, height=32, width=32):
    """Smooth patches of light with an edge, unlike each other, in (0, 1)."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    a, b, c, d = torch.rand(4, count, channels, 1, 1, generator=generator)
    waves = 0.5 + 0.3 * torch.sin(9 * (a - 0.5) * y + 12 * (b - 0.5) * x + 7 * c)
    return (waves + 0.2 * (x > d)).clamp(0.02, 0.98)


def texts(count=80, length=120):
    book = torch.tensor(list(SENTENCES * 4))
    return torch.stack([book[3 * i : 3 * i + length] for i in range(count)])


def clean_of(name):
    return scenes() if name in IMAGES else texts()


def changed(a, b):
    """How far apart two batches are on average: Euclidean, or the share of bytes that differ."""
    return (a - b).flatten(1).norm(dim=1).mean() if a.is_floating_point() else (a != b).double().mean()


def worsen(distances):
    return all(a < b for a, b in pairwise([0.0, *distances]))


def written(name, severity, text, seed=0):
    return bytes(CORRUPTIONS[name](torch.tensor([list(text)]), severity, seed)[0].tolist())


each = pytest.mark.parametrize("name", CORRUPTIONS)


@each
def test_each_severity_is_farther_from_the_clean_batch(name):
    clean = clean_of(name)
    distances = [changed(CORRUPTIONS[name](clean, severity), clean) for severity in SEVERITIES]
    assert worsen(distances)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 13, 20)])
@pytest.mark.parametrize("name", IMAGES)
def test_images_of_every_size_get_worse_and_stay_images(name, shape):
    clean = scenes(64, *shape)
    found = [CORRUPTIONS[name](clean, severity) for severity in SEVERITIES]
    assert worsen([changed(batch, clean) for batch in found])
    for batch in found:
        assert batch.shape == clean.shape and batch.dtype == clean.dtype
        assert batch.min() >= 0 and batch.max() <= 1 and batch.isfinite().all()


@each
def test_a_sample_is_corrupted_alike_in_every_batch(name):
    clean, corrupt = clean_of(name), CORRUPTIONS[name]
    before = clean.clone()
    whole = corrupt(clean, 4, seed=9)
    assert torch.equal(corrupt(clean, 4, seed=9), whole) and torch.equal(clean, before)
    alone = torch.cat([corrupt(clean[i : i + 1], 4, 9, start=i) for i in range(len(clean))])
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(corrupt(clean[11:20], 4, 9, start=11), whole[11:20], atol=1e-6, rtol=0)


@each
def test_seeds_and_samples_differ_where_anything_is_random(name):
    first = clean_of(name)[:1].expand(6, *clean_of(name).shape[1:])
    found, other = (CORRUPTIONS[name](first, 5, seed) for seed in (0, 1))
    fixed = name in ("blur", "contrast", "brightness", "pixelate", "jpeg-like")
    assert torch.equal(found, other) == fixed and (len(found.unique(dim=0)) == 1) == fixed


@each
def test_severity_0_is_not_offered_and_kinds_are_not_mixed(name):
    corrupt, clean = CORRUPTIONS[name], clean_of(name)
    for severity in (0, 6, 3.0, True, "3"):
        with pytest.raises(UsageError, match=r"severity must be 1, 2, 3, 4 or 5, got"):
            corrupt(clean, severity)
    with pytest.raises(UsageError, match=f"{name} wants (images|bytes)"):
        corrupt(texts() if corrupt.kind == "image" else scenes(), 1)
    assert len(corrupt.levels) == 5 and corrupt.unit and corrupt.name == name


def test_no_corruption_of_ours_has_the_name_of_a_published_one():
    published = {
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
        "snow", "frost", "fog", "elastic_transform", "jpeg_compression", "gaussian_blur", "saturate", "spatter",
        "speckle_noise",
    }  # fmt: skip
    assert not published & {name.replace("-", "_") for name in CORRUPTIONS}


# Images


def test_noise_has_the_deviation_that_is_said():
    grey = torch.full((40, 1, 32, 32), 0.5)
    for severity, level in zip(SEVERITIES[:3], CORRUPTIONS["noise"].levels, strict=False):
        found = CORRUPTIONS["noise"](grey, severity) - grey
        assert found.std().item() == pytest.approx(level, rel=0.02) and abs(found.mean()) < 5 * level / 200
    flat = found.flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 6 / 32  # samples are independent


def test_grain_grows_with_the_light():
    for light in (0.0, 0.1, 0.4):
        found = CORRUPTIONS["grain"](torch.full((40, 1, 32, 32), light), 1)
        assert found.std().item() == pytest.approx(math.sqrt(light / 60), rel=0.05)


def test_blur_keeps_light_and_smooths_by_its_deviation():
    weights = _smoothing(32, 0.06)
    torch.testing.assert_close(weights.sum(1), torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(weights[16], weights[15].roll(1), atol=1e-12, rtol=0)
    offsets = torch.arange(32, dtype=torch.float64) - 16
    assert (weights[16] @ offsets**2).item() == pytest.approx((0.06 * 32) ** 2 + 1 / 12, rel=1e-3)  # and a pixel's own
    flat = torch.full((1, 1, 9, 9), 0.3)
    torch.testing.assert_close(CORRUPTIONS["blur"](flat, 5), flat)


def test_contrast_and_brightness_are_what_they_say():
    x = scenes(4)
    dim = CORRUPTIONS["contrast"](x, 2)
    torch.testing.assert_close(dim.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(dim.std((1, 2, 3)), 0.5 * x.std((1, 2, 3)))
    assert torch.equal(CORRUPTIONS["brightness"](x, 3), (x + 0.3).clamp(max=1))


def test_pixels_of_a_grid_that_divides_are_its_means():
    x = scenes(2, 1, 32, 32)
    found = CORRUPTIONS["pixelate"](x, 5)
    means = x.unflatten(-1, (8, 4)).unflatten(-3, (8, 4)).mean((-1, -3))
    torch.testing.assert_close(found, means.repeat_interleave(4, -1).repeat_interleave(4, -2))
    torch.testing.assert_close(_coarse(7, 3).sum(1), torch.ones(7, dtype=torch.float64))


def test_the_cosine_transform_is_orthonormal_and_tables_scale():
    torch.testing.assert_close(_cosines() @ _cosines().T, torch.eye(8, dtype=torch.float64))
    assert _steps(50)[0, 0] == 16 and _steps(25)[0, 0] == 32 and _steps(100).max() == 1 and _steps(1).max() == 255


def test_a_fine_table_keeps_the_image_and_a_coarse_one_its_blocks():
    x = scenes(3, 3, 20, 27)
    assert (compressed(x, 100, None) - x).abs().max() < 0.012  # a few halves of one level in 255
    crude = compressed(x, 1, None)[:, :, :8, :8]
    assert crude.unique().numel() < x[:, :, :8, :8].unique().numel() / 4


@pytest.mark.parametrize("severity", SEVERITIES)
def test_an_occlusion_is_one_grey_rectangle_inside_that_only_grows(severity):
    x = torch.zeros(5000, 1, 16, 32)
    covered = (CORRUPTIONS["occlusion"](x, severity) == 0.5)[:, 0]
    side = CORRUPTIONS["occlusion"].levels[severity - 1]
    assert (covered.sum((1, 2)) == round(16 * side) * round(32 * side)).all()
    assert (covered.any(2).sum(1) == round(16 * side)).all() and (covered.any(1).sum(1) == round(32 * side)).all()
    assert covered.any(0).all()  # anywhere
    if severity > 1:
        assert not ((CORRUPTIONS["occlusion"](x, severity - 1)[:, 0] == 0.5) & ~covered).any()


def test_a_shift_moves_the_image_as_far_as_it_says():
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    spot = torch.exp(-((x - 16) ** 2 + (y - 16) ** 2) / 8).expand(50, 1, 33, 33)
    found = CORRUPTIONS["shift"](spot, 3)
    mass = found.sum((1, 2, 3))
    centre = torch.stack([(found * axis).sum((1, 2, 3)) / mass for axis in (y, x)], dim=1) - 16
    torch.testing.assert_close(centre.norm(dim=1), torch.full((50,), 0.12 * 33), rtol=0.02, atol=0)
    assert centre.mean(0).norm() < 1.5 and (centre > 1).any(0).all() and (centre < -1).any(0).all()


# Text


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_text_stays_bytes_of_the_same_number(name, dtype):
    clean = texts().to(dtype)
    for length in (1, 2, 120):
        found = CORRUPTIONS[name](clean[:, :length], 5)
        assert found.shape == (80, length) and found.dtype == dtype
        assert torch.equal(found.long(), CORRUPTIONS[name](clean[:, :length].long(), 5))
        assert found.long().min() >= 32 and found.long().max() < 127


@pytest.mark.parametrize("name", ["swap", "keyboard", "mask"])
def test_bytes_are_hit_at_the_rate_that_is_said(name):
    letters = torch.tensor(list(b"qwertyuiopasdfghjklzxcvbnm" * 40)).expand(40, -1)
    for severity, rate in zip(SEVERITIES, RATES, strict=True):
        found = (CORRUPTIONS[name](letters, severity) != letters).double().mean().item()
        assert found == pytest.approx(rate, abs=6 * math.sqrt(2 * rate / letters.numel()))


def test_swaps_exchange_neighbours_and_lose_nothing():
    clean = torch.arange(100).expand(60, -1)
    found = CORRUPTIONS["swap"](clean, 5)
    assert torch.equal(found.sort(dim=1).values, clean)
    assert set((found - clean).unique().tolist()) == {-1, 0, 1}
    assert (found != clean).any(0).all()  # both ways to pair neighbours


@pytest.mark.parametrize(("name", "lost"), [("delete", 12.8), ("insert", 128 - 128 / 1.1)])
def test_deleting_and_inserting_move_the_rest(name, lost):
    clean = torch.arange(128, 256).expand(160, -1)  # no two bytes alike
    found = CORRUPTIONS[name](clean, 4)
    kept = [[byte for byte in row if byte >= 128] for row in found.tolist()]
    new = {byte for row in found.tolist() for byte in row if byte < 128}
    assert 128 - np.mean([len(row) for row in kept]) == pytest.approx(lost, rel=0.1)
    if name == "delete":
        assert all(row == sorted(set(row)) for row in kept) and new == {32}
        assert all((row[len(rest) :] == 32).all() for row, rest in zip(found, kept, strict=True))
    else:
        assert all(row == list(range(128, 128 + len(row))) for row in kept) and new == set(range(97, 123))


def test_typing_errors_are_neighbours_on_the_keyboard_with_their_case():
    letters = torch.tensor(list(b"gGqP5 ;")).expand(4000, -1)
    found = CORRUPTIONS["keyboard"](letters, 5)
    seen = [bytes(sorted(set(found[:, i].tolist()))) for i in range(7)]
    assert seen == [b"fgh", b"FGH", b"qw", b"OP", b"456", b" ", b";"]


def test_words_go_whole_with_the_space_after_them():
    words = SENTENCES.split()
    for seed in range(30):
        found = written("word-drop", 5, SENTENCES, seed)
        left = iter(words)
        assert all(word in left for word in found.split()) and len(found) == len(SENTENCES)  # in order, none cut
    share = np.mean([len(written("word-drop", 5, SENTENCES, seed).split()) for seed in range(300)]) / len(words)
    assert share == pytest.approx(0.8, abs=0.03)


def test_masks_are_underscores():
    found = written("mask", 5, b"x" * 500)
    assert set(found) == set(b"x_") and 60 < found.count(b"_") < 140


# Published sets


@pytest.fixture
def published(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(4), 5))
    return tmp_path, pixels


def test_published_sets_are_read_by_severity(published):
    folder, pixels = published
    assert published_names(folder) == ("fog",)
    for severity in SEVERITIES:
        images, classes = read_published(folder, "fog", severity)
        assert torch.equal(
            (images * 255).round().byte(), torch.tensor(pixels[4 * severity - 4 : 4 * severity]).movedim(3, 1)
        )
        assert classes.tolist() == [0, 1, 2, 3] and classes.dtype == torch.int64 and images.dtype == torch.float32


def test_what_is_no_published_set_is_one_line(published, tmp_path):
    folder, pixels = published
    for wrong, message in (
        (
            lambda: published_names(tmp_path / "none"),
            r"holds no labels\.npy with NAME\.npy beside it: get them from https",
        ),
        (lambda: read_published(folder, "fgo", 1), "unknown published corruption 'fgo': did you mean 'fog'"),
        (lambda: read_published(folder, "fog", 0), "severity must be 1, 2, 3, 4 or 5, got 0"),
    ):
        with pytest.raises(UsageError, match=message):
            wrong()
    for content, message in ((pixels[:19], "want uint8"), (pixels / 255, "is float64"), (pixels[0], "want uint8")):
        np.save(folder / "fog.npy", content)
        with pytest.raises(UsageError, match=message):
            read_published(folder, "fog", 1)
    (folder / "fog.npy").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"fog\.npy can't be read"):
        read_published(folder, "fog", 1)


def test_doctests():
    assert doctest.testmod(corruptions).failed == 0
