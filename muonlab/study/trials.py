"""The book that a tuning keeps: which configuration had which loss on which seed, and how noisy losses are."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muonlab.analyze.significance import Noise, student_errors
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Trial
from muonlab.records.spec import Value, canonical_json
from muonlab.study.protocol import Protocol

__all__ = ["FROM_NOTHING", "CapReachedError", "Gain", "Parents", "Settings", "TrialBook", "seeded"]

Settings = Mapping[str, Value]
Parents = Mapping[int, str]  # seed -> key of the run that the one of this seed starts from
FROM_NOTHING: Parents = {}


def seeded(base: RunSpec, settings: Settings, seed: int, parents: Parents) -> RunSpec:
    """The run of a configuration on a seed."""
    spec = base.set({**settings, "seed": seed})
    return replace(spec, init_from=parents[seed]) if parents else spec


class CapReachedError(Exception):
    """The next request would exceed the cap on runs; what was measured so far stands."""


@dataclass(frozen=True)
class Gain:
    """Mean loss of one configuration minus that of another on the seeds they share, in nats."""

    mean: float
    standard_error: float
    num_seeds: int
    degrees: int  # of freedom of the variance behind the standard error

    def needed(self, num_errors: float, threshold_nats: float) -> float:
        """The mean from which on it is a gain beyond doubt: above the noise and above what is worth having.

        `num_errors` is for a noise that is known; while it is estimated from a few runs, it takes more.
        """
        noise = student_errors(num_errors, self.degrees) * self.standard_error if self.standard_error else 0.0
        return max(noise, threshold_nats)

    def resolved(self, num_errors: float, threshold_nats: float) -> bool:
        return self.mean >= self.needed(num_errors, threshold_nats)


class TrialBook:
    """Losses by configuration and seed. Seeds are used in one order, so any two configurations share a prefix.

    A diverged run has loss inf: it is never best, and it never enters an estimate of noise.
    """

    def __init__(self, base: RunSpec, seeds: Sequence[int], max_runs: int, parents: Parents = FROM_NOTHING) -> None:
        self.base, self.seeds, self.max_runs, self.parents = base, tuple(seeds), max_runs, parents
        self.num_runs = 0
        self.tokens = 0
        self._settings: dict[str, Settings] = {}
        self._losses: dict[str, dict[int, float]] = {}
        self._keys: dict[str, dict[int, str]] = {}

    def measure(self, wants: Iterable[tuple[Settings, int]]) -> Protocol[None]:
        """Make sure that each configuration has been run on the first `num_seeds` seeds.

        Raises   CapReachedError if that takes more runs than are left
        """
        specs: dict[str, tuple[str, int, RunSpec]] = {}
        for settings, num_seeds in wants:
            name = canonical_json(settings)
            self._settings.setdefault(name, dict(settings))
            for seed in self.seeds[:num_seeds]:
                if seed not in self._losses.get(name, {}):
                    spec = seeded(self.base, settings, seed, self.parents)
                    specs[spec.key] = (name, seed, spec)
        if self.num_runs + len(specs) > self.max_runs:
            raise CapReachedError
        if not specs:
            return
        records = yield [spec for _, _, spec in specs.values()]
        for key, (name, seed, spec) in specs.items():
            self._losses.setdefault(name, {})[seed] = _loss(records[key])
            self._keys.setdefault(name, {})[seed] = key
            self.num_runs += 1
            self.tokens += spec.horizon_tokens

    def mean(self, settings: Settings) -> float:
        """Mean loss over the seeds run; inf if any of them diverged or none was run."""
        losses = list(self._losses.get(canonical_json(settings), {}).values())
        return float(np.mean(losses)) if losses else math.inf

    def num_seeds(self, settings: Settings) -> int:
        return len(self._losses.get(canonical_json(settings), {}))

    def measured(self, settings: Settings) -> bool:
        return self.num_seeds(settings) > 0

    def gain(self, old: Settings, new: Settings) -> Gain:
        """What changing from `old` to `new` gains, on the seeds they share.

        The standard error comes from the residuals of loss ~ configuration + seed over the better half of all
        configurations, so that it uses whatever pairing by seed explains and is not the guess of two or three runs.
        """
        a, b = self._losses[canonical_json(old)], self._losses[canonical_json(new)]
        shared = [seed for seed in a if seed in b]
        if any(math.isinf(b[s]) for s in shared):
            return Gain(-math.inf, 0.0, len(shared), 0)
        if any(math.isinf(a[s]) for s in shared):
            return Gain(math.inf, 0.0, len(shared), 0)
        difference = float(np.mean([a[s] - b[s] for s in shared]))
        noise = self.noise(old, new)
        return Gain(difference, math.sqrt(2.0 * noise.variance / len(shared)), len(shared), noise.degrees)

    def noise(self, *always: Settings) -> Noise:
        """Variance of one run's loss around its configuration and seed; infinite if it can't be told.

        Estimated on the better half of all configurations, since bad ones are noisier, and on those in `always`.
        """
        finite = [n for n, by_seed in self._losses.items() if all(map(math.isfinite, by_seed.values()))]
        finite.sort(key=lambda name: float(np.mean(list(self._losses[name].values()))))
        kept = dict.fromkeys(finite[: max(2, (len(finite) + 1) // 2)])
        kept.update(dict.fromkeys(n for n in map(canonical_json, always) if n in finite))
        return _residual_noise([self._losses[name] for name in kept])

    def trials(self) -> tuple[Trial, ...]:
        return tuple(
            Trial(settings=self._settings[name], keys=tuple(keys.values())) for name, keys in self._keys.items()
        )


def _loss(record: Record) -> float:
    return record.final_loss if record.outcome == "ok" and record.final_loss is not None else math.inf


def _residual_noise(rows: Sequence[Mapping[int, float]]) -> Noise:
    """Residual variance of the additive two-way model loss ~ row + seed, rows of unequal length allowed."""
    cells = [(i, seed, loss) for i, row in enumerate(rows) if len(row) > 1 for seed, loss in row.items()]
    if not cells:
        return Noise(math.inf, 0)
    row_of = {i: k for k, i in enumerate(dict.fromkeys(i for i, _, _ in cells))}
    seed_of = {s: k for k, s in enumerate(dict.fromkeys(s for _, s, _ in cells))}
    num_rows, num_seeds = len(row_of), len(seed_of)
    design = np.zeros((len(cells), num_rows + num_seeds))
    for line, (i, seed, _) in enumerate(cells):
        design[line, row_of[i]] = design[line, num_rows + seed_of[seed]] = 1.0
    losses = np.array([loss for _, _, loss in cells])
    solution, _, rank, _ = np.linalg.lstsq(design, losses, rcond=None)
    degrees = len(cells) - int(rank)
    residuals = losses - design @ solution
    return Noise(float(residuals @ residuals) / degrees if degrees else math.inf, degrees)
