"""Gram matrices as text: what survives, and what is refused."""

import numpy as np
import pytest

from muonlab.errors import UsageError
from muonlab.records.grams import pack_gram, unpack_gram
from muonlab.representations import gram_cka, linear_cka


def test_likeness_survives_packing_also_where_one_sample_is_far_out() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((64, 100))
    y = x @ random.standard_normal((100, 30)) + 5.0 * random.standard_normal((64, 30))
    far = np.where(np.arange(64)[:, None] == 7, 300.0, 1.0) * x
    for a, b in ((x, y), (x, x), (far, y)):
        packed = gram_cka(unpack_gram(pack_gram(a)), unpack_gram(pack_gram(b)))
        assert packed == pytest.approx(linear_cka(a, b), abs=2e-3)


def test_a_packed_matrix_is_that_of_centred_states_but_for_scale_and_diagonal() -> None:
    x = np.random.default_rng(1).standard_normal((9, 4)) + 100.0
    centred = x - x.mean(0)
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0.0)
    assert unpack_gram(pack_gram(x)) == pytest.approx(gram / np.abs(gram).max(), abs=5e-4)


@pytest.mark.parametrize("states", [np.ones((8, 3)), np.full((8, 3), np.nan), np.full((8, 3), 1e200)])
def test_what_has_no_likeness_is_empty(states) -> None:
    assert pack_gram(states) == "" and unpack_gram("") is None


@pytest.mark.parametrize("text", ["?", "AAAA", "AAAAAA==", pack_gram(np.eye(5))[:-4], "AHwAfAB8"])
def test_a_text_that_is_no_matrix_is_refused(text) -> None:
    with pytest.raises(UsageError, match="not a Gram matrix"):
        unpack_gram(text)
