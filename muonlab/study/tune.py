"""Coordinate descent: how every optimizer is tuned, the baseline no less than the challenger."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.evidence import Move, Tuning
from muonlab.records.spec import Value
from muonlab.study.protocol import Protocol
from muonlab.study.trials import FROM_NOTHING, CapReachedError, Gain, Parents, Settings, TrialBook

__all__ = ["TuningRules", "tune"]

EXHAUSTIVE_GRID = 4  # grids up to this size are swept whole in later passes, longer ones around the current value


@dataclass(frozen=True, kw_only=True)
class TuningRules:
    """The rules of a tuning, the same for every optimizer in a comparison."""

    seeds: tuple[int, ...] = tuple(range(1000, 1008))  # in the order of use; never those of the final runs
    first_seeds: int = 3  # for every configuration; more only where a move that matters is unresolved
    max_runs: int = 60
    threshold_nats: float = 3e-3  # a smaller gain does not matter (Wen et al. 2025)
    num_errors: float = 3.25  # a gain counts above this many standard errors; see Differs in `tune`

    def __post_init__(self) -> None:
        if not 2 <= self.first_seeds <= len(self.seeds):
            raise UsageError(f"first_seeds must lie between 2 and the number of tuning seeds, got {self.first_seeds}")


def tune(
    base: RunSpec,
    space: Sequence[Hyperparameter],
    rules: TuningRules,
    *,
    start: Settings | None = None,
    parents: Parents = FROM_NOTHING,
) -> Protocol[Tuning]:
    """Tune `space`, all other settings being those of `base`; returns the best settings and how they were found.

    With `parents` the run of each seed starts from the weights of another.

    1. The first coordinate (lr) is swept over its whole grid: argmin of the seed means, seeds added for contenders.
       With `start` (settings tuned at another horizon) this pass is left out.
    2. Every coordinate in turn, all others frozen: the best of its grid is taken if the gain is at least
       `num_errors` standard errors and `threshold_nats`, seeds being added while it matters and is unresolved.
    3. Repeated until a whole round accepts nothing, or the cap on runs is reached.
    A grid is extended wherever the current value has no neighbour and the edge is not a natural bound.

    Source   Wen et al. 2025, "Fantastic Pretraining Optimizers and Where to Find Them", phase I
    Differs  from it in the acceptance rule: 3e-3 alone is below the seed noise of small models, and 3e-3 above that
             noise would freeze a noisy optimizer at its start. Of 600 simulated tunings with 12 hyperparameters that do
             nothing, 3 % changed any of them with 3.25 standard errors, 6 % with 3. Grids longer than four values
             are swept around the current value after the first pass
    """
    search = _Search(base, space, rules, start, parents)
    converged = True
    try:
        if start is None:
            yield from search.first_pass(space[0])
        changed = True
        while changed:
            changed = False
            for coordinate in space:
                changed |= yield from search.sweep(coordinate)
    except CapReachedError:
        converged = False
    return search.result(converged)


class _Search:
    def __init__(
        self,
        base: RunSpec,
        space: Sequence[Hyperparameter],
        rules: TuningRules,
        start: Settings | None,
        parents: Parents,
    ) -> None:
        self.base, self.space, self.rules = base, tuple(space), rules
        self.book = TrialBook(base, rules.seeds, rules.max_runs, parents)
        self.theta: dict[str, Value] = {c.name: (start or {}).get(c.name, c.default) for c in space}
        self.grids = {c.name: _grid(c, self.theta[c.name]) for c in space}
        self.moves: list[Move] = []

    def first_pass(self, coordinate: Hyperparameter) -> Protocol[None]:
        name, old = coordinate.name, self.theta[coordinate.name]
        smallest = len(self.grids[name]) * self.rules.first_seeds
        if smallest > self.rules.max_runs:
            raise UsageError(
                f"max_runs {self.rules.max_runs} is below the {smallest} runs of the first {name} sweep: "
                "raise --max-runs"
            )
        yield from self._measure(name, self.grids[name])
        reason = "argmin of seed means over the whole grid"
        while True:
            yield from self._settle_contenders(name)
            self.theta[name] = min(self.grids[name], key=lambda value: self.book.mean(self._with(name, value)))
            if not math.isfinite(self.book.mean(self.theta)):
                reason = "every value diverged"
                break
            missing = self._widen(coordinate)
            if not missing:
                break
            yield from self._measure(name, missing)
        self._note(coordinate, old, self.theta[name], None, self.theta[name] != old, reason)

    def sweep(self, coordinate: Hyperparameter) -> Protocol[bool]:
        """One coordinate, all others frozen; moves on as long as moves are accepted. Whether anything changed."""
        name, moved = coordinate.name, False
        while True:
            self._widen(coordinate)
            current = self.theta[name]
            yield from self._measure(name, self._window(coordinate))
            others = [v for v in self._window(coordinate) if v != current]
            if not others:
                return moved
            best = min(others, key=lambda value: self.book.mean(self._with(name, value)))
            gain = yield from self._resolve(self._with(name, best))
            accepted = gain.resolved(self.rules.num_errors, self.rules.threshold_nats)
            self._note(coordinate, current, best, gain, accepted, _reason(gain, accepted, self.rules))
            if not accepted:
                return moved
            self.theta[name], moved = best, True

    def result(self, converged: bool) -> Tuning:
        return Tuning(
            optimizer=self.base.optimizer,
            horizon_tokens=self.base.horizon_tokens,
            coordinates=tuple(c.name for c in self.space),
            best=dict(self.theta),
            trials=self.book.trials(),
            moves=tuple(self.moves),
            edges=tuple(c.name for c in self.space if self._open_edge(c)),
            converged=converged,
            num_runs=self.book.num_runs,
            tokens=self.book.tokens,
        )

    def _with(self, name: str, value: Value) -> dict[str, Value]:
        return {**self.theta, name: value}

    def _measure(self, name: str, values: Sequence[Value]) -> Protocol[None]:
        yield from self.book.measure([(self._with(name, value), self.rules.first_seeds) for value in values])

    def _settle_contenders(self, name: str) -> Protocol[None]:
        """Add seeds to all values that the noise can't tell from the best, until it can or the seeds are used up."""
        while True:
            grid = sorted(self.grids[name], key=lambda value: self.book.mean(self._with(name, value)))
            best = self._with(name, grid[0])
            close = [best]
            for value in grid[1:]:
                gain = self.book.gain(self._with(name, value), best)
                if gain.mean < max(2.0 * gain.standard_error, self.rules.threshold_nats):
                    close.append(self._with(name, value))
            most = max(self.book.num_seeds(settings) for settings in close)
            fewest = min(self.book.num_seeds(settings) for settings in close)
            target = min(len(self.rules.seeds), most if fewest < most else 2 * most)
            if len(close) == 1 or fewest >= target or not math.isfinite(self.book.mean(best)):
                return
            yield from self.book.measure([(settings, target) for settings in close])

    def _resolve(self, candidate: Settings) -> Protocol[Gain]:
        """The gain of a candidate over the current settings, with as many seeds as a decision that matters needs."""
        while True:
            gain = self.book.gain(self.theta, candidate)
            matters = gain.mean >= self.rules.threshold_nats
            if not matters or gain.resolved(self.rules.num_errors, self.rules.threshold_nats):
                return gain
            num_seeds = min(len(self.rules.seeds), 2 * gain.num_seeds)
            if num_seeds == gain.num_seeds:
                return gain
            yield from self.book.measure([(self.theta, num_seeds), (candidate, num_seeds)])

    def _window(self, coordinate: Hyperparameter) -> list[Value]:
        grid = self.grids[coordinate.name]
        if len(grid) <= EXHAUSTIVE_GRID or not _ordered(grid):
            return list(grid)
        at = grid.index(self.theta[coordinate.name])
        return grid[max(0, at - 1) : at + 2]

    def _widen(self, coordinate: Hyperparameter) -> list[Value]:
        """Extend the grid where the current value lies on an edge that is no natural bound; the values added."""
        grid = self.grids[coordinate.name]
        added = _beyond(coordinate, grid, self.theta[coordinate.name])
        if added:
            self.grids[coordinate.name] = sorted([*grid, *added])
        return added

    def _open_edge(self, coordinate: Hyperparameter) -> bool:
        """Whether the optimum lies on an edge of what was measured, and something lies beyond it."""
        current = self.theta[coordinate.name]
        grid = [v for v in self.grids[coordinate.name] if self.book.measured(self._with(coordinate.name, v))]
        return bool(_beyond(coordinate, grid or [current], current))

    def _note(
        self, coordinate: Hyperparameter, old: Value, new: Value, gain: Gain | None, accepted: bool, reason: str
    ) -> None:
        finite = gain is not None and math.isfinite(gain.mean)
        self.moves.append(
            Move(
                coordinate=coordinate.name,
                old=old,
                new=new,
                gain=gain.mean if finite else None,
                standard_error=gain.standard_error if finite and math.isfinite(gain.standard_error) else None,
                num_seeds=gain.num_seeds if gain else self.book.num_seeds(self.theta),
                accepted=accepted,
                reason=reason,
            )
        )


def _reason(gain: Gain, accepted: bool, rules: TuningRules) -> str:
    if math.isinf(gain.mean):
        return "the old value diverged" if gain.mean > 0 else "the best other value diverged"
    if gain.mean < rules.threshold_nats:
        return f"gain below {rules.threshold_nats:g}"
    needed = gain.needed(rules.num_errors, rules.threshold_nats)
    return f"gain {'above' if accepted else 'within'} the noise, which takes {needed:.3g}"


def _beyond(coordinate: Hyperparameter, grid: Sequence[Value], current: Value) -> list[Value]:
    """The values next to `current` outside the grid: none if it is interior or on natural bounds."""
    if not _ordered(grid):
        return []
    wider = replace(coordinate, grid=tuple(grid))
    sides = ("low", "high")
    ends = [wider.extend(side) for side, edge in zip(sides, (min(grid), max(grid)), strict=True) if current == edge]
    return [value for value in ends if value is not None]


def _grid(coordinate: Hyperparameter, start: Value) -> list[Value]:
    values = list(coordinate.grid)
    if start not in values:
        values.append(start)
    return sorted(values) if _ordered(values) else values


def _ordered(values: Sequence[Value]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
