"""Runs as the analyses of tables see them, whether they are rows of anybody's file or records of the store."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from muonlab.errors import UsageError
from muonlab.records import Record
from muonlab.records.spec import Value, canonical_json

__all__ = ["LARGEST", "Run", "ends", "from_records", "from_rows", "frozen", "histories", "same_run"]

IDENTITIES = ("run_id", "run_name")
LOWEST, LAST = ("best_loss", "min_loss"), ("final_loss", "last_loss")
LABELS = {*IDENTITIES, *LOWEST, *LAST, "id", "name", "url", "notes", "chinchilla"}  # no settings
MEASURED = {
    "optimizer", "size", "params", "tokens", "loss", "seed", "step", "outcome", "line", "key", "created",
    "wall_seconds", "step_seconds", "flops", "horizon_tokens", "time_to_target",
}  # fmt: skip
CONDITIONS = ("task", "data_fingerprint", "precision", "device", "torch", "compile", "parametrization", "clip")
LARGEST = 1e30  # a loss above it has blown up; its square is still a number


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run at one moment, usually its end."""

    optimizer: str  # "" where the table does not say
    size: str
    params: float | None  # None where the table does not say
    tokens: float
    loss: float | None  # held out; None: diverged or failed
    seed: int | None = None
    step: float | None = None
    horizon_tokens: float | None = None  # of the schedule; None: not said, so that `tokens` is taken for the end
    settings: Mapping[str, Value] = field(default_factory=dict)  # every column that has no meaning of its own
    labels: Mapping[str, Any] = field(default_factory=dict)  # the columns of LABELS
    where: str = ""  # for people: the line, or the key of the record
    line: int | str = ""  # of the table, or the whole key

    @property
    def is_final(self) -> bool:
        return self.horizon_tokens is None or self.tokens >= self.horizon_tokens * (1 - 1e-6)

    @property
    def identity(self) -> str:
        """Of the run, where rows are moments of it; "" where the table does not say."""
        return str(next((self.labels[name] for name in IDENTITIES if name in self.labels), ""))

    @property
    def lowest(self) -> float | None:
        """The lowest loss over the steps, where the table has it beside `loss`."""
        return self._number(LOWEST)

    @property
    def last(self) -> float | None:
        """The loss of the last step, where the table has it beside `loss`."""
        return self._number(LAST)

    def _number(self, names: Sequence[str]) -> float | None:
        found = (self.labels[name] for name in names if name in self.labels)
        return next((value for value in found if isinstance(value, int | float)), None)


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
    known = {name: frozen(value) for name, value in row.items() if name not in MEASURED and value is not None}
    return Run(
        optimizer=str(row.get("optimizer", "")),
        size=str(row.get("size") or (f"{params:g}" if params else "")),
        params=None if params is None else float(params),
        tokens=float(row["tokens"]),
        loss=loss if loss is not None and abs(loss) <= LARGEST else None,
        seed=None if seed is None else int(seed),
        step=row.get("step"),
        horizon_tokens=row.get("horizon_tokens"),
        settings={name: value for name, value in known.items() if name not in LABELS},
        labels={name: value for name, value in known.items() if name in LABELS},
        where=where,
        line=row["line"],
    )


def frozen(value: Any) -> Any:
    """Hashable, as settings are compared."""
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value


def from_records(records: Iterable[Record], *, conditions: bool = False) -> tuple[Run, ...]:
    """The ends of the runs of a store; failed ones, which are run again, are left out.

    With `conditions` the settings hold all that determined a run, schedule, precision and machine included.
    """
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
                **(_conditions(record) if conditions else {}),
            },
            where=f"run {record.key[:12]}",
            line=record.key,
        )
        for record in records
        if record.outcome != "failed"
    )


def _conditions(record: Record) -> dict[str, Any]:
    spec = record.spec
    schedule = {f"schedule.{name}": value for name, value in vars(spec.schedule).items()}
    base = {f"base.{name}": value for name, value in spec.base.items()}
    return {**{name: getattr(spec, name) for name in CONDITIONS}, **base, **schedule}


def histories(runs: Iterable[Run]) -> tuple[tuple[Run, ...], ...]:
    """The rows of each run in the order of its steps; the last is its end.

    Rows are moments of one run if they have its name, or, without names, if nothing but step and tokens on the way to
    one horizon tells them apart. Where a table names neither optimizer nor run every row is one.
    """
    groups: dict[Any, list[Run]] = defaultdict(list)
    for number, run in enumerate(runs):
        length = ("horizon", run.horizon_tokens) if run.horizon_tokens else ("tokens", run.tokens)
        known = (canonical_json(dict(run.settings)), *length)
        own = (run.identity, run.horizon_tokens) if run.identity else known if run.optimizer else number
        groups[run.optimizer, run.size, run.seed, own].append(run)
    return tuple(tuple(sorted(rows, key=lambda run: (run.tokens, run.step or 0.0))) for rows in groups.values())


def ends(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The last row of every run that is at the end of its schedule: nothing else may be compared.

    Raises   UsageError for two rows that nothing tells apart, of which one cannot be right
    """
    found = []
    for rows in histories(runs):
        for one, other in pairwise(rows):
            if (one.tokens, one.step) == (other.tokens, other.step):
                raise same_run(one, other)
        if rows[-1].is_final:
            found.append(rows[-1])
    return tuple(found)


def same_run(one: Run, other: Run) -> UsageError:
    """The error for two rows that nothing tells apart."""
    what = [one.optimizer, one.size, f"{one.tokens:g} tokens", "no seed" if one.seed is None else f"seed {one.seed}"]
    return UsageError(
        f"{other.where} and {one.where} are the same run twice ({', '.join(filter(None, what))}): remove one, or give "
        "seeds or settings in columns of their own"
    )
