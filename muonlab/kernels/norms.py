"""How long the step of an orthogonalised update is, by shape: the conventions that all go by the name of Muon."""

import math

__all__ = ["SCALES", "update_scale"]

SCALES = ("original", "match_rms_adamw", "spectral")


def update_scale(fan_out: int, fan_in: int, convention: str | None = None) -> float:
    """Factor on an update whose singular values are near 1.

    Math     original         sqrt(max(1, fan_out / fan_in))
             match_rms_adamw  0.2 sqrt(max(fan_out, fan_in))
             spectral         sqrt(fan_out / fan_in)
    Units    spectral norm of the update, before the learning rate
    Raises   ValueError for another convention
    Source   original: Jordan 2024; match_rms_adamw: Liu et al. 2025 (2502.16982); spectral: Bernstein 2025
    Differs  from Emerging-Optimizers, where "spectral" is sqrt(max(fan_out, fan_in)). None is "original", as in torch

    >>> [round(update_scale(512, 128, name), 3) for name in SCALES]
    [2.0, 4.525, 2.0]
    >>> [round(update_scale(128, 512, name), 3) for name in SCALES]
    [1.0, 4.525, 0.5]
    """
    ratio = fan_out / max(1, fan_in)
    if convention is None or convention == "original":
        return math.sqrt(max(1.0, ratio))
    if convention == "match_rms_adamw":
        return 0.2 * math.sqrt(max(fan_out, fan_in))
    if convention == "spectral":
        return math.sqrt(ratio)
    raise ValueError(f"Adjust learning rate function {convention} is not supported: use one of {', '.join(SCALES)}")
