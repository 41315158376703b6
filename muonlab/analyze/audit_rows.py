"""What an audit looks at: the ends of runs, the configurations tried, slices through the best one."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from muonlab.analyze.cells import Key, configurations, named_noise
from muonlab.analyze.runs import Run, histories
from muonlab.analyze.significance import Noise, pooled_noise
from muonlab.records.spec import Value

__all__ = ["Configuration", "Evidence", "Finding", "Line", "Place", "Point", "Severity", "Slice", "is_number"]

NOISE_NATS = 3e-3  # where nothing is measured: the smallest gain that the sweep of Wen et al. 2025 acts on

Severity = Literal["error", "warning", "note"]
Place = tuple[str, float]  # size, tokens
Line = int | str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a reviewer would object to, with the figures, and the rows that show it."""

    rule: str
    severity: Severity
    detail: str
    rows: tuple[Line, ...]  # lines of the table, or keys of the store's records


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The runs of one optimizer at one place with the same settings, one per seed."""

    settings: Mapping[str, Value]
    losses: tuple[float, ...]  # of the runs that finished
    num_lost: int
    lines: tuple[Line, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Configuration":
        losses = tuple(run.loss for run in runs if run.loss is not None)
        lines = tuple(run.line for run in runs)
        return cls(settings=runs[0].settings, losses=losses, num_lost=len(runs) - len(losses), lines=lines)

    @cached_property
    def loss(self) -> float | None:
        """The mean over seeds; None where a run was lost."""
        return float(np.mean(self.losses)) if self.losses and not self.num_lost else None


@dataclass(frozen=True)
class Point:
    value: float
    loss: float | None
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The values tried of one setting, all others at those of the best configuration."""

    optimizer: str
    place: Place
    name: str
    points: tuple[Point, ...]  # by rising value
    best: Point | None  # None: the tuned point is not in the table
    loss: float  # of the best; where that is None a bound, the lowest of the cell


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A table, and what it is judged by."""

    rows: tuple[Run, ...]
    baseline: str = "adamw"
    noise_nats: float | None = None  # None: that of the seeds, else NOISE_NATS
    is_ablation: bool = False  # rows move one setting away from a tuned point
    varied: Mapping[Line, str] = field(default_factory=dict)  # of ablations: row -> the setting that is moved
    tuned: Mapping[Key, Configuration] = field(default_factory=dict)  # of ablations, as far as it is known
    unit: str = "tokens"

    @cached_property
    def columns(self) -> frozenset[str]:
        """Everything that a row says beside its optimizer, size, length and loss."""
        names = ("seed", "step", "horizon_tokens")
        said = {name for run in self.rows for name in names if getattr(run, name) is not None}
        return frozenset(said.union(*(run.settings.keys() | run.labels.keys() for run in self.rows)))

    @cached_property
    def histories(self) -> tuple[tuple[Run, ...], ...]:
        """The rows of each run in the order of its steps; the last is its end."""
        return histories(self.rows)

    @cached_property
    def ends(self) -> tuple[Run, ...]:
        return tuple(rows[-1] for rows in self.histories if rows[-1].is_final)

    @cached_property
    def cells(self) -> dict[Key, tuple[Configuration, ...]]:
        """(optimizer, size, tokens) -> the configurations tried."""
        return {key: tuple(map(Configuration.of, tried)) for key, tried in configurations(self.ends).items()}

    @cached_property
    def best(self) -> dict[Key, Configuration]:
        """The configuration of lowest mean loss; among equals the one around which most was tried."""
        found = {}
        for key, tried in self.cells.items():
            least = min((one.loss for one in tried if one.loss is not None), default=None)
            lowest = [one for one in tried if one.loss == least and least is not None]
            if lowest:
                tuned = self.tuned.get(key)
                near = [sum(_differ(one, other) is not None for other in tried) for one in lowest]
                best = lowest[int(np.argmax(near))]
                found[key] = tuned if tuned in lowest and tuned is not None else best
        return found

    @cached_property
    def places(self) -> dict[Place, dict[str, Configuration]]:
        """(size, tokens) -> optimizer -> its best."""
        found: dict[Place, dict[str, Configuration]] = defaultdict(dict)
        for (optimizer, *place), best in self.best.items():
            found[place[0], place[1]][optimizer] = best
        return dict(found)

    @cached_property
    def measured(self) -> Noise:
        """Between the seeds of a configuration, pooled over the best ones."""
        return pooled_noise([best.losses for best in self.best.values()])

    @property
    def noise(self) -> Noise:
        if self.noise_nats is None and self.measured.degrees:
            return self.measured
        return named_noise(NOISE_NATS if self.noise_nats is None else self.noise_nats)

    @property
    def threshold(self) -> float:
        """Gains up to it are none."""
        return math.sqrt(self.noise.variance)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Through the best of every cell, along every numeric setting of which two values were tried."""
        found = []
        for key, best in self.best.items():
            make = self._ablated if self.is_ablation else self._around
            found += [one for one in make(key, best) if len(one.points) > 1 or one.best is None]
        return tuple(found)

    @cached_property
    def _varied(self) -> dict[Key, list[Run]]:
        found: dict[Key, list[Run]] = defaultdict(list)
        for run in self.ends:
            if run.line in self.varied:
                found[run.optimizer, run.size, run.tokens].append(run)
        return found

    def _around(self, key: Key, best: Configuration) -> Iterable[Slice]:
        lines: dict[str, list[Configuration]] = defaultdict(list)
        for other in self.cells[key]:
            if name := _differ(best, other):
                lines[name].append(other)
        for name, others in lines.items():
            points = _points(name, [best, *others])
            yield Slice(
                optimizer=key[0], place=key[1:], name=name, points=points, loss=best.loss or 0.0,
                best=next(point for point in points if point.value == best.settings[name]),
            )  # fmt: skip

    def _ablated(self, key: Key, best: Configuration) -> Iterable[Slice]:
        tuned, groups = self.tuned.get(key), defaultdict(list)
        for run in self._varied[key]:
            groups[self.varied[run.line]].append(Configuration.of([run]))
        bound = min(best.loss or 0.0, math.inf if tuned is None or tuned.loss is None else tuned.loss)
        holding = [name for name, group in groups.items() if any(one.loss == bound for one in group)]
        listed = len(holding) > max(1, len(groups) / 2)  # only the tuned point itself lies on most of the slices
        for name, group in groups.items():
            centre = None
            if tuned is not None and is_number(tuned.settings.get(name)):
                losses = tuned.losses or (bound,)
                group, centre = [*group, replace(tuned, losses=losses)], tuned.settings[name]
            points = _points(name, group)
            lowest = min(points, key=lambda p: (_rank(p.loss), p.value != centre), default=None)
            known = centre is not None or (listed and name in holding)
            if points:
                yield Slice(
                    optimizer=key[0],
                    place=key[1:],
                    name=name,
                    points=points,
                    loss=bound,
                    best=lowest if known else None,
                )

    def at(self, place: Place) -> str:
        """The place in words.

        >>> Evidence(rows=()).at(("130m", 2684354560.0))
        '130m, 2.68B tokens'
        """
        size, tokens = place
        if self.unit != "tokens":
            return f"{size} {tokens:g}{self.unit}".strip()
        scales = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
        scale, letter = next(((s, letter) for s, letter in scales if tokens >= 0.9995 * s), (1.0, ""))
        return f"{size}{', ' if size else ''}{tokens / scale:.3g}{letter} tokens"


def _differ(one: Configuration, other: Configuration) -> str | None:
    """The one numeric setting in which they differ; None where it is not one."""
    names = one.settings.keys() | other.settings.keys()
    differ = [name for name in names if one.settings.get(name) != other.settings.get(name)]
    if len(differ) != 1 or not all(is_number(each.settings.get(differ[0])) for each in (one, other)):
        return None
    return differ[0]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(name: str, group: Iterable[Configuration]) -> tuple[Point, ...]:
    """By rising value; of several with the same value the best."""
    points: dict[Any, Point] = {}
    for one in group:
        value = one.settings.get(name)
        if is_number(value) and (value not in points or _rank(one.loss) < _rank(points[value].loss)):
            points[value] = Point(value, one.loss, one.lines)  # type: ignore[arg-type]
    return tuple(points[value] for value in sorted(points))


def _rank(loss: float | None) -> float:
    return math.inf if loss is None else loss
