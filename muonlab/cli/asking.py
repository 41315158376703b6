"""ask, tell: the same protocols for runs that somebody else's trainer makes."""

import json as jsonlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import values
from muonlab.cli.laboratory import print_json
from muonlab.cli.protocols import KINDS, asked, conclude_and_show, keep, planned
from muonlab.cli.show import print_parts
from muonlab.errors import UsageError, unknown

if TYPE_CHECKING:
    from muonlab.records import Record, RunSpec, Store
    from muonlab.records.watch import Watch

__all__ = ["ask", "tell"]

TOLD = (
    "loss", "outcome", "diverged_step", "wall_seconds", "step_seconds", "flops", "params", "train_steps", "train_loss",
    "eval_steps", "eval_loss", "environment",
)  # fmt: skip
KIND_BY_KEY = {"sizes": "ladder", "batches": "batch", "widths": "transfer"}  # of a study file that names no kind


def ask(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="Study file; kind = comparison, ladder, batch or transfer.")
    ],
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Say which runs a study wants next from your own trainer; once none is missing, show what came out.

    Protocols decide by the results so far: ask, make the runs, tell their results, and ask again. A task that is
    trained elsewhere is external:NAME.
    """
    from muonlab.execute.asking import Asked, AskingExecutor
    from muonlab.execute.executor import Observation
    from muonlab.execute.runner import Runner
    from muonlab.records.store import Store
    from muonlab.study.protocol import drive

    chosen = values(study, {}, None, None, False)
    kind = chosen.pop("kind", next((k for key, k in KIND_BY_KEY.items() if key in chosen), "comparison"))
    if kind not in KINDS:
        raise unknown("kind of study", kind, KINDS)
    if kind == "transfer":
        chosen |= {"coordinates": False, "coordinate_widths": ()}  # a trainer of one's own tells losses only
    config, plan = planned(kind, chosen)
    command = f"muonlab ask {study}"
    wanted = asked(config, plan, command)
    watch = replace(plan.watch, noise_cost=0.0)  # which a trainer of one's own does not measure
    with Store(store) as opened:
        try:
            evidence = drive(plan.protocol(wanted), Runner(opened, AskingExecutor(), Observation(watch)))
        except Asked as missing:
            opened.request(missing.specs)
            return _show(missing.specs, watch, opened.get([spec.key for spec in missing.specs]), store, json)
    records, _ = keep(store, kind, config, wanted, evidence)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    target = out or Path(f"muonlab-{kind}.html")
    conclude_and_show(kind, evidence, records, 0, target, created, command, json, done=True)


def tell(
    key: Annotated[str | None, typer.Argument(help="Key of a run that was asked for, or its beginning.")] = None,
    result: Annotated[
        str | None,
        typer.Argument(metavar="RESULT.json", help='Such as {"loss": 3.21}, or {"outcome": "diverged"}; - is stdin.'),
    ] = None,
    many: Annotated[
        str | None,
        typer.Option("--many", metavar="RESULTS.jsonl",
                     help='Results of many runs, a line each: {"key": "3f9c0a12", "loss": 3.21}; - is stdin.'),
    ] = None,
    store: opt.StoreUrl = opt.DEFAULT_STORE,
) -> None:  # fmt: skip
    """Take the result of a run that was asked for, or with --many those of many runs, all or none.

    loss is the final held-out loss, nats per token. Optional: step_seconds, wall_seconds, flops, params (by role, or
    one number), train_steps with train_loss, environment (machine among it), diverged_step; for a batch study
    eval_steps with eval_loss, which it cannot do without. What was told already may be told again.
    """
    from muonlab.records.store import Store

    if (many is None) == (key is None or result is None) or (many is not None and key is not None):
        raise UsageError("tell wants a KEY and its RESULT.json, or --many RESULTS.jsonl with a key in each line")
    with Store(store) as opened:
        if many is not None:
            return _tell_many(many, opened)
        record = _record(opened.requested(str(key)), _told(_read(str(result)), str(result)))
        _agree(record, opened)
        opened.put(record, replace=bool(record.eval_steps))  # a curve may be told later
    loss = "" if record.final_loss is None else f", loss {record.final_loss:g}"
    print(f"run {record.key[:12]} is {record.outcome}{loss}")


def _tell_many(path: str, store: "Store") -> None:
    """Read everything before anything is written."""
    found: dict[str, Record] = {}
    for number, line in enumerate(_read(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            told = _told(line, "it", ("key", *TOLD))
            key = told.pop("key", None)
            if not isinstance(key, str):
                raise UsageError('it lacks the key of its run: {"key": "3f9c0a12", "loss": 3.21}')
            record = _record(store.requested(key), told)
            before = found.setdefault(record.key, record)
            if (before.outcome, before.final_loss) != (record.outcome, record.final_loss):
                raise UsageError(f"run {record.key[:12]} stands above with another result: leave one of them out")
            _agree(record, store)
        except UsageError as error:
            raise UsageError(f"{path} line {number}: {error}; nothing was taken") from None
    new = sum(store.put(record, replace=bool(record.eval_steps)) for record in found.values())
    print(f"{len(found)} results, {new} of them new")


def _agree(record: "Record", store: "Store") -> None:
    """Raises   UsageError if the run already has another result"""
    known = store.get([record.key]).get(record.key)
    if known and not _curve(known).items() <= _curve(record).items():
        raise UsageError(
            f"run {record.key[:12]} has another curve: `muonlab runs rm {record.key[:12]}` first, if that is wrong"
        )
    if known and known.outcome != "failed" and (known.outcome, known.final_loss) != (record.outcome, record.final_loss):
        raise UsageError(
            f"run {record.key[:12]} already has the outcome {known.outcome}, loss {known.final_loss}: "
            f"`muonlab runs rm {record.key[:12]}` first, if that is wrong"
        )


def _curve(record: "Record") -> dict[int, float]:
    return dict(zip(record.eval_steps, record.eval_loss, strict=True))


def _show(specs: tuple["RunSpec", ...], watch: "Watch", told: Mapping[str, "Record"], store: str, json: bool) -> None:
    """`told` are those of the runs whose results came without what the study reads of them."""
    runs = [_run(spec, watch) for spec in specs]
    if json:
        return print_json({"done": False, "runs": runs})
    from muonlab.report.tables import requests_table

    print_parts(requests_table(runs))
    again = "" if store == opt.DEFAULT_STORE else f" --store {store}"
    print(f'\n{len(runs)} runs are wanted. For each: muonlab tell KEY RESULT.json{again}, such as {{"loss": 3.21}};')
    print("then ask again. --json prints them for a script.")
    if watch.curve_points:
        print("A batch study reads curves: each result needs eval_steps, which --json names, and eval_loss, too.")
    for record in told.values():
        lacking = sorted(watch.steps(record.spec) - set(record.eval_steps))
        print(f"run {record.key[:12]} was told without its loss after steps {_few(lacking)}: tell it again with them")


def _run(spec: "RunSpec", watch: "Watch") -> dict[str, Any]:
    """What a trainer has to know of a run."""
    from muonlab.optim import catalog
    from muonlab.study.space import with_defaults

    cls = catalog.get(spec.optimizer, spec.optimizer_source)
    return {
        "key": spec.key,
        "optimizer": spec.optimizer,
        "hyperparameters": with_defaults(cls, spec.hyperparameters),
        "conventions": catalog.conventions(cls, spec.hyperparameters),
        "task": spec.task,
        "task_options": dict(spec.task_options),
        "parametrization": spec.parametrization if spec.is_parametrized else "standard",
        "base": dict(spec.base) if spec.is_parametrized else {},
        "tokens": spec.horizon_tokens,
        "batch_tokens": spec.batch_tokens,
        "num_steps": spec.num_steps,
        "seed": spec.seed,
        "schedule": {f.name: getattr(spec.schedule, f.name) for f in fields(spec.schedule)},
        "averaging": spec.averaging,
        "clip": spec.clip,
        "precision": spec.precision,
        "eval_steps": sorted(watch.steps(spec)),
    }


def _few(steps: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, steps[:most])) + (", ..." if len(steps) > most else "")


def _read(path: str) -> bytes:
    from muonlab.records.importers import read_bytes

    try:
        return read_bytes(path)
    except UsageError as error:
        raise UsageError(f'{error}: name a file with such as {{"loss": 3.21}} in it, or - for stdin') from None


def _told(text: bytes, name: str, known: Sequence[str] = TOLD) -> dict[str, Any]:
    """The fields of one result."""
    from muonlab.records.importers import first_line

    try:
        told = jsonlib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON ({first_line(error)})") from None
    if not isinstance(told, dict):
        raise UsageError(f'{name} must be an object such as {{"loss": 3.21}}, got {type(told).__name__}')
    for field in told:
        if field not in known:
            raise unknown("field of a result", field, known)
    return told


def _record(spec: "RunSpec", told: Mapping[str, Any]) -> Any:
    from muonlab.records import Record

    loss = told.get("loss")
    number = isinstance(loss, int | float) and not isinstance(loss, bool)
    outcome = told.get("outcome", "ok" if number and math.isfinite(loss) else "diverged" if number else None)
    if outcome not in ("ok", "diverged") or (outcome == "ok") != (number and math.isfinite(loss)):
        raise UsageError(
            'a result needs a finite loss, such as {"loss": 3.21}, or {"outcome": "diverged"}; '
            "a run that crashed has none: make it again"
        )
    params, environment = told.get("params", {}), told.get("environment", {})
    if not isinstance(environment, dict):
        kind = type(environment).__name__
        raise UsageError(f'environment must be an object such as {{"machine": "8 x H100"}}, got {kind}')
    for name in ("step_seconds", "wall_seconds", "flops", "diverged_step"):
        value = told.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise UsageError(f"a result has numbers, got {value!r} for {name}: it must be a number of at least 0")
    try:
        record = Record(
            spec=spec,
            outcome=outcome,
            final_loss=float(loss) if outcome == "ok" else None,
            diverged_step=told.get("diverged_step"),
            train_steps=tuple(told.get("train_steps", ())),
            train_loss=tuple(map(float, told.get("train_loss", ()))),
            eval_steps=tuple(told.get("eval_steps", ())),
            eval_loss=tuple(math.nan if x is None else float(x) for x in told.get("eval_loss", ())),
            wall_seconds=float(told.get("wall_seconds", 0.0)),
            step_seconds=None if told.get("step_seconds") is None else float(told["step_seconds"]),
            flops=float(told.get("flops", 0.0)),
            params=params if isinstance(params, dict) else {"hidden": int(params)},
            tokens=spec.horizon_tokens,
            environment=environment,
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
        return Record.from_dict(record.to_dict())  # what would not be read again is not written
    except UsageError as error:
        raise UsageError(f"not a result: {str(error).removeprefix('not a record: ')}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"not a result: {error}") from None
