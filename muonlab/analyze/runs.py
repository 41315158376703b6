"""Runs as the analyses of tables see them, whether they are rows of anybody's file or records of the store."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muonlab.analyze.significance import KNOWN, Noise, pooled_noise
from muonlab.errors import UsageError
from muonlab.records import Record
from muonlab.records.spec import Value, canonical_json

__all__ = ["Cell", "Run", "best_cells", "final", "from_records", "from_rows", "seed_noise"]

MEASURED = {
    "optimizer", "size", "params", "tokens", "loss", "seed", "step", "outcome", "line", "key", "created",
    "wall_seconds", "step_seconds", "flops", "horizon_tokens", "time_to_target",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run at one moment, usually its end."""

    optimizer: str  # "" where the table does not say
    size: str
    params: float | None  # None where the table does not say
    tokens: float
    loss: float | None  # held out; None: diverged or failed
    seed: int | None = None
    horizon_tokens: float | None = None  # of the schedule; None: not said, so that `tokens` is taken for the end
    settings: Mapping[str, Value] = field(default_factory=dict)  # every column that is not measured
    where: str = ""  # for people: the line, or the key of the record

    @property
    def is_final(self) -> bool:
        return self.horizon_tokens is None or self.tokens >= self.horizon_tokens * (1 - 1e-6)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The runs of one optimizer at one size and length in its best configuration, one per seed."""

    optimizer: str
    size: str
    params: float | None
    tokens: float
    settings: Mapping[str, Value]
    losses: tuple[float, ...]
    seeds: tuple[int | None, ...]  # in the order of `losses`
    num_configurations: int  # among which that one was the best

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))


def from_rows(rows: Sequence[Mapping[str, Any]], path: object) -> tuple[Run, ...]:
    """The rows of `read_csv` as runs; an empty, infinite or undefined loss is that of a run that diverged.

    Raises   UsageError naming the line of a row without optimizer, or with tokens or params that are not above 0
    """
    return tuple(_run(row, f"{path} line {row['line']}") for row in rows)


def _run(row: Mapping[str, Any], where: str) -> Run:
    for name, required in (("tokens", True), ("params", False), ("horizon_tokens", False)):
        value = row.get(name)
        if value is None and not required:
            continue
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UsageError(f"{where}: {name} must be a number above 0, got {value!r}")
    if "optimizer" in row and not row["optimizer"]:
        raise UsageError(f"{where}: optimizer is empty")
    loss, seed, params = row.get("loss"), row.get("seed"), row.get("params")
    if seed is not None and not float(seed).is_integer():
        raise UsageError(f"{where}: seed must be a whole number, got {seed!r}")
    return Run(
        optimizer=str(row.get("optimizer", "")),
        size=str(row.get("size") or (f"{params:g}" if params else "")),
        params=None if params is None else float(params),
        tokens=float(row["tokens"]),
        loss=loss if loss is not None and math.isfinite(loss) else None,
        seed=None if seed is None else int(seed),
        horizon_tokens=row.get("horizon_tokens"),
        settings={name: value for name, value in row.items() if name not in MEASURED and value is not None},
        where=where,
    )


def from_records(records: Iterable[Record]) -> tuple[Run, ...]:
    """The ends of the runs of a store; failed ones, which are run again, are left out."""
    return tuple(
        Run(
            optimizer=record.spec.optimizer,
            size=str(record.spec.task_options.get("size", record.num_params)),
            params=record.num_params,
            tokens=float(record.spec.horizon_tokens),
            loss=record.final_loss if record.outcome == "ok" else None,
            seed=record.spec.seed,
            horizon_tokens=record.spec.horizon_tokens,
            settings={
                **record.spec.hyperparameters,
                **{f"task.{name}": value for name, value in record.spec.task_options.items()},
                "batch_tokens": record.spec.batch_tokens,
            },
            where=f"run {record.key[:12]}",
        )
        for record in records
        if record.outcome != "failed"
    )


def final(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Those at the end of their schedule: nothing else may be compared."""
    return tuple(run for run in runs if run.is_final)


def best_cells(runs: Iterable[Run]) -> dict[tuple[str, str, float], Cell]:
    """(optimizer, size, tokens) -> its best configuration by the mean over seeds; none where every one diverged.

    Raises   UsageError for two rows of the same configuration and seed, of which one cannot be right
    """
    configurations: dict[tuple[str, str, float], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        configurations[run.optimizer, run.size, run.tokens][canonical_json(dict(run.settings))].append(run)
    cells = {}
    for key, tried in configurations.items():
        finished = [group for group in tried.values() if all(run.loss is not None for run in group)]
        for group in tried.values():
            _refuse_twins(group)
        if finished:
            best = min(finished, key=lambda group: float(np.mean([run.loss for run in group])))
            cells[key] = Cell(
                optimizer=key[0],
                size=key[1],
                params=best[0].params,
                tokens=key[2],
                settings=best[0].settings,
                losses=tuple(run.loss for run in best if run.loss is not None),
                seeds=tuple(run.seed for run in best),
                num_configurations=len(tried),
            )
    return cells


def _refuse_twins(group: Sequence[Run]) -> None:
    seen: dict[int | None, Run] = {}
    for run in group:
        if run.seed in seen:
            same = "no seed" if run.seed is None else f"seed {run.seed}"
            raise UsageError(
                f"{run.where} and {seen[run.seed].where} are the same run twice ({run.optimizer}, {run.size}, "
                f"{run.tokens:g} tokens, {same}): remove one, or give seeds or settings in columns of their own"
            )
        seen[run.seed] = run


def seed_noise(cells: Iterable[Cell], noise_nats: float | None = None) -> Noise:
    """Variance between seeds, pooled over the cells that have several; else what is assumed, as known exactly.

    Raises   UsageError where there are no seeds and nothing is assumed
    """
    found = pooled_noise([cell.losses for cell in cells])
    if noise_nats is None and found.degrees < 1:
        raise UsageError("no run has a second seed, so the noise is not known: name it, such as --noise 0.003 (nats)")
    return found if noise_nats is None else Noise(noise_nats**2, KNOWN)
