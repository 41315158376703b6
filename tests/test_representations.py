"""Ranks, likeness and margins against closed forms."""

from itertools import permutations

import numpy as np
import pytest
import torch

from muonlab.errors import UsageError
from muonlab.representations import gram_cka, linear_cka, margins, normalised_margins, ranks, spectral_ranks


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def of_rank(num: int, samples: int = 60, features: int = 12) -> np.ndarray:
    """Centred, with so many singular values, all the same."""
    left = np.linalg.qr(normal(samples, num + 1) - normal(samples, num + 1).mean(0))[0][:, :num]
    left = np.linalg.qr(left - left.mean(0))[0]
    return left @ np.linalg.qr(normal(features, num, seed=1))[0].T


@pytest.mark.parametrize("num", [1, 2, 5, 12])
def test_equal_singular_values_are_counted_by_every_rank(num):
    assert ranks(of_rank(num)) == pytest.approx((num,) * 3)
    assert ranks(7.0 * of_rank(num) + 3.0) == pytest.approx((num,) * 3)  # neither scale nor shift


def test_ranks_of_a_known_spectrum():
    s = np.array([3.0, 2.0, 1.0])
    p = s / 6
    expected = np.exp(-(p * np.log(p)).sum()), 14 / 9, 14**2 / (81 + 16 + 1)
    assert spectral_ranks(s) == pytest.approx(expected)
    assert spectral_ranks([*s, 0.0, 1e-30]) == pytest.approx(expected)


def test_isotropic_states_use_nearly_every_direction():
    found = ranks(normal(20_000, 8))
    assert min(found) > 7.6 and max(found) <= 8.0


@pytest.mark.parametrize("function", [ranks, lambda x: linear_cka(x, normal(len(x), 3))])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((5, 3), np.nan), "NaN"),
        (np.ones((5, 3)), "constant"),
        (normal(1, 3), "two samples"),
        (normal(5), "shape"),
    ],
)
def test_bad_states_are_refused(function, x, message):
    with pytest.raises(UsageError, match=message):
        function(x)


def test_cka_is_blind_to_rotation_scale_and_shift_only():
    x = normal(200, 6)
    turned = np.linalg.qr(normal(6, 6, seed=2))[0]
    assert linear_cka(x, -3.0 * x @ turned + 2.0) == pytest.approx(1.0)
    assert linear_cka(x, x * [10, 1, 1, 1, 1, 1]) < 0.6
    assert linear_cka(x, normal(200, 4, seed=1)) == pytest.approx(linear_cka(normal(200, 4, seed=1), x))


def test_cka_of_unrelated_states_is_zero_on_average_where_features_outnumber_samples():
    found = [linear_cka(normal(20, 100, seed=2 * i), normal(20, 100, seed=2 * i + 1)) for i in range(200)]
    finite = np.array([value for value in found if np.isfinite(value)])
    assert len(finite) > 50 and abs(finite.mean()) < 0.15  # the plain form is above 0.8 there


def test_the_estimator_behind_cka_is_unbiased():
    """Against its definition: the mean over quadruples of different samples."""
    x, y = normal(6, 2), normal(6, 3, seed=1)
    k, m = x @ x.T, y @ y.T

    def hsic(a, b):
        picks = permutations(range(6), 4)
        return np.mean([a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]) for i, j, q, r in picks])

    assert linear_cka(x, y) == pytest.approx(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def test_cka_needs_the_same_samples_and_four_of_them():
    with pytest.raises(UsageError, match="8 and 9"):
        linear_cka(normal(8, 2), normal(9, 2))
    with pytest.raises(UsageError, match="at least 4"):
        linear_cka(normal(3, 2), normal(3, 2, seed=1))


def test_margins_of_separable_data_are_known():
    """Two classes on either side of a border, at known distances."""
    features = np.array([[3.0, 1.0], [0.5, -2.0], [-2.0, 5.0]])
    weights, labels = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([0, 0, 1])
    logits = features @ weights.T
    assert margins(logits, labels) == pytest.approx([6.0, 1.0, 4.0])
    distance = np.abs(features[:, 0])
    expected = distance / np.linalg.norm(features, axis=1)
    assert normalised_margins(logits, labels, weights, features) == pytest.approx(expected)
    assert normalised_margins(14 * logits, labels, 2 * weights, 7 * features) == pytest.approx(expected)


def test_the_rival_is_the_best_of_the_others():
    assert margins([[5.0, 1.0, 4.0], [0.0, 2.0, 9.0]], [0, 1]).tolist() == [1.0, -7.0]


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[1.0], [2.0]], [0, 0], "two classes"),
        ([[1.0, np.nan]], [0], "finite"),
        ([[1.0, 2.0]], [2], r"0 \.\.\. 1"),
        ([[1.0, 2.0]], [0.5], "whole number"),
    ],
)
def test_bad_logits_are_refused(logits, labels, message):
    with pytest.raises(UsageError, match=message):
        margins(logits, labels)


def test_weights_that_say_nothing_have_no_normalised_margin():
    with pytest.raises(UsageError, match="not zero"):
        normalised_margins([[1.0, 0.0]], [0], np.ones((2, 2)), [[1.0, 2.0]])
    with pytest.raises(UsageError, match="do not belong"):
        normalised_margins([[1.0, 0.0]], [0], np.eye(2), np.ones((1, 3)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e150, 1e-200, 1e307])
def test_no_scale_is_too_large_or_too_small(scale):
    x, y = normal(40, 3), normal(40, 4, seed=1)
    assert linear_cka(x, x * scale) == pytest.approx(1.0)
    assert linear_cka(x, y * scale) == pytest.approx(linear_cka(x, y))
    assert ranks(x * scale) == pytest.approx(ranks(x))
    gram = x @ x.T
    assert gram_cka(gram / np.abs(gram).max() * scale, gram) == pytest.approx(1.0)
    logits, labels, weights = normal(40, 4), normal(40, seed=1).argsort() % 4, normal(4, 3, seed=2)
    expected = normalised_margins(logits, labels, weights, x)
    assert normalised_margins(logits, labels, weights * scale, x / scale) == pytest.approx(expected)
    rows = np.where(np.arange(40) % 2, 1.0, scale)[:, None]  # each sample by another factor
    assert normalised_margins(logits * rows, labels, weights, x * rows) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (np.ones((5, 5)), "constant"),
        (np.zeros((5, 5)), "constant"),
        (np.full((5, 5), np.nan), "finite"),
        (np.arange(25.0).reshape(5, 5), "symmetric"),
        (np.ones((5, 4)), "shape"),
        (np.ones(5), "shape"),
    ],
)
def test_what_is_no_gram_matrix_is_refused(gram, message):
    good = normal(5, 3) @ normal(5, 3).T
    for pair in ((gram, good), (good, gram)):
        with pytest.raises(UsageError, match=message):
            gram_cka(*pair)


def test_samples_that_are_all_equally_far_apart_have_no_likeness():
    assert np.isnan(gram_cka(np.eye(6), normal(6, 3) @ normal(6, 3).T)) and np.isnan(linear_cka(np.eye(6), np.eye(6)))


def test_half_precision_is_symmetric_enough():
    x = torch.from_numpy(normal(30, 8)).bfloat16()
    assert gram_cka(x @ x.T, (x @ x.T).double()) == pytest.approx(1.0)


@pytest.mark.parametrize(("values", "message"), [([-1, 2], "at least 0"), ([[1.0, 2.0]], "use ranks"), ([], "above")])
def test_what_is_no_spectrum_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        spectral_ranks(values)


def test_weights_that_are_not_finite_are_called_so():
    with pytest.raises(UsageError, match="weights must be finite"):
        normalised_margins([[1.0, 0.0]], [0], [[np.nan, 0.0], [0.0, 1.0]], [[1.0, 0.0]])
    with pytest.raises(UsageError, match="overflow"):
        margins([[1.7e308, -1.7e308]], [0])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_are_taken_with_their_gradients_and_in_any_precision(kind):
    x = torch.from_numpy(normal(12, 3)).to(kind).requires_grad_()
    plain = x.detach().double().numpy()
    assert ranks(x) == ranks(plain) and linear_cka(x, x) == linear_cka(plain, plain)
    labels = torch.arange(12) % 3
    assert (margins(x, labels) == margins(plain, labels.numpy())).all()
    assert spectral_ranks(torch.linalg.svdvals(x.float())).effective == pytest.approx(
        spectral_ranks(np.linalg.svd(plain.astype(np.float32), compute_uv=False)).effective
    )
