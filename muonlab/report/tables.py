"""Findings as tables for the terminal: rich renderables in plain ASCII, legible without colour."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from muonlab.analyze.batch import noise_sums
from muonlab.analyze.findings import Check, Comparison, LossesAt, OptimizerFinding, Speedup
from muonlab.records import Record
from muonlab.records.evidence import Tuning
from muonlab.records.watch import NOISE, RANK
from muonlab.report.layout import cell, clean, grid, interval, spaced
from muonlab.report.text import claim, counted, is_undefined, is_withheld, plural, show

__all__ = ["checks_table", "comparison_table", "record_table", "requests_table", "runs_table", "tuning_table"]

HELD_OUT = "heldout."  # before the name of what a task measures there

KEY_LENGTH = 12  # of a record's key, as everywhere on screen
HELD = {True: Text("ok", style="green"), False: Text("BROKEN", style="bold red"), None: Text("-", style="yellow")}


def comparison_table(finding: Comparison) -> list[RenderableType]:
    """The finding, verdict first: what `compare` prints when the runs are done."""
    return spaced(
        Text(clean(finding.verdict) or "No verdict was drawn.", style="bold"),
        _optimizers(finding),
        *([_contrasts(finding)] if finding.contrasts else []),
        *([_paired(finding)] if finding.paired else []),
        _horizons(finding),
        checks_table(finding.checks),
        Text("\n".join([*_starts(finding), _cost(finding)]), style="dim"),
    )


def _optimizers(finding: Comparison) -> Table:
    table = grid(f"At {show(finding.horizon_tokens, 'tokens')} tokens, baseline {clean(finding.baseline)}")
    table.add_column("optimizer", overflow="fold")
    table.add_column("final loss", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    table.add_column("wall-clock", no_wrap=True)
    table.add_column("a run", no_wrap=True)
    table.add_column("settings", overflow="fold", ratio=1)
    for name, optimizer in finding.optimizers.items():
        speedup = finding.speedup.get(name)
        table.add_row(
            cell(f"{name}\n({optimizer.optimizer})" if optimizer.fixed else name),
            cell(_loss_lines(optimizer)),
            cell("baseline" if name == finding.baseline else _tokens_lines(speedup)),
            cell("" if name == finding.baseline else _wall_lines(speedup)),
            cell(show(optimizer.wall_seconds, "seconds")),
            cell(_settings_lines(optimizer)),
        )
    if not finding.optimizers:
        table.add_row(*("-" for _ in table.columns))
    return table


def _settings_lines(optimizer: OptimizerFinding) -> str:
    """What was tuned, then what a variant sets."""
    lines = [f"{key} {show(value, 'value')}" for key, value in optimizer.hyperparameters.items()]
    lines += [f"{key} {show(value, 'value')}, fixed" for key, value in optimizer.fixed.items()]
    return "\n".join(lines) or "-"


def _loss_lines(optimizer: OptimizerFinding) -> str:
    """Mean, standard deviation between seeds, and of how many."""
    lines = [show(optimizer.loss_mean, "loss"), f"+- {show(optimizer.loss_std, 'loss')}"]
    lines.append(plural(optimizer.num_seeds, "seed"))
    if optimizer.num_diverged:
        lines.append(f"{optimizer.num_diverged} diverged")
    return "\n".join(lines)


def _tokens_lines(speedup: Speedup | None) -> str:
    if speedup is None or is_undefined(speedup.tokens):
        return "undefined"
    if speedup.flag == "censored":
        return f"{speedup.bound} {show(speedup.tokens, 'ratio')}\na bound"
    lines = f"{show(speedup.tokens, 'ratio')}\n{interval(speedup.low, speedup.high)}"
    return f"{lines}\n{speedup.flag}" if speedup.flag else lines


def _wall_lines(speedup: Speedup | None) -> str:
    if speedup is None or is_undefined(speedup.wall):
        return "undefined"
    if speedup.flag == "censored":
        return f"{speedup.bound} {show(speedup.wall, 'ratio')}"
    return f"{show(speedup.wall, 'ratio')}\n{interval(speedup.wall_low, speedup.wall_high)}"


def _contrasts(finding: Comparison) -> Table:
    table = grid(f"Final loss minus that of {clean(finding.baseline)}, nats (negative is lower loss)")
    for heading in ("optimizer", "difference", "95 % interval", "p", "resolvable", "judgement"):
        table.add_column(heading, overflow="fold")
    for name, test in finding.contrasts.items():
        table.add_row(
            cell(name),
            cell(show(test.difference_nats, "difference")),
            cell(interval(test.low, test.high, "difference")),
            cell(show(test.p_value, "p")),
            cell(show(test.resolvable_nats, "loss")),
            cell("withheld" if is_withheld(finding) else test.judgement),
        )
    return table


def _paired(finding: Comparison) -> Table:
    allows = any(test.tuning_nats is not None for test in finding.paired.values())
    table = grid(f"The same seed by seed; the bound (one-sided, 97.5 %){' allows for tuning' if allows else ''}")
    headings = ["optimizer", "pairs", "difference", "95 % interval", "correlation", "bound"]
    margin = next(iter(finding.paired.values())).margin_nats
    if margin is not None:
        headings.append(f"no worse by {margin:g}")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for name, test in finding.paired.items():
        lost = f"\n{test.num_lost} lost" if test.num_lost else ""
        cells = [
            name,
            f"{test.num_pairs}{lost}",
            show(test.difference_nats, "difference"),
            interval(test.low, test.high, "difference"),
            show(test.correlation, "correlation"),
            show(test.bound_nats, "difference"),
            claim(test),
        ]
        table.add_row(*map(cell, cells[: len(headings)]))
    return table


def _horizons(finding: Comparison) -> Table:
    table = grid("Final held-out losses, nats")
    for heading in ("optimizer", "horizon", "mean", "95 % interval", "each seed"):
        table.add_column(heading, overflow="fold", ratio=1 if heading == "each seed" else None)
    for name, optimizer in finding.optimizers.items():
        for i, at in enumerate(optimizer.horizons):
            table.add_row(
                cell(name if i == 0 else ""),
                cell(show(at.horizon_tokens, "tokens")),
                cell(show(at.mean, "loss")),
                cell(interval(at.low, at.high, "loss")),
                cell(_seed_losses(at)),
            )
    return table


def _seed_losses(at: LossesAt) -> str:
    return " ".join(show(loss, "loss", "lost") for loss in at.losses) or "-"


def checks_table(checks: Sequence[Check]) -> Table:
    """The fairness rules, and what was found of each."""
    table = grid(f"Fairness checks: {plural(len(checks), 'rule')}, {counted(checks)}")
    table.add_column("rule", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("what was found", overflow="fold", ratio=1)
    for check in checks:
        held = Text(check.severity, style="yellow") if check.severity and check.ok else HELD[check.ok]
        table.add_row(cell(check.name), held, cell(check.detail))
    return table


def _starts(finding: Comparison) -> list[str]:
    """Where each tuning started, and who says so."""
    starts = finding.config.get("starts", {})
    return [f"{clean(name)} was tuned from {'; '.join(_by_source(starts[name]))}." for name in starts]


def _by_source(starts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Starts of coordinates, those with one source together."""
    sources = dict.fromkeys(str(at["source"]) for at in starts.values())
    named = {
        source: [f"{key} {show(at['value'], 'value')}" for key, at in starts.items() if at["source"] == source]
        for source in sources
    }
    return [clean(f"{', '.join(values)} ({source})") for source, values in named.items()]


def _cost(finding: Comparison) -> str:
    failed = f", {finding.num_failed} failed" if finding.num_failed else ""
    tuned = "; ".join(f"{clean(name)} {_tuned(f)}" for name, f in finding.optimizers.items())
    total = f"Cost: {plural(finding.num_runs, 'run')}{failed}, {show(finding.total_tokens, 'tokens')} tokens"
    return f"{total} ({tuned})." if tuned else f"{total}."


def _tuned(optimizer: OptimizerFinding) -> str:
    if optimizer.converged is None:
        return f"{plural(optimizer.tuning_runs, 'configuration')} tried"
    ended = "converged" if optimizer.converged else "stopped by the cap"
    return (
        f"tuned with {plural(optimizer.tuning_runs, 'run')}, {show(optimizer.tuning_tokens, 'tokens')} tokens, {ended}"
    )


def runs_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Runs of a store, a line each. Fields that a row lacks, or that are None, show as a dash."""
    columns = {
        "key": "text", "task": "text", "optimizer": "text", "outcome": "text", "horizon_tokens": "tokens",
        "seed": "text", "final_loss": "loss", "wall_seconds": "seconds", "created": "text",
    }  # fmt: skip
    short = {"horizon_tokens": "tokens", "final_loss": "loss", "wall_seconds": "time"}
    table = grid("")
    table.padding = 0  # nine columns in 80 characters
    for name, kind in columns.items():
        justify = "left" if kind == "text" and name != "seed" else "right"
        table.add_column(
            short.get(name, name), justify=justify, overflow="fold", no_wrap=name not in ("task", "optimizer")
        )
    for row in rows:
        shown = {name: show(row.get(name), kind) for name, kind in columns.items()}
        shown |= {"key": shown["key"][:KEY_LENGTH], "created": shown["created"][:10]}
        style = {"diverged": "yellow", "failed": "red"}.get(shown["outcome"], "")
        table.add_row(*(cell(text) for text in shown.values()), style=style)
    if not table.rows:
        table.add_row(*("-" for _ in columns))
    return table


def record_table(record: Record) -> list[RenderableType]:
    """One run: what it was, what it gave, what it ran on, and its error if there is one."""
    spec = record.spec
    rows = {
        "task, optimizer": f"{spec.task}, {spec.optimizer}",
        "outcome": record.outcome,
        "final loss": show(record.final_loss, "loss"),
        "diverged at step": show(record.diverged_step, "text"),
        "tokens": f"{show(record.tokens, 'tokens')} of {show(spec.horizon_tokens, 'tokens')}",
        "batch, seed": f"{show(spec.batch_tokens, 'count')} tokens, {spec.seed}",
        "time": f"{show(record.wall_seconds, 'seconds')}, a step {show(record.step_seconds, 'seconds')}",
        "parameters": show(record.num_params, "count"),
        **{name: show(value, "value") for name, value in spec.hyperparameters.items()},
        **({"averaging": show(spec.averaging, "value")} if spec.averaging else {}),
        **_noise_rows(record),
        **_last_rows(record, HELD_OUT, "held-out "),
        **_last_rows(record, RANK, "effective rank of "),
        **{name: show(value, "value") for name, value in record.environment.items()},
        "created": record.created or "-",
    }
    table = grid("")
    table.show_header = False
    table.add_column()
    table.add_column(overflow="fold", ratio=1)
    for name, text in rows.items():
        if name != "diverged at step" or record.outcome == "diverged":
            table.add_row(cell(name), cell(text))
    return spaced(Text(f"run {record.key}", style="bold"), table, *([cell(record.error)] if record.error else []))


def _last_rows(record: Record, prefix: str, said: str) -> dict[str, str]:
    """Probes whose name begins so, as they were when last looked at."""
    found = {name: series for name, series in record.probes.items() if name.startswith(prefix) and series.steps}
    return {
        f"{said}{name.removeprefix(prefix)}": f"{series.values[-1]:.4g} at step {series.steps[-1]:,}"
        for name, series in found.items()
    }


def _noise_rows(record: Record) -> dict[str, str]:
    """The noise scale over the second half of the run, where gradient noise was measured."""
    if not set(NOISE) <= set(record.probes):
        return {}
    sums = noise_sums(record, record.tokens / 2, record.tokens)
    said = "not measured: it takes batches of two samples or more, and more steps, or larger batches"
    if sums:
        square, trace, signal, noise = (sums[name] for name in NOISE)
        scale = f"{trace / square:,.0f} tokens" if square > 0 and trace > 0 else "not to be told from so few probes"
        nuclear = f"{(noise / signal) ** 2:,.0f}" if signal > 0 else "not to be told"
        said = f"{scale}, in the nuclear norm {nuclear}; over the second half of the run"
    return {"noise scale": said}


def requests_table(runs: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Runs that somebody else's trainer is asked to make; what they have in common stands above, once."""
    asked = [_asked(run) for run in runs]
    shared = _shared(asked)
    own = {
        name: _shared([settings for run, settings in zip(runs, asked, strict=True) if run["optimizer"] == name])
        for name in dict.fromkeys(run["optimizer"] for run in runs)
    }
    lines = [f"all: {_listed(shared)}" if shared else ""]
    lines += [f"{name}: {_listed(found, shared)}" for name, found in own.items()]
    table = grid("")
    for name in ("key", "optimizer", "tokens", "seed", "settings"):
        table.add_column(name, overflow="fold")
    for run, settings in zip(runs, asked, strict=True):
        table.add_row(
            run["key"][:KEY_LENGTH],
            cell(run["optimizer"]),
            show(run["tokens"], "tokens"),
            str(run["seed"]),
            cell(_listed(settings, own[run["optimizer"]])),
        )
    return spaced(*(Text(clean(line)) for line in lines if line), table)


def _asked(run: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but what has a column of its own, by dotted names."""
    schedule = dict(run["schedule"])
    if schedule["kind"] != "wsd":
        del schedule["decay_fraction"]  # which only wsd reads
    nested = {"task.": run["task_options"], "schedule.": schedule, "base.": run["base"]}
    return {
        **run["hyperparameters"],
        **run["conventions"],
        "task": run["task"],
        **{f"{prefix}{name}": value for prefix, values in nested.items() for name, value in values.items()},
        **{name: run[name] for name in ("batch_tokens", "clip", "precision", "parametrization")},
    }


def _shared(asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that are the same everywhere. lr is always told run by run."""
    first = asked[0]
    return {
        name: value
        for name, value in first.items()
        if name != "opt.lr" and all(name in other and other[name] == value for other in asked)
    }


def _listed(settings: Mapping[str, Any], but: Collection[str] = ()) -> str:
    return ", ".join(f"{name} {show(value, 'value')}" for name, value in settings.items() if name not in but)


def tuning_table(
    tuning: Tuning, loss: float | None = None, losses: Mapping[str, float | None] | None = None,
    starts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[RenderableType]:  # fmt: skip
    """Best settings and their mean loss, then every move made or refused; with `losses` (by record key) the trials.

    `starts` has, by coordinate, the `value` where its tuning started and the `source` of that.
    """
    ended = "converged" if tuning.converged else "stopped by the cap on runs"
    head = (
        f"{clean(tuning.optimizer)} at {show(tuning.horizon_tokens, 'tokens')} tokens: {ended} after "
        f"{plural(tuning.num_runs, 'run')} ({show(tuning.tokens, 'tokens')} tokens)."
    )
    if loss is not None:
        head += f" Mean loss {show(loss, 'loss')}."
    if tuning.edges:
        head += f" On an edge of its grid: {clean(', '.join(tuning.edges))}."
    trials = [] if losses is None else [_trials(tuning, losses)]
    sources = [Text(f"Started from {'; '.join(_by_source(starts))}.", style="dim")] if starts else []
    return spaced(Text(head, style="bold"), _best(tuning, starts or {}), *sources, _moves(tuning), *trials)


def _best(tuning: Tuning, starts: Mapping[str, Mapping[str, Any]]) -> Table:
    table = grid("Best settings")
    for name in ("coordinate", "value", *(("started at",) if starts else ())):
        table.add_column(name, overflow="fold")
    for name, value in tuning.best.items():
        start = (show(starts[name]["value"], "value"),) if name in starts else ()
        table.add_row(cell(name), cell(show(value, "value")), *start)
    return table


def _moves(tuning: Tuning) -> Table:
    table = grid(f"Moves: {sum(move.accepted for move in tuning.moves)} made of {len(tuning.moves)}")
    for heading in ("coordinate", "from -> to", "gain, nats", "seeds", "made", "reason"):
        table.add_column(heading, overflow="fold", ratio=1 if heading == "reason" else None)
    for move in tuning.moves:
        error = "" if is_undefined(move.standard_error) else f" +- {show(move.standard_error, 'loss')}"
        table.add_row(
            cell(move.coordinate),
            cell(f"{show(move.old, 'value')} -> {show(move.new, 'value')}"),
            cell(f"{show(move.gain, 'difference')}{error}"),
            cell(str(move.num_seeds)),
            Text("yes", style="green") if move.accepted else Text("no"),
            cell(move.reason),
        )
    return table


def _trials(tuning: Tuning, losses: Mapping[str, float | None]) -> Table:
    table = grid(f"Trials: {plural(len(tuning.trials), 'configuration')}, final loss of each seed")
    table.add_column("settings", overflow="fold")
    table.add_column("losses", overflow="fold", ratio=1)
    for trial in tuning.trials:
        settings = ", ".join(f"{name} {show(value, 'value')}" for name, value in trial.settings.items())
        shown: Sequence[str] = [show(losses.get(key), "loss", "lost") for key in trial.keys]
        table.add_row(cell(settings), cell(" ".join(shown)))
    return table
