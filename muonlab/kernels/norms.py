"""How long the step of an orthogonalised update is, by shape: the conventions that all go by the name of Muon."""

import math
from collections.abc import Callable

__all__ = ["SCALES", "SCALE_ALIASES", "Convention", "canonical_scale", "update_scale"]

Convention = str | Callable[[int, int], float] | None

_FORMULAS: dict[str, Callable[[int, int], float]] = {
    "original": lambda fan_out, fan_in: math.sqrt(max(1.0, fan_out / max(1, fan_in))),
    "match_rms_adamw": lambda fan_out, fan_in: 0.2 * math.sqrt(max(fan_out, fan_in)),
    "spectral": lambda fan_out, fan_in: math.sqrt(fan_out / max(1, fan_in)),
    "sqrt_max": lambda fan_out, fan_in: math.sqrt(max(fan_out, fan_in)),
}
SCALES = tuple(_FORMULAS)
SCALE_ALIASES = {
    "spectral_unclamped": "spectral",  # torch.optim.Muon after 2.13, torchtitan
    "rms_to_rms": "spectral",  # timm
    "spectral_norm": "spectral",  # dion
    "unit_rms_norm": "spectral",  # Emerging-Optimizers
    "rms_norm": "match_rms_adamw",  # dion, gram_newton_schulz
    "shape_scaling": "original",  # Emerging-Optimizers
}


def update_scale(fan_out: int, fan_in: int, convention: Convention = None) -> float:
    """Factor on an update whose singular values are near 1.

    Math     original         sqrt(max(1, fan_out / fan_in))
             match_rms_adamw  0.2 sqrt(max(fan_out, fan_in))
             spectral         sqrt(fan_out / fan_in)
             sqrt_max         sqrt(max(fan_out, fan_in))
             or the peers' names for these, `SCALE_ALIASES`; or any function of (fan_out, fan_in)
    Units    spectral norm of the update, before the learning rate
    Raises   ValueError for another convention, or a function whose value is not a finite number of at least 0
    Source   original: Jordan 2024; match_rms_adamw: Liu et al. 2025 (2502.16982); spectral: Bernstein 2025
    Differs  from Emerging-Optimizers, whose "spectral" is sqrt_max here. None is "original", as in torch.
             pytorch_optimizer's use_adjusted_lr=True is "match_rms_adamw"

    >>> [round(update_scale(512, 128, name), 3) for name in SCALES]
    [2.0, 4.525, 2.0, 22.627]
    >>> [round(update_scale(128, 512, name), 3) for name in SCALES]
    [1.0, 4.525, 0.5, 22.627]
    >>> update_scale(128, 512, "spectral_norm"), update_scale(128, 512, lambda fan_out, fan_in: fan_in / fan_out)
    (0.5, 4.0)
    """
    if not callable(convention):
        return _FORMULAS[canonical_scale(convention)](fan_out, fan_in)
    value = convention(fan_out, fan_in)
    if not (isinstance(value, int | float) and 0 <= value < math.inf):
        raise ValueError(f"a scale function must give a finite number of at least 0, got {value!r}")
    return float(value)


def canonical_scale(convention: str | None) -> str:
    """The one name here of a convention that goes by several.

    >>> canonical_scale("shape_scaling"), canonical_scale(None)
    ('original', 'original')
    """
    name = "original" if convention is None else SCALE_ALIASES.get(convention, convention)
    if name not in _FORMULAS:
        names = ", ".join((*SCALES, *SCALE_ALIASES))
        raise ValueError(f"Adjust learning rate function {convention} is not supported: use one of {names}")
    return name
