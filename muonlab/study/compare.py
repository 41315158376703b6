"""The fair comparison: tune every optimizer by the same rules, then compare final losses on fresh seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import RunSpec
from muonlab.records.evidence import Arm, Cell, Evidence, Tuning
from muonlab.records.spec import Value
from muonlab.study.protocol import Protocol, gather
from muonlab.study.trials import Settings
from muonlab.study.tune import TuningRules, tune

__all__ = ["ComparisonRules", "compare"]

SHORTEST_RATIO = 1 / 16  # of the comparison's horizon: no run is made shorter than that to bracket a loss


@dataclass(frozen=True, kw_only=True)
class ComparisonRules:
    """What a comparison does after, and on top of, tuning."""

    baseline: str
    final_seeds: tuple[int, ...] = tuple(range(5))
    horizon_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # of the baseline, each run with its own full schedule
    tuning: TuningRules = field(default_factory=TuningRules)
    margin_nats: float | None = None  # a loss higher by no more than this counts as no worse

    def __post_init__(self) -> None:
        shared = sorted(set(self.final_seeds) & set(self.tuning.seeds))
        if shared:
            raise UsageError(f"final seeds must not be used for tuning: {shared} are")
        if len(self.final_seeds) < 2:
            raise UsageError("a comparison needs at least 2 final seeds (--seeds), better 5")
        if len(set(self.horizon_ratios)) < 3 or 1.0 not in self.horizon_ratios:
            raise UsageError("horizon_ratios needs at least three horizons, 1 among them")
        if not all(0.0 < ratio < math.inf for ratio in self.horizon_ratios):
            raise UsageError(f"horizon_ratios must be positive, got {min(self.horizon_ratios):g}")


def compare(
    bases: Mapping[str, RunSpec],
    spaces: Mapping[str, Sequence[Hyperparameter]],
    rules: ComparisonRules,
    config: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Mapping[str, Value]] | None = None,
) -> Protocol[Evidence]:
    """Compare the optimizers of `bases` (name -> run at the horizon of the comparison) with the baseline.

    A name is the catalogue's or that of a variant, with what the variant sets in `fixed`.

    1. Tune each at that horizon.
    2. Final runs on fresh seeds: the challengers at that horizon, the baseline at several, lr re-tuned at each, so
       that "how many tokens would the baseline need" is interpolated between final losses, never read off a curve.
    3. While a challenger ends outside the baseline's range, shorten the challenger's horizon (it is better) or add a
       shorter one to the baseline (it is worse), each tuned and run in the same way.

    Source   Wen et al. 2025 for the speedup by an inverted data law; the bracketing of step 3 is ours
    """
    (horizon,) = {base.horizon_tokens for base in bases.values()}
    horizons = sorted({_at_ratio(bases, ratio) for ratio in rules.horizon_ratios})
    if len(horizons) < 3:
        raise UsageError(f"horizon_ratios give the same whole number of batches: only {horizons} tokens are left")
    tunings = yield from gather({name: tune(base, spaces[name], rules.tuning) for name, base in bases.items()})
    study = _Study(bases, spaces, tunings, rules, horizon)
    wants = [(name, horizon) for name in bases if name != rules.baseline]
    wants += [(rules.baseline, h) for h in horizons]
    while wants:
        yield from study.run(wants)
        wants = study.outside()
    first = next(iter(bases.values()))
    return Evidence(
        task=first.task,
        baseline=rules.baseline,
        horizon_tokens=horizon,
        arms={name: study.arm(name, (fixed or {}).get(name, {})) for name in bases},
        tuning_seeds=rules.tuning.seeds,
        final_seeds=rules.final_seeds,
        max_runs=rules.tuning.max_runs,
        margin_nats=rules.margin_nats,
        config=config or {},
    )


def _at_ratio(bases: Mapping[str, RunSpec], ratio: float) -> int:
    """The horizon nearest to a multiple of that of the comparison, in whole batches of every optimizer."""
    horizon = next(iter(bases.values())).horizon_tokens
    if ratio == 1.0:
        return horizon
    batch = max(base.batch_tokens for base in bases.values())
    return max(1, round(horizon * ratio / batch)) * batch


class _Study:
    def __init__(
        self,
        bases: Mapping[str, RunSpec],
        spaces: Mapping[str, Sequence[Hyperparameter]],
        tunings: Mapping[str, Tuning],
        rules: ComparisonRules,
        horizon_tokens: int,
    ) -> None:
        self.bases, self.spaces, self.tunings = bases, spaces, tunings
        self.rules, self.horizon_tokens = rules, horizon_tokens
        self.cells: dict[tuple[str, int], Cell] = {}
        self.means: dict[tuple[str, int], float] = {}

    def arm(self, name: str, fixed: Mapping[str, Value]) -> Arm:
        cells = tuple(self.cells[key] for key in sorted(self.cells) if key[0] == name)
        return Arm(name=name, optimizer=self.bases[name].optimizer, fixed=fixed, cells=cells)

    def run(self, wants: Sequence[tuple[str, int]]) -> Protocol[None]:
        results = yield from gather({f"{name} {h}": self._cell(name, h) for name, h in wants})
        for (name, h), (cell, mean) in zip(wants, results.values(), strict=True):
            self.cells[name, h], self.means[name, h] = cell, mean

    def outside(self) -> list[tuple[str, int]]:
        """The runs that bracket what is not yet bracketed; none where it is, or where that would be too short."""
        baseline = {h: mean for (name, h), mean in self.means.items() if name == self.rules.baseline}
        limit = max(_at_ratio(self.bases, SHORTEST_RATIO), 8 * max(base.batch_tokens for base in self.bases.values()))
        wants: list[tuple[str, int]] = []
        for name in self.bases:
            ours = {h: mean for (n, h), mean in self.means.items() if n == name}
            if name == self.rules.baseline or not all(np.isfinite([*ours.values(), *baseline.values()])):
                continue
            if ours[min(ours)] < min(baseline.values()):
                wants.append((name, _at_ratio(self.bases, min(ours) / self.horizon_tokens / 2)))
            elif ours[max(ours)] > max(baseline.values()):
                wants.append((self.rules.baseline, _at_ratio(self.bases, min(baseline) / self.horizon_tokens / 2)))
        return [want for want in dict.fromkeys(wants) if want[1] >= limit and want not in self.cells]

    def _cell(self, name: str, horizon_tokens: int) -> Protocol[tuple[Cell, float]]:
        tuning = self.tunings[name]
        base = self.bases[name].set({**tuning.best, "horizon_tokens": horizon_tokens})
        settings: Settings = tuning.best
        if horizon_tokens != self.horizon_tokens:
            tuning = yield from tune(base, self.spaces[name][:1], self.rules.tuning, start=tuning.best)
            settings = {**settings, **tuning.best}
        specs = [base.set({**settings, "seed": seed}) for seed in self.rules.final_seeds]
        records = yield specs
        losses = [records[s.key].final_loss for s in specs if records[s.key].outcome == "ok"]
        cell = Cell(horizon_tokens=horizon_tokens, settings=settings, keys=tuple(s.key for s in specs), tuning=tuning)
        return cell, float(np.mean([x for x in losses if x is not None])) if losses else float("nan")
