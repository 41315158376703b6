"""A recipe for the terminal: what to set, how sure that is, and what a check would cost."""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from muonlab.analyze.recipe import Entry, Recipe, SweepFit
from muonlab.report.layout import cell, clean, grid, spaced
from muonlab.report.text import plural, show

__all__ = ["recipe_table"]

NAMES = {"params": "params", "tokens": "tokens", "tokens_per_param": "tokens per parameter"}


def recipe_table(finding: Recipe) -> list[RenderableType]:
    """Hyperparameters with intervals and sources, the other sweep beside them, then extrapolation and cost."""
    head = (
        f"{clean(finding.optimizer)} at {show(finding.params, 'tokens')} parameters, {show(finding.tokens, 'tokens')} "
        f"tokens ({finding.tokens / finding.params:.3g} a parameter)"
    )
    fits = [fit for fit in (finding.own, finding.published) if fit is not None]
    short = {fit.source: "your runs" if fit is finding.own else "published" for fit in fits}
    others = [fit for fit in fits if not _leads(fit, finding)]
    return spaced(
        *_tables(head, finding.hyperparameters, short),
        *[part for fit in others for part in _tables(f"Beside it: {fit.source}", fit.hyperparameters, short)],
        *([Text("\n".join(map(clean, finding.warnings)), style="yellow")] if finding.warnings else []),
        Text(f"{_reach(finding)}\n{_cost(finding)}"),
        *[_differs(fit) for fit in fits if fit.differs],
    )


def _leads(fit: SweepFit, finding: Recipe) -> bool:
    return fit.source == finding.source


def _tables(title: str, entries: Mapping[str, Entry], short: Mapping[str, str]) -> list[RenderableType]:
    """The values, and below them the notes, which are too long for a column: those that have the same together."""
    table = grid(title)
    for name in ("name", "value", "95 % interval"):
        table.add_column(name, no_wrap=True)
    table.add_column("source", overflow="fold")
    notes: dict[str, list[str]] = {}
    for name, entry in entries.items():
        row = (name, _value(entry.value), _interval(entry), short.get(entry.source, entry.source))
        table.add_row(*map(cell, row))
        if entry.note:
            notes.setdefault(entry.note, []).append(name)
    lines = [f"- {', '.join(names)}: {note}" for note, names in notes.items()]
    return [table, *([Text(clean("\n".join(lines)), style="dim")] if lines else [])]


def _value(value: Any) -> str:
    return show(value, "count") if isinstance(value, int) and value >= 10_000 else show(value, "value")


def _interval(entry: Entry) -> str:
    if entry.low is None or entry.high is None:
        return "-"
    kind = "tokens" if entry.high >= 10_000 else "value"
    return f"[{show(entry.low, kind)}, {show(entry.high, kind)}]"


def _reach(finding: Recipe) -> str:
    """Where the place lies in the sweep that is relied on."""
    fit = next(fit for fit in (finding.own, finding.published) if fit is not None and _leads(fit, finding))
    spans = " and ".join(
        f"{show(low, 'tokens')} to {show(high, 'tokens')} {name}" for name, (low, high) in fit.ranges.items()
    )
    outside = [f"{factor:.3g}x in {NAMES[name]}" for name, factor in finding.extrapolation.items() if factor > 1.0]
    where = ", ".join(outside) or "none, inside"
    return f"Extrapolation: {where} ({clean(finding.source)}: {spans})."


def _cost(finding: Recipe) -> str:
    cost = finding.cost
    lrs = ", ".join(show(lr, "value") for lr in cost.lrs)
    steps = "" if finding.num_steps is None else f" of {plural(finding.num_steps, 'step')}"
    return (
        f"To check: {cost.num_runs} runs{steps} (lr {lrs}, {plural(cost.num_seeds, 'seed')} each), "
        f"{show(cost.tokens, 'tokens')} tokens, {cost.flops:.2g} FLOPs."
    )


def _differs(fit: SweepFit) -> Text:
    lines = [f"published: {fit.source}", *(f"* {line}" for line in fit.differs)]
    if fit.left_out:
        lines.append("* left out: " + ", ".join(f"{name} ({why})" for name, why in fit.left_out.items()))
    return Text("\n".join(map(clean, lines)), style="dim")
