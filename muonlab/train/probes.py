"""What is measured during a run beside its losses, step by step."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from muonlab.records.record import Series
from muonlab.train.curves import thinned_series

__all__ = ["Probes"]


class Probes:
    """Values by name and step; a value that is not finite is left out."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}

    def note(self, step: int, measured: Mapping[str, float]) -> None:
        for name, value in measured.items():
            if math.isfinite(value):
                self.points.setdefault(name, []).append((step, float(value)))

    def series(self) -> dict[str, Series]:
        """Of every name, also of those with nothing to show for it."""
        return {name: thinned_series(points) for name, points in self.points.items()}

    def state(self) -> dict[str, Any]:
        """As plain values, to go on from."""
        return {name: [list(point) for point in points] for name, points in self.points.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.points |= {name: [(int(step), value) for step, value in points] for name, points in state.items()}
