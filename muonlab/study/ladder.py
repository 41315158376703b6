"""The ladder: tune in small regimes, find what must be tuned anew with scale, predict it where nothing was tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from muonlab.analyze.laws import predict
from muonlab.analyze.sensitivity import INSENSITIVE_NATS, sensitivity
from muonlab.analyze.tuning import tried
from muonlab.errors import UsageError
from muonlab.optim.rule import Hyperparameter
from muonlab.records import Record, RunSpec
from muonlab.records.evidence import Cell, Control, Forecast, LadderEvidence, Rung, Tuning
from muonlab.records.spec import Value
from muonlab.study.protocol import Protocol, gather, remembering
from muonlab.study.trials import Settings
from muonlab.study.tune import TuningRules, tune

__all__ = ["LadderRules", "Regime", "ladder", "phases"]


class Regime(NamedTuple):
    """A size and a ratio of tokens to parameters, in multiples of 20 (1x Chinchilla)."""

    size: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.size} {self.ratio:g}x"


@dataclass(frozen=True, kw_only=True)
class LadderRules:
    """What a ladder does on top of tuning."""

    baseline: str
    final_seeds: tuple[int, ...] = (0, 1, 2)
    tuning: TuningRules = field(default_factory=TuningRules)
    insensitive_nats: float = INSENSITIVE_NATS
    default_settings: Mapping[str, Settings] = field(default_factory=dict)  # name -> what its class comes with

    def __post_init__(self) -> None:
        if len(self.final_seeds) < 2:
            raise UsageError("a ladder needs at least 2 final seeds (--seeds), better 3 or more")
        if shared := sorted(set(self.final_seeds) & set(self.tuning.seeds)):
            raise UsageError(f"final seeds must not be used for tuning: {shared} are")


@dataclass(frozen=True)
class Phases:
    """Which regimes are tuned in full, which in the sensitive coordinates only, and which are predicted."""

    first: tuple[Regime, ...]
    second: tuple[Regime, ...]
    third: tuple[Regime, ...]  # of the largest size; a search checks the prediction at the first of them


def phases(sizes: Sequence[str], ratios: Sequence[float]) -> Phases:
    """Sizes and ratios ascending.

    >>> found = phases(["s", "m", "l"], [1.0, 2.0])
    >>> [" | ".join(map(str, part)) for part in (found.first, found.second, found.third)]
    ['s 1x | s 2x | m 1x', 'm 2x', 'l 1x | l 2x']
    """
    smallest, *middle, largest = sizes
    return Phases(
        first=(*(Regime(smallest, r) for r in ratios), *(Regime(size, ratios[0]) for size in middle)),
        second=tuple(Regime(size, r) for size in middle for r in ratios[1:]),
        third=tuple(Regime(largest, r) for r in ratios),
    )


def ladder(
    bases: Mapping[str, Mapping[Regime, RunSpec]],
    spaces: Mapping[str, Sequence[Hyperparameter]],
    sizes: Mapping[str, int],
    rules: LadderRules,
    config: Mapping[str, Any] | None = None,
) -> Protocol[LadderEvidence]:
    """Every optimizer of `bases` at every size (name -> parameters, ascending) and ratio.

    1. Coordinate descent over the whole space at the smallest size and every ratio, and at the shortest ratio of every
       other size but the largest.
    2. A coordinate that one value suits in all these regimes is frozen at it; the others are tuned again at the sizes
       and ratios that are left, the largest size excepted.
    3. A law in parameters and tokens predicts them at the largest size. There, at the shortest ratio, a search starts
       from the prediction, and both run on the final seeds.
    4. Final runs on fresh seeds everywhere, each with its own full schedule; and as controls, at the smallest size and
       shortest ratio, every optimizer at the defaults of its class and with the settings of every other.

    Source   Wen et al. 2025, phases I to III
    Differs  from it: lr is always tuned again; what a search at the largest size finds beyond the noise replaces the
             prediction there; the controls are ours
    """
    run = _Ladder(bases, spaces, sizes, rules)
    seen: dict[str, Record] = {}
    yield from remembering(run.climb(seen), seen)
    first = next(iter(next(iter(bases.values())).values()))
    return LadderEvidence(
        task=first.task,
        baseline=rules.baseline,
        optimizers={name: next(iter(regimes.values())).optimizer for name, regimes in bases.items()},
        sizes=dict(sizes),
        ratios=run.ratios,
        sensitive=run.sensitive,
        frozen=run.frozen,
        rungs=tuple(run.rungs.values()),
        forecasts=tuple(run.forecasts),
        controls=tuple(run.controls),
        insensitive_nats=rules.insensitive_nats,
        tuning_seeds=rules.tuning.seeds,
        final_seeds=rules.final_seeds,
        max_runs=rules.tuning.max_runs,
        config=config or {},
    )


class _Ladder:
    def __init__(
        self,
        bases: Mapping[str, Mapping[Regime, RunSpec]],
        spaces: Mapping[str, Sequence[Hyperparameter]],
        sizes: Mapping[str, int],
        rules: LadderRules,
    ) -> None:
        self.bases, self.spaces, self.sizes, self.rules = bases, spaces, sizes, rules
        self.ratios = tuple(sorted({regime.ratio for regime in next(iter(bases.values()))}))
        self.phases = phases(list(sizes), self.ratios)
        self.tunings: dict[tuple[str, Regime], Tuning] = {}
        self.sensitive: dict[str, tuple[str, ...]] = {}
        self.frozen: dict[str, dict[str, Value]] = {}
        self.rungs: dict[tuple[str, Regime], Rung] = {}
        self.forecasts: list[Forecast] = []
        self.controls: list[Control] = []
        self.specs: dict[str, RunSpec] = {}

    def climb(self, seen: Mapping[str, Record]) -> Protocol[None]:
        """The four steps; `seen` has every record that has come in so far."""
        yield from self._tune([(name, r, None) for name in self.bases for r in self.phases.first])
        for name in self.bases:
            self._divide(name, seen)
        yield from self._tune([(name, r, self._nearest(name, r)) for name in self.bases for r in self.phases.second])
        yield from gather({name: self._forecast(name) for name in self.bases})
        yield from self._finals()

    def _tune(self, wants: Sequence[tuple[str, Regime, Settings | None]]) -> Protocol[None]:
        """Tune where asked: in full, or from settings in the sensitive coordinates."""
        protocols = {
            f"{name} {regime}": tune(
                self.bases[name][regime].set(start or {}), self._space(name, start), self.rules.tuning, start=start
            )
            for name, regime, start in wants
        }
        found = yield from gather(protocols)
        for (name, regime, start), tuning in zip(wants, found.values(), strict=True):
            self.tunings[name, regime] = tuning
            cell = self._cell(name, regime, {**(start or {}), **tuning.best}, tuning)
            self._add(name, regime, "tuned" if start is None else "retuned", cell)

    def _space(self, name: str, start: Settings | None) -> list[Hyperparameter]:
        return [h for h in self.spaces[name] if start is None or h.name in self.sensitive[name]]

    def _divide(self, name: str, seen: Mapping[str, Record]) -> None:
        """Sensitive coordinates, and the rest with the values at which they are frozen."""
        regimes = {str(regime): tried(self.tunings[name, regime], seen) for regime in self.phases.first}
        coordinates = [h.name for h in self.spaces[name]]
        found = {one.coordinate: one for one in sensitivity(regimes, coordinates, self.rules.insensitive_nats)}
        self.sensitive[name] = tuple(n for n, one in found.items() if one.is_sensitive or n == "opt.lr")
        self.frozen[name] = {n: one.shared[0] for n, one in found.items() if n not in self.sensitive[name]}

    def _nearest(self, name: str, regime: Regime) -> Settings:
        """Where tuning starts at a larger size: its settings at the shortest ratio, what is insensitive frozen."""
        return {**self.tunings[name, Regime(regime.size, self.ratios[0])].best, **self.frozen[name]}

    def _predicted(self, name: str, regime: Regime) -> Settings:
        """The sensitive coordinates by laws in parameters and tokens, the rest frozen."""
        params, tokens = self.sizes[regime.size], self.bases[name][regime].horizon_tokens
        optima = {r: self.rungs[n, r].cell for n, r in self.tunings if n == name}
        settings = dict(self.frozen[name])
        for coordinate in self.sensitive[name]:
            points = [
                (self.sizes[r.size], cell.horizon_tokens, cell.settings[coordinate]) for r, cell in optima.items()
            ]
            settings[coordinate] = predict(points, params, tokens, coordinate)
        return settings

    def _forecast(self, name: str) -> Protocol[None]:
        """The largest size: predicted everywhere, and searched at the shortest ratio."""
        checked, *others = self.phases.third
        start = self._predicted(name, checked)
        tuning = yield from tune(
            self.bases[name][checked].set(start), self._space(name, start), self.rules.tuning, start=start
        )
        predicted = self._cell(name, checked, start, _untuned(self.bases[name][checked], start))
        found = self._cell(name, checked, {**start, **tuning.best}, tuning)
        self.forecasts.append(
            Forecast(name=name, size=checked.size, ratio=checked.ratio, predicted=predicted, found=found)
        )
        moved = found.settings != predicted.settings
        self._add(name, checked, "retuned" if moved else "predicted", found if moved else predicted)
        for regime in others:
            settings = self._predicted(name, regime)
            cell = self._cell(name, regime, settings, _untuned(self.bases[name][regime], settings))
            self._add(name, regime, "predicted", cell)

    def _finals(self) -> Protocol[None]:
        """Everything on fresh seeds, and the controls."""
        cells = [rung.cell for rung in self.rungs.values()]
        cells += [cell for forecast in self.forecasts for cell in (forecast.predicted, forecast.found)]
        self._control()
        keys = [key for cell in cells for key in cell.keys] + [key for c in self.controls for key in c.keys]
        yield [self.specs[key] for key in dict.fromkeys(keys)]

    def _control(self) -> None:
        """Every optimizer at its defaults at every size, and with the settings of every other at the smallest."""
        shortest = [Regime(size, self.ratios[0]) for size in self.sizes]
        for name, defaults in self.rules.default_settings.items():
            for regime in shortest:
                self._add_control(name, "", regime, defaults)
        for name, space in self.spaces.items():
            own, coordinates = self.rungs[name, shortest[0]].cell.settings, {h.name for h in space}
            for giver in self.bases:
                theirs = self.rungs[giver, shortest[0]].cell.settings
                shared = {n: value for n, value in theirs.items() if n in coordinates}
                if giver != name and shared:
                    self._add_control(name, giver, shortest[0], {**own, **shared})

    def _add_control(self, name: str, giver: str, regime: Regime, settings: Settings) -> None:
        self.controls.append(
            Control(
                name=name, settings_of=giver, size=regime.size, ratio=regime.ratio, settings=dict(settings),
                keys=self._keys(name, regime, settings),
            )
        )  # fmt: skip

    def _add(self, name: str, regime: Regime, origin: str, cell: Cell) -> None:
        self.rungs[name, regime] = Rung(name=name, size=regime.size, ratio=regime.ratio, origin=origin, cell=cell)

    def _cell(self, name: str, regime: Regime, settings: Settings, tuning: Tuning) -> Cell:
        keys = self._keys(name, regime, settings)
        horizon = self.bases[name][regime].horizon_tokens
        return Cell(horizon_tokens=horizon, settings=dict(settings), keys=keys, tuning=tuning)

    def _keys(self, name: str, regime: Regime, settings: Settings) -> tuple[str, ...]:
        """Keys of the final runs, whose specs are kept until it is their turn."""
        specs = [self.bases[name][regime].set({**settings, "seed": seed}) for seed in self.rules.final_seeds]
        self.specs |= {spec.key: spec for spec in specs}
        return tuple(spec.key for spec in specs)


def _untuned(base: RunSpec, settings: Settings) -> Tuning:
    """How settings were tuned that are predicted: not at all."""
    return Tuning(
        optimizer=base.optimizer, horizon_tokens=base.horizon_tokens, coordinates=(), best=dict(settings), trials=(),
        moves=(), edges=(), converged=True, num_runs=0, tokens=0,
    )  # fmt: skip
