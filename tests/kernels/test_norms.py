"""Scale conventions: formulas, and the names that other packages have for them."""

import math

import pytest

from muonlab.kernels.norms import SCALE_ALIASES, SCALES, canonical_scale, update_scale

PEERS = {
    # (package, its name, its formula as its source has it)
    "torch.optim.Muon, original": ("original", lambda o, i: math.sqrt(max(1, o / i))),
    "torch.optim.Muon, match_rms_adamw": ("match_rms_adamw", lambda o, i: 0.2 * math.sqrt(max(o, i))),
    "torch.optim.Muon, after 2.13": ("spectral_unclamped", lambda o, i: math.sqrt(o / i)),
    "timm": ("rms_to_rms", lambda o, i: (o / i) ** 0.5),
    "dion, spectral_norm": ("spectral_norm", lambda o, i: math.sqrt(o / i)),
    "dion, rms_norm": ("rms_norm", lambda o, i: 0.2 * math.sqrt(max(o, i))),
    "Emerging-Optimizers, shape_scaling": ("shape_scaling", lambda o, i: max(1, o / i) ** 0.5),
    "Emerging-Optimizers, unit_rms_norm": ("unit_rms_norm", lambda o, i: (o / i) ** 0.5),
    "Emerging-Optimizers, spectral": ("sqrt_max", lambda o, i: max(o, i) ** 0.5),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("shape", [(8, 2), (2, 8), (5, 5)])
def test_a_peers_name_means_the_peers_formula(peer: str, shape: tuple[int, int]) -> None:
    name, formula = PEERS[peer]
    assert update_scale(*shape, name) == pytest.approx(formula(*shape), rel=1e-15)


def test_an_alias_is_no_canonical_name_and_leads_to_one() -> None:
    assert not set(SCALES) & SCALE_ALIASES.keys()
    assert set(SCALE_ALIASES.values()) <= set(SCALES)
    assert [canonical_scale(name) for name in SCALES] == list(SCALES)
    assert update_scale(8, 2) == update_scale(8, 2, "original") == 2.0


def test_any_function_is_a_convention() -> None:
    assert update_scale(6, 3, lambda fan_out, fan_in: fan_out / fan_in) == 2.0
    for bad in (-1.0, math.inf, math.nan, "2"):
        with pytest.raises(ValueError, match="finite number"):
            update_scale(6, 3, lambda fan_out, fan_in, bad=bad: bad)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="arbitrary is not supported: use one of original"):
        update_scale(2, 8, "arbitrary")
