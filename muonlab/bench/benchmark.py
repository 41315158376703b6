"""The benchmark: every contender on every parameter set, as one document, and whether the machine was quiet."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from muonlab.bench.contest import Conditions, Contest
from muonlab.bench.limits import matmul_flops_per_second
from muonlab.bench.memory import METHOD
from muonlab.bench.peers import ADAMW_PEERS, MUON_PEERS, Contender
from muonlab.bench.sets import ParameterSet

__all__ = ["Plan", "run"]

BUSY_LOAD = 0.5  # processes that want a core which is not there
BUSY_DRIFT = 0.15  # relative change of the speed of one matrix product
BUSY_SPREAD = 0.25  # quartile range over median of the reference's rounds

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured. `contenders` are for the sets of matrices; AdamW is measured on the others.

    The reference, torch.optim's class, always takes part.
    """

    sets: tuple[ParameterSet, ...]
    contenders: tuple[Contender, ...]
    conditions: Conditions = field(default_factory=Conditions)

    def contenders_on(self, parameters: ParameterSet) -> tuple[Contender, ...]:
        """The reference first."""
        if parameters.rule == "adamw":
            return tuple(ADAMW_PEERS.values())
        reference = next(iter(MUON_PEERS.values()))
        return (reference, *(found for found in self.contenders if found != reference))


def run(plan: Plan, say: Say = lambda text: None) -> dict[str, Any]:
    """Measure everything; the document that `muonlab bench --json` prints; of the machine it knows speed and packages.

    `say` gets a line whenever something begins. Contenders that are not installed or fail are in `skipped`, with the
    reason; signs of a busy machine in `warnings`.
    """
    device = plan.conditions.device
    found = _busy_before(device)
    skipped, present = _sift(plan)
    say("products of matrices, for the arithmetic limit")
    peaks = {dtype: matmul_flops_per_second(dtype, device) for dtype in _dtypes(plan, present)}
    calibration = [peaks["float32"]]
    rows: list[dict[str, Any]] = []
    for parameters in plan.sets:
        rows += _rows(parameters, present[parameters.name], plan.conditions, peaks, skipped, say)
        calibration.append(matmul_flops_per_second("float32", device))
    packages = {one.distribution: one.version for group in present.values() for one in group}
    return {
        "machine": {"packages": packages, "matmul_flops_per_second": peaks},
        "warnings": found + _busy_meanwhile(calibration, rows),
        "batch_tokens": plan.conditions.batch_tokens,
        "num_ranks": plan.conditions.num_ranks,
        "memory_method": METHOD[device],
        "rows": rows,
        "skipped": skipped,
    }


def _sift(plan: Plan) -> tuple[list[dict[str, Any]], dict[str, list[Contender]]]:
    """What is not installed, each once, and by set what is."""
    missing: dict[str, dict[str, Any]] = {}
    present: dict[str, list[Contender]] = {}
    for parameters in plan.sets:
        for one in plan.contenders_on(parameters):
            if one.is_installed:
                present.setdefault(parameters.name, []).append(one)
            else:
                missing[one.optimizer] = _skip(one, None, f"not installed (package {one.distribution})")
    return list(missing.values()), present


def _skip(contender: Contender, parameters: ParameterSet | None, reason: str) -> dict[str, Any]:
    place = parameters.name if parameters else None
    return {"optimizer": contender.optimizer, "config": contender.config, "set": place, "reason": reason}


def _dtypes(plan: Plan, present: dict[str, list[Contender]]) -> list[str]:
    """Those that somebody computes in, and float32, by which drift is told."""
    works = (
        one.work_on(shape, plan.conditions.device)
        for parameters in plan.sets
        for one in present[parameters.name]
        for shape in parameters.shapes
    )
    return sorted({"float32"} | {work.dtype for work in works if work})


def _rows(
    parameters: ParameterSet, contenders: Sequence[Contender], conditions: Conditions, peaks: dict[str, float],
    skipped: list[dict[str, Any]], say: Say,
) -> list[dict[str, Any]]:  # fmt: skip
    contest = Contest(parameters, conditions, peaks)
    for one in contenders:
        say(f"{parameters.name}: {one.optimizer} ({one.config})")
        try:
            contest.enter(one)
        except Exception as error:  # whatever a peer does is its result; a reference that fails is ours
            if one is contenders[0]:
                raise
            text = " ".join(str(error).split())[:200]
            skipped.append(_skip(one, parameters, f"{type(error).__name__}: {text}"))
    say(f"{parameters.name}: {conditions.num_rounds} rounds")
    return contest.rows()


def _busy_before(device: str) -> list[str]:
    load, num_threads = os.getloadavg()[0], torch.get_num_threads()
    if device == "cpu" and load + num_threads > (os.cpu_count() or 1) + BUSY_LOAD:
        return [f"the machine was busy before the start (load {load:.1f}, {num_threads} threads wanted): repeat idle"]
    return []


def _busy_meanwhile(calibration: Sequence[float], rows: Sequence[dict[str, Any]]) -> list[str]:
    found = []
    drift = max(calibration) / min(calibration) - 1
    if drift > BUSY_DRIFT:
        found.append(f"the speed of one matrix product changed by {drift:.0%} meanwhile: repeat on an idle machine")
    for row in rows:
        apart = (row["seconds_high"] - row["seconds_low"]) / row["median_seconds"]
        if row["optimizer"].startswith("torch.optim.") and apart > BUSY_SPREAD:
            found.append(
                f"{row['set']}: the quartiles of {row['optimizer']} lie {apart:.0%} apart: repeat on an idle machine"
            )
    return found
