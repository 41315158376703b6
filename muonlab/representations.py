"""How rich hidden states are, how like those of another model, and how far apart classes lie: numbers from arrays.

Rows are samples; tensors are taken as arrays are, whatever they hang on. Which definition goes by a name is written at
each function: several go by these names.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muonlab.errors import UsageError

__all__ = ["Ranks", "gram_cka", "linear_cka", "margins", "normalised_margins", "ranks", "spectral_ranks"]

Array = NDArray[np.float64]
LEAST = 1e-12  # part of the largest singular value below which one is rounding
LEAST_SAMPLES = 4  # that the debiased estimator divides by three less than
ASYMMETRY = 1e-2  # part of the largest entry by which a Gram matrix of half precision may differ from its transpose


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
    Shapes   (values,)
    Raises   UsageError if there are none above zero, for one below zero, NaN, and a matrix

    >>> [round(rank, 6) for rank in spectral_ranks([2.0, 2.0, 2.0, 0.0])]
    [3.0, 3.0, 3.0]
    >>> [round(rank, 3) for rank in spectral_ranks([2.0, 1.0])]
    [1.89, 1.25, 1.471]
    """
    s = _array(singular_values)
    if s.ndim != 1:
        raise UsageError(f"singular values must have the shape (values,), got {s.shape}: of hidden states use ranks")
    if not s.size or not np.isfinite(s).all() or s.max() <= 0:
        raise UsageError("a rank needs finite singular values, one of them above zero: are the features constant?")
    if s.min() < 0:
        raise UsageError(f"singular values are at least 0, got {s.min():g}: of eigenvalues take the square roots")
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
    return _cka(*(centred @ centred.T for centred in (_centred(x), _centred(y))))


def gram_cka(k: ArrayLike, other: ArrayLike) -> float:
    """`linear_cka` from the Gram matrices x x^T and y y^T, whose diagonals do not matter.

    Shapes   k, other (samples, samples), symmetric
    Raises   UsageError for NaN, a matrix that is constant or not symmetric, and what `linear_cka` refuses of samples
    """
    return _cka(*map(_gram, (k, other)))


def _gram(k: ArrayLike) -> Array:
    gram = _array(k)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise UsageError(f"a Gram matrix must have the shape (samples, samples), got {gram.shape}")
    if not np.isfinite(gram).all():
        raise UsageError(f"a Gram matrix must be finite: NaN or infinity in {int((~np.isfinite(gram)).sum())} places")
    gram = _scaled(gram)[0]
    if gram.size and np.abs(gram - gram.T).max() > ASYMMETRY * np.abs(gram).max():
        raise UsageError("a Gram matrix must be symmetric: give x @ x.T")
    if gram.size and np.ptp(gram) <= LEAST * np.abs(gram).max():
        raise UsageError("the Gram matrix is constant: every sample has the same hidden state")
    return gram


def _cka(k: Array, other: Array) -> float:
    """Of Gram matrices whose diagonals are overwritten."""
    if len(k) != len(other):
        raise UsageError(f"CKA needs the same samples in both: there are {len(k)} and {len(other)}")
    if len(k) < LEAST_SAMPLES:
        raise UsageError(f"CKA needs at least {LEAST_SAMPLES} samples, got {len(k)}")
    for gram in (k, other):
        np.fill_diagonal(gram, 0.0)
    k, other = _scaled(k)[0], _scaled(other)[0]
    own = [_unbiased_hsic(gram, gram) for gram in (k, other)]
    if any(value <= LEAST * (gram**2).sum() for value, gram in zip(own, (k, other), strict=True)):
        return float("nan")
    return float(_unbiased_hsic(k, other) / np.sqrt(own[0] * own[1]))


def _unbiased_hsic(k: Array, other: Array) -> float:
    """Of two kernels whose diagonals are zero, up to the factor 1 / (n (n - 3)), which cancels."""
    n = len(k)
    whole = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return float((k * other).sum() + whole - 2.0 / (n - 2) * (k.sum(0) @ other.sum(0)))


def margins(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Of each sample, the logit of its class less the largest other one: above 0 where the class is found.

    Shapes   logits (samples, classes), labels (samples,) from 0 -> (samples,)
    Raises   UsageError for one class only, NaN, a label that is no class, logits too large to be subtracted

    >>> margins([[2.0, 0.5, 1.0], [0.0, 3.0, 4.0]], [0, 1]).tolist()
    [1.0, -1.0]
    """
    found, exponent, _ = _margins_and_rivals(logits, labels)
    return _unscaled(found, exponent)


def normalised_margins(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike, features: ArrayLike) -> Array:
    """Margins of a linear classifier that no scaling of its weights or features changes.

    Math     (z_y - z_j) / (|w_y - w_j| |h|), j being the other class with the largest logit: without a bias, the sine
             of the angle to the border between both
    Shapes   logits (samples, classes), labels (samples,), weights (classes, features), features (samples, features)
    Raises   UsageError as `margins` does, for weights that are not finite, features of another shape, a sample or a
             pair of classes of norm 0

    >>> normalised_margins([[3.0, 0.0]], [0], [[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0]]).round(4).tolist()
    [0.7071]
    """
    found, exponent, rivals = _margins_and_rivals(logits, labels)
    w, h, y = _array(weights), _finite(features), _labels(labels)
    if len(h) != len(found) or w.ndim != 2 or w.shape[1] != h.shape[1] or len(w) <= max(rivals.max(), y.max()):
        raise UsageError(f"weights {w.shape} and features {h.shape} do not belong to {len(found)} samples' logits")
    if not np.isfinite(w).all():
        raise UsageError(f"weights must be finite: NaN or infinity in {int((~np.isfinite(w)).sum())} places")
    w, of_weights = _scaled(w)
    (apart, of_pairs), (lengths, of_samples) = _norms(w[y] - w[rivals]), _norms(h)
    if not (apart * lengths > 0).all():
        raise UsageError("a normalised margin needs features, and weights of two classes, that are not zero")
    return _unscaled(found / (apart * lengths), exponent - of_weights - of_pairs - of_samples)


def _norms(rows: Array) -> tuple[Array, NDArray[np.intp]]:
    """Of each row, as a number and the power of two that it is to be multiplied by."""
    scaled, exponents = _scaled(rows, axis=1)
    return np.linalg.norm(scaled, axis=1), exponents[:, 0]


def _margins_and_rivals(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Any, NDArray[np.intp]]:
    """Margins, the power of two that they are to be multiplied by, and the largest other classes."""
    z, y = _finite(logits, "logits"), _labels(labels)
    if z.shape[1] < 2:
        raise UsageError("a margin needs at least two classes, got one")
    if y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise UsageError(f"labels must be one whole number for each of {len(z)} samples, got shape {y.shape}")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise UsageError(f"labels must lie in 0 ... {z.shape[1] - 1}, got {y.min()} ... {y.max()}")
    z, exponent = _scaled(z)
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, y] = -np.inf
    rivals = others.argmax(1)
    return z[rows, y] - z[rows, rivals], exponent, rivals


def _centred(x: ArrayLike) -> Array:
    found = _scaled(_finite(x))[0]
    if len(found) < 2:
        raise UsageError("hidden states need at least two samples")
    centred = found - found.mean(0)
    if np.abs(centred).max() <= LEAST * np.abs(found).max():
        raise UsageError("the features are constant: every sample has the same hidden state")
    return centred


def _finite(x: ArrayLike, what: str = "features") -> Array:
    found = _array(x)
    if found.ndim != 2 or not found.size:
        raise UsageError(f"{what} must have the shape (samples, {what}), got {found.shape}")
    if not np.isfinite(found).all():
        raise UsageError(
            f"{what} must be finite: there is NaN or infinity in {int((~np.isfinite(found)).sum())} places"
        )
    return found


def _scaled(x: Array, axis: int | None = None) -> tuple[Array, Any]:
    """With entries up to 1, so that products stay numbers, and the power of two to multiply by: nothing is rounded."""
    exponent = np.frexp(np.abs(x).max(axis=axis, keepdims=axis is not None, initial=0.0))[1]
    return np.ldexp(x, -exponent), exponent


def _unscaled(x: Array, exponent: Any) -> Array:
    with np.errstate(over="ignore"):
        found = np.ldexp(x, exponent)
    if not np.isfinite(found).all():
        raise UsageError("margins overflow: divide the logits by what makes them smaller")
    return found


def _array(x: Any) -> Array:
    """In double precision; of a tensor, too, where numpy takes none that has a gradient, or is bfloat16."""
    return np.asarray(x.detach().cpu().double() if hasattr(x, "detach") else x, dtype=np.float64)


def _labels(x: Any) -> NDArray[Any]:
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)
