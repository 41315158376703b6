"""How rich hidden states are, how like those of another model, and how far apart classes lie: numbers from arrays.

Rows are samples. Which definition goes by a name is written at each function: several go by these names.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muonlab.errors import UsageError

__all__ = ["Ranks", "gram_cka", "linear_cka", "margins", "normalised_margins", "ranks", "spectral_ranks"]

Array = NDArray[np.float64]
LEAST = 1e-12  # part of the largest singular value below which one is rounding
LEAST_SAMPLES = 4  # that the debiased estimator divides by three less than


class Ranks(NamedTuple):
    """Three smooth counts of how many directions a matrix uses: at least 1, at most its rank."""

    effective: float
    stable: float
    participation: float


def spectral_ranks(singular_values: ArrayLike) -> Ranks:
    """From singular values s.

    Math     effective = exp(-sum p log p), p = s / sum s;  stable = sum s^2 / max s^2;  participation = (sum s^2)^2 /
             sum s^4
    Source   effective: Roy and Vetterli 2007; some authors take p of s^2, which gives smaller numbers
    Raises   UsageError if there are none above zero

    >>> [round(rank, 6) for rank in spectral_ranks([2.0, 2.0, 2.0, 0.0])]
    [3.0, 3.0, 3.0]
    >>> [round(rank, 3) for rank in spectral_ranks([2.0, 1.0])]
    [1.89, 1.25, 1.471]
    """
    s = np.asarray(singular_values, dtype=np.float64)
    if not s.size or not np.isfinite(s).all() or s.max() <= 0:
        raise UsageError("a rank needs finite singular values, one of them above zero: are the features constant?")
    s = s[s > LEAST * s.max()] / s.max()
    p, squares = s / s.sum(), s**2
    return Ranks(
        effective=float(np.exp(-(p * np.log(p)).sum())),
        stable=float(squares.sum()),
        participation=float(squares.sum() ** 2 / (squares**2).sum()),
    )


def ranks(x: ArrayLike) -> Ranks:
    """Of hidden states, each feature centred.

    Shapes   x (samples, features)
    Range    at most min(samples - 1, features), so compare only what has the same of both
    Raises   UsageError for NaN, fewer than two samples, and samples that are all the same

    >>> [round(rank, 6) for rank in ranks([[1, 0], [-1, 0], [0, 1], [0, -1]])]
    [2.0, 2.0, 2.0]
    """
    return spectral_ranks(np.linalg.svd(_centred(x), compute_uv=False))


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Likeness of two sets of hidden states of the same samples: 1 up to rotation, scale and shift; unrelated, about 0.

    Math     HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), HSIC being the unbiased estimator on linear kernels
    Shapes   x (samples, features of x), y (samples, features of y)
    Range    up to 1; below 0 by chance; NaN where the samples are too few to tell x or y from noise
    Source   Kornblith et al. 2019; the debiased form: Song et al. 2012. The plain form tends to 1 where features
             outnumber samples, whatever they are
    Raises   UsageError for NaN, fewer than four samples, constant features, numbers of samples that differ

    >>> x = np.random.default_rng(0).standard_normal((40, 3))
    >>> turned = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    >>> round(linear_cka(x, 5.0 * x @ turned + 1.0), 6)
    1.0
    """
    return gram_cka(*(centred @ centred.T for centred in (_centred(x), _centred(y))))


def gram_cka(k: ArrayLike, other: ArrayLike) -> float:
    """`linear_cka` from the Gram matrices x x^T and y y^T, whose diagonals do not matter.

    Shapes   k, other (samples, samples), symmetric
    Raises   UsageError for fewer than four samples, and numbers of samples that differ
    """
    grams = [np.array(gram, dtype=np.float64) for gram in (k, other)]
    if len(grams[0]) != len(grams[1]):
        raise UsageError(f"CKA needs the same samples in both: there are {len(grams[0])} and {len(grams[1])}")
    if len(grams[0]) < LEAST_SAMPLES:
        raise UsageError(f"CKA needs at least {LEAST_SAMPLES} samples, got {len(grams[0])}")
    for gram in grams:
        np.fill_diagonal(gram, 0.0)
    own = _unbiased_hsic(grams[0], grams[0]) * _unbiased_hsic(grams[1], grams[1])
    return float(_unbiased_hsic(*grams) / np.sqrt(own)) if own > 0 else float("nan")


def _unbiased_hsic(k: Array, other: Array) -> float:
    """Of two kernels whose diagonals are zero, up to the factor 1 / (n (n - 3)), which cancels."""
    n = len(k)
    whole = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return float((k * other).sum() + whole - 2.0 / (n - 2) * (k.sum(0) @ other.sum(0)))


def margins(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Of each sample, the logit of its class less the largest other one: above 0 where the class is found.

    Shapes   logits (samples, classes), labels (samples,) from 0 -> (samples,)
    Raises   UsageError for one class only, NaN, a label that is no class

    >>> margins([[2.0, 0.5, 1.0], [0.0, 3.0, 4.0]], [0, 1]).tolist()
    [1.0, -1.0]
    """
    return _margins_and_rivals(logits, labels)[0]


def normalised_margins(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike, features: ArrayLike) -> Array:
    """Margins of a linear classifier that no scaling of its weights or features changes.

    Math     (z_y - z_j) / (|w_y - w_j| |h|), j being the other class with the largest logit: without a bias, the sine
             of the angle to the border between both
    Shapes   logits (samples, classes), labels (samples,), weights (classes, features), features (samples, features)
    Raises   UsageError as `margins` does, for features of another shape, for a sample or a pair of classes of norm 0

    >>> normalised_margins([[3.0, 0.0]], [0], [[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0]]).round(4).tolist()
    [0.7071]
    """
    found, rivals = _margins_and_rivals(logits, labels)
    w, h, y = np.asarray(weights, dtype=np.float64), _finite(features), np.asarray(labels)
    if len(h) != len(found) or w.ndim != 2 or w.shape[1] != h.shape[1] or len(w) <= max(rivals.max(), y.max()):
        raise UsageError(f"weights {w.shape} and features {h.shape} do not belong to {len(found)} samples' logits")
    norms = np.linalg.norm(w[y] - w[rivals], axis=1) * np.linalg.norm(h, axis=1)
    if not (norms > 0).all():
        raise UsageError("a normalised margin needs features, and weights of two classes, that are not zero")
    return found / norms


def _margins_and_rivals(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, NDArray[np.intp]]:
    z, y = _finite(logits, "logits"), np.asarray(labels)
    if z.shape[1] < 2:
        raise UsageError("a margin needs at least two classes, got one")
    if y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise UsageError(f"labels must be one whole number for each of {len(z)} samples, got shape {y.shape}")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise UsageError(f"labels must lie in 0 ... {z.shape[1] - 1}, got {y.min()} ... {y.max()}")
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, y] = -np.inf
    rivals = others.argmax(1)
    return z[rows, y] - z[rows, rivals], rivals


def _centred(x: ArrayLike) -> Array:
    found = _finite(x)
    if len(found) < 2:
        raise UsageError("hidden states need at least two samples")
    centred = found - found.mean(0)
    if np.abs(centred).max() <= LEAST * np.abs(found).max():
        raise UsageError("the features are constant: every sample has the same hidden state")
    return centred


def _finite(x: ArrayLike, what: str = "features") -> Array:
    found = np.asarray(x, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise UsageError(f"{what} must have the shape (samples, {what}), got {found.shape}")
    if not np.isfinite(found).all():
        raise UsageError(
            f"{what} must be finite: there is NaN or infinity in {int((~np.isfinite(found)).sum())} places"
        )
    return found
