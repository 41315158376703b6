"""What an audit looks at: rows as runs, their ends, the configurations tried, slices through the best one."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from muonlab.analyze.runs import Run, from_records, from_rows
from muonlab.analyze.significance import KNOWN, Noise, pooled_noise
from muonlab.errors import UsageError
from muonlab.records import Record
from muonlab.records.spec import Value, canonical_json

__all__ = ["Configuration", "Evidence", "Finding", "Place", "Point", "Row", "Slice", "from_store", "from_table"]

NOISE_NATS = 3e-3  # where nothing is measured: the smallest gain that the sweep of Wen et al. 2025 acts on
IDENTITIES = ("run_id", "run_name")
LOWEST, LAST = ("best_loss", "min_loss"), ("final_loss", "last_loss")
LABELS = {*IDENTITIES, *LOWEST, *LAST, "id", "name", "url", "notes", "chinchilla"}  # no settings
CELL = ("optimizer", "size", "params", "tokens", "chinchilla", "loss", "line")

Severity = Literal["error", "warning", "note"]
Place = tuple[str, float]  # size, tokens
Key = tuple[str, str, float]  # optimizer, size, tokens
Line = int | str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a reviewer would object to, with the figures, and the rows that show it."""

    rule: str
    severity: Severity
    detail: str
    rows: tuple[Line, ...]  # lines of the table, or keys of the store's records


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run as one row has it, with what an audit must know and other analyses need not."""

    run: Run
    line: Line
    step: float | None = None
    identity: str = ""  # of the run, where rows are moments of it
    lowest: float | None = None  # over the steps, where the table says so beside `loss`
    last: float | None = None
    varied: str = ""  # of an ablation: the one setting that is not at its tuned value


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The runs of one optimizer at one place with the same settings, one per seed."""

    settings: Mapping[str, Value]
    losses: tuple[float, ...]  # of the runs that finished
    num_lost: int
    lines: tuple[Line, ...]

    @cached_property
    def loss(self) -> float | None:
        """The mean over seeds; None where a run was lost."""
        return float(np.mean(self.losses)) if self.losses and not self.num_lost else None


@dataclass(frozen=True)
class Point:
    value: float
    loss: float | None
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The values tried of one setting, all others at those of the best configuration."""

    optimizer: str
    place: Place
    name: str
    points: tuple[Point, ...]  # by rising value
    best: Point | None  # None: the tuned point is not in the table
    loss: float  # of the best; where that is None a bound, the lowest of the cell


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A table, and what it is judged by."""

    rows: tuple[Row, ...]
    columns: frozenset[str]
    baseline: str = "adamw"
    noise_nats: float | None = None  # None: that of the seeds, else NOISE_NATS
    is_ablation: bool = False  # rows move one setting away from a tuned point
    tuned: Mapping[Key, Configuration] = field(default_factory=dict)  # of ablations, as far as it is known
    unit: str = "tokens"

    @cached_property
    def runs(self) -> tuple[tuple[Row, ...], ...]:
        """The rows of each run in the order of its steps; the last is its end."""
        groups: dict[Any, list[Row]] = defaultdict(list)
        for row in self.rows:
            run = row.run
            same = (run.optimizer, run.size, canonical_json(dict(run.settings)), run.seed)
            length = ("horizon", run.horizon_tokens) if run.horizon_tokens else ("tokens", run.tokens)
            groups[(run.optimizer, row.identity) if row.identity else (*same, *length)].append(row)
        return tuple(tuple(sorted(rows, key=lambda r: (r.run.tokens, r.step or 0.0))) for rows in groups.values())

    @cached_property
    def ends(self) -> tuple[Row, ...]:
        return tuple(rows[-1] for rows in self.runs if rows[-1].run.is_final)

    @cached_property
    def cells(self) -> dict[Key, tuple[Configuration, ...]]:
        """(optimizer, size, tokens) -> the configurations tried."""
        groups: dict[Key, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in self.ends:
            run = row.run
            groups[run.optimizer, run.size, run.tokens][canonical_json(dict(run.settings))].append(row)
        return {key: tuple(map(_configuration, tried.values())) for key, tried in groups.items()}

    @cached_property
    def best(self) -> dict[Key, Configuration]:
        """The configuration of lowest mean loss; among equals the one around which most was tried."""
        found = {}
        for key, tried in self.cells.items():
            least = min((one.loss for one in tried if one.loss is not None), default=None)
            lowest = [one for one in tried if one.loss == least and least is not None]
            if lowest:
                tuned = self.tuned.get(key)
                near = [sum(_differ(one, other) is not None for other in tried) for one in lowest]
                best = lowest[int(np.argmax(near))]
                found[key] = tuned if tuned in lowest and tuned is not None else best
        return found

    @cached_property
    def places(self) -> dict[Place, dict[str, Configuration]]:
        """(size, tokens) -> optimizer -> its best."""
        found: dict[Place, dict[str, Configuration]] = defaultdict(dict)
        for (optimizer, *place), best in self.best.items():
            found[place[0], place[1]][optimizer] = best
        return dict(found)

    @cached_property
    def measured(self) -> Noise:
        """Between the seeds of a configuration, pooled over the best ones."""
        return pooled_noise([best.losses for best in self.best.values()])

    @property
    def noise(self) -> Noise:
        if self.noise_nats is None and self.measured.degrees:
            return self.measured
        return Noise((NOISE_NATS if self.noise_nats is None else self.noise_nats) ** 2, KNOWN)

    @property
    def threshold(self) -> float:
        """Gains up to it are none."""
        return math.sqrt(self.noise.variance)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Through the best of every cell, along every numeric setting of which two values were tried."""
        found = []
        for key, best in self.best.items():
            make = self._ablated if self.is_ablation else self._around
            found += [one for one in make(key, best) if len(one.points) > 1 or one.best is None]
        return tuple(found)

    @cached_property
    def _varied(self) -> dict[Key, list[Row]]:
        found: dict[Key, list[Row]] = defaultdict(list)
        for row in self.ends:
            if row.varied:
                found[row.run.optimizer, row.run.size, row.run.tokens].append(row)
        return found

    def _around(self, key: Key, best: Configuration) -> Iterable[Slice]:
        lines: dict[str, list[Configuration]] = defaultdict(list)
        for other in self.cells[key]:
            if name := _differ(best, other):
                lines[name].append(other)
        for name, others in lines.items():
            points = _points(name, [best, *others])
            yield Slice(
                optimizer=key[0], place=key[1:], name=name, points=points, loss=best.loss or 0.0,
                best=next(point for point in points if point.value == best.settings[name]),
            )  # fmt: skip

    def _ablated(self, key: Key, best: Configuration) -> Iterable[Slice]:
        tuned, groups = self.tuned.get(key), defaultdict(list)
        for row in self._varied[key]:
            groups[row.varied].append(_configuration([row]))
        bound = min(best.loss or 0.0, math.inf if tuned is None or tuned.loss is None else tuned.loss)
        holding = [name for name, group in groups.items() if any(one.loss == bound for one in group)]
        listed = len(holding) > max(1, len(groups) / 2)  # only the tuned point itself lies on most of the slices
        for name, group in groups.items():
            centre = None
            if tuned is not None and _is_number(tuned.settings.get(name)):
                losses = tuned.losses or (bound,)
                group, centre = [*group, replace(tuned, losses=losses)], tuned.settings[name]
            points = _points(name, group)
            lowest = min(points, key=lambda p: (_rank(p.loss), p.value != centre), default=None)
            known = centre is not None or (listed and name in holding)
            if points:
                yield Slice(
                    optimizer=key[0],
                    place=key[1:],
                    name=name,
                    points=points,
                    loss=bound,
                    best=lowest if known else None,
                )

    def at(self, place: Place) -> str:
        """The place in words.

        >>> Evidence(rows=(), columns=frozenset()).at(("130m", 2684354560.0))
        '130m, 2.68B tokens'
        """
        size, tokens = place
        if self.unit != "tokens":
            return f"{size} {tokens:g}{self.unit}".strip()
        scales = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
        scale, letter = next(((s, letter) for s, letter in scales if tokens >= 0.9995 * s), (1.0, ""))
        return f"{size}{', ' if size else ''}{tokens / scale:.3g}{letter} tokens"


def _configuration(rows: Sequence[Row]) -> Configuration:
    losses = tuple(row.run.loss for row in rows if row.run.loss is not None)
    return Configuration(
        settings=rows[0].run.settings, losses=losses, num_lost=len(rows) - len(losses),
        lines=tuple(row.line for row in rows),
    )  # fmt: skip


def _differ(one: Configuration, other: Configuration) -> str | None:
    """The one numeric setting in which they differ; None where it is not one."""
    names = one.settings.keys() | other.settings.keys()
    differ = [name for name in names if one.settings.get(name) != other.settings.get(name)]
    if len(differ) != 1 or not all(_is_number(each.settings.get(differ[0])) for each in (one, other)):
        return None
    return differ[0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points(name: str, group: Iterable[Configuration]) -> tuple[Point, ...]:
    """By rising value; of several with the same value the best."""
    points: dict[Any, Point] = {}
    for one in group:
        value = one.settings.get(name)
        if _is_number(value) and (value not in points or _rank(one.loss) < _rank(points[value].loss)):
            points[value] = Point(value, one.loss, one.lines)  # type: ignore[arg-type]
    return tuple(points[value] for value in sorted(points))


def _rank(loss: float | None) -> float:
    return math.inf if loss is None else loss


def from_table(
    rows: Sequence[Mapping[str, Any]], path: object, tuned: Iterable[Mapping[str, Any]] = (), **judged: Any
) -> Evidence:
    """The rows of `read_rows`: a run each, or ablations where there are columns `hyperparameter` and `value`.

    Raises   UsageError naming the line of a bad row, or the column that is missing
    """
    columns = frozenset(name for row in rows for name, value in row.items() if value is not None) - {"line"}
    if {"hyperparameter", "value"} <= columns:
        return _from_ablations(rows, columns, path, tuned, judged)
    if tuned:
        raise UsageError("--tuned goes with a table of ablations, which has columns hyperparameter and value")
    if "tokens" not in columns:
        raise UsageError(f"{path} has no column 'tokens': say which one it is with --column tokens=NAME")
    return Evidence(rows=tuple(map(_row, rows, from_rows(rows, path))), columns=columns, **judged)


def _row(row: Mapping[str, Any], run: Run) -> Row:
    settings = {name: _frozen(value) for name, value in run.settings.items() if name not in LABELS}
    lowest, last, identity = (next((row[n] for n in names if row.get(n) is not None), None)
                              for names in (LOWEST, LAST, IDENTITIES))  # fmt: skip
    return Row(
        run=replace(run, settings=settings), line=row["line"], step=row.get("step"),
        lowest=lowest, last=last, identity="" if identity is None else str(identity),
    )  # fmt: skip


def _frozen(value: Any) -> Any:
    """Hashable, as settings are compared."""
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value


def _from_ablations(
    rows: Sequence[Mapping[str, Any]], columns: frozenset[str], path: object, tuned: Iterable[Mapping[str, Any]],
    judged: Mapping[str, Any],
) -> Evidence:  # fmt: skip
    length = next((name for name in ("tokens", "chinchilla") if name in columns), None)
    if length is None:
        raise UsageError(f"{path} has no column 'tokens' or 'chinchilla', so that no lengths can be told apart")
    cells, where = _tuned(tuned, length)
    found, points = [], {}
    for key, settings in cells.items():
        loss = settings.pop("loss", None)
        points[key] = Configuration(
            settings=settings, losses=() if loss is None else (loss,), num_lost=0, lines=(where[key],)
        )
        if loss is not None:
            run = Run(optimizer=key[0], size=key[1], params=None, tokens=key[2], loss=loss, settings=settings)
            found.append(Row(run=run, line=where[key]))
    for row in rows:
        name, value = row.get("hyperparameter"), row.get("value")
        if not name or value is None:
            raise UsageError(f"{path} line {row['line']}: hyperparameter and value must not be empty")
        plain = {"tokens": row.get(length), **{n: row.get(n) for n in ("optimizer", "size", "loss", "seed", "line")}}
        run = from_rows([plain], path)[0]
        base = cells.get((run.optimizer, run.size, run.tokens), {})
        found.append(Row(run=replace(run, settings={**base, name: value}), line=row["line"], varied=name))
    names = {name for row in found for name in row.run.settings}
    unit = "x" if length == "chinchilla" else "tokens"
    return Evidence(
        rows=tuple(found), columns=columns | names, is_ablation=True, tuned=points, unit=unit, **judged
    )  # fmt: skip


def _tuned(rows: Iterable[Mapping[str, Any]], length: str) -> tuple[dict[Key, dict[str, Any]], dict[Key, str]]:
    """What is known of the tuned points: settings, which may be JSON in a cell, and loss; and where it stands."""
    cells: dict[Key, dict[str, Any]] = defaultdict(dict)
    where: dict[Key, str] = {}
    for row in rows:
        if row.get("optimizer") is None or not isinstance(row.get(length), int | float):
            raise UsageError(f"{row['line']}: a tuned point needs optimizer, size and {length}")
        key = (str(row["optimizer"]), str(row.get("size") or ""), row[length])
        for name, value in row.items():
            if isinstance(value, str) and value.startswith("{"):
                try:
                    cells[key] |= {n: _frozen(v) for n, v in json.loads(value).items()}
                except ValueError as error:
                    raise UsageError(f"{row['line']}: {name} is not JSON ({error})") from None
            elif name == "loss" and _is_number(value) and math.isfinite(value):
                cells[key][name] = value
            elif value is not None and name not in CELL:
                cells[key][name] = _frozen(value)
        where.setdefault(key, str(row["line"]))
    return dict(cells), where


def from_runs(runs: Sequence[Run], **judged: Any) -> Evidence:
    """Runs of whatever origin, a row each; where they stand is what findings name."""
    columns = frozenset({name for run in runs for name in run.settings})
    columns |= {name for name in ("seed", "horizon_tokens") if any(getattr(run, name) is not None for run in runs)}
    return Evidence(rows=tuple(Row(run=run, line=run.where) for run in runs), columns=columns, **judged)


def from_store(records: Iterable[Record], **judged: Any) -> Evidence:
    """The ends of the runs of a store with all that determined them; a line is the key of a record."""
    kept = [record for record in records if record.outcome != "failed"]
    rows = []
    for record, run in zip(kept, from_records(kept), strict=True):
        spec = record.spec
        conditions: dict[str, Any] = {
            name: getattr(spec, name)
            for name in (
                "task",
                "data_fingerprint",
                "precision",
                "device",
                "torch",
                "compile",
                "parametrization",
                "clip",
            )
        }
        conditions |= {f"schedule.{name}": value for name, value in vars(spec.schedule).items()}
        settings = {**run.settings, **conditions}
        rows.append(Row(run=replace(run, settings=settings), line=record.key))
    columns = frozenset({name for row in rows for name in row.run.settings} | {"seed", "horizon_tokens"})
    return Evidence(rows=tuple(rows), columns=columns, **judged)
