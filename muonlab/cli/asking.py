"""ask, tell: the same protocols for runs that somebody else's trainer makes."""

import json as jsonlib
import math
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muonlab.cli import options as opt
from muonlab.cli.arguments import values
from muonlab.cli.laboratory import print_json, users_code
from muonlab.cli.show import print_parts
from muonlab.errors import UsageError, unknown

if TYPE_CHECKING:
    from muonlab.records import RunSpec

__all__ = ["ask", "tell"]

KINDS = ("comparison", "ladder")
TOLD = (
    "loss", "outcome", "diverged_step", "wall_seconds", "step_seconds", "flops", "params", "train_steps", "train_loss",
    "environment",
)  # fmt: skip


def ask(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Study file; kind = comparison or ladder.")],
    store: opt.StoreUrl = opt.DEFAULT_STORE,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Say which runs a study wants next from your own trainer; once none is missing, show what came out.

    Protocols decide by the results so far: ask, make the runs, tell their results, and ask again. A task that is
    trained elsewhere is external:NAME.
    """
    from muonlab.cli.ladder import show_ladder
    from muonlab.cli.show import show_comparison
    from muonlab.execute.asking import Asked, AskingExecutor
    from muonlab.execute.runner import Runner
    from muonlab.records.store import Store
    from muonlab.study.fairness import conclude, conclude_ladder
    from muonlab.study.protocol import drive

    kind, config, protocol = _study(study)
    with Store(store) as opened:
        runner = Runner(opened, AskingExecutor())
        try:
            evidence = drive(protocol, runner)
        except Asked as asked:
            opened.request(asked.specs)
            return _show(asked.specs, store, json)
        records = opened.get(evidence.record_keys())
        asked_for = {**config.model_dump(mode="json"), "command": f"muonlab ask {study}"}
        opened.save_study(config.key, kind, config.task, asked_for, evidence.to_dict())
    target = out or Path(f"muonlab-{kind}.html")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    if kind == "comparison":
        return show_comparison(conclude(evidence, records), 0, target, created, asked_for["command"], json)
    show_ladder(conclude_ladder(evidence, records), 0, target, created, asked_for["command"], json)


def tell(
    key: Annotated[str, typer.Argument(help="Key of a run that was asked for, or its beginning.")],
    result: Annotated[
        str,
        typer.Argument(metavar="RESULT.json", help='Such as {"loss": 3.21}, or {"outcome": "diverged"}; - is stdin.'),
    ],
    store: opt.StoreUrl = opt.DEFAULT_STORE,
) -> None:
    """Take the result of a run that was asked for.

    loss is the final held-out loss, nats per token. Optional: step_seconds, wall_seconds, flops, params (by role, or
    one number), train_steps with train_loss, environment (machine among it), diverged_step.
    """
    from muonlab.records.store import Store

    told = _read(result)
    with Store(store) as opened:
        spec = opened.requested(key)
        record = _record(spec, told)
        if not opened.put(record):
            (known,) = opened.get([record.key]).values()
            if (known.outcome, known.final_loss) != (record.outcome, record.final_loss):
                raise UsageError(
                    f"run {record.key[:12]} already has the outcome {known.outcome}, loss {known.final_loss}: "
                    f"`muonlab runs rm {record.key[:12]}` first, if that is wrong"
                )
    loss = "" if record.final_loss is None else f", loss {record.final_loss:g}"
    print(f"run {record.key[:12]} is {record.outcome}{loss}")


def _study(path: Path) -> tuple[str, Any, Any]:
    """Kind, config and protocol of a study file."""
    from muonlab.study.compare import compare
    from muonlab.study.config import ComparisonConfig, LadderConfig, validated
    from muonlab.study.ladder import ladder
    from muonlab.study.ladder_plan import plan_ladder
    from muonlab.study.plan import plan_comparison

    chosen = values(path, {}, None, None, False)
    kind = chosen.pop("kind", "ladder" if "sizes" in chosen else "comparison")
    if kind not in KINDS:
        raise unknown("kind of study", kind, KINDS)
    if kind == "ladder":
        config = validated(chosen, LadderConfig)
        with users_code():
            rungs = plan_ladder(config)
        asked = config.model_dump(mode="json")
        return kind, config, ladder(rungs.bases, rungs.spaces, rungs.sizes, rungs.rules, asked)
    config = validated(chosen, ComparisonConfig)
    if len(config.optimizers) < 2:
        raise UsageError('a comparison needs at least two optimizers: optimizers = ["adamw", "muon"]')
    with users_code():
        plan = plan_comparison(config)
    asked = {**config.model_dump(mode="json"), "conventions": plan.conventions, "starts": plan.starts}
    return kind, config, compare(plan.bases, plan.spaces, plan.rules, asked, plan.fixed)


def _show(specs: tuple["RunSpec", ...], store: str, json: bool) -> None:
    runs = [_run(spec) for spec in specs]
    if json:
        return print_json({"done": False, "runs": runs})
    from muonlab.report.tables import requests_table

    print_parts(requests_table(runs))
    again = "" if store == opt.DEFAULT_STORE else f" --store {store}"
    print(f'\n{len(runs)} runs are wanted. For each: muonlab tell KEY RESULT.json{again}, such as {{"loss": 3.21}};')
    print("then ask again. --json prints them for a script.")


def _run(spec: "RunSpec") -> dict[str, Any]:
    """What a trainer has to know of a run."""
    return {
        "key": spec.key,
        "optimizer": spec.optimizer,
        "hyperparameters": dict(spec.hyperparameters),
        "task": spec.task,
        "task_options": dict(spec.task_options),
        "tokens": spec.horizon_tokens,
        "batch_tokens": spec.batch_tokens,
        "num_steps": spec.num_steps,
        "seed": spec.seed,
        "schedule": {f.name: getattr(spec.schedule, f.name) for f in fields(spec.schedule)},
        "clip": spec.clip,
        "precision": spec.precision,
    }


def _read(path: str) -> dict[str, Any]:
    from muonlab.records.importers import first_line, read_bytes

    try:
        told = jsonlib.loads(read_bytes(path))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({first_line(error)})") from None
    if not isinstance(told, dict):
        raise UsageError(f'{path} must be an object such as {{"loss": 3.21}}, got {type(told).__name__}')
    for name in told:
        if name not in TOLD:
            raise unknown("field of a result", name, TOLD)
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
    params = told.get("params", {})
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
            wall_seconds=float(told.get("wall_seconds", 0.0)),
            step_seconds=None if told.get("step_seconds") is None else float(told["step_seconds"]),
            flops=float(told.get("flops", 0.0)),
            params=params if isinstance(params, dict) else {"hidden": int(params)},
            tokens=spec.horizon_tokens,
            environment=dict(told.get("environment", {})),
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
        return Record.from_dict(record.to_dict())  # what would not be read again is not written
    except UsageError as error:
        raise UsageError(f"not a result: {str(error).removeprefix('not a record: ')}") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"not a result: {error}") from None
