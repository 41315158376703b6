"""Does a ladder tell the truth? Simulated ladders whose speedups are known at every size and length."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from muonlab.analyze.ladder import LadderFinding
from muonlab.records import RunSpec
from muonlab.study.calibration import BATCH_TOKENS, LR, PARAMS, WEIGHT_DECAY, Landscape, anywhere
from muonlab.study.fairness import conclude_ladder
from muonlab.study.ladder import LadderRules, Regime, ladder
from muonlab.study.protocol import drive
from muonlab.study.tune import TuningRules

__all__ = ["LadderCalibration", "calibrate_ladder"]

SIZES = {"small": PARAMS, "medium": 2 * PARAMS, "large": 4 * PARAMS}
RATIOS = (1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class LadderCalibration:
    """Outcome of many simulated ladders with one planted speedup at the smallest size. Rates are fractions."""

    planted: float
    speed_drift: float  # the planted speedup falls as size^-speed_drift
    noise: float
    num_studies: int
    false_verdicts: float  # ladders with any verdict on the wrong side, or any at all where nothing was planted
    verdicts: float  # of sizes and lengths with a verdict
    coverage: float  # of intervals, all that have a speedup
    coverage_inside: float  # of those that are not extrapolated
    extrapolated: float  # of sizes and lengths
    prediction_nats: float  # median loss of the predicted settings at the largest size minus that of the found ones
    mean_runs: float
    withheld: float  # ladders without a verdict

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrate_ladder(
    planted: float, num_studies: int, *, noise: float, speed_drift: float = 0.0, seed: int = 0
) -> LadderCalibration:
    """Simulate ladders of three sizes and three lengths; each has its own landscape, see `calibrate`."""
    studies = [_study(planted, noise, speed_drift, [seed, trial]) for trial in range(num_studies)]
    rows = [(row, truth) for finding, truths in studies for row, truth in zip(finding.rows, truths, strict=True)]
    known = [(row, truth) for row, truth in rows if row.speedup is not None]
    held = [(row.flag, (row.low or 0.0) <= truth <= (row.high or math.inf)) for row, truth in known]
    gaps = [f.difference_nats for finding, _ in studies for f in finding.forecasts if f.difference_nats is not None]
    return LadderCalibration(
        planted=planted,
        speed_drift=speed_drift,
        noise=noise,
        num_studies=num_studies,
        false_verdicts=float(np.mean([_is_false(finding, truths) for finding, truths in studies])),
        verdicts=float(np.mean([row.judgement in ("better", "worse") for row, _ in rows])),
        coverage=float(np.mean([inside for _, inside in held])),
        coverage_inside=float(np.mean([inside for flag, inside in held if not flag])),
        extrapolated=float(np.mean([row.flag == "extrapolated" for row, _ in rows])),
        prediction_nats=float(np.median(gaps)),
        mean_runs=float(np.mean([finding.num_runs for finding, _ in studies])),
        withheld=float(np.mean([finding.verdict.startswith("Verdict withheld") for finding, _ in studies])),
    )


def _is_false(finding: LadderFinding, truths: Sequence[float]) -> bool:
    wrong = {1: "worse", -1: "better"}
    return any(
        row.judgement in ("better", "worse") and (truth == 1.0 or row.judgement == wrong[1 if truth > 1.0 else -1])
        for row, truth in zip(finding.rows, truths, strict=True)
    )


def _study(planted: float, noise: float, speed_drift: float, seed: list[int]) -> tuple[LadderFinding, list[float]]:
    """The finding of one simulated ladder, and the true speedup of each of its rows."""
    rng = np.random.default_rng(seed)
    responses = {
        "a": anywhere(rng, noise=noise),
        "b": anywhere(rng, noise=noise, speed=planted, speed_drift=speed_drift),
    }
    landscape = Landscape(responses, seed[-1])
    records = {}

    def run(specs: Sequence[RunSpec]) -> dict[str, Any]:
        made = landscape.run(specs)
        records.update(made)
        return made

    start = {"opt.lr": LR.default, "opt.weight_decay": WEIGHT_DECAY.default}
    bases = {
        name: {
            Regime(size, ratio): RunSpec(
                task="landscape", optimizer=name, task_options={"params": params}, hyperparameters=start,
                horizon_tokens=round(20 * params * ratio / BATCH_TOKENS) * BATCH_TOKENS, batch_tokens=BATCH_TOKENS,
            )
            for size, params in SIZES.items() for ratio in RATIOS
        }
        for name in responses
    }  # fmt: skip
    rules = LadderRules(baseline="a", final_seeds=tuple(range(5)), tuning=TuningRules(max_runs=120))
    evidence = drive(ladder(bases, dict.fromkeys(bases, (LR, WEIGHT_DECAY)), SIZES, rules), run)
    finding = conclude_ladder(evidence, records)
    truths = [planted * (SIZES[row.size] / PARAMS) ** -speed_drift for row in finding.rows]
    return finding, truths
