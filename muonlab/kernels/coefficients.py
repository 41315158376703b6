"""Newton-Schulz schedules: coefficients together with the safety factor and the band that belong to them."""

import functools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "COEFFICIENTS",
    "JORDAN",
    "POLAR_EXPRESS",
    "YOUJIACHENG",
    "YOUJIACHENG_6",
    "Coefficients",
    "coefficients_for",
]

MAX_STEPS = 100

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Coefficients:
    """A Newton-Schulz schedule with everything that was chosen together with it: safety factor and guaranteed band.

    Math     one step (a, b, c) maps each singular value s to a s + b s^3 + c s^5
    Range    singular values that are at least `reach` x |x|_F end up inside `band` (exact arithmetic; bfloat16 adds
             rounding of about 0.01). `band` is None where nobody has measured it

    >>> JORDAN.num_steps, JORDAN.band
    (5, (0.681, 1.203))
    """

    name: str
    steps: tuple[Triple, ...]
    safety: float = 1.0  # the matrix is divided by safety x |x|_F, so that rounding cannot push it past 1
    band: tuple[float, float] | None = None
    reach: float = 3e-3
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.steps) < MAX_STEPS:
            raise ValueError(f"a schedule has 1 to {MAX_STEPS - 1} steps, got {len(self.steps)}")
        for step in self.steps:
            if len(step) != 3 or not all(math.isfinite(value) for value in step):
                raise ValueError(f"each step needs exactly 3 finite coefficients (a, b, c), got {step!r}")
        if not 1.0 <= self.safety < math.inf:
            raise ValueError(f"safety must be a finite number of at least 1, got {self.safety}")

    @property
    def num_steps(self) -> int:
        return len(self.steps)


def _deflate(steps: Sequence[Triple], safety: float) -> tuple[Triple, ...]:
    return tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in steps)


JORDAN = Coefficients(
    name="jordan",
    steps=((3.4445, -4.7750, 2.0315),) * 5,
    band=(0.681, 1.203),
    source='Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"',
)

POLAR_EXPRESS = Coefficients(
    name="polar_express",
    steps=_deflate(
        (
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
        ),
        safety=1.01,
    ),
    safety=1.01,
    band=(0.870, 1.124),
    source="Amsel, Persson, Musco, Gower 2025 (2505.16932), degree 5, lower bound 1e-3, first five steps",
)

YOUJIACHENG = Coefficients(
    name="youjiacheng",
    steps=(
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    band=(0.977, 1.146),
    source="YouJiacheng 2025, tuned five-step schedule, as used in modded-nanogpt",
)

YOUJIACHENG_6 = Coefficients(
    name="youjiacheng_6",
    steps=(
        (3955 / 1024, -8306 / 1024, 5008 / 1024),
        (3735 / 1024, -6681 / 1024, 3463 / 1024),
        (3799 / 1024, -6499 / 1024, 3211 / 1024),
        (4019 / 1024, -6385 / 1024, 2906 / 1024),
        (2677 / 1024, -3029 / 1024, 1162 / 1024),
        (2172 / 1024, -1833 / 1024, 682 / 1024),
    ),
    band=(0.995, 1.0),
    source="YouJiacheng 2025, six-step schedule with a stability loss, as used in modula",
)

COEFFICIENTS = {record.name: record for record in (JORDAN, POLAR_EXPRESS, YOUJIACHENG, YOUJIACHENG_6)}


@functools.lru_cache(maxsize=256)
def coefficients_for(ns_coefficients: "str | Triple | tuple[Triple, ...]", ns_steps: int = 5) -> Coefficients:
    """The record that torch-style arguments mean: a name, one triple repeated `ns_steps` times, or a whole schedule.

    Raises   ValueError for an unknown name, a triple of another length, or `ns_steps` that is not the schedule's own
             length (a tuned schedule is only right as a whole)

    >>> coefficients_for((3.4445, -4.7750, 2.0315), 5) is JORDAN
    True
    >>> coefficients_for((2.0, -1.5, 0.5), 3).name
    'a=2,b=-1.5,c=0.5'
    """
    if not 1 <= ns_steps < MAX_STEPS:
        raise ValueError(f"Invalid ns_steps value: {ns_steps} (1 to {MAX_STEPS - 1})")
    if isinstance(ns_coefficients, str):
        if ns_coefficients not in COEFFICIENTS:
            raise ValueError(f"unknown ns_coefficients {ns_coefficients!r}: use one of {', '.join(COEFFICIENTS)}")
        record = COEFFICIENTS[ns_coefficients]
        if record is JORDAN:
            return coefficients_for(JORDAN.steps[0], ns_steps)
        if ns_steps != record.num_steps:
            raise ValueError(f"{record.name} is a schedule of {record.num_steps} steps: set ns_steps to that")
        return record
    if ns_coefficients and isinstance(ns_coefficients[0], numbers.Real):
        if len(ns_coefficients) != 3:
            raise ValueError(f"ns_coefficients must be exactly 3 values, got {len(ns_coefficients)}")
        if (ns_coefficients,) * ns_steps == JORDAN.steps:
            return JORDAN
        name = ",".join(f"{key}={value:.12g}" for key, value in zip("abc", ns_coefficients, strict=True))
        name = JORDAN.name if ns_coefficients == JORDAN.steps[0] else name
        return Coefficients(name=name, steps=(ns_coefficients,) * ns_steps)
    if len(ns_coefficients) != ns_steps:
        length = len(ns_coefficients)
        raise ValueError(f"ns_coefficients is a schedule of {length} steps, not {ns_steps}: set ns_steps={length}")
    return Coefficients(
        name=";".join(",".join(f"{value:.12g}" for value in step) for step in ns_coefficients), steps=ns_coefficients
    )
