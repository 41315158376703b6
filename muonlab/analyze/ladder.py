"""From the evidence of a ladder and its records to the finding. Pure: neither store nor torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from muonlab.analyze.comparison import arm_losses, cell_contrast, cell_noise, final_losses, losses_at
from muonlab.analyze.findings import Check, Contrast, LossesAt, Speedup, SpeedupRow
from muonlab.analyze.flips import Flip, flips
from muonlab.analyze.laws import fit_law
from muonlab.analyze.sensitivity import Sensitivity, sensitivity
from muonlab.analyze.significance import contrast, judge
from muonlab.analyze.speedup import Bootstrap, Selection, bootstrap, fit_data_law, read_off
from muonlab.analyze.tuning import run_loss, selection, tried
from muonlab.records import Record
from muonlab.records.evidence import Control, Forecast, LadderEvidence, Rung, Tuning
from muonlab.records.spec import Value

__all__ = ["ControlFinding", "ForecastFinding", "LadderFinding", "RungFinding", "analyze"]

Records = Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class RungFinding:
    """One optimizer at one size and ratio."""

    optimizer: str
    size: str
    params: int
    ratio: float
    origin: str  # of the settings: tuned, retuned or predicted
    losses: LossesAt


@dataclass(frozen=True, kw_only=True)
class ForecastFinding:
    """Settings that laws predict at the largest size, beside those that a search found there."""

    optimizer: str
    size: str
    ratio: float
    predicted: Mapping[str, Value]
    found: Mapping[str, Value]
    predicted_loss: float | None
    found_loss: float | None
    difference_nats: float | None  # predicted minus found
    low: float | None  # 95 % Welch interval
    high: float | None


@dataclass(frozen=True, kw_only=True)
class ControlFinding:
    """What it costs an optimizer not to be tuned: final loss minus that of its own tuned settings."""

    optimizer: str
    settings_of: str  # "" = defaults of its class
    size: str
    ratio: float
    loss: float | None
    difference_nats: float | None
    low: float | None
    high: float | None
    speedup: float | None  # of tuning, in tokens of the optimizer's own law; None where that does not tell
    num_diverged: int


@dataclass(frozen=True, kw_only=True)
class LadderFinding:
    """The finding of a ladder."""

    verdict: str
    task: str
    baseline: str
    sizes: Mapping[str, int]
    ratios: tuple[float, ...]
    rows: tuple[SpeedupRow, ...]
    fits: Mapping[str, Mapping[str, float]]
    rungs: tuple[RungFinding, ...]
    sensitivity: Mapping[str, tuple[Sensitivity, ...]]
    forecasts: tuple[ForecastFinding, ...]
    controls: tuple[ControlFinding, ...]
    flips: tuple[Flip, ...]
    checks: tuple[Check, ...]
    num_runs: int
    num_failed: int
    total_tokens: int
    environment: Mapping[str, Any]
    config: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def analyze(evidence: LadderEvidence, records: Records) -> LadderFinding:
    """Speedups at every size and ratio, what scales, what was predicted, what tuning is worth.

    Raises   KeyError if a record that the evidence names is missing
    """
    used = [records[key] for key in evidence.record_keys()]
    rungs = [rung for rung in evidence.rungs if rung.name != evidence.baseline]
    found = [_bootstrap(evidence, rung, records) for rung in rungs]
    rows = [_row(evidence, rung, one, records) for rung, one in zip(rungs, found, strict=True)]
    rows = _judged(evidence, rungs, rows, found, records)
    return LadderFinding(
        verdict="",
        task=evidence.task,
        baseline=evidence.baseline,
        sizes=evidence.sizes,
        ratios=evidence.ratios,
        rows=tuple(sorted(rows, key=lambda row: (row.params or 0, row.tokens))),
        fits={size: law for size in evidence.sizes if (law := _law(evidence, size, records)) is not None},
        rungs=tuple(_rung(evidence, rung, records) for rung in evidence.rungs),
        sensitivity={name: _sensitivity(evidence, name, records) for name in evidence.optimizers},
        forecasts=tuple(_forecast(one, records) for one in evidence.forecasts),
        controls=tuple(_control(evidence, one, records) for one in evidence.controls),
        flips=_flips(evidence, records),
        checks=(),
        num_runs=len(used),
        num_failed=sum(record.outcome == "failed" for record in used),
        total_tokens=sum(record.tokens for record in used),
        environment=used[0].environment if used else {},
        config=evidence.config,
    )


def _cells(evidence: LadderEvidence, name: str, size: str, records: Records) -> list[Rung]:
    """The rungs of an optimizer at a size whose mean loss has a known error, from the shortest."""
    own = [rung for rung in evidence.rungs if (rung.name, rung.size) == (name, size)]
    own = [rung for rung in own if final_losses(rung.cell, records) and cell_noise(rung.cell, records).degrees >= 1]
    return sorted(own, key=lambda rung: rung.ratio)


def _row(evidence: LadderEvidence, rung: Rung, found: Bootstrap | None, records: Records) -> SpeedupRow:
    losses = final_losses(rung.cell, records)
    lengths = [r.cell.horizon_tokens for r in _cells(evidence, evidence.baseline, rung.size, records)]
    point, low, high, flag = read_off(found, rung.cell.horizon_tokens, lengths)
    return SpeedupRow(
        optimizer=rung.name,
        size=rung.size,
        params=evidence.sizes[rung.size],
        tokens=rung.cell.horizon_tokens,
        loss=float(np.mean(losses)) if losses else None,
        num_seeds=len(losses),
        num_configurations=len(rung.cell.tuning.trials),
        speedup=point,
        low=low,
        high=high,
        flag=flag,
    )


def _bootstrap(evidence: LadderEvidence, rung: Rung, records: Records) -> Bootstrap | None:
    """None where the baseline's law or the rung's noise cannot be told."""
    baseline = _cells(evidence, evidence.baseline, rung.size, records)
    if len(baseline) < 3 or not final_losses(rung.cell, records) or cell_noise(rung.cell, records).degrees < 1:
        return None
    middle = baseline[len(baseline) // 2]
    return bootstrap(
        arm_losses([other.cell for other in baseline], records, _known(evidence, middle, records)),
        arm_losses([rung.cell], records, _known(evidence, rung, records)),
    )


def _known(evidence: LadderEvidence, rung: Rung, records: Records) -> Selection:
    """How well the settings of a rung are known: by the full tuning nearest in length, and by the laws."""
    own = [other for other in evidence.rungs if other.name == rung.name and other.origin == "tuned"]
    nearest = min(own, key=lambda other: abs(math.log(other.cell.horizon_tokens / rung.cell.horizon_tokens)))
    tuning = nearest.cell.tuning
    found = selection(tuning, records)
    if rung.origin != "predicted":
        return found
    sensitive = evidence.sensitive[rung.name]
    distances = [_distance(evidence, rung, name, tuning) if name in sensitive else None for name in tuning.coordinates]
    return replace(found, distances=distances)


def _distance(evidence: LadderEvidence, rung: Rung, coordinate: str, tuning: Tuning) -> float | None:
    """Standard deviation of an optimum around its law, in steps of the grid it was tuned on."""
    law = fit_law(
        [
            (evidence.sizes[r.size], r.cell.horizon_tokens, r.cell.settings[coordinate])
            for r in evidence.rungs
            if r.name == rung.name and r.origin != "predicted" and r.size != rung.size
        ],
        coordinate,
    )
    at = law.predict(evidence.sizes[rung.size], rung.cell.horizon_tokens)
    values = sorted({trial.settings[coordinate] for trial in tuning.trials if _is_positive(trial.settings[coordinate])})
    if at.low is None or at.high is None or at.low <= 0 or len(values) < 2:
        return None
    step = float(np.median(np.diff(np.log(values))))
    return math.log(at.high / at.low) / (2 * 1.96) / step


def _is_positive(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _judged(
    evidence: LadderEvidence, rungs: Sequence[Rung], rows: Sequence[SpeedupRow], found: Sequence[Bootstrap | None],
    records: Records,
) -> list[SpeedupRow]:  # fmt: skip
    """The rows with what is resolved: both p values count, and Holm's correction is over all rows."""
    keys = [str(number) for number in range(len(rungs))]
    contrasts: dict[str, Contrast] = {}
    for key, rung, replicates in zip(keys, rungs, found, strict=True):
        test = cell_contrast(rung.cell, evidence.rung(evidence.baseline, rung.size, rung.ratio).cell, records)
        if test.p_value is not None and replicates is not None:
            test = replace(test, p_value=max(test.p_value, replicates.p_value))
        contrasts[key] = test
    speedups = {
        key: Speedup(
            tokens=row.speedup, low=row.low, high=row.high, wall=None, wall_low=None, wall_high=None, flag=row.flag,
            horizon_tokens=int(row.tokens),
        )
        for key, row in zip(keys, rows, strict=True)
    }  # fmt: skip
    judged = judge(contrasts, speedups)
    return [replace(row, judgement=judged[key].judgement) for key, row in zip(keys, rows, strict=True)]


def _law(evidence: LadderEvidence, size: str, records: Records, name: str | None = None) -> dict[str, float] | None:
    cells = [rung.cell for rung in _cells(evidence, name or evidence.baseline, size, records)]
    if len(cells) < 3:
        return None
    arm = arm_losses(cells, records)
    law = fit_data_law(arm.tokens, np.asarray(arm.means), arm.variances)
    return {**law.per(cells[0].horizon_tokens), "num_lengths": len(cells)}


def _rung(evidence: LadderEvidence, rung: Rung, records: Records) -> RungFinding:
    return RungFinding(
        optimizer=rung.name,
        size=rung.size,
        params=evidence.sizes[rung.size],
        ratio=rung.ratio,
        origin=rung.origin,
        losses=losses_at(rung.cell, records),
    )


def _sensitivity(evidence: LadderEvidence, name: str, records: Records) -> tuple[Sensitivity, ...]:
    """As the ladder judged it, from the regimes that were tuned in full."""
    tuned = [rung for rung in evidence.rungs if rung.name == name and rung.origin == "tuned"]
    regimes = {f"{rung.size} {rung.ratio:g}x": tried(rung.cell.tuning, records) for rung in tuned}
    coordinates = tuned[0].cell.tuning.coordinates if tuned else ()
    return sensitivity(regimes, coordinates, evidence.insensitive_nats)


def _forecast(one: Forecast, records: Records) -> ForecastFinding:
    predicted, found = (final_losses(cell, records) for cell in (one.predicted, one.found))
    test = contrast(predicted, found, (cell_noise(one.predicted, records), cell_noise(one.found, records)))
    same = one.predicted.settings == one.found.settings
    return ForecastFinding(
        optimizer=one.name,
        size=one.size,
        ratio=one.ratio,
        predicted=one.predicted.settings,
        found=one.found.settings,
        predicted_loss=float(np.mean(predicted)) if predicted else None,
        found_loss=float(np.mean(found)) if found else None,
        difference_nats=0.0 if same else test.difference_nats,
        low=None if same else test.low,
        high=None if same else test.high,
    )


def _control(evidence: LadderEvidence, control: Control, records: Records) -> ControlFinding:
    own = evidence.rung(control.name, control.size, control.ratio).cell
    losses = [loss for key in control.keys if (loss := run_loss(records[key])) is not None]
    noise = cell_noise(own, records)
    complete = len(losses) == len(control.keys)
    test = contrast(losses, final_losses(own, records), (noise, noise)) if complete else None
    law = _law(evidence, control.size, records, control.name)
    reached = None
    if complete and law is not None and law["a"] > 0 and (above := float(np.mean(losses)) - law["b"]) > 0:
        reached = law["scale_tokens"] * (above / law["a"]) ** (-1 / law["exponent"])
    return ControlFinding(
        optimizer=control.name,
        settings_of=control.settings_of,
        size=control.size,
        ratio=control.ratio,
        loss=float(np.mean(losses)) if complete else None,
        difference_nats=None if test is None else test.difference_nats,
        low=None if test is None else test.low,
        high=None if test is None else test.high,
        speedup=None if reached is None else own.horizon_tokens / reached,
        num_diverged=len(control.keys) - len(losses),
    )


def _flips(evidence: LadderEvidence, records: Records) -> tuple[Flip, ...]:
    """Pairs of optimizers of which another is ahead before the end than at it, in every regime."""
    found: list[Flip] = []
    for size in evidence.sizes:
        for ratio in evidence.ratios:
            here = [rung for rung in evidence.rungs if (rung.size, rung.ratio) == (size, ratio)]
            curves = {rung.name: [records[key] for key in rung.cell.keys] for rung in here}
            found += flips(f"{size} {ratio:g}x", curves)
    return tuple(found)
