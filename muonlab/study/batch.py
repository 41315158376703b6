"""The batch study: every optimizer at every batch size, tuned at each, for as long as it takes to reach some losses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from muonlab.analyze.reaching import reached
from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import BatchEvidence, BatchPoint, Cell, Tuning
from muonlab.records.spec import Value, canonical_json
from muonlab.study.protocol import Protocol, gather, remembering
from muonlab.study.trials import Settings
from muonlab.study.tune import TuningRules, tune

__all__ = ["LEAST_STEPS", "BatchRules", "batch_sweep", "rescaled"]

TARGET_FRACTIONS = (0.2, 0.4, 0.7)  # of the baseline's run at the reference batch, where no targets are given; ours
MARGIN = 0.85  # of a run, within which its pilot must reach the hardest target, so that other seeds do too; ours
LR_STEP = 2.0  # between the values that a search around a predicted lr tries
LEAST_BETA2, MOST_BETA2 = 0.8, 0.9999
LEAST_STEPS = 8  # of a run
SEARCH_ERRORS = 2.0  # a gain counts above so many standard errors in the searches at every batch; ours
SAME_LENGTH = 1.05  # what is left of the longest run by that factor is not worth another one; ours


@dataclass(frozen=True, kw_only=True)
class BatchRules:
    """What a batch study does on top of tuning."""

    baseline: str
    batches: tuple[int, ...]  # tokens, ascending
    reference: int  # one of them, at which tuning begins
    targets: tuple[float, ...] = ()  # held-out losses; none: taken from the baseline's curve at the reference
    final_seeds: tuple[int, ...] = (0, 1, 2)
    tuning: TuningRules = field(default_factory=TuningRules)
    retuned: tuple[str, ...] = ("opt.lr", "opt.momentum", "opt.beta1")  # at every batch size, of those it has
    most_horizons: float = 8.0  # the longest run, in lengths of the first

    def __post_init__(self) -> None:
        if len(self.final_seeds) < 2:
            raise UsageError("a batch study needs at least 2 final seeds (--seeds), better 3 or more")
        if shared := sorted(set(self.final_seeds) & set(self.tuning.seeds)):
            raise UsageError(f"final seeds must not be used for tuning: {shared} are")


def rescaled(settings: Settings, factor: float) -> dict[str, Value]:
    """Settings for a batch that is `factor` times as large, by rule, from which a search goes on.

    Math     lr and weight_decay times sqrt(factor), so that decay takes as much of a weight per token as before;
             beta2 to the power of factor: it forgets after as many tokens as before, within [0.8, 0.9999]. Momentum
             stays: it is searched
    Source   lr: Malladi et al. 2022 for Adam, and the protocol of Sato et al. 2025; weight decay: Wang, Aitchison 2024;
             beta2: Marek et al. 2025; that all of it serves every optimizer is our choice

    >>> rescaled({"opt.lr": 0.01, "opt.beta2": 0.96, "opt.momentum": 0.95}, 4.0)
    {'opt.lr': 0.02, 'opt.beta2': 0.84934656, 'opt.momentum': 0.95}
    """
    found = dict(settings)
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name == "opt.lr" or name.endswith(".weight_decay"):
            found[name] = float(f"{value * math.sqrt(factor):.10g}")
        elif name.endswith(".beta2"):
            found[name] = float(f"{min(max(value**factor, min(value, LEAST_BETA2)), max(value, MOST_BETA2)):.10g}")
    return found


def batch_sweep(
    bases: Mapping[str, RunSpec],
    spaces: Mapping[str, Sequence[Hyperparameter]],
    rules: BatchRules,
    config: Mapping[str, Any] | None = None,
) -> Protocol[BatchEvidence]:
    """The optimizers of `bases`, each the run at the reference batch and the first length, with a constant lr.

    1. Coordinate descent over the whole space at the reference batch.
    2. From there to larger and to smaller batches, one after the other: settings by rule (`rescaled`), a run that is
       lengthened until it reaches the hardest target or is `most_horizons` times as long, and a search over the
       `retuned` coordinates at the length that it took. It has two or three coordinates and few runs to tell noise by:
       what a whole tuning asks of a gain would leave all where the rule puts it.
    3. What was found at a batch is tried, by rule, at those beside it, on all tuning seeds; where it is better, the
       search goes on from there. Repeated until nothing moves: one coordinate at a time misses what takes two at once,
       and a batch must not look better than another because the search had more luck there.
    4. Final runs on fresh seeds.

    The warmup is as many tokens in all runs.

    Source   Essential AI 2025 (2505.02222) for tokens to a target by batch; Zhang et al. 2024 (2410.21676) for constant
             lr with averaged weights and settings swept at every batch; step 3 is ours
    """
    run = _Sweep(bases, spaces, rules)
    yield from remembering(run.go(), run.seen)
    first = next(iter(bases.values()))
    points = tuple(run.points[name, batch] for name in bases for batch in rules.batches)
    counted = {key for p in points for key in (*p.cell.keys, *(k for t in p.cell.tuning.trials for k in t.keys))}
    return BatchEvidence(
        task=first.task,
        baseline=rules.baseline,
        optimizers={name: base.optimizer for name, base in bases.items()},
        batches=rules.batches,
        reference=rules.reference,
        targets=run.targets,
        targets_given=bool(rules.targets),
        points=points,
        others=tuple(key for key in run.seen if key not in counted),
        tuning_seeds=rules.tuning.seeds,
        final_seeds=rules.final_seeds,
        max_runs=rules.tuning.max_runs,
        config=config or {},
    )


class _Sweep:
    def __init__(
        self, bases: Mapping[str, RunSpec], spaces: Mapping[str, Sequence[Hyperparameter]], rules: BatchRules
    ) -> None:
        self.bases, self.spaces, self.rules = bases, spaces, rules
        self.seen: dict[str, Record] = {}
        self.targets = tuple(sorted(rules.targets, reverse=True))
        self.points: dict[tuple[str, int], BatchPoint] = {}
        self.longest = rules.most_horizons * bases[rules.baseline].horizon_tokens
        self.tried: set[tuple[str, int, str]] = set()  # of settings from a batch beside

    def go(self) -> Protocol[None]:
        """The four steps."""
        rules, at = self.rules, self.rules.batches.index(self.rules.reference)
        tunings = yield from gather({n: tune(base, self.spaces[n], rules.tuning) for n, base in self.bases.items()})
        self.targets = self.targets or self._targets(tunings[rules.baseline])
        yield from gather({name: self._at_reference(name, tuning) for name, tuning in tunings.items()})
        chains = {"up": rules.batches[at + 1 :], "down": rules.batches[:at][::-1]}
        yield from gather(
            {f"{n} {way}": self._along(n, batches) for n in self.bases for way, batches in chains.items()}
        )
        moved = True
        while moved:
            protocols = {f"{n} {b}": self._reconsider(n, b) for n in self.bases for b in rules.batches}
            moved = any((yield from gather(protocols)).values())
        yield from self._finals()

    def _targets(self, tuning: Tuning) -> tuple[float, ...]:
        """Losses of the baseline at fractions of its run, the mean over tuning seeds, rounded up."""
        trial = next(trial for trial in tuning.trials if trial.settings == tuning.best)
        runs = [self.seen[key] for key in trial.keys if self.seen[key].outcome == "ok"]
        if not runs:
            raise UsageError("the baseline diverges at the reference batch: give --targets, or other settings")
        found = []
        for fraction in TARGET_FRACTIONS:
            at = [np.interp(fraction * run.spec.num_steps, run.eval_steps, run.eval_loss) for run in runs]
            found.append(math.ceil(float(np.mean(at)) * 100) / 100)
        return tuple(dict.fromkeys(found))

    def _at_reference(self, name: str, tuning: Tuning) -> Protocol[None]:
        yield from self._point(name, self.rules.reference, {**self._scaling(name), **tuning.best}, self.bases[name])

    def _along(self, name: str, batches: Sequence[int]) -> Protocol[None]:
        before = self.points[name, self.rules.reference]
        for batch in batches:
            predicted = rescaled(before.cell.settings, batch / before.batch_tokens)
            base = self.bases[name].set({"batch_tokens": batch, "horizon_tokens": before.cell.horizon_tokens})
            yield from self._point(name, batch, predicted, base)
            before = self.points[name, batch]

    def _scaling(self, name: str) -> dict[str, Value]:
        """What `rescaled` changes, tuned or not."""
        values = self.bases[name].hyperparameters
        return {n: v for n, v in values.items() if v is not None and rescaled({n: v}, 4.0) != {n: v}}

    def _point(self, name: str, batch: int, predicted: Settings, base: RunSpec) -> Protocol[None]:
        base = yield from self._long_enough(self._lasting(base.set(predicted), base.horizon_tokens))
        yield from self._search(name, batch, predicted, base)

    def _search(
        self, name: str, batch: int, start: Settings, base: RunSpec, before: BatchPoint | None = None
    ) -> Protocol[None]:
        """From some settings at one length; `before` is what was found by an earlier search."""
        space = [_around(h, start[h.name]) for h in self.spaces[name] if h.name in self.rules.retuned]
        tuning = yield from tune(base, space, replace(self.rules.tuning, num_errors=SEARCH_ERRORS), start=start)
        settings = {**start, **tuning.best}
        if before is not None:
            tuning = _joined(before.cell.tuning, tuning)
        keys = tuple(base.set({**settings, "seed": seed}).key for seed in self.rules.final_seeds)
        cell = Cell(horizon_tokens=base.horizon_tokens, settings=settings, keys=keys, tuning=tuning)
        predicted = dict(start) if before is None else before.predicted
        self.points[name, batch] = BatchPoint(name=name, batch_tokens=batch, predicted=predicted, cell=cell)

    def _reconsider(self, name: str, batch: int) -> Protocol[bool]:
        """Whether the settings of a batch beside this one are better here, from which the search then went on."""
        own, at = self.points[name, batch], self.rules.batches.index(batch)
        beside = [self.rules.batches[i] for i in (at - 1, at + 1) if 0 <= i < len(self.rules.batches)]
        others = [rescaled(self.points[name, b].cell.settings, batch / b) for b in beside]
        others = [other for other in others if _differ(other, own.cell.settings)]
        others = [other for other in others if (name, batch, canonical_json(other)) not in self.tried]
        if not others:
            return False
        self.tried |= {(name, batch, canonical_json(other)) for other in others}
        base, seeds = self._at(own), self.rules.tuning.seeds
        tried = [[base.set({**one, "seed": seed}) for seed in seeds] for one in (own.cell.settings, *others)]
        records = yield [spec for specs in tried for spec in specs]
        found = [[records[spec.key].final_loss for spec in specs] for specs in tried]
        losses = [math.inf if None in own_losses else float(np.mean(own_losses)) for own_losses in found]
        best = int(np.argmin(losses))
        if losses[best] > losses[0] - self.rules.tuning.threshold_nats:
            return False
        yield from self._search(name, batch, others[best - 1], base.set(others[best - 1]), own)
        return True

    def _finals(self) -> Protocol[None]:
        """On fresh seeds; where one of them misses the hardest target in a run that may be longer, all are longer."""
        waiting = list(self.points)
        while waiting:
            records = yield [spec for key in waiting for spec in self._final_specs(self.points[key])]
            waiting = [key for key in waiting if self._lengthened(key, records)]

    def _lengthened(self, key: tuple[str, int], records: Mapping[str, Record]) -> bool:
        point = self.points[key]
        runs = [records[spec.key] for spec in self._final_specs(point)]
        missed = any(run.outcome == "ok" and reached(run, self.targets[-1]).tokens is None for run in runs)
        longer = self._longer(point.cell.horizon_tokens)
        if not missed or longer is None:
            return False
        cell = replace(point.cell, horizon_tokens=self._lasting(self._at(point), longer).horizon_tokens)
        keys = tuple(spec.key for spec in self._final_specs(replace(point, cell=cell)))
        self.points[key] = replace(point, cell=replace(cell, keys=keys))
        return True

    def _final_specs(self, point: BatchPoint) -> list[RunSpec]:
        return [self._at(point).set({"seed": seed}) for seed in self.rules.final_seeds]

    def _at(self, point: BatchPoint) -> RunSpec:
        """The run of a point, on any seed."""
        base = self.bases[point.name].set({"batch_tokens": point.batch_tokens, **point.cell.settings})
        return self._lasting(base, point.cell.horizon_tokens)

    def _long_enough(self, base: RunSpec) -> Protocol[RunSpec]:
        """As long as a pilot on the first tuning seed takes to the hardest target, and some; it is doubled till then.

        No longer: what is best at the end of a run that goes on is not what is there first.
        """
        while True:
            spec = base.set({"seed": self.rules.tuning.seeds[0]})
            record = (yield [spec])[spec.key]
            tokens, length = reached(record, self.targets[-1]).tokens, base.horizon_tokens
            if tokens is not None and tokens <= MARGIN * length:
                return self._lasting(base, tokens / MARGIN)
            longer = self._longer(length)
            if longer is None or record.outcome != "ok":
                return base
            base = self._lasting(base, longer)

    def _longer(self, length: int) -> float | None:
        """Twice as long, as far as that is allowed; None where all is used up."""
        longer = min(2 * length, self.longest)
        return longer if longer > SAME_LENGTH * length else None

    def _lasting(self, base: RunSpec, tokens: float) -> RunSpec:
        """The same run for so many tokens, in whole batches, with as many tokens of warmup as the first."""
        first = self.bases[self.rules.baseline]
        steps = max(LEAST_STEPS, round(tokens / base.batch_tokens))
        warmup = first.schedule.warmup_fraction * first.horizon_tokens / (steps * base.batch_tokens)
        horizon = steps * base.batch_tokens
        return base.set({"horizon_tokens": horizon, "schedule.warmup_fraction": min(1.0, float(f"{warmup:.6g}"))})


def _differ(settings: Settings, others: Settings) -> bool:
    """By more than the rounding of `rescaled`."""
    pairs = [(value, others[name]) for name, value in settings.items()]
    return any(
        not math.isclose(a, b, rel_tol=1e-3) if isinstance(a, int | float) and isinstance(b, int | float) else a != b
        for a, b in pairs
    )


def _joined(first: Tuning, second: Tuning) -> Tuning:
    """Two searches at one place, the second from where the first had not been."""
    trials = {canonical_json(trial.settings): trial for trial in (*first.trials, *second.trials)}
    return replace(
        second, trials=tuple(trials.values()), moves=(*first.moves, *second.moves),
        num_runs=first.num_runs + second.num_runs, tokens=first.tokens + second.tokens,
    )  # fmt: skip


def _around(coordinate: Hyperparameter, value: Value) -> Hyperparameter:
    """The coordinate as it is searched from a value by rule: lr in factors of LR_STEP, others on their grid."""
    if coordinate.name != "opt.lr" or not isinstance(value, int | float):
        return replace(coordinate, default=value)
    grid = tuple(float(f"{value * step:.10g}") for step in (1 / LR_STEP, 1.0, LR_STEP))
    return replace(coordinate, default=value, grid=grid)
