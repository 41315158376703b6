"""From tokens to seconds: what a token costs with one optimizer and with another."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from muonlab.records import Record
from muonlab.records.evidence import Cell

__all__ = ["Rate", "cost_rate"]


@dataclass(frozen=True)
class Rate:
    """Seconds per token of the baseline over those of the challenger: of the medians, and the extremes over seeds."""

    median: float
    low: float
    high: float


def cost_rate(baseline: Cell, challenger: Cell, records: Mapping[str, Record]) -> Rate | None:
    """From the step times of final runs at one horizon, which took turns; None where machines differ.

    The extremes are over pairs of runs with the same seed: not an interval, but what a busy machine can have done.
    """
    runs = [[records[key] for key in cell.keys] for cell in (baseline, challenger)]
    machines = {str(run.environment.get("machine")) for group in runs for run in group}
    if len(machines) != 1 or not all(run.step_seconds for group in runs for run in group):
        return None
    theirs, ours = ({run.spec.seed: (run.step_seconds or 0.0) / run.spec.batch_tokens for run in g} for g in runs)
    rate = median(theirs.values()) / median(ours.values())
    ratios = [theirs[seed] / ours[seed] for seed in theirs if seed in ours]
    return Rate(rate, min(ratios, default=rate), max(ratios, default=rate))
