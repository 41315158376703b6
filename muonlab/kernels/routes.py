"""Which method computes a polar factor: what was asked for, made definite, and the committed table behind "auto"."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from muonlab.kernels.coefficients import COEFFICIENTS, JORDAN, Coefficients
from muonlab.kernels.rational import MAX_POLES, POLES

__all__ = ["DTYPES", "METHODS", "Route", "refuse_tf32", "resolve"]

METHODS = ("newton_schulz", "gram", "rational", "exact", "auto")
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
HALF_DEVICES = ("cuda",)  # where products in float16 are fast
OWN_DTYPES = {
    "newton_schulz": torch.bfloat16,
    "gram": torch.float32,
    "rational": torch.float32,
    "exact": torch.float64,
}
AUTO_DAMPING = (
    0.5  # of the routes in the table: without it they train worse than Jordan's steps, docs/response_curve.md
)
TABLE = json.loads((Path(__file__).parent / "routes.json").read_text())


@dataclass(frozen=True)
class Route:
    """What is really computed.

    >>> Route("newton_schulz", JORDAN, None, torch.bfloat16).describe()
    'newton_schulz:jordan:5:bfloat16'
    >>> Route.parse("rational:3:float32").num_poles
    3
    >>> Route("exact", None, None, torch.float64, damping=0.5).describe()
    'exact:float64:damping=0.5'
    """

    method: str
    coefficients: Coefficients | None
    num_poles: int | None
    dtype: torch.dtype
    damping: float = 0.0

    def describe(self) -> str:
        parts = [self.method]
        if self.coefficients is not None:
            parts += [self.coefficients.name, str(self.coefficients.num_steps)]
        if self.num_poles is not None:
            parts.append(str(self.num_poles))
        parts.append(str(self.dtype).removeprefix("torch."))
        return ":".join([*parts, f"damping={self.damping:g}"] if self.damping else parts)

    @property
    def is_alone(self) -> bool:
        """Whether nothing of the work on one stack of matrices serves another of the same shorter side."""
        return self.method == "exact" or (self.method == "newton_schulz" and self.dtype != torch.float16)

    @property
    def ceiling(self) -> float:
        """No singular value of a result is above it, but for rounding; inf where nobody has measured it.

        >>> [Route.parse(name).ceiling for name in ("exact:float64", "rational:3:float32", "gram:jordan:5:float32")]
        [1.0, 1.063, 1.203]
        """
        if self.method == "exact":
            return 1.0
        band = POLES[self.num_poles].band if self.coefficients is None else self.coefficients.band
        return band[1] if band else math.inf

    @classmethod
    def parse(cls, description: str) -> "Route":
        """The inverse of `describe` without damping, for the coefficients that have a name."""
        method, *parts, dtype = description.split(":")
        coefficients = COEFFICIENTS[parts[0]] if len(parts) == 2 else None
        num_poles = int(parts[0]) if len(parts) == 1 else None
        return cls(method, coefficients, num_poles, DTYPES[dtype])


def resolve(
    fan_out: int,
    fan_in: int,
    *,
    method: str = "newton_schulz",
    coefficients: Coefficients = JORDAN,
    num_poles: int = 3,
    dtype: torch.dtype | None = None,
    damping: float = 0.0,
    device_type: str = "cpu",
) -> Route:
    """What `polar` computes for a matrix of that shape.

    "auto" reads a committed table by device type and shorter side, which is what stacks must have in common to share
    work: never a timing on the spot, never the number of matrices that happen to be there. A row holds what
    benchmarks/polar.py found fastest among the routes that are, on every spectrum tried, at least as close to
    orthogonal as five Jordan steps in bfloat16; with the damping that lets them train as well. On any device type
    without rows it is "newton_schulz" with the `coefficients` given, on CUDA in float16: the same polynomial.

    Raises   ValueError for what no method computes, or a dtype or damping beside "auto"

    >>> resolve(768, 3072, method="rational", num_poles=2).describe()
    'rational:2:float32'
    >>> resolve(768, 3072, method="auto").describe()
    'rational:2:float32:damping=0.5'
    >>> resolve(768, 3072, method="auto", device_type="cuda").describe()
    'newton_schulz:jordan:5:float16'
    """
    if method not in METHODS:
        raise ValueError(f"unknown polar method {method!r}: use one of {', '.join(METHODS)}")
    if dtype is not None and dtype not in DTYPES.values():
        raise ValueError(f"polar computes in one of {', '.join(DTYPES)}, not {dtype}")
    if method == "auto":
        if dtype is not None or damping:
            raise ValueError('polar method "auto" brings its own dtype and damping: set neither, or name the method')
        for row in TABLE.get(device_type, ()):
            if row["short_max"] is None or min(fan_out, fan_in) <= row["short_max"]:
                return replace(Route.parse(row["route"]), damping=AUTO_DAMPING)
        method, dtype = "newton_schulz", torch.float16 if device_type in HALF_DEVICES else None
    if method == "rational" and num_poles not in range(1, MAX_POLES + 1):
        raise ValueError(f"num_poles must be 1 to {MAX_POLES}, got {num_poles}")
    if method in ("gram", "rational") and dtype in (torch.bfloat16, torch.float16):
        raise ValueError(f"polar method {method!r} squares the condition number: use dtype float32 or float64")
    dtype = OWN_DTYPES[method] if dtype is None or method == "exact" else dtype
    schedule = coefficients if method in ("newton_schulz", "gram") else None
    return Route(method, schedule, num_poles if method == "rational" else None, dtype, damping)


def refuse_tf32(route: Route, device_type: str) -> None:
    """TF32 keeps 10 bits of a product, and x x^T needs 20 for singular values of 1e-3.

    Raises   ValueError where float32 products on a GPU are not full ones. On CPU the setting is without effect, or was
             wherever it could be tried
    """
    in_gram_space = route.method in ("gram", "rational") and route.dtype == torch.float32
    if in_gram_space and device_type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        raise ValueError(
            f"polar method {route.method!r} needs full float32 products: "
            'call torch.set_float32_matmul_precision("highest"), or use dtype float64 or method "newton_schulz"'
        )
